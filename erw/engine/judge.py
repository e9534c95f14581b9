"""What the first rank concludes from the signs of life of all ranks: who is lost, and where all stop. No threads, no clock."""

from dataclasses import asdict, dataclass, replace


@dataclass(frozen=True, kw_only=True)
class Beat:
    """A rank's sign of life. ``count`` differs from the one before it.

    images   seen by the steps that have ended; ``entered``: and by the one that has begun
    place    the part of the step, or what is done between steps; ``marks``: parts begun since the start
    idle     seconds since the last mark; ``armed``: no part that begins now may last long
    frozen   begins no other step until it is told where to stop
    asked    the signal that asked it to stop
    failed   an exception that another rank may be the cause of; ``ended``: one that it ended by; ``done``: it ended well
    """

    rank: int
    host: str
    count: int = 0
    images: int = 0
    entered: int = 0
    place: str = "start"
    marks: int = 0
    idle: float = 0.0
    armed: bool = False
    frozen: bool = False
    asked: str = ""
    failed: str = ""
    ended: str = ""
    done: bool = False

    @property
    def name(self) -> str:
        """Rank and host."""
        return f"rank {self.rank} ({self.host})"


@dataclass(frozen=True, kw_only=True)
class Orders:
    """What the first rank tells all: ``end`` (why the job ends now, and by which rank), to freeze, and where to stop."""

    count: int = 0
    end: str = ""
    culprit: int = -1
    freeze: str = ""
    stop_at: int | None = None
    done: bool = False

    def as_dict(self) -> dict:
        """Plain JSON types."""
        return asdict(self)


class Judge:
    """Beats in, orders out. ``timeout``: seconds without a sign of life or, within a step, of progress, after which a rank
    is lost; ``soon``: the same once something is known to be wrong or everyone waits."""

    def __init__(self, timeout: float, soon: float):
        self.timeout, self.soon = timeout, soon
        self._seen: dict[int, tuple[int, float]] = {}  # the last count, and when it came
        self._last, self._failed_at = 0.0, None
        self._orders = Orders()

    def orders(self, beats: list[Beat], now: float) -> Orders:
        """Orders after ``beats``, one a rank, were read at ``now`` (seconds, any start)."""
        if now - self._last > self.soon:  # we were stopped ourselves: nobody could be seen
            self._seen = {rank: (count, now) for rank, (count, _) in self._seen.items()}
        self._last = now
        for beat in beats:
            if self._seen.get(beat.rank, (None, 0.0))[0] != beat.count:
                self._seen[beat.rank] = (beat.count, now)
        previous = self._orders
        here = [beat for beat in beats if not beat.done]
        self._orders = replace(previous, count=previous.count + 1, **(self._end(here, now) or self._stop(here)))
        return self._orders

    def _end(self, beats: list[Beat], now: float) -> dict | None:
        for beat in beats:
            if beat.ended:
                return {"end": f"{beat.name} ended after image {beat.images:,}: {beat.ended}", "culprit": beat.rank}
        failed = next((beat for beat in beats if beat.failed), None)
        if failed and self._failed_at is None:
            self._failed_at = now
        waiting = self._orders.freeze and self._orders.stop_at is None
        limit = min(self.soon, self.timeout) if failed or waiting else self.timeout
        silent = [beat for beat in beats if now - self._seen[beat.rank][1] > limit]
        if silent:
            return _lost(silent, f"gave no sign of life for {limit:g} s")
        if failed and now - self._failed_at > self.soon * 1.5:
            return {"end": f"{failed.name} ended after image {failed.images:,}: {failed.failed}", "culprit": failed.rank}
        if not failed and any(beat.armed and beat.idle > self.timeout for beat in beats):
            last = min(beat.marks for beat in beats)
            behind = [beat for beat in beats if beat.marks == last]
            if all(beat.armed for beat in behind):  # else they wait for one that may take its time
                return _lost(behind, f"did not move for {self.timeout:g} s")
        return None

    def _stop(self, beats: list[Beat]) -> dict:
        asked = next((beat for beat in beats if beat.asked), None)
        if not self._orders.freeze:
            return {"freeze": f"{asked.asked} to {asked.name}"} if asked else {}
        if self._orders.stop_at is None and beats and all(beat.frozen for beat in beats):
            return {"stop_at": max(beat.entered for beat in beats)}
        return {}


def _lost(beats: list[Beat], what: str) -> dict:
    names = ", ".join(beat.name for beat in beats[:8]) + (f" and {len(beats) - 8} more" if len(beats) > 8 else "")
    first = beats[0]
    return {"end": f"{names} {what}; last seen after image {first.images:,}, in {first.place}", "culprit": first.rank}
