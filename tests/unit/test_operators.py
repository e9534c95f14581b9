"""Lines, gauges, Prometheus, rank tags and the clock of collectives, each by itself."""

import io
import logging
import urllib.request
import warnings
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from erw.bench._lives import free_port
from erw.boards import Prometheus
from erw.engine.config import EngineConfig, deepspeed_dict, read_ds_config
from erw.engine.ranks import Ranks, talk
from erw.engine.talk import Talk
from erw.engine.voices import tag_rank
from erw.errors import RankError, UserError, exits_cleanly
from erw.gauges import Gauges
from erw.optim import OptimConfig
from erw.progress import Bar, Lines, Nothing, line, progress
from erw.telemetry import Accounts

ROW = {"phase": "full", "images_per_second": 1234.5, "images_per_second_recent": 2000.0, "mfu": 0.431, "data_wait": 0.003,
       "memory_gib": 11.4, "skipped": 2.0, "loss": 0.8123, "grad_norm": 0.5}  # fmt: skip


def test_a_line():
    assert line(512_000, 1_024_000, ROW) == (
        "full  512,000/1,024,000 images (50.0%)  2,000 images/s (phase 1,234)  MFU 43.1%  data 0.3%  11.40 GiB  skipped 2"
        "  loss 0.8123  norm 0.5  left 4 min"
    )
    assert line(1, 2, {"loss": 1.0}) == ""
    assert line(0, 7_400_000, ROW).endswith("left 1 h 02 min")


def test_lines_keep_their_distance_and_the_last_is_shown(capsys):
    view = Lines(100)
    for images in (10, 20, 30):
        view.show(images, ROW)
    assert capsys.readouterr().err.count("\n") == 1
    view.close()
    assert "30/100" in capsys.readouterr().err


def test_a_bar_needs_a_terminal(monkeypatch):
    assert isinstance(progress("auto", 10, 0), Lines) and isinstance(progress("none", 10, 0), Nothing)
    assert isinstance(progress("bar", 10, 0), Bar)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    monkeypatch.setattr("sys.stderr", terminal)
    assert isinstance(progress("auto", 10, 0), Bar)


def test_gauges_are_of_the_time_since_the_last_report(monkeypatch):
    monkeypatch.setattr(talk, "seconds", 0.0)
    accounts = Accounts(2)
    gauges = Gauges(Ranks(0, 2, torch.device("cpu")), accounts)
    with gauges.part("backward", nullcontext()):
        talk.seconds = 2.0
    talk.seconds = 50.0  # a checkpoint's, in no part of a step
    accounts.phases["train"] = {"images": 64, "seconds": 4.0, "flops": 8e12, "device_seconds": 8.0}
    gauges._peak = 1e13
    found = gauges.read(waited=1.0)
    assert found["images_per_second_recent"] == 16 and found["data_wait"] == 0.25 and found["communication"] == 0.5
    assert found["mfu"] == pytest.approx(0.2) and found["gpu_hours/train"] == pytest.approx(8 / 3600)
    again = gauges.read(waited=0.0)
    assert "mfu" not in again and "data_wait" not in again and again["memory_gib"] > 0


def test_prometheus_serves_and_lets_go(monkeypatch):
    port = free_port()
    board = Prometheus("127.0.0.1", port)
    with pytest.raises(UserError, match=f"--train.prometheus {port}"):
        Prometheus("127.0.0.1", port)
    board.write(128, {"loss": 0.5, "gpu_hours/full": 2.0})
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as page:
        text = page.read().decode()
    assert "erw_images 128.0" in text and "erw_loss 0.5" in text and 'erw_gpu_hours{part="full"} 2.0' in text
    board.close()
    Prometheus("127.0.0.1", port).close()


def test_ranks_tag_warnings_and_errors(monkeypatch, capsys):
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    before = logging.getLogRecordFactory()
    try:
        tag_rank(3)
        records = []
        handler = logging.Handler()
        handler.emit = lambda record: records.append(record.getMessage())
        logger = logging.getLogger("erw-test")
        logger.addHandler(handler)
        logger.warning("low on %s", "disk")
        logger.setLevel(logging.INFO)
        logger.info("fine")
        assert records == ["[rank 3] low on disk", "fine"]
        assert warnings.formatwarning("odd", UserWarning, "f.py", 1).startswith("[rank 3] f.py:1")
    finally:
        logging.setLogRecordFactory(before)
    monkeypatch.setenv("RANK", "3")
    monkeypatch.setenv("WORLD_SIZE", "4")

    @exits_cleanly
    def main():
        raise RankError("disk full")

    with pytest.raises(SystemExit):
        main()
    assert capsys.readouterr().err == "erw: error: [rank 3] disk full\n"


def test_collectives_are_timed_once(monkeypatch):
    clock, listener = iter(range(100)), Talk()
    monkeypatch.setattr("erw.engine.talk.time.perf_counter", lambda: float(next(clock)))
    inner = listener._timed(lambda: None)
    listener._timed(lambda: inner())()  # one collective that calls another
    assert listener.seconds == 1.0
    work = SimpleNamespace(wait=lambda: "done", is_completed=lambda: True)  # its own wait cannot be replaced
    going = listener._timed(lambda: work)()
    assert going.wait() == "done" and going.is_completed() and listener.seconds == 3.0


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_the_reductions_dtype_goes_to_deepspeed(dtype):
    merged = deepspeed_dict(EngineConfig(reduce_dtype=dtype), 8, 2, OptimConfig(), 3)
    assert merged["communication_data_type"] == dtype
    assert "communication_data_type" not in deepspeed_dict(EngineConfig(), 8, 2, OptimConfig(), 3)


def test_the_dtype_has_one_owner(tmp_path):
    file = tmp_path / "ds.json"
    file.write_text('{"communication_data_type": "fp32"}')
    with pytest.raises(UserError, match=r"--engine\.reduce_dtype"):
        read_ds_config(str(file))
