"""erw: training diffusion transformers with representation alignment."""

import sys
from pathlib import Path

__version__ = "0.1.0"

_ROOT = Path(__file__).resolve().parent.parent


def _unshadow_kernels() -> None:
    """Drop the checkout's root from ``sys.path``.

    Python puts it there for ``python train_ds.py`` and ``python -m``; then the folder ``kernels/`` would hide
    Hugging Face's package of the same name, which diffusers and transformers look for. Our own modules do not need
    the entry: the installed package maps ``erw.kernels`` and ``erw.bench`` to their folders.
    """
    if (_ROOT / "kernels" / "__init__.py").exists():
        sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() != _ROOT]


_unshadow_kernels()
