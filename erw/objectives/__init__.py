"""What the model learns to predict, one file each. A new objective is a new file and one line in ``OBJECTIVES``."""

from erw.objectives.base import Objective, StepInput
from erw.objectives.ddpm import Ddpm
from erw.objectives.flow import Flow

OBJECTIVES: dict[str, type[Objective]] = {"flow": Flow, "ddpm": Ddpm}

__all__ = ["OBJECTIVES", "Ddpm", "Flow", "Objective", "StepInput"]
