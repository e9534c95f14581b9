"""Where a step's time goes: ranges around its parts, a trace of some steps and a page of figures from it."""

from erw.profile.recorder import WARMUP_STEPS, Profile

__all__ = ["WARMUP_STEPS", "Profile"]
