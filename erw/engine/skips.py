"""How many steps in a row were skipped because their gradients were not finite, counted where the steps are: on the device."""

import torch
from torch import Tensor


class SkipRow:
    """The longest row of skipped steps. A step that was not taken leaves the optimizer's counter alone: all that is needed."""

    def __init__(self, taken: Tensor):
        """``taken``: the optimizer's step counter, 0-d fp32."""
        self._taken = taken.clone()
        self._row, self._longest, self._end = (torch.zeros_like(taken, dtype=torch.float64) for _ in range(3))

    def note(self, taken: Tensor, images: int) -> None:
        """A step has ended at image ``images`` with the counter at ``taken``. The host does not wait."""
        self._row = torch.where(taken > self._taken, 0.0, self._row + 1)
        self._end = torch.where(self._row > self._longest, float(images), self._end)
        self._longest = torch.maximum(self._longest, self._row)
        self._taken.copy_(taken)

    def found(self) -> dict[str, Tensor]:
        """``skipped_row``: how many steps the longest row has; ``skipped_row_end``: the image at which it ended. 0-d fp64."""
        return {"skipped_row": self._longest, "skipped_row_end": self._end}
