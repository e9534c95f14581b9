"""Nobody waits who need not: streams are ordered on the device, reports arrive late, and the counter of reads can count."""

from types import SimpleNamespace

import pytest
import torch

from erw.engine.config import EngineConfig, deepspeed_dict
from erw.engine.waits import order_streams
from erw.optim import OptimConfig
from erw.telemetry import Arriving
from host_reads import Counted


class Stream:
    """Notes which stream waited for which."""

    def __init__(self, name: str, seen: list):
        self.name, self.seen = name, seen

    def wait_stream(self, other: "Stream") -> None:
        self.seen.append(f"{self.name} after {other.name}")


class Accelerator:
    def __init__(self, seen: list):
        self.seen = seen

    def synchronize(self, device_index=None):
        self.seen.append("host waits")

    def current_stream(self):
        return Stream("compute", self.seen)


@pytest.fixture
def place(monkeypatch):
    """(What happened, in order; an accelerator that has streams, in the place of this machine's.)"""
    seen: list[str] = []
    accelerator = Accelerator(seen)
    monkeypatch.setattr("erw.engine.waits.get_accelerator", lambda: accelerator)
    return seen, accelerator


def zero(seen, accelerator, **more):
    """A ZeRO optimizer as far as the end of a backward goes."""

    def epilogue():
        seen.append("reduce")
        accelerator.synchronize()
        seen.append("read gradients")

    facts = {"overlap_comm": True, "reduction_stream": Stream("reduction", seen), "cpu_offload": False}
    return SimpleNamespace(**facts | more, independent_gradient_partition_epilogue=epilogue)


def test_the_end_of_a_backward_orders_streams_and_does_not_stop_the_host(place):
    seen, accelerator = place
    optimizer = zero(seen, accelerator)
    order_streams(optimizer)
    optimizer.independent_gradient_partition_epilogue()
    assert seen == ["reduce", "compute after reduction", "reduction after compute", "read gradients"]
    accelerator.synchronize()
    assert seen[-1] == "host waits"


@pytest.mark.parametrize("more", [{"cpu_offload": True}, {"overlap_comm": False}, {"reduction_stream": None}])
def test_where_there_is_nothing_to_order_nothing_changes(place, more):
    seen, accelerator = place
    optimizer = zero(seen, accelerator, **more)
    order_streams(optimizer)
    optimizer.independent_gradient_partition_epilogue()
    assert seen == ["reduce", "host waits", "read gradients"]


def test_the_wait_comes_back_after_an_error(place):
    seen, accelerator = place
    optimizer = zero(seen, accelerator)
    optimizer.independent_gradient_partition_epilogue = lambda: 1 / 0
    order_streams(optimizer)
    with pytest.raises(ZeroDivisionError):
        optimizer.independent_gradient_partition_epilogue()
    accelerator.synchronize()
    assert seen == ["host waits"]


def test_deepspeeds_timer_is_off_unless_a_file_asks_for_it(tmp_path):
    def timers(ds_config):
        return deepspeed_dict(EngineConfig(ds_config=ds_config), 64, 1, OptimConfig(), 3)["timers"]

    assert timers("zero1") == {"throughput": {"enabled": False}}
    (tmp_path / "mine.json").write_text('{"zero_optimization": {"stage": 1}, "timers": {"throughput": {"enabled": true}}}')
    assert timers(str(tmp_path / "mine.json")) == {"throughput": {"enabled": True}}


def test_arriving_numbers_are_those_that_left():
    loss, count = torch.tensor(0.1), torch.tensor(3.0, dtype=torch.bfloat16)
    values = {"loss": loss, "phase": "full", "norm": 2.5, "count": count}
    arriving = Arriving(values)
    loss += 1  # the next step's
    assert list(arriving.read().items()) == [
        ("loss", float(torch.tensor(0.1))),
        ("phase", "full"),
        ("norm", 2.5),
        ("count", 3.0),
    ]
    assert Arriving({"lr": 0.1}).read() == {"lr": 0.1}


@pytest.mark.gpu
def test_numbers_arrive_without_a_synchronising_call():
    value = torch.tensor(0.1, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        assert Arriving({"loss": value}).read() == {"loss": float(torch.tensor(0.1))}
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize(
    "read",
    [lambda x: x.sum().item(), lambda x: bool(x.any()), lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: float(x[0])],
)
def test_the_counter_of_reads_notices_one(read):
    counted = Counted()
    x = torch.ones(3)
    counted.begin()
    x.add_(1)
    read(x)
    counted.end("train")
    assert [sum(reads.values()) for _, reads in counted.steps] == [1]
