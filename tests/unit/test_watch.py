"""Who is lost and where all stop, from signs of life alone; signals; rows of skipped steps; who is slow."""

import itertools
import os
import signal
from contextlib import nullcontext

import pytest
import torch

from erw.engine.judge import Beat, Judge
from erw.engine.pace import Stragglers, pace
from erw.engine.parts import Parts, PartTimes
from erw.engine.signals import StopSignals
from erw.engine.skips import SkipRow

TIMEOUT, SOON = 60.0, 5.0


def beats(count: int, *changes: dict) -> list[Beat]:
    """The ``count``-th signs of life of as many ranks as there are ``changes``, in the middle of a run."""
    here = {"images": 320, "entered": 352, "marks": 90, "place": "backward", "armed": True}
    return [Beat(rank=rank, host=f"n{rank}", **({"count": count} | here | change)) for rank, change in enumerate(changes)]


def run(judge: Judge, seconds: float, *changes: dict, since: float = 0.0):
    """Orders after a sign of life a second, ``seconds`` long."""
    for second in range(int(since), int(since + seconds) + 1):
        orders = judge.orders(beats(second, *changes), float(second))
    return orders


def test_ranks_that_live_are_left_alone():
    assert run(Judge(TIMEOUT, SOON), 300, {}, {}).end == ""


def test_a_rank_without_a_sign_of_life_is_named_after_the_timeout():
    judge, silent = Judge(TIMEOUT, SOON), {"count": 7, "images": 320, "place": "data wait"}
    assert run(judge, TIMEOUT, {}, silent).end == ""
    orders = run(judge, 2, {}, silent, since=TIMEOUT + 1)
    assert orders.end == "rank 1 (n1) gave no sign of life for 60 s; last seen after image 320, in data wait"
    assert orders.culprit == 1


def test_it_is_named_soon_once_another_rank_has_failed():
    orders = run(Judge(TIMEOUT, SOON), SOON + 2, {"failed": "RuntimeError: Connection closed by peer"}, {}, {"count": 7})
    assert orders.end.startswith("rank 2 (n2) gave no sign of life for 5 s") and orders.culprit == 2


def test_a_failure_that_nobody_else_explains_is_the_ranks_own():
    orders = run(Judge(TIMEOUT, SOON), 10, {}, {"failed": "OutOfMemoryError: CUDA out of memory"})
    assert orders.end == "rank 1 (n1) ended after image 320: OutOfMemoryError: CUDA out of memory"


def test_those_that_wait_for_a_rank_that_failed_do_not_hang():
    waits = {"idle": TIMEOUT + 1}
    orders = run(Judge(TIMEOUT, SOON), 10, waits, {"failed": "IndexError: list index out of range", **waits})
    assert orders.end == "rank 1 (n1) ended after image 320: IndexError: list index out of range"


def test_a_rank_that_ended_by_itself_is_quoted_at_once():
    orders = run(Judge(TIMEOUT, SOON), 0, {}, {"ended": "--data.path is gone"})
    assert orders.end == "rank 1 (n1) ended after image 320: --data.path is gone"


def test_the_one_that_hangs_is_named_not_those_that_wait_for_it():
    waits, hangs = {"idle": TIMEOUT + 1}, {"idle": TIMEOUT + 1, "marks": 85, "place": "data wait"}
    orders = run(Judge(TIMEOUT, SOON), 1, waits, hangs, waits)
    assert orders.end == "rank 1 (n1) did not move for 60 s; last seen after image 320, in data wait" and orders.culprit == 1


def test_nobody_hangs_while_one_is_busy_between_steps():
    evaluates = {"idle": 9 * TIMEOUT, "marks": 85, "place": "evaluation", "armed": False}
    assert run(Judge(TIMEOUT, SOON), 5, {"idle": 9 * TIMEOUT}, evaluates).end == ""


def test_a_job_that_was_suspended_as_a_whole_goes_on():
    judge = Judge(TIMEOUT, SOON)
    run(judge, 3, {}, {})
    assert judge.orders(beats(3, {}, {}), 10_000.0).end == ""
    assert judge.orders(beats(4, {}, {}), 10_001.0).end == ""


def test_ranks_that_are_done_are_not_missed():
    assert run(Judge(TIMEOUT, SOON), 300, {}, {"count": 7, "done": True}).end == ""


