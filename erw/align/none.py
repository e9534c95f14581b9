"""No alignment: plain SiT, the baseline, through the same loop."""

from dataclasses import dataclass

from erw.align.base import Method
from erw.types import Phase


@dataclass(frozen=True, kw_only=True)
class Plain(Method):
    """Velocity loss only."""

    name: str = "none"

    def phase(self, images: int) -> Phase:
        return Phase(name="train")
