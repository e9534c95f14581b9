"""The model card of an exported model: what it is, what it cost, how it was measured. What nobody said is "not stated"."""

import json
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import Tensor

from erw.config import TrainConfig
from erw.errors import UserError
from erw.plan import phase_words, phases
from erw.report.facts import data_name, method_name, model_name, protocol_words, sampling_words, shown
from erw.report.metrics import figures, metric
from erw.report.numbers import duration, flops, hours, short

NOT_STATED = "not stated"


@dataclass(frozen=True, kw_only=True)
class Licences:
    """Of the weights themselves and of what went into them, as their owner states them."""

    weights: str = NOT_STATED
    data: str = NOT_STATED
    teacher: str = NOT_STATED
    vae: str = NOT_STATED

    def checked(self, config: TrainConfig) -> "Licences":
        """These licences; "none was used" for a part that the run did without. Raises `UserError` for a licence of such."""
        used = {"teacher": config.active_teacher.names, "vae": config.latents.kind == "vae"}
        unused = [name for name, uses in used.items() if not uses]
        for name in unused:
            if getattr(self, name) != NOT_STATED:
                raise UserError(f"--{name}-license: this run used no {name}; leave it out")
        for field in fields(self):
            if len(getattr(self, field.name).splitlines()) != 1:
                raise UserError("licences are given in one line each, and not empty")
        return replace(self, **dict.fromkeys(unused, "none was used"))


def model_card(config: TrainConfig, described: dict[str, Any], tensors: dict[str, Tensor], licences: Licences, *,
               evals: list[dict[str, Any]], device: str, name: str) -> str:  # fmt: skip
    """The card as Markdown. ``described`` is what config.json says (`erw.exported`), ``evals`` the run's evaluations,
    ``device`` what it ran on if that is known, ``name`` the exported folder's."""
    title = f"{model_name(config)}, {method_name(config.method.name)}, on {data_name(config)}"
    kind = "the EMA of the weights" if described["weights"] == "ema" else "the raw weights, not the EMA"
    dtype = "fp32" if described["dtype"] == "fp32" else "bf16, the position table in fp32"
    parts = [
        _front(config, licences),
        f"# {_cell(title)}\n\nTrained and written by erw {described['erw']} (`erw export`): {kind} after"
        f" {described['images']:,} training images, {dtype}.",
        "## Model\n\n" + _table(("", ""), _architecture(config, tensors)),
        "## Method\n\n" + _method(config),
        "## Training\n\n" + _table(("setting", "value"), _training(config, described)),
        "## Cost\n\n" + _cost(described["accounts"], device),
        "## Evaluation\n\n" + _evaluation(config, described, evals),
        "## Sampling\n\n" + _sampling(config, name),
        "## Licences\n\n" + _table(("of", "licence"), _licences(config, licences)),
    ]
    return "\n\n".join(parts) + "\n"


def _front(config: TrainConfig, licences: Licences) -> str:
    """The block that model hubs read. JSON's strings are YAML's."""
    tags = ["diffusion-transformer", "dit" if config.objective.name == "ddpm" else "sit"]
    tags += [config.method.name] if config.method.name != "none" else []
    lines = ["---", "library_name: erw", f"tags: {json.dumps(tags)}"]
    lines += [f"license: {json.dumps(licences.weights)}"] if licences.weights != NOT_STATED else []
    return "\n".join([*lines, "---"])


def _architecture(config: TrainConfig, tensors: dict[str, Tensor]) -> list[tuple[str, str]]:
    model = config.model
    heads = [name for name in tensors if name.startswith("projectors.")]
    counted = sum(t.numel() for n, t in tensors.items() if n not in heads and n != "pos_embed")
    space = f"latents of {config.latents.vae}" if config.latents.kind == "vae" else "pixels"
    extra = [name for name in ("qk_norm", "rope", "learn_sigma") if getattr(model, name)]
    rows = [
        ("architecture", model_name(config)),
        ("parameters", f"{counted:,}"),
        ("blocks, width, heads", f"{model.depth}, {model.width}, {model.num_heads}"),
        ("patch, tokens", f"{model.patch_size}, {model.tokens}"),
        ("input", f"{model.in_channels} x {model.input_size} x {model.input_size} {space}"),
        ("classes", f"{model.num_classes}, and one for guidance without a class"),
        ("predicts", "noise and its variance (DDPM)" if config.objective.name == "ddpm" else "velocity (flow matching)"),
    ]
    rows += [("with", ", ".join(extra))] if extra else []
    return rows + ([("training heads beside it", f"{len(heads)} tensors `projectors.*`; sampling needs none")] if heads else [])