def test_all_stop_after_the_furthest_step_that_any_has_begun():
    judge = Judge(TIMEOUT, SOON)
    assert run(judge, 1, {}, {"asked": "SIGTERM"}).freeze == "SIGTERM to rank 1 (n1)"
    assert run(judge, 1, {"frozen": True}, {}, since=2).stop_at is None
    orders = run(judge, 1, {"frozen": True, "entered": 352}, {"frozen": True, "entered": 384}, since=4)
    assert orders.stop_at == 384 and orders.freeze == "SIGTERM to rank 1 (n1)"
    assert run(judge, 1, {"frozen": True, "entered": 384}, {"frozen": True, "entered": 384}, since=6).stop_at == 384


def test_a_rank_that_is_lost_while_all_wait_to_stop_is_named_soon():
    judge = Judge(TIMEOUT, SOON)
    run(judge, 1, {"asked": "SIGTERM"}, {})
    assert run(judge, SOON + 2, {"frozen": True}, {"count": 1}, since=2).end.startswith("rank 1 (n1) gave no sign")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_signals_are_noted_and_what_was_there_before_comes_back(number):
    before = signal.getsignal(number)
    with StopSignals() as signals:
        assert signals.seen is None
        os.kill(os.getpid(), number)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.seen == signal.Signals(number).name
    assert signal.getsignal(number) == before


def test_the_longest_row_of_skipped_steps_is_found_with_its_images():
    counter = torch.tensor(5.0)
    row = SkipRow(counter)
    for step, taken in enumerate("++-+---+--+", start=1):
        counter += taken == "+"
        row.note(counter, 16 * step)
    assert {name: float(value) for name, value in row.found().items()} == {"skipped_row": 3, "skipped_row_end": 16 * 7}


def test_every_part_of_a_step_is_timed_since_the_last_reading(elapse):
    parts = Parts(torch.device("cpu"))
    for _ in range(2):
        for name, seconds in (("data wait", 0.25), ("forward", 0.5), ("backward", 2.0)):
            with parts.part(name, nullcontext()):
                elapse(seconds)
        parts.step()
    times = parts.read()
    assert times.steps == 2 and times.seconds == {"data wait": 0.5, "forward": 1.0, "backward": 4.0} and times.waited == 0.5
    assert parts.read() == PartTimes(0, {}, 0.0)


def test_the_pace_of_a_rank_is_of_the_parts_that_it_does_alone():
    times = PartTimes(4, {"data wait": 9.0, "forward": 2.0, "teacher": 0.8, "backward": 50.0, "optimizer": 70.0}, waited=0.4)
    assert pace(times) == pytest.approx(0.8) and pace(PartTimes(0, {}, 0.0)) == 0.0


def test_a_gpu_is_timed_by_events_in_the_first_step_after_a_reading(monkeypatch, elapse):
    """Each event takes the next second of a clock; a step is worth what the sampled one took."""
    made = itertools.count()

    class Event:
        done = True

        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = next(made)

        def query(self):
            return Event.done

        def elapsed_time(self, end):
            return 1000.0 * (end.at - self.at)

    monkeypatch.setattr(torch.cuda, "Event", Event)
    parts = Parts(torch.device("cuda"))

    def steps(count):
        for _ in range(count):
            for name in ("data wait", "forward"):
                with parts.part(name, nullcontext()):
                    pass
            parts.step()
        return parts.read()

    times = steps(3)
    assert next(made) == 4, "one step of two parts makes four events"
    assert times.steps == 3 and times.seconds == {"data wait": 3.0, "forward": 3.0} and times.waited == 0
    Event.done = False
    assert steps(5).seconds == {"data wait": 5.0, "forward": 5.0}, "the device is not done: what it took before holds on"


def test_a_slow_rank_is_named_once_at_its_third_report():
    slow = Stragglers(1.5, ["a", "b", "c"])
    lines = [slow.line(2, 0.5, 0.2) for _ in range(5)]
    assert lines[2] == "straggler: rank 2 (c) takes 0.5 s a step before it meets the others, the median rank 0.2 s"
    assert [bool(line) for line in lines] == [False, False, True, False, False]
    mixed = [slow.line(rank, 0.5, 0.2) for rank in (0, 0, 1, 0, 0)]
    even = [slow.line(0, 0.25, 0.2) for _ in range(5)]
    never = Stragglers(0.0, ["a"])
    off = [never.line(0, 9.0, 0.1) for _ in range(5)]
    assert not any(mixed + even + off)
