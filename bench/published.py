"""Checkouts of the published REPA, DiT and SiT code, imported from their files without touching ``sys.path``."""

import importlib.util
import sys
import zlib
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from unittest.mock import patch

import numpy as np
import torch
from torch import Tensor, nn

from erw.bench.reference import Losses
from erw.errors import UserError
from erw.models.sit import SiTConfig

# The published REPA code gives S/2 a final layer 768 wide on a trunk 384 wide, and fails in its forward.
BROKEN = ("S/2", "S/4", "S/8")
REPA, DIT, SIT = "sihyun-yu/REPA", "facebookresearch/DiT", "willisma/SiT"
# What SiT's code calls our interpolants and forms of diffusion; the last is spelled so there.
PATHS = {"linear": "Linear", "cosine": "GVP"}
FORMS = {
    "constant": "constant",
    "sigma": "sigma",
    "sbdm": "SBDM",
    "linear": "linear",
    "decreasing": "decreasing",
    "increasing-decreasing": "inccreasing-decreasing",
}


@dataclass(frozen=True)
class Published:
    """REPA: the two files that matter: ``models/sit.py`` and ``loss.py``."""

    sit: ModuleType
    loss: ModuleType

    def model(self, config: SiTConfig, *, name: str | None = None, encoder_depth: int, feature_width: int) -> nn.Module:
        """Their SiT of the same shape; by ``name`` (``XL/2``) out of their own table where one is given."""
        if name in BROKEN:
            raise UserError(f"--model {name} cannot run in the published code; take B/2, L/2 or XL/2")
        shape = _shape(config) | {"decoder_hidden_size": config.width}
        build = self.sit.SiT_models[f"SiT-{name}"] if name else self.sit.SiT
        return build(
            **({} if name else shape),
            input_size=config.input_size,
            in_channels=config.in_channels,
            num_classes=config.num_classes,
            encoder_depth=encoder_depth,
            z_dims=[feature_width],
            use_cfg=True,
            fused_attn=True,
            qk_norm=False,
        )

    def losses(self) -> Losses:
        """Their SILoss (linear path, velocity, uniform t) with the signature of `reference_losses`."""
        loss = self.loss.SILoss(prediction="v", path_type="linear", weighting="uniform")

        def call(model, latents: Tensor, labels: Tensor, features: Tensor) -> tuple[Tensor, Tensor]:
            return loss(model, latents, {"y": labels}, zs=[features])

        return call


@dataclass(frozen=True)
class PublishedDit:
    """DiT: ``models.py`` and the package ``diffusion``."""

    models: ModuleType
    diffusion: ModuleType

    def model(self, config: SiTConfig, name: str | None = None) -> nn.Module:
        """Their DiT of the same shape; by ``name`` (``XL/2``) out of their own table where one is given."""
        return _network(self.models.DiT, self.models.DiT_models, f"DiT-{name}" if name else None, config)

    def process(self, steps: int | None = None):
        """Their diffusion process over all 1,000 steps, or respaced to ``steps``."""
        return self.diffusion.create_diffusion("" if steps is None else str(steps))

    def tables_in(self, dtype: torch.dtype) -> AbstractContextManager:
        """Within, table entries have ``dtype``. Their code rounds fp64 tables to fp32 whatever the input is, so an fp64
        comparison has to lift that one function; in fp32 the code runs as it is."""
        if dtype != torch.float64:
            return nullcontext()
        return patch.object(self.diffusion.gaussian_diffusion, "_extract_into_tensor", _entries)


@dataclass(frozen=True)
class PublishedSit:
    """SiT: ``models.py`` and the package ``transport``."""

    models: ModuleType
    transport: ModuleType

    def model(self, config: SiTConfig, name: str | None = None) -> nn.Module:
        """Their SiT of the same shape; by ``name`` (``XL/2``) out of their own table where one is given."""
        return _network(self.models.SiT, self.models.SiT_models, f"SiT-{name}" if name else None, config)

    def path(self, kind: str):
        """Their transport with the velocity objective, for our interpolant ``kind``."""
        transport = self.transport.create_transport(PATHS[kind], "velocity")
        # Their velocity models start SBDM at t = 0, where it is infinite; their other models, and ours, start after it.
        transport.sample_eps = 1e-3
        return transport

    def sampler(self, kind: str):
        """Their sampler for our interpolant ``kind``."""
        return self.transport.Sampler(self.path(kind))

    def sde(self, kind: str, form: str, norm: float):
        """(drift(x, t, model), diffusion(x, t)) of their SDE with our form of the diffusion coefficient."""
        # The method that builds them is private to their class.
        build = self.sampler(kind)._Sampler__get_sde_diffusion_and_drift
        return build(diffusion_form=FORMS[form], diffusion_norm=norm)


def load_published(path: str, option: str) -> Published:
    """REPA's code under ``path``; ``option`` names the command-line option in the error when it is not there."""
    return Published(_module(path, "models/sit.py", option, REPA), _module(path, "loss.py", option, REPA))


def load_repa_samplers(path: str, option: str) -> ModuleType:
    """REPA's samplers.py under ``path``."""
    return _module(path, "samplers.py", option, REPA)


def load_dit(path: str, option: str) -> PublishedDit:
    """DiT's code under ``path``."""
    return PublishedDit(_module(path, "models.py", option, DIT), _module(path, "diffusion/__init__.py", option, DIT))


def load_sit(path: str, option: str) -> PublishedSit:
    """SiT's code under ``path``."""
    return PublishedSit(_module(path, "models.py", option, SIT), _module(path, "transport/__init__.py", option, SIT))


def _shape(config: SiTConfig) -> dict[str, int | float]:
    return {
        "depth": config.depth,
        "hidden_size": config.width,
        "patch_size": config.patch_size,
        "num_heads": config.num_heads,
        "mlp_ratio": config.mlp_ratio,
    }


def _network(build: type[nn.Module], table: dict, name: str | None, config: SiTConfig) -> nn.Module:
    return (table[name] if name else build)(
        **({} if name else _shape(config)),
        input_size=config.input_size,
        in_channels=config.in_channels,
        num_classes=config.num_classes,
        learn_sigma=config.learn_sigma,
    )


def _entries(table: np.ndarray, steps: Tensor, shape: torch.Size) -> Tensor:
    """Entries ``steps`` (B,) of a table as fp64, expanded to ``shape``."""
    picked = torch.from_numpy(table)[steps.cpu()].to(steps.device)
    return picked.view(-1, *[1] * (len(shape) - 1)).expand(shape)


def _module(root: str, name: str, option: str, repository: str) -> ModuleType:
    """The file ``name`` below ``root`` as a module; ``__init__.py`` as the package that it is."""
    file = Path(root) / name
    if not file.is_file():
        raise UserError(f"{option}: {file} is not there; give a checkout of https://github.com/{repository}")
    # Relative imports inside a package look it up by name: one name for each file, so two checkouts do not mix.
    module_name = f"erw_bench_published_{file.stem}_{zlib.crc32(str(file.resolve()).encode()):08x}"
    folders = [str(file.parent)] if file.name == "__init__.py" else None
    spec = importlib.util.spec_from_file_location(module_name, file, submodule_search_locations=folders)
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        del sys.modules[module_name]
        raise UserError(f"{option}: {file} does not import: {error}") from error
    return module
