"""From a public checkpoint to latents: the samplers of the SiT, DiT and REPA code against ours.

A small network of their class, with drawn weights, is saved as their training script saves it and as a bare state dict,
read by `erw.public` and sampled by `erw.sample.generate`. Theirs samples with the network as it is, from the same start
and with the same noise in each step. Both networks compute in fp32; SiT and DiT have an fp32 state, REPA and ours fp64.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import torch
from torch import Tensor, nn

from erw import rng
from erw.bench._parity import drawn_state, handed_draws, load_theirs, perturb_weight, relative_error
from erw.bench._parity_report import Check
from erw.bench.published import FORMS, PATHS, Published, PublishedDit, PublishedSit
from erw.build import build_sampler_model
from erw.models.sit import SiT, SiTConfig, SiTOutput
from erw.public import read_public
from erw.rng import Purpose
from erw.sample import generate

LIMIT = 1e-5
STEPS = 8
GUIDANCE = 4.0
NORM = 0.7  # of SiT's diffusion coefficient: not 1, so that a form that leaves it out is noticed
# REPA's samplers have 1000 for the null class written into them.
CONFIG = SiTConfig(depth=3, width=64, num_heads=4, input_size=8, num_classes=1000)
TRAINING, BARE = "training checkpoint", "state dict"


@dataclass(frozen=True)
class Given:
    """What both samplers start from: labels (B,) and all that ``seed`` decides."""

    seed: int
    labels: Tensor = field(default_factory=lambda: torch.tensor([3, 417, 999]))

    @property
    def start(self) -> Tensor:
        """(B, C, S, S) fp32: the noise that ours starts from."""
        return self._normal(Purpose.SAMPLER_START, 0)

    def noises(self, count: int) -> list[Tensor]:
        """The noise of our first ``count`` steps, each (B, C, S, S) fp32."""
        return [self._normal(Purpose.SAMPLER_STEP, step) for step in range(count)]

    def _normal(self, purpose: Purpose, stream: int) -> Tensor:
        shape = (CONFIG.in_channels, CONFIG.input_size, CONFIG.input_size)
        return rng.normal(self.seed, torch.arange(len(self.labels)), purpose, shape, stream=stream)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One of their samplers, and the settings that make ours the same; ``adapt`` changes our network before it."""

    name: str
    case: str
    settings: dict[str, str | int | float]
    theirs: Callable[[nn.Module, Given], Tensor]
    adapt: Callable[[SiT], nn.Module] = lambda model: model


def sit_checks(published: PublishedSit, seed: int, perturb: float = 0.0) -> list[Check]:
    """Euler's ODE and Euler-Maruyama with every form of diffusion, on both interpolants, plain and guided."""
    checks = []
    for kind, path in PATHS.items():
        options = Namespace(model="SiT-XL/2", path_type=path, prediction="velocity", loss_weight=None, cfg_scale=4.0)
        build = partial(published.model, replace(CONFIG, learn_sigma=True))
        checks += _checks("sit", build, options, kind == "linear", list(_sit_runs(published, kind)), seed, perturb)
    return checks


def dit_checks(published: PublishedDit, seed: int, perturb: float = 0.0) -> list[Check]:
    """The ancestral sampler and DDIM on a few respaced steps, plain and guided."""
    options = Namespace(model="DiT-XL/2", image_size=256, num_classes=1000)
    build = partial(published.model, replace(CONFIG, learn_sigma=True))
    return _checks("dit", build, options, True, list(_dit_runs(published)), seed, perturb)


def repa_checks(published: Published, samplers: ModuleType, seed: int, perturb: float = 0.0) -> list[Check]:
    """Euler's and Heun's ODE and Euler-Maruyama, on both interpolants, plain, guided and guided within an interval."""
    checks = []
    for kind in PATHS:
        options = Namespace(model="SiT-XL/2", path_type=kind, prediction="v", qk_norm=False, encoder_depth=2)
        build = partial(published.model, CONFIG, encoder_depth=2, feature_width=24)
        checks += _checks("repa", build, options, kind == "linear", list(_repa_runs(samplers, kind)), seed, perturb)
    return checks


def _checks(convention: str, build: Callable[[], nn.Module], options: Namespace, bare: bool, runs: list[Run], seed: int,
            perturb: float) -> list[Check]:  # fmt: skip
    """All ``runs`` from their training checkpoint, and where ``bare`` from a state dict, which is read as linear."""
    model, given = build(), Given(seed)
    load_theirs(model, seed, torch.float32)
    with torch.no_grad():
        theirs = [run.theirs(model, given) for run in runs]
    checks = []
    with TemporaryDirectory() as folder:
        for form in (TRAINING, BARE) if bare else (TRAINING,):
            file = Path(folder) / "0400000.pt"
            torch.save(_training_checkpoint(model, options, seed) if form == TRAINING else model.state_dict(), file)
            public = read_public(file, convention, num_heads=CONFIG.num_heads)
            ours = build_sampler_model(public.config, public.weights, torch.device("cpu"))
            perturb_weight(ours, perturb)
            for run, expected in zip(runs, theirs, strict=True):
                settings = replace(public.sample, steps=STEPS, **run.settings)
                found = generate(run.adapt(ours), public.objective, settings, given.labels, seed=seed)
                checks.append(Check(f"{run.name}, {run.case}, {form}", relative_error(found, expected), LIMIT))
    return checks


def _training_checkpoint(model: nn.Module, options: Namespace, seed: int) -> dict:
    """The dict that their training scripts save, an optimizer that has stepped included. ``model`` is the EMA.

    The weights under "model" are others, so reading those is noticed.
    """
    ema = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter) if parameter.requires_grad else None
    optimizer.step()
    return {"model": drawn_state(ema, seed + 1), "ema": ema, "opt": optimizer.state_dict(), "args": options}


