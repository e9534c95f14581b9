"""``pytest --benchmark-only``: the plain forms that a CPU trains with, or on a GPU the kernels; never Triton's interpreter.

Each is timed beside a copy of the bytes that it must move, and the ratio of the two is held against the stored baseline, since
times of another machine say nothing. ``make benchmark`` compares, ``make benchmark-baseline`` stores; both on the CPU. A plain
``pytest`` skips the timing and runs the same functions at small sizes instead.
"""

import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from erw.clock import Stopwatch
from erw.kernels import adamw_ema, cosine_alignment
from erw.kernels._adamw import adamw_ema_reference
from erw.kernels.cosine_alignment import cosine_alignment_reference
from erw.kernels.flow_interpolate import flow_interpolate, flow_interpolate_reference

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BASELINE = Path(__file__).resolve().parents[2] / "bench" / "results" / "benchmark-cpu.json"
# Of the baseline's ratio to a copy: other processors calculate more or less beside the copying, and neighbours disturb. Tight
# enough to fail adamw_ema over whole tensors instead of slices that stay in cache.
LAX = 1.75
MILLION = 2**20
RATES = {"lr": 1e-4, "beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.0, "ema_decay": 0.9999}


def an_adamw_ema(update: Callable, elements: int) -> tuple[Callable[[], object], int]:
    """(a step of ``elements`` fp32 weights, bytes it moves): reads five arrays, writes four."""
    made = torch.randn((5, elements), generator=torch.Generator().manual_seed(0)).to(DEVICE)
    made[3].abs_()
    state, step = [t.clone() for t in made], torch.zeros((), device=DEVICE)
    return lambda: (update(*state, step=step, **RATES), *state)[1:], 9 * 4 * elements


def a_cosine(loss: Callable, elements: int) -> tuple[Callable[[], object], int]:
    """(loss and gradient of (B, 256, 768) fp32 tokens, bytes it moves): both read in each pass, the gradient written."""
    size = (elements // (256 * 768) or 1, 256, 768) if elements > 256 * 768 else (2, 3, elements // 6)
    z, target = torch.randn((2, *size), generator=torch.Generator().manual_seed(0)).to(DEVICE).unbind()
    z.requires_grad_()

    def both() -> tuple:
        out = loss(z, target)
        return out.detach(), *torch.autograd.grad(out.sum(), z)

    return both, 5 * 4 * z.numel()


def an_interpolation(interpolate: Callable, elements: int) -> tuple[Callable[[], object], int]:
    """(x_t and target of (B, 4, 32, 32) fp32 moments, bytes it moves): reads four arrays, writes two."""
    side = 32 if elements >= 4096 else 4
    size = (elements // (4 * side * side), 4, side, side)
    latent, noise, std, drawn = torch.randn((4, *size), generator=torch.Generator().manual_seed(0)).to(DEVICE).unbind()
    t = torch.linspace(0, 1, size[0], device=DEVICE)
    options = {"std": std, "posterior_noise": drawn, "scale": 0.18215}
    return lambda: interpolate(latent, noise, t, **options), 6 * 4 * latent.numel()


# name: (what makes it, ours, the plain form, elements that are far more than a cache)
TIMED = {
    "adamw_ema": (an_adamw_ema, adamw_ema, adamw_ema_reference, 16 * MILLION),
    "cosine_alignment": (a_cosine, cosine_alignment, cosine_alignment_reference, 12 * MILLION),
    "flow_interpolate": (an_interpolation, flow_interpolate, flow_interpolate_reference, 8 * MILLION),
}
each = pytest.mark.parametrize("name", TIMED)


@pytest.fixture
def no_interpreter(monkeypatch):
    """On a CPU the plain forms run, as in training without TRITON_INTERPRET, and a launch is an error."""

    def never(*_, **__):
        raise AssertionError("the interpreter would be timed")

    for name in TIMED:
        module = sys.modules[f"erw.kernels.{name}"]
        monkeypatch.setattr(module, "runs_kernels", lambda tensor: tensor.is_cuda)
        if DEVICE.type == "cpu":
            monkeypatch.setattr(module, "launch", never)


def copier(moved: int) -> Callable[[], float]:
    """Seconds of a copy that reads and writes ``moved`` bytes in all."""
    source = torch.ones(moved // 8, device=DEVICE)
    target, stopwatch = torch.empty_like(source), Stopwatch(DEVICE)
    target.copy_(source)
    return lambda: stopwatch(lambda: target.copy_(source))


def compare(name: str, x_copy: float, file: Path) -> float | None:
    """The ratio to a copy in the baseline ``file``, None where it has none. Fails above `LAX` times that."""
    # Empty: pytest-benchmark is about to write it.
    if not file.exists() or not file.stat().st_size:
        return None
    stored = {b["extra_info"]["name"]: b["extra_info"]["x_copy"] for b in json.loads(file.read_text())["benchmarks"]}
    if name not in stored:
        return None
    assert x_copy <= LAX * stored[name], f"{name} takes {x_copy:.2f} copies of its bytes; the baseline: {stored[name]:.2f}"
    return stored[name]


@each
def test_speed(name, benchmark, no_interpreter):
    make, ours, _, elements = TIMED[name]
    function, moved = make(ours, elements)

    def call() -> None:
        function()
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()

    copy, copies = copier(moved), []  # one before each round, so that neighbours disturb both alike
    benchmark.pedantic(call, setup=lambda: copies.append(copy()), rounds=15, warmup_rounds=2)
    x_copy = benchmark.stats.stats.median / statistics.median(copies)
    benchmark.extra_info.update(name=name, device=DEVICE.type, threads=torch.get_num_threads(), bytes=moved, x_copy=x_copy)
    if DEVICE.type == "cpu":
        benchmark.extra_info["baseline_x_copy"] = compare(name, x_copy, BASELINE)


@each
def test_what_is_timed_is_right_and_not_interpreted(name, no_interpreter):
    make, ours, reference, _ = TIMED[name]
    (function, moved), (plain, _) = make(ours, 384), make(reference, 384)
    for mine, true in zip(function(), plain(), strict=True):
        assert torch.allclose(mine, true, rtol=1e-5, atol=1e-6)
    assert moved == {"adamw_ema": 36, "cosine_alignment": 20, "flow_interpolate": 24}[name] * 384


def test_a_ratio_is_held_against_the_baseline(tmp_path):
    file = tmp_path / "benchmark-cpu.json"
    assert compare("a", 9.0, file) is None
    file.touch()
    assert compare("a", 9.0, file) is None
    file.write_text(json.dumps({"benchmarks": [{"extra_info": {"name": "a", "x_copy": 1.5}}]}))
    assert compare("a", 2.6, file) == 1.5 and compare("b", 9.0, file) is None
    with pytest.raises(AssertionError, match="a takes 2.70 copies of its bytes; the baseline: 1.50"):
        compare("a", 2.7, file)
