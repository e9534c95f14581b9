"""Two deterministic runs have equal bits, those of a plain run on a CPU; a planted operation without such a form ends one."""

import json
import os

import pytest

from erw.errors import UserError
from states import difference, state_at
from tiny import BATCH, tiny

pytestmark = [pytest.mark.slow, pytest.mark.dist]
STEPS = 6


STAGES = ("zero1", "zero2")


@pytest.fixture(scope="module")
def runs(run_jobs, tmp_path_factory):
    """At each stage two deterministic runs and a plain one, ``STAGE-NAME``, in one launch."""
    folder = tmp_path_factory.mktemp("deterministic")
    names = {"a": True, "b": True, "plain": False}
    run_jobs([
        tiny("erw", folder / f"{stage}-{name}", engine={"ds_config": stage},
             train={"deterministic": deterministic, "save_every": 0})
        for stage in STAGES for name, deterministic in names.items()
    ])  # fmt: skip
    return folder


@pytest.mark.parametrize("stage", STAGES)
def test_two_runs_have_equal_bits(stage, runs):
    first, *others = (runs / f"{stage}-{name}" for name in ("a", "b", "plain"))
    for other in others:
        assert difference(state_at(first, STEPS * BATCH), state_at(other, STEPS * BATCH)) == 0.0
        a, b = ([json.loads(r) for r in (run / "metrics.jsonl").read_text().splitlines()] for run in (first, other))
        assert [row.get("loss") for row in a] == [row.get("loss") for row in b]


def test_a_planted_operation_without_a_deterministic_form_ends_the_run(one_rank, tmp_path, monkeypatch):
    import torch

    import train_ds
    from erw.objectives import Flow

    def spoilt(self, *args, **kwargs):
        torch.zeros(4).put_(torch.tensor([0]), torch.tensor([1.0]))

    monkeypatch.setitem(os.environ, "CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    monkeypatch.setattr(Flow, "corrupt", spoilt)
    with pytest.raises(UserError, match="put_ does not have a deterministic implementation"):
        train_ds.train(tiny("sit", tmp_path, train={"deterministic": True}))
    assert not torch.are_deterministic_algorithms_enabled()
