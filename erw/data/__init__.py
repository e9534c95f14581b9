"""Where training images come from. A new source is a new file and one line in ``open_dataset``."""

from dataclasses import dataclass
from typing import Literal

from erw.data.arrays import ArrayDataset
from erw.data.memory import digits_dataset
from erw.data.store import StoreDataset, is_store
from erw.data.stream import Dataset
from erw.settings import setting


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Settings of the data."""

    name: Literal["digits", "arrays"] = setting("digits", "digits: embedded; arrays: a folder of memory-mapped arrays")
    path: str = setting("", "folder of an arrays dataset")
    fit: bool = setting(False, "take classes, latents, autoencoder and teachers from the dataset (folder presets)")
    workers: int = setting(0, "loader processes a rank; 0 loads in the training process")


def open_dataset(config: DataConfig) -> Dataset:
    """The dataset that ``config`` names. Raises `UserError` where it is missing or malformed."""
    if config.name == "digits":
        return digits_dataset()
    return StoreDataset(config.path) if is_store(config.path) else ArrayDataset(config.path)


__all__ = ["DataConfig", "Dataset", "open_dataset"]
