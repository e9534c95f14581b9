"""Where training images come from. A new source is a new file and one line in ``open_dataset``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from erw.data.arrays import ArrayDataset
from erw.data.memory import digits_dataset
from erw.data.stream import Dataset
from erw.errors import UserError
from erw.settings import setting


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Settings of the data."""

    name: Literal["digits", "arrays", "store"] = setting(
        "digits", "digits: embedded; arrays: a folder of memory-mapped arrays; store: what erw prepare made, or such a folder"
    )
    path: str = setting("", "folder of an arrays dataset; of a store folder or URL (s3://bucket/name)")
    fit: bool = setting(False, "take classes, latents, autoencoder and teachers from the dataset (folder presets)")
    workers: int = setting(0, "loader processes a rank; 0 loads in the training process")
    ahead: int = setting(2, "micro-batches that each loader process reads ahead")
    window: int = setting(16, "shards of a prepared dataset that are shuffled together")
    cache: str = setting("", "of a dataset at a URL: folder for its shards on this machine (default ~/.cache/erw/shards)")
    cache_gb: float = setting(0.0, "most that this folder holds; 0: what fits on the disk")

    def __post_init__(self):
        for name, least in (("workers", 0), ("ahead", 1), ("window", 1), ("cache_gb", 0)):
            if getattr(self, name) < least:
                raise UserError(f"--data.{name} is {getattr(self, name)}: {least} or more")


def open_dataset(config: DataConfig) -> Dataset:
    """The dataset that ``config`` names. Raises `UserError` where it is missing or malformed."""
    if config.name == "digits":
        return digits_dataset()
    if config.name == "arrays" or (Path(config.path) / "latents.npy").is_file():
        return ArrayDataset(config.path)
    from erw.data.store.dataset import StoreDataset  # pyarrow takes a while to import, and others do without

    return StoreDataset(config.path, config.window, config.cache, int(config.cache_gb * 1e9))


__all__ = ["DataConfig", "Dataset", "open_dataset"]
