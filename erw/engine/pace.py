"""Who is slow: what each rank itself needs for a step before it meets the others, from the wait for data to the forward's end.

In collectives all ranks take as long as the slowest, so that whole steps show no straggler. (Under ZeRO-3 the forward has
collectives too, and shows less.)
"""

from erw.engine.parts import PartTimes

_ALONE = ("copy", "draw", "teacher", "forward")


def pace(times: PartTimes) -> float:
    """Seconds of a step that the rank of ``times`` computes alone, its host's wait for data included."""
    return times.waited / max(times.steps, 1) + times.mean(_ALONE)


class Stragglers:
    """Says who is slow: a rank that for three reports in a row took ``factor`` times as long as the median rank (0: never)."""

    def __init__(self, factor: float, hosts: list[str]):
        self.factor, self.hosts = factor, hosts
        self._row, self._last = 0, -1

    def line(self, slowest: int, longest: float, median: float) -> str:
        """One line at the third report of such a row, else nothing."""
        slow = self.factor > 0 and longest > self.factor * median
        self._row = (self._row + 1 if slowest == self._last else 1) if slow else 0
        self._last = slowest if slow else -1
        if self._row != 3:
            return ""
        return (
            f"straggler: rank {slowest} ({self.hosts[slowest]}) takes {longest:.3g} s a step before it meets the others, the"
            f" median rank {median:.3g} s"
        )
