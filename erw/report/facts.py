"""A run's settings in words, for pages and model cards."""

from pathlib import Path

from erw.config import TrainConfig
from erw.models.sit import SIZES
from erw.report.numbers import listed, short

_METHODS = {"none": "no alignment", "repa": "REPA", "erw": "ERW"}
_SIZES = {shape: name for name, shape in SIZES.items()}


def model_name(config: TrainConfig) -> str:
    """SiT-XL/2, DiT-B/2, or what a model of no published size consists of."""
    model = config.model
    family = "DiT" if config.objective.name == "ddpm" else "SiT"
    size = _SIZES.get((model.depth, model.width, model.num_heads))
    if size:
        return f"{family}-{size}/{model.patch_size}"
    return f"{family} of {model.depth} blocks, width {model.width}, patch {model.patch_size}"


def method_name(name: str) -> str:
    """REPA, ERW, no alignment; other methods by their own names."""
    return _METHODS.get(name, name)


def data_name(config: TrainConfig) -> str:
    """The data set: its name, or the last part of its folder."""
    folder = config.data.path.rstrip("/").rsplit("/", 1)[-1]
    return folder if config.data.name != "digits" and folder else config.data.name


def sampling_words(config: TrainConfig) -> str:
    """How the settings sample: ode with 20 steps, no guidance."""
    sample = config.sample
    steps = f"tolerance {sample.tolerance:g}" if sample.sampler == "dopri5" else f"{sample.steps} steps"
    if sample.guidance == 1:
        return f"{sample.sampler} with {steps}, no guidance"
    channels = f", on the first {sample.guidance_channels} channels" if sample.guidance_channels else ""
    within = f" for t in {sample.guidance_low:g} to {sample.guidance_high:g}"
    return f"{sample.sampler} with {steps}, guidance {sample.guidance:g}{within}{channels}"


def protocol_words(config: TrainConfig) -> str:
    """How the evaluations beside training were made; nothing where the settings name none."""
    if config.eval.name == "none":
        return ""
    evaluation = config.eval
    words = f"{evaluation.name}: {short(evaluation.count)} samples of the EMA, labels balanced, {sampling_words(config)}"
    words += f", in {evaluation.precision}" if evaluation.precision != "fp32" else ""
    return words + (f", against {Path(evaluation.reference).name}" if evaluation.reference != "none" else "")


def settings_words(names: list[str], values: dict[str, list], joined: bool = True) -> str:
    """optim.lr (0.003, 0.004) and train.images (25,600, 24,192); without the "and" where more is to follow."""
    words = [f"{name} ({', '.join(shown(value) for value in values[name])})" for name in names]
    return listed(words) if joined else ", ".join(words)


def shown(value: object) -> str:
    """A setting's value as it stands in a table; a dash where a run has no such setting."""
    if value is None:
        return "-"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float | int):
        return short(value)
    if isinstance(value, tuple | list):
        return ", ".join(shown(part) for part in value)
    return str(value)
