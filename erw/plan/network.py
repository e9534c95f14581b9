"""What ZeRO sends each step, and how long that takes on rings within machines and between them."""

from dataclasses import dataclass
from math import ceil, log2

from erw.plan.memory import Sharding

_REACHED = 0.8
"""Share of a link's rate that large messages reach: an assumption."""
_LATENCY, _NODE_LATENCY = 5e-6, 2e-5
"""Seconds of a hop within a machine, and between machines: assumptions."""


@dataclass(frozen=True)
class Network:
    """GPUs and what joins them. ``link``: GB/s of a GPU within its machine, one way; ``node``: of a machine's network."""

    gpus: int
    per_node: int
    link: float
    node: float

    @property
    def local(self) -> int:
        """GPUs of one machine that take part."""
        return min(self.gpus, self.per_node)

    @property
    def nodes(self) -> int:
        """Machines."""
        return ceil(self.gpus / self.per_node)

    def gather_seconds(self, total: float, messages: int) -> float:
        """All-gather of ``total`` bytes, or a reduce-scatter of as many: each machine's part over the network, then within."""
        if self.gpus == 1:
            return 0.0
        between = (self.nodes - 1) / self.nodes * total / (self.node * 1e9 * _REACHED)
        within = (self.local - 1) / self.local * total / (self.link * 1e9 * _REACHED)
        return between + within + messages * self._latency()

    def reduce_seconds(self, total: float, messages: int) -> float:
        """All-reduce: a reduce-scatter and an all-gather."""
        return 2 * self.gather_seconds(total, messages)

    def _latency(self) -> float:
        return (self.local - 1) * _LATENCY + log2(self.nodes) * _NODE_LATENCY


@dataclass(frozen=True)
class Traffic:
    """Of one step. Bytes are what each GPU sends; seconds as if nothing were hidden.

    reduced    gradients. DeepSpeed all-reduces them at stages 1 and 2 as well, where a reduce-scatter would do
    gathered   new weights after a step (1 and 2), or weights before use in forward and backward (3)
    """

    reduced: float
    gathered: float
    reduce_seconds: float
    gather_seconds: float


def traffic_of(s: Sharding, network: Network) -> Traffic:
    """What `Sharding` sends over ``network`` for one optimizer step."""
    share = (s.ranks - 1) / s.ranks
    messages = ceil(s.elements / s.bucket)
    gradients = s.reduce * s.elements
    if s.stage == 3:
        rounds = s.accumulation
        weights = 2 * s.element * (s.elements - s.whole) * rounds
        fetches = 2 * rounds * ceil(s.elements / max(s.prefetch, 1))
        return Traffic(
            share * gradients * rounds, share * weights,
            network.gather_seconds(gradients * rounds, messages * rounds), network.gather_seconds(weights, fetches),
        )  # fmt: skip
    rounds = s.accumulation if s.stage == 2 else 1
    weights = s.element * s.elements if s.stage else 0
    return Traffic(
        2 * share * gradients * rounds, share * weights,
        network.reduce_seconds(gradients * rounds, messages * rounds),
        network.gather_seconds(weights, messages if weights else 0),
    )  # fmt: skip
