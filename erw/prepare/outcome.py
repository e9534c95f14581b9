"""What became of a shard's images."""

from dataclasses import dataclass, field
from typing import Any

from erw.prepare.reading import Judged


@dataclass(kw_only=True)
class Outcome(Judged):
    """What became of the images of shard ``number``. ``rows``: usable ones; ``shards``: what the store says of its files (two
    with flips); ``classes``: how many of each label; ``encoder``: what encoded them."""

    number: int
    rows: int = 0
    classes: dict[str, int] = field(default_factory=dict)
    shards: list[dict[str, Any]] = field(default_factory=list)
    encoder: dict[str, Any] = field(default_factory=dict)

    @property
    def images(self) -> int:
        """Usable or not."""
        return self.rows + len(self.left_out)

    @property
    def bytes_an_image(self) -> float:
        """On the disk, mirrored rows included."""
        return sum(file["bytes"] for shard in self.shards for file in shard["files"].values()) / max(self.images, 1)
