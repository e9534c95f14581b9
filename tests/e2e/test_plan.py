"""Forecasts against live engines on one and two gloo ranks: combinations of stage, precision and recompute."""

from dataclasses import replace

import pytest
import torch

from erw.bench.plan import COMBINATIONS, compare, configs, live, measure
from erw.devices import DEVICES, device_called
from erw.plan.forecast import Forecaster
from erw.plan.rates import rates_of
from erw.presets import preset

pytestmark = [pytest.mark.slow, pytest.mark.dist]


def base():
    config = preset("in256-repa-s2")
    model = replace(config.model, depth=2, width=128, num_heads=4, num_classes=10)
    return replace(config, model=model, method=replace(config.method, depth=1, projector_width=64),
                   train=replace(config.train, batch=8))  # fmt: skip


@pytest.fixture(scope="module")
def rows():
    found, rates = [], rates_of("cpu", tflops=1.0, gb_per_s=10.0)
    for ranks in (1, 2):
        jobs = configs(base(), ranks)
        for job, each in zip(jobs, zip(*live(jobs, ranks), strict=True), strict=True):
            found.append(compare(Forecaster(job, rates), job, ranks, list(each)))
    return found


def test_every_combination_ran(rows):
    assert len(rows) == len(COMBINATIONS) >= 6


def test_optimizer_and_ema_are_exact(rows):
    for row in rows:
        for key in ("optimizer", "ema"):
            assert row["forecast"][key] == row["measured"][key], row


def test_activations_are_those_of_the_allocator(rows):
    for row in rows:
        if "saved" in row["measured"]:
            assert row["forecast"]["saved"] == pytest.approx(row["measured"]["saved"], rel=0.03), row


def test_the_peak_of_a_step(rows):
    for row in rows:
        assert row["forecast"]["peak"] == pytest.approx(row["measured"]["peak"], rel=0.10), row


@pytest.mark.gpu
def test_the_peak_on_a_gpu():
    """max_memory_allocated of SiT-B/2 on this machine's own GPU."""
    known = next((n for n, d in DEVICES.items() if d is device_called(torch.cuda.get_device_name())), None)
    if known is None:
        pytest.skip("no data sheet of this GPU")
    config = preset("in256-repa-b2")
    config = replace(config, train=replace(config.train, batch=32))
    for row in measure(config, known)["rows"]:
        assert row["forecast"]["peak"] == pytest.approx(row["measured"]["peak"], rel=0.10), row
