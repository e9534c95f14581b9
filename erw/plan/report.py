"""A forecast in words, and forecasts side by side."""

from dataclasses import dataclass

from erw.devices import GB
from erw.engine.config import read_ds_config, stage_of
from erw.errors import UserError
from erw.plan.error import ErrorRecord
from erw.plan.forecast import GATHERING, MATMULS, MEASURED, MEMORY_BOUND, OPTIMIZER, REDUCTION, TEACHER, Forecast, Forecaster
from erw.plan.network import Network
from erw.plan.text import feature_bytes, teacher_words

_KNOBS = {
    MATMULS: "more GPUs, or a warm-up or fewer images; nothing else makes the arithmetic less",
    MEMORY_BOUND: "--engine.ops fused, --engine.compile blocks, --engine.recompute none",
    MEASURED: "more GPUs, or a faster row of python -m erw.bench.step",
    REDUCTION: "more images a GPU (--batch), --engine.accumulation at ZeRO-1, a faster --network",
    GATHERING: "more images a GPU (--batch), a lower --zero, a faster --network",
    OPTIMIZER: "more images a GPU (--batch), or more GPUs to share it",
    TEACHER: "--teacher.source cached, with features that erw prepare computes once",
}
_KINDS = ("weights", "masters", "moments", "ema", "teacher", "buffers", "gradients", "buckets", "activations")


@dataclass(frozen=True, kw_only=True)
class Costs:
    """What a GPU-hour is taken to cost and to draw. ``said``: where each figure comes from."""

    watts: float | None
    price: float
    said: str


@dataclass(frozen=True)
class Disk:
    """Bytes of the data set and of checkpoints. ``pixels``: kept beside latents for an online teacher."""

    images: int
    latents: float
    pixels: float
    features: dict[str, float]
    checkpoint: float

    def per_image(self, aligns: bool) -> float:
        """Bytes read for one training image."""
        return (self.latents + (self.pixels + sum(self.features.values()) if aligns else 0.0)) / self.images


def disk_of(forecast: Forecast, images: int) -> Disk:
    """fp16 latents (VAE moments, or pixels as they are), teachers' features or, for an online one, the pixels of ``images``
    images, 8 a side for a latent's; fp32 checkpoints."""
    config = forecast.config
    model, moments = config.model, 2 if config.latents.kind == "vae" else 1
    latents = 2 * moments * model.in_channels * model.input_size**2 * images
    online = config.active_teacher.source == "online" and bool(config.teacher_specs)
    features = {} if online else {spec.name: float(feature_bytes(spec) * images) for spec in config.teacher_specs}
    pixels = 3.0 * (8 * model.input_size) ** 2 * images if online and config.latents.kind != "pixels" else 0.0
    return Disk(images, float(latents), pixels, features, 16.0 * max(p.sharding.elements for p in forecast.phases))


def bottleneck(forecast: Forecast) -> str:
    """What limits the run, and the option that moves it."""
    if forecast.fits is False:
        least = "--zero 3" if forecast.main.sharding.stage < 3 and forecast.network.gpus > 1 else "a smaller --batch"
        return (
            f"memory: {forecast.peak / GB:.1f} GB do not fit; {least}, --engine.recompute selective or full, more accumulation"
        )
    parts = forecast.main.parts
    name = max(parts, key=parts.get)
    return f"{name}, {parts[name] / forecast.main.seconds:.0%} of a step: {_KNOBS[name]}"


def report(forecast: Forecast, costs: Costs, disk: Disk, error: ErrorRecord | None) -> str:
    """Everything that is forecast, a line each."""
    config, network, rates = forecast.config, forecast.network, forecast.rates
    lines = [
        f"{network.gpus} x {rates.name}, {network.nodes} machine{'s' * (network.nodes > 1)}, {config.engine.ds_config},"
        f" {config.engine.precision}; batch {config.train.batch}: {forecast.micro} images a GPU"
        f" x accumulation {config.engine.accumulation}; operations {config.engine.ops}, recompute {config.engine.recompute}",
        f"rates: {rates.source}",
        "",
    ]
    for phase in forecast.phases:
        lines += _phase_lines(forecast, phase) + [""]
    hours = forecast.seconds / 3600
    lines += [
        f"run: {config.train.images:,} images, {config.train.images // config.train.batch:,} steps: {hours:,.1f} hours,"
        f" {forecast.gpu_hours:,.0f} GPU-hours" + _energy(forecast, costs) + f", cost {costs.price * forecast.gpu_hours:,.0f}",
        f"  {costs.said}; evaluation and checkpoints are not in it",
        *_teacher_lines(forecast),
        _disk_line(forecast, disk),
        f"limit: {bottleneck(forecast)}",
        error.words(rates.name) if error else "the model's own error: not measured",
    ]
    if network.nodes > 1:
        lines.append("more than one machine: modelled, never measured")
    return "\n".join(lines)


