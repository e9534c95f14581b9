"""What goes wrong with a job, what the user reads about it, and what is left: on two ranks."""

import json
import os
import signal
import subprocess
import time
from dataclasses import replace

import psutil
import pytest

from erw.bench import _lives
from erw.checkpoint import found
from faults import SPOILT, hanging, not_finite, slowly
from states import difference, state_at
from tiny import BATCH, tiny

pytestmark = [pytest.mark.slow, pytest.mark.dist]

STEPS, EVERY, TIMEOUT = 60, 4, 5.0
LAST = STEPS * BATCH


def job(out, images: int = LAST, timeout: float = TIMEOUT, **train):
    train = {"save_every": EVERY * BATCH, "keep": 99, "resume": "auto", **train}
    return tiny("sit", out, images=images, engine={"ds_config": "zero1", "precision": "bf16", "timeout": timeout}, train=train)


@pytest.fixture
def live(tmp_path):
    """Start a job; whatever is left of it is killed at the end of the test."""
    lives = []

    def start(config, prepare=None, ranks: int = 2) -> _lives.Life:
        lives.append(_lives.start([config], ranks, tmp_path / f"logs{len(lives)}", prepare))
        return lives[-1]

    yield start
    for life in lives:
        life.end()


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that nothing happened to."""
    folder = tmp_path_factory.mktemp("whole")
    life = _lives.start([job(folder / "run")], 2, folder)
    assert life.wait(120) == [0, 0], life.said()
    return folder / "run"


def newest(run) -> int:
    return int(found(run / "checkpoints")[-1].name)


def goes_on(live, config, whole) -> str:
    """The same command again ends well, in the same state as the run that nothing happened to. What it said."""
    life = live(config)
    assert life.wait(120) == [0, 0], life.said() + life.said(1)
    assert difference(state_at(config.train.out, LAST), state_at(whole, LAST)) == 0.0
    return life.said()


def test_a_signal_to_any_rank_saves_stops_and_asks_to_be_started_again(live, whole, tmp_path):
    config = job(tmp_path / "run", save_every=0)
    stops = [0]
    # First to every process, loaders too, as a scheduler does; then to one rank alone.
    for number, ranks, workers in ((signal.SIGTERM, [0, 1], 1), (signal.SIGUSR1, [1], 0)):
        life = live(replace(config, data=replace(config.data, workers=workers)), slowly)
        _lives.started(life)
        loaders = [child for p in life.processes for child in psutil.Process(p.pid).children()]
        assert len(loaders) == 2 * workers
        for loader in loaders:
            loader.send_signal(number)
        life.signal(number, ranks)
        assert life.wait(60) == [75, 75], life.said() + life.said(1)
        stops.append(newest(tmp_path / "run"))
        place = f"{number.name} to rank {ranks[0]} ({os.uname().nodename}): at image {stops[-1]:,} of {LAST:,}"
        assert f"erw: stopped: {place}; the same command with --resume auto goes on" in life.said()
        assert "erw: stopped" not in life.said(1)
    assert stops[0] < stops[1] < stops[2] < LAST
    assert f"resumed {tmp_path}/run/checkpoints/{stops[2]:012d}" in goes_on(live, config, whole)


def lost(life: _lives.Life, seconds: float) -> str:
    """The first rank ends with 69 within ``seconds``; the line that it says."""
    start = time.monotonic()
    while life.processes[0].is_alive() and time.monotonic() - start < seconds:
        time.sleep(0.05)
    assert life.processes[0].exitcode == 69, life.said()
    [line] = [row for row in life.said().splitlines() if row.startswith("erw: error:")]
    return line


def test_a_stopped_rank_ends_the_others_with_its_name(live, tmp_path):
    life = live(job(tmp_path / "run", images=10**6 * BATCH, save_every=0), slowly)
    _lives.started(life)
    life.signal(signal.SIGSTOP, [1])
    line = lost(life, 3 * TIMEOUT + 5)
    assert f"erw: error: [rank 0] rank 1 ({os.uname().nodename}) gave no sign of life for 5 s; last seen after image " in line
    assert line.endswith(": start it again with --resume auto")


def test_a_rank_whose_thread_hangs_ends_the_others_with_its_name_and_place(live, tmp_path):
    life = live(job(tmp_path / "run", images=10**6 * BATCH, save_every=0), hanging)
    _lives.started(life)
    assert (
        f"erw: error: [rank 0] rank 1 ({os.uname().nodename}) did not move for 5 s; last seen after image 112, in data wait"
        in lost(life, 40)
    )
    assert life.wait(20) == [69, 69]


def test_a_killed_rank_is_named_long_before_the_timeout(live, tmp_path):
    life = live(job(tmp_path / "run", images=10**6 * BATCH, timeout=600.0), slowly)
    _lives.started(life)
    life.signal(signal.SIGKILL, [1])
    assert f"erw: error: [rank 0] rank 1 ({os.uname().nodename}) gave no sign of life for 5 s; last seen after image" in lost(
        life, 30
    )


def test_without_the_first_rank_the_next_one_says_so(live, tmp_path):
    life = live(job(tmp_path / "run", images=10**6 * BATCH), slowly)
    _lives.started(life)
    life.signal(signal.SIGKILL, [0])
    assert life.wait(30) == [-signal.SIGKILL, 69]
    assert f"erw: error: [rank 1] rank 0 ({os.uname().nodename}) is gone: its store at 127.0.0.1:" in life.said(1)


def test_a_first_rank_that_never_comes_is_waited_for_no_longer_than_asked(live, tmp_path):
    asked = 16.0
    life = live(job(tmp_path / "run", timeout=asked))
    life.signal(signal.SIGKILL, [0])
    start = time.monotonic()
    assert life.wait(60) == [-signal.SIGKILL, 69]
    assert time.monotonic() - start < 2 * asked  # which torch alone would wait for
    assert f"erw: error: [rank 1] the ranks did not all meet within {asked:g} s (" in life.said(1)


def test_damaged_newest_checkpoints_are_passed_over_loudly(live, whole, tmp_path):
    assert live(job(tmp_path / "run", images=3 * EVERY * BATCH)).wait(120) == [0, 0]
    good, middle, latest = found(tmp_path / "run" / "checkpoints")
    data = bytearray((latest / "exp_avg.safetensors").read_bytes())
    data[-3] ^= 4
    (latest / "exp_avg.safetensors").write_bytes(data)
    (middle / "ema.safetensors").write_bytes((middle / "ema.safetensors").read_bytes()[:-1])
    said = goes_on(live, job(tmp_path / "run"), whole)
    for file, what in ((latest / "exp_avg", "does not match its checksum"), (middle / "ema", "is truncated")):
        bad = file.parent.name
        assert f"WARNING: {file}.safetensors {what}: kept as .corrupt-{bad}; going on from {good}" in said
        assert (good.parent / f".corrupt-{bad}").is_dir()


def test_a_row_of_steps_that_are_not_finite_stops_the_run_and_names_steps_and_images(live, tmp_path):
    life = live(job(tmp_path / "run", max_skipped=len(SPOILT)), not_finite)
    assert life.wait(60) == [2, 2]
    first, last = (SPOILT.start - 1) * BATCH, (SPOILT.stop - 1) * BATCH
    what = (
        f"6 steps in a row had gradients that are not finite and were skipped: steps 6 to 11 of phase train, images {first} to"
    )
    assert f"erw: error: {what} {last}: go on from a checkpoint before them" in life.said()
    assert "erw: error" not in life.said(1)


def test_a_rollback_takes_the_weights_back_and_lets_the_data_go_on(live, tmp_path):
    life = live(job(tmp_path / "run", images=20 * BATCH, max_skipped=len(SPOILT), on_nonfinite="rollback"), not_finite)
    assert life.wait(60) == [0, 0], life.said()
    # Saved at steps 4, 8 ...: step 8 lies within the row. The row is seen at the second report after its end.
    assert "rolled back: weights, moments and EMA are those of image 64 again, the data go on at image 192" in life.said()
    meta = json.loads((found(tmp_path / "run" / "checkpoints")[-1] / "meta.json").read_text())
    assert meta["images"] == 20 * BATCH and meta["steps"] == 4 + (20 - 12)
    rows = [json.loads(row) for row in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["rollback"] for row in rows if "rollback" in row] == [64]


def test_a_full_disk_keeps_the_last_good_checkpoint_and_training_goes_on(live, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(disk)], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small disk can be mounted here: {mounted.stderr.strip()}")
    try:
        life = live(job(disk / "run", images=5 * EVERY * BATCH))
        assert life.wait(90) == [2, 0], life.said()
        rows = [json.loads(row)["images"] for row in (disk / "run" / "metrics.jsonl").read_text().splitlines()]
        assert rows == [BATCH * step for step in range(1, 5 * EVERY + 1)]
        kept = newest(disk / "run")
        assert 0 < kept < 5 * EVERY * BATCH
        assert "was not written (I/O error: No space left on device (os error 28)), " in life.said()
        assert f"{kept:012d} stays the newest; training goes on" in life.said()
        end = f"erw: error: [rank 0] checkpoint {disk}/run/checkpoints/{5 * EVERY * BATCH:012d} was not written"
        assert end in life.said() and life.said().strip().endswith("make room there, and go on with --resume auto")
        assert not list((disk / "run" / "checkpoints").glob(".partial-*"))
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
