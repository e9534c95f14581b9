"""Two deterministic runs have equal bits, those of a plain run on a CPU; a planted operation without such a form ends one."""

import json
import os

import pytest

from erw.errors import UserError
from states import difference, state_at
from tiny import BATCH, tiny

pytestmark = [pytest.mark.slow, pytest.mark.dist]
STEPS = 6


@pytest.mark.parametrize("stage", ["zero1", "zero2"])
def test_two_runs_have_equal_bits(stage, run_jobs, tmp_path):
    def job(name, deterministic):
        return tiny(
            "erw", tmp_path / name, engine={"ds_config": stage}, train={"deterministic": deterministic, "save_every": 0}
        )

    run_jobs([job("a", True), job("b", True), job("plain", False)])
    first = state_at(tmp_path / "a", STEPS * BATCH)
    for other in ("b", "plain"):
        assert difference(first, state_at(tmp_path / other, STEPS * BATCH)) == 0.0
        a, b = ([json.loads(r) for r in (tmp_path / n / "metrics.jsonl").read_text().splitlines()] for n in ("a", other))
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
