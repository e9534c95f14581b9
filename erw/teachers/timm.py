"""Teachers from timm: any vision transformer whose forward ends in patch tokens."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from erw.cache import digest
from erw.errors import UserError
from erw.flops import measured_forward
from erw.teachers.base import GRID, Encoded, TeacherConfig, fed_side, held_bytes, resampled, resized, unit_images
from erw.teachers.names import SHORT_NAMES, TimmModel
from erw.teachers.weights import read_weights
from erw.types import TeacherSpec

PREFIX = "timm:"
_UNUSED = ("attn_pool.", "fc_norm.")  # what only a classifier needs
_DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


def described(name: str) -> TimmModel:
    """What the teacher ``name`` is: a short name, or ``timm:MODEL``, which is built without weights to find out.

    Raises `UserError` for a model that timm does not have or that has no patch tokens.
    """
    return SHORT_NAMES[name] if name in SHORT_NAMES else _described(name, name.removeprefix(PREFIX))


@lru_cache
def _described(name: str, model_name: str) -> TimmModel:
    try:
        model = _on_meta(TimmModel(model_name, 0, 0), None)
        patch = model.patch_embed.patch_size[0]
        found = TimmModel(model_name, model.num_features, patch, _has_class_token(model))
        model = _on_meta(found, patch * GRID)
        tokens = model.forward_features(torch.empty(1, 3, patch * GRID, patch * GRID, device="meta"))
        fits = tokens.ndim == 3 and tokens.shape[1] == model.num_prefix_tokens + GRID**2
    except (RuntimeError, ValueError, AttributeError, TypeError, AssertionError) as error:
        if "Unknown model" in str(error) or "Invalid pretrained tag" in str(error):
            raise UserError(f"--teacher.name {name}: timm has no model {model_name}: timm.list_models() lists them") from None
        fits = False
    if not fits:
        raise UserError(
            f"--teacher.name {name}: timm's {model_name} is no vision transformer that gives a square of patch tokens"
        )
    return found


def side_of(name: str, grid: int, config: TeacherConfig) -> int:
    """Pixels that images are resized to. Raises `UserError` for a side that the patches do not fill."""
    known = described(name)
    if config.side % known.patch:
        raise UserError(f"--teacher.side {config.side} is not a multiple of the {known.patch} pixels of a patch of {name}")
    return config.side or fed_side(known.patch, grid, known.least)


def spec_of(name: str, grid: int, config: TeacherConfig) -> TeacherSpec:
    """The teacher's shape on a model's token grid, without its weights."""
    side_of(name, grid, config)
    return TeacherSpec(name=name, width=described(name).width, grid=grid, has_class_token=described(name).class_token)


def flops_of(name: str, grid: int, config: TeacherConfig) -> int:
    """Its forward for one image, counted without weights."""
    return _count(name, side_of(name, grid, config))


def bytes_of(name: str, grid: int, config: TeacherConfig) -> int:
    """Of its weights and buffers."""
    return held_bytes(_on_meta(described(name), side_of(name, grid, config)), config.precision)


@lru_cache
def _count(name: str, side: int) -> int:
    model = _on_meta(described(name), side)
    return measured_forward(_Features(model), torch.empty(1, 3, side, side, device="meta"))


class _Features(nn.Module):
    """``forward_features`` as the forward, for the FLOP counter."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model.forward_features(x)


def _on_meta(known: TimmModel, side: int | None) -> nn.Module:
    with torch.device("meta"):
        return _create(known, side, pretrained=False).eval().requires_grad_(False)


def _create(known: TimmModel, side: int | None, **options: Any) -> nn.Module:
    import timm  # here: its shapes are asked for by whoever checks settings, the library is slow to import

    size = {} if side is None else {"img_size": side}
    return timm.create_model(known.model, num_classes=0, **size, **known.options, **options)


def _has_class_token(model: nn.Module) -> bool:
    return getattr(model, "cls_token", None) is not None