def _conditioned(model: nn.Module, given: Given, guidance: float) -> tuple[Callable, Tensor, dict[str, Tensor | float], int]:
    """(network, start, its keywords, copies of the batch) as SiT's and DiT's sampling scripts put them together."""
    if guidance == 1.0:
        return model.forward, given.start, {"y": given.labels}, 1
    labels = torch.cat([given.labels, torch.full_like(given.labels, CONFIG.num_classes)])
    return model.forward_with_cfg, given.start.repeat(2, 1, 1, 1), {"y": labels, "cfg_scale": guidance}, 2


def _sit_runs(published: PublishedSit, kind: str) -> Iterator[Run]:
    def ode(model: nn.Module, given: Given, guidance: float) -> Tensor:
        network, start, conditions, _ = _conditioned(model, given, guidance)
        # They count points, not steps.
        sample = published.sampler(kind).sample_ode(sampling_method="euler", num_steps=STEPS + 1)
        return sample(start, network, **conditions)[-1][: len(given.labels)]

    def sde(model: nn.Module, given: Given, guidance: float, form: str) -> Tensor:
        network, start, conditions, copies = _conditioned(model, given, guidance)
        # A norm that is a tensor: their constant form fails on a number, of which it takes a root.
        sample = published.sampler(kind).sample_sde(diffusion_form=FORMS[form], diffusion_norm=torch.tensor(NORM),
                                                    last_step="Mean", last_step_size=0.04, num_steps=STEPS)  # fmt: skip
        with handed_draws(randn=[noise.repeat(copies, 1, 1, 1) for noise in given.noises(STEPS - 1)]):
            return sample(start, network, **conditions)[-1][: len(given.labels)]

    for guidance in (1.0, GUIDANCE):
        case = f"{kind} guidance {guidance:g}"
        settings = {"sampler": "ode", "guidance": guidance}
        yield Run(name="sampled by ode", case=case, settings=settings, theirs=partial(ode, guidance=guidance))
        for form in FORMS:
            settings = {"sampler": "sde", "guidance": guidance, "diffusion": form, "diffusion_norm": NORM}
            theirs = partial(sde, guidance=guidance, form=form)
            yield Run(name=f"sampled by sde {form}", case=case, settings=settings, theirs=theirs)


def _dit_runs(published: PublishedDit) -> Iterator[Run]:
    def chain(model: nn.Module, given: Given, guidance: float, eta: float | None) -> Tensor:
        network, start, conditions, copies = _conditioned(model, given, guidance)
        process = published.process(STEPS)
        loop = process.p_sample_loop if eta is None else partial(process.ddim_sample_loop, eta=eta)
        with handed_draws(randn_like=[noise.repeat(copies, 1, 1, 1) for noise in given.noises(STEPS)]):
            found = loop(network, start.shape, start, clip_denoised=False, model_kwargs=conditions, device="cpu")
        return found[: len(given.labels)]

    for guidance in (1.0, GUIDANCE):
        for eta in (None, 0.0, 0.5):
            sampler = {"sampler": "ddpm"} if eta is None else {"sampler": "ddim", "eta": eta}
            name = "sampled by ddpm" if eta is None else f"sampled by ddim eta {eta:g}"
            yield Run(name=name, case=f"guidance {guidance:g}", settings=sampler | {"guidance": guidance},
                      theirs=partial(chain, guidance=guidance, eta=eta))  # fmt: skip


def _repa_runs(samplers: ModuleType, kind: str) -> Iterator[Run]:
    def ode(model: nn.Module, given: Given, heun: bool, **options) -> Tensor:
        return samplers.euler_sampler(model, given.start, given.labels, num_steps=STEPS, heun=heun, **options)

    def sde(model: nn.Module, given: Given, **options) -> Tensor:
        with handed_draws(randn_like=given.noises(STEPS - 1)):
            return samplers.euler_maruyama_sampler(model, given.start, given.labels, num_steps=STEPS, path_type=kind, **options)

    for guidance, low, high in ((1.0, 0.0, 1.0), (GUIDANCE, 0.0, 1.0), (GUIDANCE, 0.2, 0.8)):
        case = f"{kind} guidance {guidance:g} in {low:g} to {high:g}"
        theirs = {"cfg_scale": guidance, "guidance_low": low, "guidance_high": high}
        ours = {"guidance": guidance, "guidance_low": low, "guidance_high": high}
        yield Run(name="sampled by ode", case=case, settings=ours | {"sampler": "ode"},
                  theirs=partial(ode, heun=False, **theirs))  # fmt: skip
        # Their w_t is 2 t on either path: sigma's on the linear one, and everywhere that of the form called linear.
        settings = ours | {"sampler": "sde", "diffusion": "sigma" if kind == "linear" else "linear"}
        yield Run(name="sampled by sde", case=case, settings=settings, theirs=partial(sde, **theirs))
        # Within an interval their second evaluation is guided where the first is, ours by its own t: not comparable.
        if (low, high) == (0.0, 1.0):
            yield Run(name="sampled by heun", case=case, settings=ours | {"sampler": "heun"},
                      theirs=partial(ode, heun=True, **theirs), adapt=_LastStepEuler)  # fmt: skip


class _LastStepEuler(nn.Module):
    """A network that at t = 0 gives its last output again: REPA's Heun leaves the last step's second evaluation out."""

    def __init__(self, model: SiT):
        super().__init__()
        self.model, self.config = model, model.config
        self.last: SiTOutput | None = None

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> SiTOutput:
        if t[0] > 0:
            self.last = self.model(x, t, y)
        return self.last
