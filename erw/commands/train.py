"""``erw train``."""

import train_ds


def run(arguments: list[str]) -> None:
    """The same as ``python train_ds.py``."""
    train_ds.main(arguments)
