"""What a new run takes from another model: where name and shape fit, and nothing of another meaning."""

from dataclasses import replace

import pytest
import torch

from erw.build import build_step
from erw.convert import import_public
from erw.errors import UserError
from erw.init_from import pinned, read_start, require
from erw.latents import LatentConfig
from erw.objectives import Flow
from erw.public import read_public
from published import MODEL, published_weights, random_sit, training_checkpoint
from tiny import tiny

SIGMA = replace(MODEL, learn_sigma=True)


def config(path, convention="none", name="sit", model=SIGMA, **objective):
    base = tiny(name, "runs/x", train={"init_from": str(path), "init_convention": convention}, objective=objective)
    return replace(base, model=model)


@pytest.fixture
def sit(tmp_path):
    """A public SiT file, eight channels."""
    return training_checkpoint(published_weights(random_sit(SIGMA)), tmp_path / "sit.pt", path_type="Linear")


def start(settings):
    return read_start(settings, pinned(settings.train))


def test_a_model_of_the_same_shape_is_taken_whole_whatever_it_comes_from(sit, tmp_path):
    run = tmp_path / "run"
    checkpoint = import_public(sit, "sit", run, LatentConfig(), 2)
    expected = read_public(sit, "sit", 2).weights
    for settings in (config(sit, "sit"), config(run), config(checkpoint)):
        given = start(settings)
        assert given.weights.keys() == expected.keys() - {"pos_embed"}
        assert all(torch.equal(value, expected[name]) for name, value in given.weights.items())
        assert given.report == f"init_from {settings.train.init_from}: {len(expected) - 1} weights loaded"


def test_other_classes_size_and_depth_are_said(sit):
    model = replace(SIGMA, num_classes=4, input_size=16, depth=3)
    given = start(config(sit, "sit", model=model))
    assert "y_embedder.embedding_table.weight" not in given.weights and "pos_embed" not in given.weights
    assert "blocks.1.attn.qkv.weight" in given.weights
    assert given.report.endswith("; not loaded: y_embedder.embedding_table.weight (other shape); not in the source: blocks.2.*")
    shallow = start(config(sit, "sit", model=replace(SIGMA, depth=1, qk_norm=True)))
    norms = ", ".join(f"blocks.*.attn.{n}_norm.{kind}" for n in "qk" for kind in ("weight", "bias"))
    assert shallow.report.endswith(f"; not loaded: blocks.1.* (no place for it); not in the source: {norms}")


def test_other_channels_leave_both_ends_as_they_were_born(sit):
    """Also where there happen to be as many rows: 2 x 2 patches of 8 channels are 4 x 4 of 2."""
    for model in (replace(SIGMA, in_channels=1), replace(SIGMA, patch_size=4, in_channels=1)):
        given = start(config(sit, "sit", model=model))
        ends = {"x_embedder.proj.weight", "final_layer.linear.weight", "final_layer.linear.bias"}
        assert not ends & given.weights.keys() and all(f"{name} (other shape)" in given.report for name in ends)


def test_projectors_come_along_where_they_fit(tmp_path):
    weights = published_weights(random_sit(MODEL), projector_width=24)
    file = training_checkpoint(weights, tmp_path / "repa.pt")
    whole = start(config(file, "repa", "repa", MODEL))
    assert torch.equal(whole.weights["projectors.0.2.weight"], weights["projectors.0.2.weight"])
    assert "not" not in whole.report.split("loaded")[1]
    plain = start(config(file, "repa", "sit", MODEL))
    assert "not loaded: projectors.0.* (no place for it)" in plain.report


def test_the_velocitys_rows_are_taken_where_sigma_is_not_wanted(sit):
    """By the output, not by the index: rows are (patch, patch, channel)."""
    settings = config(sit, "sit", model=MODEL)
    given = start(settings)
    assert given.report.endswith("of final_layer.linear the first 4 channels of 8")
    step = build_step(settings, settings.method.phase(0), None, given.weights).eval()
    whole = random_sit(SIGMA)
    x, t, y = torch.randn(3, 4, 8, 8), torch.rand(3), torch.arange(3)
    expected = -whole(x, 1 - t, y).prediction[:, :4]
    assert torch.allclose(step.model(x, t, y).prediction, expected, rtol=1e-5, atol=1e-5)


def test_each_phase_of_erw_starts_from_what_it_has(tmp_path):
    file = training_checkpoint(published_weights(random_sit(MODEL), projector_width=24), tmp_path / "repa.pt")
    settings = config(file, "repa", "erw", replace(MODEL, depth=3))
    given = start(settings)
    assert given.report.endswith("not in the source: blocks.2.*")
    for images in (0, settings.method.warmup_images):
        step = build_step(settings, settings.method.phase(images), None, given.weights)
        born = build_step(settings, settings.method.phase(images))
        values = {name.split(".", 1)[1]: p for name, p in step.named_parameters()}
        assert all(torch.equal(values[name], given.weights[name]) for name in values.keys() & given.weights.keys())
        assert "projectors.0.0.weight" in values
        untouched = [name for name, _ in born.named_parameters() if name.startswith("model.blocks.2.")]
        assert bool(untouched) == bool(images)
        assert all(torch.equal(step.get_parameter(name), born.get_parameter(name)) for name in untouched)
    carried = {name: torch.zeros_like(given.weights[name]) for name in ("blocks.0.attn.qkv.weight",)}
    step = build_step(settings, settings.method.phase(10**9), carried, given.weights)
    assert not step.model.blocks[0].attn.qkv.weight.any() and step.model.blocks[1].attn.qkv.weight.any()


def test_rope_that_differs_is_said(sit):
    assert start(config(sit, "sit", model=replace(SIGMA, rope=True))).report.endswith("--model.rope False there, True here")


def test_models_that_mean_something_else_are_refused(sit):
    dit = config(sit, "dit")
    with pytest.raises(UserError, match="was trained with path_type Linear"):
        start(dit)
    with pytest.raises(UserError, match="was trained with --objective.interpolant linear, this run has cosine"):
        start(config(sit, "sit", interpolant="cosine"))
    torch.save(published_weights(random_sit(SIGMA)), sit)
    with pytest.raises(UserError, match="was trained with --objective.name ddpm, this run has flow"):
        start(dit)


def test_other_heads_are_refused(sit, tmp_path):
    import_public(sit, "sit", tmp_path / "run", LatentConfig(), 2)
    with pytest.raises(UserError, match="was trained with --model.num_heads 2, this run has 4"):
        start(config(tmp_path / "run", model=replace(SIGMA, num_heads=4)))


def test_another_width_is_refused(sit):
    with pytest.raises(UserError, match="was trained with --model.width 32, this run has 64"):
        start(config(sit, "sit", model=replace(SIGMA, width=64)))


def test_where_to_start_from_is_checked_at_once(sit, tmp_path):
    def pin(path, convention="none"):
        return pinned(config(path, convention).train)

    assert pin("none") is None and Flow() == config("none").objective
    for path, convention, says in [
        ("/nowhere", "none", "--train.init_from '/nowhere' does not exist"),
        (sit, "none", "say whose with --train.init_convention sit, dit or repa"),
        (sit, "sti", "did you mean sit"),
        (tmp_path, "sit", "is a folder: leave it out"),
        (tmp_path, "none", "neither a checkpoint nor"),
        ("none", "sit", "--train.init_convention sit needs a .pt file"),
    ]:
        with pytest.raises(UserError, match=says):
            pin(path, convention)
    with pytest.raises(UserError, match="is needed for its next phase: put it back"):
        require(tmp_path / "gone")
