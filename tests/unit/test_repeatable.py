"""--train.deterministic: what it switches, what it refuses, and that it leaves no trace."""

import os
from dataclasses import replace

import pytest
import torch

from erw import repeatable as subject
from erw.errors import UserError
from erw.options import parse
from erw.repeatable import repeatable, set_workspace
from tiny import tiny


@pytest.fixture(autouse=True)
def no_workspace(monkeypatch):
    """As if nothing had set the variable; what a test sets goes with it."""
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "gone after the test")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)


def config(**sections):
    given = tiny("sit", "nowhere", **sections)
    return replace(given, train=replace(given.train, deterministic=True))


def test_the_switches_are_on_inside_and_as_before_after():
    seen = {}

    @repeatable
    def train(_):
        seen.update(on=torch.are_deterministic_algorithms_enabled(), cudnn=torch.backends.cudnn.deterministic,
                    workspace=os.environ["CUBLAS_WORKSPACE_CONFIG"], tf32=torch.backends.cuda.matmul.allow_tf32)  # fmt: skip

    tf32 = torch.backends.cuda.matmul.allow_tf32
    train(config())
    assert seen == {"on": True, "cudnn": True, "workspace": ":4096:8", "tf32": tf32}
    assert not torch.are_deterministic_algorithms_enabled() and not torch.backends.cudnn.deterministic


def test_without_the_option_nothing_is_touched():
    @repeatable
    def train(_):
        assert not torch.are_deterministic_algorithms_enabled() and "CUBLAS_WORKSPACE_CONFIG" not in os.environ

    train(tiny("sit", "nowhere"))


def test_an_operation_without_a_deterministic_form_is_refused_in_one_line():
    @repeatable
    def train(_):
        torch.zeros(4).put_(torch.tensor([0]), torch.tensor([1.0]))

    with pytest.raises(UserError) as refused:
        train(config())
    assert str(refused.value) == (
        "--train.deterministic: put_ does not have a deterministic implementation: drop the option, or that operation"
    )
    assert not torch.are_deterministic_algorithms_enabled()


def test_other_errors_stay_themselves():
    @repeatable
    def train(_):
        torch.ones(2) @ torch.ones(3)

    with pytest.raises(RuntimeError, match="size"):
        train(config())


@pytest.mark.parametrize(
    ("name", "reason"), [("auto", "goes by the clock"), ("fa2", "choose sdpa"), ("xformers", "choose sdpa")]
)
def test_attention_that_cannot_promise_equal_bits_is_refused(name, reason):
    with pytest.raises(UserError, match=reason):
        repeatable(lambda _: None)(config(engine={"attention": name}))


def test_a_workspace_that_comes_too_late_or_is_another_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(UserError, match="CUDA has started without CUBLAS_WORKSPACE_CONFIG: set it to :4096:8 or :16:8"):
        set_workspace()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    set_workspace()
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":0:0")
    with pytest.raises(UserError, match="CUBLAS_WORKSPACE_CONFIG is :0:0"):
        set_workspace()
    assert subject._WORKSPACES[0] == ":4096:8"


def test_the_option():
    assert parse(["digits-sit", "--train.deterministic", "true"])[0].train.deterministic
