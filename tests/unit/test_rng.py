"""Keyed random numbers: right, and dependent on nothing but their key."""

import numpy as np
import torch

from erw import rng
from erw.rng import Purpose


def test_philox_equals_numpys_and_the_published_vector():
    # Salmon et al.'s known-answer test: zero key, zero counter.
    zero = torch.zeros(1, dtype=torch.int64)
    words = [int(w) for w in rng.philox(0, (zero, zero, zero, zero))]
    assert words == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]
    ones = torch.full((1,), 0xFFFFFFFF)
    words = [int(w) for w in rng.philox(0xFFFFFFFFFFFFFFFF, (ones, ones, ones, ones))]
    assert words == [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]


def test_draws_do_not_depend_on_who_asks():
    index = torch.arange(40)
    whole = rng.normal(3, index, Purpose.NOISE, (2, 5, 5))
    parts = torch.cat([rng.normal(3, part, Purpose.NOISE, (2, 5, 5)) for part in index.split(7)])
    assert torch.equal(whole, parts)
    assert torch.equal(rng.uniform(3, index.flip(0), Purpose.TIME), rng.uniform(3, index, Purpose.TIME).flip(0))


def test_seed_sample_purpose_and_stream_all_matter():
    index = torch.arange(4)
    base = rng.normal(1, index, Purpose.NOISE, (64,))
    others = [
        rng.normal(2, index, Purpose.NOISE, (64,)),
        rng.normal(1 + (1 << 32), index, Purpose.NOISE, (64,)),
        rng.normal(1, index + 4, Purpose.NOISE, (64,)),
        rng.normal(1, index + (1 << 32), Purpose.NOISE, (64,)),
        rng.normal(1, index, Purpose.POSTERIOR, (64,)),
        rng.normal(1, index, Purpose.NOISE, (64,), stream=1),
    ]
    for other in others:
        correlation = np.corrcoef(base.flatten(), other.flatten())[0, 1]
        assert abs(correlation) < 0.25 and not torch.equal(base, other)


def test_normal_and_uniform_have_their_moments():
    draws = rng.normal(0, torch.arange(500), Purpose.NOISE, (4, 8, 8)).double()
    n = draws.numel()
    assert abs(draws.mean()) < 4 / n**0.5
    assert abs(draws.var() - 1) < 6 * (2 / n) ** 0.5
    assert abs((draws**4).mean() - 3) < 6 * (96 / n) ** 0.5
    neighbours = (draws.flatten()[:-1] * draws.flatten()[1:]).mean()
    assert abs(neighbours) < 4 / n**0.5
    uniform = rng.uniform(0, torch.arange(20000), Purpose.TIME).double()
    assert uniform.min() >= 0 and uniform.max() < 1
    assert abs(uniform.mean() - 0.5) < 4 * (1 / 12 / 20000) ** 0.5
    assert abs(uniform.var() - 1 / 12) < 0.002
