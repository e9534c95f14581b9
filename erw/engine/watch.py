"""Watching over the ranks: a thread in each tells the others that it lives and how far it is, through the launcher's store.

A rank that dies, stops or hangs ends the others with its name. A signal to any rank stops all of them after the same step.
The training thread only notes where it stands: no communication, no wait for the device. The first rank reads all signs of
life with one request a turn and writes orders; each other rank writes one key and reads one.
"""

import contextlib
import json
import os
import secrets
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from datetime import timedelta

import torch.distributed as dist

from erw.engine.judge import Beat, Judge, Orders
from erw.engine.ranks import Ranks
from erw.engine.signals import StopSignals
from erw.errors import RankLost, Stopped, UserError, say

_SOON = 5.0
_ADVICE = "start it again with --resume auto"


class Watch:
    """One run's watch, open while it trains. ``timeout``: `erw.engine.config.EngineConfig.timeout`.

    ``before_exit`` is called before an error ends the process: from here, where its training thread cannot be reached any more,
    or by that thread.
    """

    def __init__(self, ranks: Ranks, timeout: float):
        self.ranks, self.timeout = ranks, timeout
        self.interval = min(1.0, timeout / 5)
        self.before_exit: Callable[[], None] = lambda: None
        self.signals = StopSignals()
        self._beat = Beat(rank=ranks.rank, host=socket.gethostname())
        self._since, self._steps = time.monotonic(), 0
        self._turn_lock, self._lock = threading.Lock(), threading.Condition()
        self._orders, self._orders_at = Orders(), time.monotonic()
        self._store_lost: float | None = None
        self._closing, self._ended = threading.Event(), threading.Event()
        self._judge = Judge(timeout, min(_SOON, timeout))
        self.hosts = [self._beat.host] * ranks.count  # on the first rank, as soon as it has heard of the others, theirs

    # ---- of the training thread

    def __enter__(self) -> "Watch":
        self.signals.__enter__()
        if self.ranks.count > 1:
            token = self.ranks.agree(secrets.token_hex(4))  # a restarted job may meet its old keys in the store
            self._keys = [f"erw/{token}/{rank}" for rank in range(self.ranks.count)]
            self._orders_key = f"erw/{token}/orders"
            self._store = self._connect()
            self._put(self._keys[self.ranks.rank], asdict(self._beat))
            if self.ranks.first:
                self._put(self._orders_key, Orders().as_dict())
            self.ranks.barrier()
            self._first_name = Beat(**json.loads(self._store.get(self._keys[0]))).name
            if self.ranks.first:
                self.hosts = [beat.host for beat in self._beats()]
            self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
            self._thread.start()
            self.ranks.be_patient()
        return self

    def __exit__(self, kind, error: BaseException | None, trace) -> None:
        try:
            if self.ranks.count > 1:
                self._leave(error)
        finally:
            self.signals.__exit__()
            if error is not None and not isinstance(error, Stopped):
                with contextlib.suppress(Exception):  # there is an error to be told already
                    self.before_exit()

    def stops(self, images: int, batch: int) -> str:
        """Why all ranks stop before the step that begins at ``images``; empty where it is to be taken."""
        if self.ranks.count == 1:
            return self.signals.seen or ""
        with self._lock:
            while self._beat.frozen and self._orders.stop_at is None:
                self._lock.wait()
            if self._orders.stop_at is not None and images >= self._orders.stop_at:
                return self._orders.freeze
            self._steps += 1
            self._note(images=images, entered=images + batch, armed=self._steps > 2)
        return ""

    def mark(self, place: str) -> None:
        """A part of a step begins, which takes at most the timeout."""
        if self.ranks.count > 1:
            with self._lock:
                self._note(place=place)

    def away(self, place: str, cold: bool = False) -> None:
        """Something between steps begins, which may take any time; after a ``cold`` start so may the next two steps."""
        if self.ranks.count > 1:
            with self._lock:
                self._steps = 0 if cold else self._steps
                self._note(place=place, armed=False)

    def _note(self, **what) -> None:
        self._since = time.monotonic()
        self._beat = replace(self._beat, marks=self._beat.marks + 1, **what)

    def _leave(self, error: BaseException | None) -> None:
        """Tell the others how this rank ended. Raises `RankLost` where ``error`` is the work of another."""
        if isinstance(error, Exception) and not isinstance(error, UserError):
            self._change(failed=_first_line(error))
            self._ended.wait(3 * min(_SOON, self.timeout) + 3 * self.interval)
            if self._ended.is_set() and self._orders.culprit != self.ranks.rank:
                self._close()
                raise RankLost(self._why()) from error
        well = error is None or isinstance(error, Stopped)
        self._change(done=well, ended="" if well else _first_line(error))
        self._close()
        with contextlib.suppress(RuntimeError):
            self._turn()
        if not well and self.ranks.first:
            time.sleep(2 * self.interval)  # the store may end with this process: let the others read

    def _close(self) -> None:
        self._closing.set()
        self._thread.join(3 * self.interval)

    def _change(self, **what) -> None:
        with self._lock:
            self._beat = replace(self._beat, **what)

    # ---- of the watching thread

    def _run(self) -> None:
        while not self._closing.wait(self.interval / 10 if self._hurried() else self.interval):
            try:
                self._turn()
                self._store_lost = None
            except RuntimeError as error:  # of the store
                self._without_store(error)
            if self._orders.end:
                self._end()
                return

    def _hurried(self) -> bool:
        """Whether someone waits for the next turn: to stop, or to learn who is lost."""
        waiting = self._beat.frozen and self._orders.stop_at is None
        return waiting or bool(self.signals.seen and not self._beat.frozen) or bool(self._beat.failed)

    def _turn(self) -> None:
        with self._turn_lock:
            with self._lock:
                idle, asked = time.monotonic() - self._since, self.signals.seen or ""
                self._beat = replace(self._beat, count=self._beat.count + 1, idle=idle, asked=asked)
                beat = self._beat
            self._put(self._keys[self.ranks.rank], asdict(beat))
            if self.ranks.first:
                orders = self._judge.orders(self._beats(), time.monotonic())
                self._put(self._orders_key, replace(orders, done=beat.done).as_dict())
            else:
                orders = self._checked(Orders(**json.loads(self._store.get(self._orders_key))))
        self._obey(orders)

    def _checked(self, orders: Orders) -> Orders:
        """``orders``, or the end where the first rank has given none for too long."""
        now, last = time.monotonic(), self._orders_at
        if orders.count != self._orders.count or orders.done:
            self._orders_at = now
            return orders
        hurried = self._beat.failed or self._beat.frozen
        limit = min(_SOON, self.timeout) if hurried else self.timeout
        if now - last <= limit:
            return orders
        first = Beat(**json.loads(self._store.get(self._keys[0])))
        what = f"{first.name} gave no sign of life for {limit:g} s; last seen after image {first.images:,}, in {first.place}"
        return replace(orders, end=what, culprit=0)

    def _obey(self, orders: Orders) -> None:
        with self._lock:
            if not self._orders.end:
                self._orders = orders
            self._beat = replace(self._beat, frozen=bool(orders.freeze))
            self._lock.notify_all()

    def _without_store(self, error: RuntimeError) -> None:
        now = time.monotonic()
        self._store_lost = self._store_lost or now
        if now - self._store_lost > self.timeout or self._beat.failed:
            holder = (
                "the first node's launcher" if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True" else self._first_name
            )
            where = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
            what = f"{holder} is gone: its store at {where} is out of reach ({_first_line(error)})"
            self._obey(replace(self._orders, end=what, culprit=0))
            return
        with contextlib.suppress(RuntimeError):
            self._store = self._connect()

    def _end(self) -> None:
        self._ended.set()
        # A training thread that can still end by itself says more, and leaves in order.
        if self._closing.wait(min(_SOON, self.timeout)):
            return
        with contextlib.suppress(Exception):
            self.before_exit()
        if self._orders.culprit == self.ranks.rank:  # it hangs: where
            traceback.print_stack(sys._current_frames()[threading.main_thread().ident])
        say(RankLost(self._why()))
        os._exit(RankLost.code)

    def _why(self) -> str:
        """The line about the end, on the rank that says it; empty elsewhere."""
        culprit, mine = self._orders.culprit, self.ranks.rank
        stands_in = culprit == 0 and (mine == 1 or os.environ.get("LOCAL_RANK") == "0")
        return f"{self._orders.end}: {_ADVICE}" if mine == 0 or stands_in else ""

    # ---- of the store

    def _connect(self) -> dist.TCPStore:
        """A connection of our own: the process group's may be held by a thread that waits."""
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        patience = timedelta(seconds=max(5.0, self.interval))
        return dist.TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=patience)

    def _put(self, key: str, value: dict) -> None:
        self._store.set(key, json.dumps(value))

    def _beats(self) -> list[Beat]:
        return [Beat(**json.loads(text)) for text in self._store.multi_get(self._keys)]


def _first_line(error: BaseException) -> str:
    text = (str(error).strip().splitlines() or [""])[0]
    return text if isinstance(error, UserError) else f"{type(error).__name__}: {text}"