class TimmTeacher(nn.Module):
    """A timm vision transformer that yields its normalised patch tokens, resampled to ``grid``; frozen by its loader.

    Resizing and normalising are done in fp32; the network computes, and tokens come, in the dtype of its weights.
    """

    def __init__(self, name: str, model: nn.Module, side: int, grid: int | None = None, *, compile: bool = False):
        super().__init__()
        self.model, self.side = model, side
        self.patches = model.patch_embed.grid_size[0]
        config = model.pretrained_cfg
        self.mean, self.std = tuple(config["mean"]), tuple(config["std"])
        self.spec = TeacherSpec(name=name, width=model.num_features, grid=grid or self.patches,
                                has_class_token=_has_class_token(model))  # fmt: skip
        self._forward = torch.compile(model.forward_features, dynamic=False) if compile else model.forward_features
        self.facts: dict[str, Any] = {}

    def preprocess(self, images: Tensor) -> Tensor:
        """(B, 3, S, S) uint8, or fp32 in [-1, 1], to (B, 3, side, side) fp32 as the encoder was trained on."""
        images = unit_images(images)
        mean, std = (images.new_tensor(v).view(1, 3, 1, 1) for v in (self.mean, self.std))
        return (resized(images, self.side) - mean) / std

    @torch.no_grad()
    def encode(self, images: Tensor) -> Encoded:
        """(B, 3, S, S) uint8, or fp32 in [-1, 1], to tokens (B, grid^2, width) and, where it has one, the class token."""
        with torch.autocast(images.device.type, enabled=False):
            out = self._forward(self.preprocess(images).to(next(self.model.parameters()).dtype))
        tokens = resampled(out[:, self.model.num_prefix_tokens :], self.spec.grid)
        return Encoded(tokens, out[:, 0] if self.spec.has_class_token else None)

    def tokens(self, images: Tensor) -> Tensor:
        """The patch tokens alone."""
        return self.encode(images).tokens

    def class_token(self, images: Tensor) -> Tensor:
        """(B, width): the encoder's token for the whole image. Raises `UserError` where it has none."""
        token = self.encode(images).class_token
        if token is None:
            raise UserError(f"teacher {self.spec.name} has no class token")
        return token

    @property
    def flops(self) -> int:
        """Its forward for one image."""
        return _count(self.spec.name, self.side)

    def identity(self) -> dict[str, Any]:
        """See `erw.teachers.base.Teacher`."""
        import timm

        return {
            **self.facts,
            "width": self.spec.width,
            "grid": self.spec.grid,
            "has_class_token": self.spec.has_class_token,
            "side": self.side,
            "patches": self.patches,
            "mean": list(self.mean),
            "std": list(self.std),
            "resize": "bicubic",
            "flops_per_image": self.flops,
            "timm": timm.__version__,
        }


def load_teacher(name: str, device: torch.device, grid: int, config: TeacherConfig) -> TimmTeacher:
    """The named encoder with its pretrained weights, frozen. Raises `UserError` where they cannot be had."""
    known, side = described(name), side_of(name, grid, config)
    file = config.files.get(name)
    with torch.random.fork_rng(devices=[]):  # initial weights that the pretrained ones replace
        model = _from_file(name, known, side, Path(file)) if file else _from_hub(name, known, side)
    teacher = TimmTeacher(name, model.eval().requires_grad_(False), side, grid, compile=config.compile)
    weights = file or model.pretrained_cfg.get("hf_hub_id") or model.pretrained_cfg.get("url")
    teacher.facts = {"name": name, "model": known.model, "weights": weights, "digest": digest(model.state_dict())}
    return teacher.to(device, _DTYPES[config.precision])


def _from_hub(name: str, known: TimmModel, side: int) -> nn.Module:
    if not known.on_hub:
        raise UserError(
            f"--teacher.name {name} comes from a file only: name the one that its authors published, --teacher.file"
        )
    try:
        with _reports() as reports:
            model = _create(known, side, pretrained=True)
    except (OSError, RuntimeError, ValueError) as error:
        first = str(error).strip().splitlines()[0][:120]
        raise UserError(
            f"--teacher.name {name}: the weights of timm's {known.model} cannot be had ({first}): offline, use features"
            " cached in the dataset, fill the hub's cache first, or name a file with --teacher.file"
        ) from None
    if missing := [key for report in reports for key in report.missing_keys]:
        raise UserError(f"--teacher.name {name}: the hub's weights of timm's {known.model} lack {missing[0]}")
    return model


def _from_file(name: str, known: TimmModel, side: int, path: Path) -> nn.Module:
    weights = read_weights(name, path)
    try:
        with _reports() as reports:
            model = _create(known, side, pretrained=True, pretrained_cfg_overlay={"state_dict": weights})
        faults = [f"missing {key}" for report in reports for key in report.missing_keys]
        faults += [f"unexpected {key}" for report in reports for key in report.unexpected_keys if not key.startswith(_UNUSED)]
    except (RuntimeError, KeyError, ValueError, AttributeError) as error:
        faults = [" ".join(str(error).split())[:240]]
    if faults:
        raise UserError(f"--teacher.file of {name}: the weights in {path} are not those of timm's {known.model}: {faults[0]}")
    return model


@contextmanager
def _reports() -> Iterator[list]:
    """What torch says of weights that are read inside. timm is lenient with some models (with SigLIP's always, with most that
    had a classifier) and keeps to itself what stayed random."""
    load, reports = nn.Module.load_state_dict, []

    def noting(self, *args, **options):
        reports.append(load(self, *args, **options))
        return reports[-1]

    nn.Module.load_state_dict = noting
    try:
        yield reports
    finally:
        nn.Module.load_state_dict = load
