"""Settings of sampling."""

from dataclasses import dataclass
from typing import Literal

from erw.errors import UserError
from erw.objectives import Objective
from erw.objectives.ddpm import STEPS
from erw.settings import setting


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """Settings of sampling. The papers' protocols: sde with 250 steps (SiT, REPA, ERW), ddpm with 250 (DiT)."""

    sampler: Literal["ode", "heun", "dopri5", "sde", "ddpm", "ddim"] = setting(
        "sde", "flow: ode (Euler), heun, dopri5 (adaptive), sde (Euler-Maruyama); ddpm: ddpm (ancestral), ddim"
    )
    steps: int = setting(250, "steps; each is one network evaluation (heun: two), twice the passes under guidance")
    guidance: float = setting(1.0, "guidance scale; 1 is none")
    guidance_low: float = setting(0.0, "lowest t with guidance, noise being t = 1")
    guidance_high: float = setting(1.0, "highest t with guidance")
    guidance_channels: int = setting(0, "guide the first so many channels; 0: all. DiT's and SiT's code guide 3")
    last_step: float = setting(0.04, "sde: length of the last, deterministic step")
    diffusion: Literal["sigma", "constant", "sbdm", "linear", "decreasing", "increasing-decreasing"] = setting(
        "sigma", "sde: form of the diffusion coefficient (SiT, Table 2); sigma: w_t = 2 sigma_t, REPA's"
    )
    diffusion_norm: float = setting(1.0, "sde: factor of the diffusion coefficient")
    eta: float = setting(0.0, "ddim: share of the ancestral sampler's noise")
    tolerance: float = setting(1e-6, "dopri5: absolute and relative error; its steps depend on the whole batch")

    def __post_init__(self):
        if self.steps < 2:
            raise UserError(f"--sample.steps must be at least 2, not {self.steps}")
        if not 0 < self.last_step < 1:
            raise UserError(f"--sample.last_step must lie between 0 and 1, not {self.last_step}")
        if self.guidance_low > self.guidance_high:
            raise UserError(
                f"--sample.guidance_low {self.guidance_low} lies above --sample.guidance_high {self.guidance_high}: no t is"
                " between them"
            )
        if self.guidance_channels < 0:
            raise UserError(f"--sample.guidance_channels must be 0 (all) or more, not {self.guidance_channels}")
        for name in ("diffusion_norm", "tolerance"):
            if getattr(self, name) <= 0:
                raise UserError(f"--sample.{name} must be above 0, not {getattr(self, name)}")
        if not 0 <= self.eta <= 1:
            raise UserError(f"--sample.eta must lie in 0..1, not {self.eta}")

    def check(self, objective: Objective) -> None:
        """Raise `UserError` where ``objective`` cannot be sampled this way."""
        if self.sampler not in objective.samplers:
            raise UserError(
                f"--sample.sampler {self.sampler} does not fit --objective.name {objective.name}: choose one of"
                f" {', '.join(objective.samplers)}"
            )
        if self.sampler in ("ddpm", "ddim"):
            check_chain(self.steps)


def check_chain(steps: int) -> None:
    """Raise `UserError` where a DDPM has fewer steps than that."""
    if steps > STEPS:
        raise UserError(f"--sample.steps {steps}: this objective has {STEPS}")