def _method(config: TrainConfig) -> str:
    words = [f"- {phase.name}, {images:,} images planned: {phase_words(phase)}" for phase, images in phases(config)]
    teacher = ", ".join(config.active_teacher.names) or "none"
    return "\n".join([f"{method_name(config.method.name)}; teacher: {_cell(teacher)}.", "", *words])


def _training(config: TrainConfig, described: dict[str, Any]) -> list[tuple[str, str]]:
    optim, start = config.optim, config.train.init_from
    rows = [
        ("images", f"{described['images']:,} of {config.train.images:,}"),
        ("batch", f"{config.train.batch:,}"),
        ("data", data_name(config)),
        ("seed", str(config.train.seed)),
        ("optimizer", f"AdamW, lr {shown(optim.lr)} ({optim.lr_schedule}), betas {shown(optim.betas)}, weight decay"
                      f" {shown(optim.weight_decay)}, clipping {shown(optim.clip)}"),
        ("EMA half-life", f"{short(optim.ema_half_life)} images"),
        ("precision", config.engine.precision),
    ]  # fmt: skip
    return rows + ([("started from", start)] if start != "none" else [])


def _cost(accounts: dict[str, Any], device: str) -> str:
    entries = accounts.get("phases", {})
    if not entries:
        return f"Images, device-hours and FLOPs: {NOT_STATED}; these weights were imported, not trained by this run."
    total = {what: sum(entry[what] for entry in entries.values()) for what in ("images", "device_seconds", "flops")}
    rows = [
        (name, f"{entry['images']:,}", hours(entry["device_seconds"]), flops(entry["flops"]))
        for name, entry in [*entries.items(), ("all", total)]
    ]
    apart = ", ".join(f"{name} {duration(seconds)}" for name, seconds in accounts.get("other", {}).items())
    text = _table(("phase", "images", "device-hours", "FLOP"), rows) + f"\n\nDevice: {_cell(device) or NOT_STATED}."
    text += " FLOP: three times the forward of what has gradients, and the teacher's share of its forwards."
    return text + (f" Beside training: {apart}." if apart else "")


def _evaluation(config: TrainConfig, described: dict[str, Any], evals: list[dict[str, Any]]) -> str:
    row = max((r for r in evals if r["images"] <= described["images"]), key=lambda r: r["images"], default=None)
    if row is None:
        return f"Results: {NOT_STATED}."
    ways = {"lower": " (lower is better)", "higher": " (higher is better)", "none": ""}
    found = [(metric(k).label + ways[metric(k).better], short(value)) for k, value in figures(row).items()]
    earlier = "" if row["images"] == described["images"] else ", the last evaluation before this checkpoint"
    text = _table(("metric", "value"), found) + f"\n\nAt image {row['images']:,}{earlier}."
    text += f" Protocol: {protocol_words(config) or NOT_STATED}."
    exact = described["weights"] == "ema" and described["dtype"] == "fp32"
    return text + ("" if exact else " Measured with the EMA in fp32, not with the weights of this folder.")


def _sampling(config: TrainConfig, name: str) -> str:
    folder = json.dumps(name) if " " in name else name
    return (
        f"```\nerw import {folder} --out runs/{folder}\nerw sample runs/{folder} --count 64 --labels balanced\n```\n\n"
        f"Samples by {sampling_words(config)}, unless told otherwise (`erw sample --help`)."
    )


def _licences(config: TrainConfig, licences: Licences) -> list[tuple[str, str]]:
    teacher = ", ".join(config.active_teacher.names)
    vae = config.latents.vae if config.latents.kind == "vae" else ""
    rows = [("these weights", "", licences.weights), ("the data", data_name(config), licences.data)]
    rows += [("the teacher", teacher, licences.teacher), ("the VAE", vae, licences.vae)]
    return [(f"{what} ({name})" if name else what, licence) for what, name, licence in rows]


def _table(heads: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    lines = [heads, tuple("---" for _ in heads), *(tuple(map(_cell, row)) for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Text that stays one cell of a table and no HTML."""
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())
