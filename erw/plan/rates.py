"""How fast a device computes: from our own benchmark's record of one like it where there is any, else from its data sheet."""

import json
from dataclasses import dataclass
from pathlib import Path

import erw
from erw.devices import DEVICES, GB, device_called
from erw.errors import UserError

RECORDS = Path(erw.__file__).resolve().parent.parent / "bench" / "results"
STEP_RECORD = "training step, a ladder"
GEMM_SHARE, COPY_SHARE = 0.65, 0.8
"""Of a data sheet's peak and bandwidth, what large matmuls and memory-bound kernels are taken to reach: assumptions."""
_LAUNCH, _CPU_LAUNCH = 4e-6, 2e-5  # seconds that the shortest operation takes: assumptions
_LIKE = 4.0  # a measured step says something of models whose images cost up to this factor more or less


@dataclass(frozen=True, kw_only=True)
class Rates:
    """One device. ``steps``: measured training steps of ours on it, as rows of the record.

    flops      of large bf16 matmuls, FLOP/s
    fp32       of large fp32 matmuls, FLOP/s: what a data sheet has; on a CPU as in bf16
    bandwidth  of memory-bound work, bytes/s
    launch     seconds that an operation takes at least
    peak       published FLOP/s; None: unknown
    memory     bytes; None: unknown
    """

    name: str
    source: str
    flops: float
    fp32: float
    bandwidth: float
    launch: float
    peak: float | None
    memory: float | None
    link: float
    per_node: int
    watts: float | None
    steps: tuple[dict, ...] = ()

    @property
    def gpu(self) -> bool:
        """Whether it is one."""
        return self.name != "cpu"

    def step_like(self, flops_per_image: float, micro: int, ops: str, recompute: str) -> dict | None:
        """The measured step nearest to one of ``micro`` images of that cost; None where none is near."""
        fits = [
            row for row in self.steps
            if row["setup"]["recompute"] == recompute and bool(row["setup"]["fused"]) == (ops == "fused")
            and 1 / _LIKE <= row["flops_per_image"] / flops_per_image <= _LIKE
        ]  # fmt: skip
        return min(fits, default=None, key=lambda r: (_apart(r["flops_per_image"], flops_per_image), _apart(r["batch"], micro)))


def _apart(a: float, b: float) -> float:
    return max(a, b) / min(a, b)


def rates_of(name: str, records: Path = RECORDS, *, tflops: float | None = None, gb_per_s: float | None = None) -> Rates:
    """The rates of ``--gpu`` ``name``; ``tflops`` and ``gb_per_s`` overrule what is known of matmuls and memory.

    Raises `UserError` for a name that is not known, and for a CPU of which nothing was measured.
    """
    if name not in DEVICES and name != "cpu":
        raise UserError(f"--gpu {name} is not known; known: {', '.join(DEVICES)}, cpu")
    device, record = DEVICES.get(name), _record_of(name, records)
    if device is None and record is None and (tflops is None or gb_per_s is None):
        raise UserError(
            f"--gpu cpu: no record of one in {records}: measure with python -m erw.bench.step --device cpu, or give"
            " --tflops and --bandwidth"
        )
    source = f"data sheet: {GEMM_SHARE:.0%} of the matmul peak, {COPY_SHARE:.0%} of the bandwidth assumed"
    flops = device.tflops * 1e12 * GEMM_SHARE if device else 0.0
    bandwidth = device.bandwidth * GB * COPY_SHARE if device else 0.0
    steps: tuple[dict, ...] = ()
    if record is not None:
        path, content = record
        flops, bandwidth = _gemm_rate(content), content["measured_peaks"]["copy_gb_per_s"] * GB
        steps, source = _steps(content), f"measured on {content['environment']['device']}, record {path.name}"
    if tflops is not None or gb_per_s is not None:
        flops, bandwidth = tflops * 1e12 if tflops else flops, gb_per_s * GB if gb_per_s else bandwidth
        steps, source = (), f"as given: {flops / 1e12:g} TFLOP/s, {bandwidth / GB:g} GB/s"
    return Rates(
        name=name, source=source, flops=flops, fp32=device.fp32 * 1e12 * GEMM_SHARE if device else flops,
        bandwidth=bandwidth, launch=_LAUNCH if device else _CPU_LAUNCH,
        peak=device.tflops * 1e12 if device else None, memory=device.memory * GB if device else None,
        link=device.link if device else 10.0, per_node=device.per_node if device else 1,
        watts=device.watts if device else None, steps=steps,
    )  # fmt: skip


def _record_of(name: str, folder: Path) -> tuple[Path, dict] | None:
    """The newest finished record of a step's ladder on such a device."""
    found = []
    for path in folder.glob("*_step_*.json"):
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except ValueError:
            raise UserError(f"{path} is not JSON: remove it, or name another folder with --records") from None
        if content.get("what") != STEP_RECORD or content.get("dry_run") or not content.get("measured_peaks"):
            continue
        device = device_called(content["environment"]["device"])
        if content["device_type"] == "cpu" if name == "cpu" else device is not None and device.name == name:
            found.append((content["environment"]["date"], path, content))
    return max(found, key=lambda entry: entry[0])[1:] if found else None


def _gemm_rate(content: dict) -> float:
    """FLOP/s of a real step's own matmuls, each alone; of one large one where no floor was measured."""
    floors = [floor for scene in content["scenes"] for floor in scene["floors"] if floor["phase"] == "full"]
    if not floors:
        return content["measured_peaks"]["gemm_tflops"] * 1e12
    gemms = floors[0]["gemms"]
    flops = sum(2 * g["m"] * g["n"] * g["k"] * g["count"] * len(g["seconds"]) for g in gemms)
    return flops / sum(g["count"] * sum(g["seconds"].values()) for g in gemms)


def _steps(content: dict) -> tuple[dict, ...]:
    rows = []
    for scene in content["scenes"]:
        for row in scene["rows"]:
            if row["status"] == "measured" and row["setup"]["code"] == "ours" and row["setup"]["phase"] == "full":
                seconds = row["ms_per_step"]["median"] / 1e3
                flops = row["tflops"] * 1e12 * seconds / scene["batch"]
                rows.append(
                    row | {"batch": scene["batch"], "seconds": seconds, "flops_per_image": flops, "model": scene["model"]}
                )
    return tuple(rows)
