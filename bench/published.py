"""A checkout of the published REPA code, imported from its files without touching ``sys.path``."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from torch import Tensor, nn

from erw.bench.reference import Losses
from erw.errors import UserError
from erw.models.sit import SiTConfig

# The published code gives S/2 a final layer 768 wide on a trunk 384 wide, and fails in its forward.
BROKEN = ("S/2", "S/4", "S/8")


@dataclass(frozen=True)
class Published:
    """The two files that matter: ``models/sit.py`` and ``loss.py``."""

    sit: ModuleType
    loss: ModuleType

    def model(self, config: SiTConfig, *, name: str | None = None, encoder_depth: int, feature_width: int) -> nn.Module:
        """Their SiT of the same shape; by ``name`` (``XL/2``) out of their own table where one is given."""
        if name in BROKEN:
            raise UserError(f"--model {name} cannot run in the published code; take B/2, L/2 or XL/2")
        shape = {
            "depth": config.depth,
            "hidden_size": config.width,
            "decoder_hidden_size": config.width,
            "patch_size": config.patch_size,
            "num_heads": config.num_heads,
            "mlp_ratio": config.mlp_ratio,
        }
        build = self.sit.SiT_models[f"SiT-{name}"] if name else self.sit.SiT
        return build(
            **({} if name else shape),
            input_size=config.input_size,
            in_channels=config.in_channels,
            num_classes=config.num_classes,
            encoder_depth=encoder_depth,
            z_dims=[feature_width],
            use_cfg=True,
            fused_attn=True,
            qk_norm=False,
        )

    def losses(self) -> Losses:
        """Their SILoss (linear path, velocity, uniform t) with the signature of `reference_losses`."""
        loss = self.loss.SILoss(prediction="v", path_type="linear", weighting="uniform")

        def call(model, latents: Tensor, labels: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
            return loss(model, latents, {"y": labels}, zs=[features])

        return call


def load_published(path: str, option: str) -> Published:
    """The code under ``path``; ``option`` names the command-line option in the error when it is not there."""
    root = Path(path)
    return Published(_module(root / "models" / "sit.py", option), _module(root / "loss.py", option))


def _module(file: Path, option: str) -> ModuleType:
    if not file.is_file():
        raise UserError(f"{option}: {file} is not there; give a checkout of https://github.com/sihyun-yu/REPA")
    spec = importlib.util.spec_from_file_location(f"erw_bench_published_{file.stem}", file)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        raise UserError(f"{option}: {file} does not import: {error}") from error
    return module