def _energy(forecast: Forecast, costs: Costs) -> str:
    return f", {forecast.gpu_hours * costs.watts / 1e3:,.0f} kWh" if costs.watts else ""


def _teacher_lines(forecast: Forecast) -> list[str]:
    words = teacher_words(forecast.config, forecast.network.gpus)
    if words is None:
        return []
    seconds = sum(p.parts.get(TEACHER, 0.0) * p.images for p in forecast.phases) / forecast.config.train.batch
    if not seconds:
        return [words]
    return [f"{words}, {seconds / forecast.seconds:.1%} of the time at the rate of matmuls"]


def _phase_lines(forecast: Forecast, found) -> list[str]:
    memory = found.memory
    limit = f" of {forecast.rates.memory / GB:g}" if forecast.rates.memory else ""
    kinds = "  ".join(f"{kind} {getattr(memory, kind) / GB:.2f}" for kind in _KINDS if getattr(memory, kind))
    lines = [
        f"phase {found.phase.name}: ZeRO-{found.sharding.stage}, {found.sharding.elements:,} parameters",
        f"  memory a GPU, GB: peak {memory.peak / GB:.2f}{limit}" + (f", host {memory.host / GB:.2f}" if memory.host else ""),
        f"    {kinds}",
        f"  a step, ms: {found.seconds * 1e3:.1f} = "
        + " + ".join(f"{seconds * 1e3:.1f} {name}" for name, seconds in found.parts.items() if seconds > 0),
    ]
    speed = forecast.config.train.batch / found.seconds
    line = f"  {speed:,.4g} images/s, {speed / forecast.network.gpus:,.4g} a GPU"
    if forecast.rates.peak:
        line += f", MFU {speed * found.flops_per_image / forecast.network.gpus / forecast.rates.peak:.1%}"
    lines.append(line + (f"; by {found.measured}" if found.measured else ""))
    traffic = found.traffic
    if forecast.network.gpus > 1:
        lines.append(
            f"  sent a step and GPU, GB: gradients {traffic.reduced / GB:.2f} ({traffic.reduce_seconds * 1e3:.1f} ms unhidden),"
            f" weights {traffic.gathered / GB:.2f} ({traffic.gather_seconds * 1e3:.1f} ms)"
        )
    return lines


def _disk_line(forecast: Forecast, disk: Disk) -> str:
    kept = forecast.config.train.keep
    pixels = f", pixels {disk.pixels / GB:,.3g} GB" if disk.pixels else ""
    features = pixels + "".join(f", features of {name} {size / GB:,.1f} GB" for name, size in disk.features.items())
    read = disk.per_image(forecast.main.phase.aligns) * forecast.images_per_second / GB
    return (
        f"disk: {disk.images:,} images: latents {disk.latents / GB:,.3g} GB{features}; checkpoints {disk.checkpoint / GB:,.3g}"
        f" GB x {kept}; reads {read:,.2f} GB/s in all"
    )


def table(forecaster: Forecaster, network: Network, counts: list[int], stages: list[str], batch: int, price: float) -> str:
    """Markdown: the same batch on every number of GPUs that divides it, then as many images a GPU as ``network`` has."""
    micro = batch // network.gpus
    same = [count for count in counts if batch % count == 0]
    blocks = [(f"Batch {batch} on all:", [(count, batch) for count in same])]
    blocks.append((f"{micro} images a GPU:", [(count, micro * count) for count in counts]))
    lines = []
    for title, sizes in blocks:
        lines += [title, "", *_HEAD]
        for count, total in sizes:
            for stage in stages:
                at = Network(count, network.per_node, network.link, network.node)
                try:
                    lines.append(_row(forecaster.at(at, batch=total, ds_config=stage), price))
                except UserError as error:
                    lines.append(f"| {count:,} | - | {_stage(stage)} | {total:,} | {error} |" + " |" * 7)
        lines.append("")
    return "\n".join(lines).rstrip()


_HEAD = (
    "| GPUs | machines | ZeRO | batch | GB a GPU | fits | ms a step | communication | images/s | MFU | GPU-hours | cost |",
    "|---|---|---|---|---|---|---|---|---|---|---|---|",
)


def _stage(ds_config: str) -> str:
    return str(stage_of(read_ds_config(ds_config)))


def _row(f: Forecast, price: float) -> str:
    talk = (f.main.parts[REDUCTION] + f.main.parts[GATHERING]) / f.main.seconds
    fits = {True: "yes", False: "no", None: "?"}[f.fits]
    mfu = "-" if f.mfu is None else f"{f.mfu:.1%}"
    return (
        f"| {f.network.gpus:,} | {f.network.nodes:,} | {_stage(f.config.engine.ds_config)} | {f.config.train.batch:,} |"
        f" {f.peak / GB:.1f} | {fits} | {f.main.seconds * 1e3:.1f} | {talk:.1%} | {f.images_per_second:,.4g} | {mfu} |"
        f" {f.gpu_hours:,.0f} | {price * f.gpu_hours:,.0f} |"
    )
