"""What is fed to a network that is probed, what is read out of it, and which images are looked at."""

import json
import math
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from erw.align import Plain
from erw.bench._section import section
from erw.bench.probe import report, sections
from erw.config import TrainConfig
from erw.data import DataConfig
from erw.errors import UserError
from erw.objectives import Ddpm, Flow
from erw.presets import preset
from erw.probe import linear, tables
from erw.probe.images import ImageSource, Split, read_images
from erw.probe.measure import ProbeConfig
from erw.probe.network import Network, chosen_blocks, hidden_states, untrained
from erw.probe.placement import NO_WARM_UP, PlacementConfig, plan, summary
from erw.probe.runs import Run, teacher_of
from published import random_sit
from tiny import MODEL, tiny

CPU = torch.device("cpu")


def split(count: int = 40) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(count, 1, 8, 8, generator=generator)
    return Split(images, torch.arange(count) % 10, torch.arange(count), torch.randn(count, 96, generator=generator))


def network(first: int = 1, last: int = 0) -> Network:
    model = random_sit(MODEL)
    return Network(model.keep_span(first, last) if last else model, Flow(), 0, "train")


# ---- noise and t ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interpolant", ["linear", "cosine"])
def test_a_flow_is_data_at_0_and_noise_at_1(interpolant):
    clean, noise = torch.randn(2, 5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    flow = Flow(interpolant=interpolant)
    for time, expected in ((0.0, clean), (1.0, noise)):
        x, t = flow.noised(clean, noise, torch.full((5,), time))
        assert torch.allclose(x, expected, atol=1e-6) and torch.equal(t, torch.full((5,), time))
    shares = {"linear": (0.75, 0.25), "cosine": (math.cos(math.pi / 8), math.sin(math.pi / 8))}[interpolant]
    between = flow.noised(clean, noise, torch.full((5,), 0.25))[0]
    assert torch.allclose(between, shares[0] * clean + shares[1] * noise, atol=1e-6)


def test_a_ddpm_sees_its_own_steps():
    clean, noise = torch.randn(2, 5, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    first, t = Ddpm().noised(clean, noise, torch.zeros(5))
    assert torch.equal(t, torch.zeros(5)) and torch.allclose(first, clean, atol=0.05)
    last, t = Ddpm().noised(clean, noise, torch.ones(5))
    assert torch.equal(t, torch.full((5,), 999.0)) and torch.allclose(last, noise, atol=0.05)


# ---- hidden states ----------------------------------------------------------------------------------------------------


def test_hidden_states_are_the_blocks_outputs_under_the_null_class():
    probed, images = network(), split(6)
    seen, asked = [], []
    for block in probed.model.blocks:
        block.register_forward_hook(lambda _, __, out: seen.append(out))
    probed.model.y_embedder.register_forward_hook(lambda _, given, __: asked.append(given[0]))
    found = hidden_states(probed, images, 0.5, (1, 3), tokens=True)
    assert torch.equal(found[1], seen[0]) and torch.equal(found[3], seen[2])
    assert asked[0].tolist() == [MODEL.num_classes] * 6
    means = hidden_states(probed, images, 0.5, (1, 3))
    assert all(torch.allclose(means[b], found[b].mean(dim=1), atol=1e-6) for b in (1, 3))


def test_noise_belongs_to_the_image_and_is_none_at_0():
    probed, images = network(), split(300)
    whole = hidden_states(probed, images, 0.75, (2,))[2]
    part = Split(*(x[270:] for x in (images.latents, images.labels, images.index, images.teacher)))
    assert torch.allclose(hidden_states(probed, part, 0.75, (2,))[2], whole[270:], atol=1e-5)
    other = replace(part, index=part.index + 1)
    assert not torch.allclose(hidden_states(probed, other, 0.75, (2,))[2], whole[270:], atol=1e-2)
    clean = hidden_states(probed, part, 0.0, (2,))[2]
    assert torch.allclose(hidden_states(probed, other, 0.0, (2,))[2], clean, atol=1e-6)


def test_a_label_would_tell_the_probe_its_answer():
    probed, images = network(), split(200)
    shuffled = replace(images, labels=images.labels[torch.randperm(200, generator=torch.Generator().manual_seed(2))])
    fair, told = (hidden_states(probed, shuffled, 0.5, (3,), labels=y)[3] for y in (None, shuffled.labels))
    fit, judge = slice(0, 120), slice(120, 200)
    scores = [linear.fit(x[fit], shuffled.labels[fit]).accuracy(x[judge], shuffled.labels[judge]) for x in (fair, told)]
    assert scores[0] < 0.3 and scores[1] > 0.9


def test_the_untrained_network_is_the_runs_own_start():
    config = tiny("erw", "unused")
    same, other = untrained(config, CPU), untrained(replace(config, train=replace(config.train, seed=1)), CPU)
    assert same.blocks == (1, 2, 3) and same.phase == ""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.train.seed)
        start = type(same.model)(config.model).state_dict()
    assert all(torch.equal(value, start[name]) for name, value in same.model.state_dict().items())
    assert not torch.equal(other.model.x_embedder.proj.weight, same.model.x_embedder.proj.weight)


def test_a_warm_ups_blocks_are_those_that_exist():
    warm = network(2, 3)
    assert warm.blocks == (2, 3) and chosen_blocks(None, warm, "run") == (2, 3) and chosen_blocks((1, 2), warm, "run") == (2,)
    assert set(hidden_states(warm, split(4), 0.0, (2, 3))) == {2, 3}
    with pytest.raises(UserError, match="run lies in the warm-up and has only blocks 2 to 3"):
        chosen_blocks((1,), warm, "run")
    with pytest.raises(UserError, match="--layers 4 is not a block of run: it has blocks 1 to 3"):
        chosen_blocks((1, 4), network(), "run")


# ---- images and teachers ----------------------------------------------------------------------------------------------


def test_digits_are_split_as_everywhere():
    images = read_images(tiny("sit", "unused"), ImageSource(teacher="digits-contrastive", count=10_000), CPU)
    assert (len(images.train), len(images.held_out)) == (1437, 360) and images.note == "held out from all training"
    few = read_images(tiny("sit", "unused"), ImageSource(teacher="digits-contrastive", count=50, tokens=True), CPU)
    assert len(few.train) == len(few.held_out) == 50 and few.held_out.teacher.shape == (50, 16, 96)
    # The same image has the same features however many are read; an image is known by its row.
    row = int((images.held_out.index == few.held_out.index[7]).nonzero())
    assert torch.allclose(few.held_out.teacher[7].mean(dim=0), images.held_out.teacher[row], atol=1e-5)


def arrays(folder, count: int = 50, teacher: bool = True) -> TrainConfig:
    folder.mkdir()
    generator = np.random.default_rng(0)
    np.save(folder / "latents.npy", generator.standard_normal((count, 1, 8, 8)).astype(np.float32))
    np.save(folder / "labels.npy", np.arange(count) % 10)
    teachers = [{"name": "digits-supervised", "width": 96, "grid": 4, "flops_per_image": 1, "file": "tokens.npy"}]
    (folder / "manifest.json").write_text(json.dumps({"num_classes": 10, "teachers": teachers if teacher else []}))
    np.save(folder / "tokens.npy", generator.standard_normal((count, 16, 96)).astype(np.float32))
    return replace(tiny("sit", "unused"), data=DataConfig(name="arrays", path=str(folder)))


def test_arrays_hold_out_a_fifth_or_another_folder(tmp_path):
    config, source = arrays(tmp_path / "a"), ImageSource(teacher="digits-supervised", count=1000)
    images = read_images(config, source, CPU)
    train, held = set(images.train.index.tolist()), set(images.held_out.index.tolist())
    assert len(train) == 40 and len(held) == 10 and not train & held
    assert "the generator has trained on them" in images.note
    tokens, row = np.load(tmp_path / "a" / "tokens.npy"), int(images.held_out.index[3])
    assert np.allclose(images.held_out.teacher[3], tokens[row].mean(axis=0), atol=1e-6)
    arrays(tmp_path / "b", count=30)
    apart = read_images(config, replace(source, held_out=tmp_path / "b"), CPU)
    assert len(apart.train) == 50 and len(apart.held_out) == 30 and str(tmp_path / "b") in apart.note


def test_images_that_cannot_be_had_get_one_line(tmp_path):
    config = arrays(tmp_path / "a")
    for teacher, says in (
        ("digits-contrastive", "holds features of digits-supervised and no images"),
        ("dino", "is not known"),
    ):
        with pytest.raises(UserError, match=says):
            read_images(config, ImageSource(teacher=teacher, count=10), CPU)
    with pytest.raises(UserError, match="--held-out is for arrays"):
        read_images(tiny("sit", "x"), ImageSource(teacher="digits-contrastive", count=9, held_out=tmp_path), CPU)
    with pytest.raises(UserError, match="--count must be at least 1"):
        read_images(config, ImageSource(teacher="digits-supervised", count=0), CPU)


def test_the_teacher_is_named_or_the_runs_own():
    sit, repa = (Run(name, [], tiny(name, "unused")) for name in ("sit", "repa"))
    other = Run("other", [], tiny("repa", "unused", teacher={"name": "digits-supervised"}))
    assert teacher_of([sit, repa], "") == ("digits-contrastive", "of repa")
    assert teacher_of([sit, repa, other], "digits-supervised") == ("digits-supervised", "by name")
    with pytest.raises(UserError, match="none of these runs aligns with a teacher: name one with --teacher"):
        teacher_of([sit], "")
    with pytest.raises(UserError, match="digits-contrastive and digits-supervised: choose one with --teacher"):
        teacher_of([repa, other], "")
    with pytest.raises(UserError, match="one teacher at a time"):
        teacher_of([repa], "digits-contrastive,digits-supervised")


@pytest.mark.parametrize("times", [(), (0.5, 0.5), (-0.1,), (1.5,), (float("nan"),)])
def test_times_lie_between_data_and_noise(times):
    with pytest.raises(UserError, match="--times must be different numbers in 0..1"):
        ProbeConfig(times=times)


# ---- placement --------------------------------------------------------------------------------------------------------


def test_placement_differs_in_the_warmed_blocks_alone(tmp_path):
    plans = plan(preset("digits-erw"), PlacementConfig(blocks=2, images=320, full_images=640, seeds=(0, 1)), tmp_path)
    assert list(plans) == ["1-2", "2-3", "3-4", NO_WARM_UP]
    for runs in plans.values():
        assert [run.train.seed for run in runs] == [0, 1]
        for run in runs:
            run.check()
    ranges = [plans[name][0] for name in ("1-2", "2-3", "3-4")]
    assert [(run.method.first, run.method.depth) for run in ranges] == [(1, 2), (2, 3), (3, 4)]
    alike = {replace(run.method, first=1, depth=1) for run in ranges}
    assert len(alike) == 1 and all(run.train.images == 960 and not run.method.phase(320).aligns for run in ranges)
    bare = plans[NO_WARM_UP][0]
    assert isinstance(bare.method, Plain) and bare.train.images == 640
    assert replace(bare, method=ranges[0].method, train=ranges[0].train) == ranges[0]


@pytest.mark.parametrize(
    ("name", "wish", "says"),
    [
        ("digits-repa", {}, "this is method repa: name a preset or run of ERW"),
        ("digits-erw", {"blocks": 5}, "--placement-blocks 5 does not fit the model: it has 4 blocks"),
        ("digits-erw", {"images": 33}, "--placement-images 33 must be a multiple of the batch, 32"),
        ("digits-erw", {"full_images": -32}, "--placement-full-images -32 must be"),
        ("digits-erw", {"seeds": (1, 1)}, "--placement-seeds must be different"),
    ],
)
def test_placements_that_make_no_sense_get_one_line(tmp_path, name, wish, says):
    with pytest.raises(UserError, match=says):
        plan(preset(name), PlacementConfig(**wish), tmp_path)


def test_means_and_deviations_over_seeds():
    rows = [{"blocks": "1-2", "seed": s, "diffusion": v, "align": -v} for s, v in ((0, 1.0), (1, 3.0))]
    rows += [{"blocks": NO_WARM_UP, "seed": 0, "diffusion": 5.0}]
    found = summary({"rows": rows})
    assert found["1-2"]["diffusion"] == (2.0, pytest.approx(2**0.5)) and found["1-2"]["align"][0] == -2.0
    assert found[NO_WARM_UP] == {"diffusion": (5.0, None)}


def test_a_table_leaves_blank_what_a_warm_up_does_not_have():
    rows = [{"run": "whole", "t": 0.0, "block": b, "cknna": b / 10} for b in (1, 2)]
    rows += [{"run": "warm", "t": 0.0, "block": 1, "cknna": 0.5}]
    text = tables.alignment_table({"rows": rows, "teacher": {"name": "teacher"}}, "cknna")
    assert "| whole | 0 | 0.100 | 0.200 |" in text and "| warm | 0 | 0.500 |  |" in text


# ---- the digits' page -------------------------------------------------------------------------------------------------

ROOT = Path(__file__).resolve().parents[2]


def test_the_pages_tables_are_the_records():
    record = json.loads((ROOT / "bench/results/probe-digits.json").read_text())
    page = (ROOT / "docs/probing.md").read_text()
    assert {name: section(page, name, "docs/probing.md") for name in sections(record)} == {
        name: f"{body}\n" for name, body in sections(record).items()
    }
    for picture in re.findall(r"\]\((pictures/[^)]*)\)", page):
        assert (ROOT / "docs" / picture).exists()


def test_the_report_is_made_from_the_record_alone(tmp_path):
    record = json.loads((ROOT / "bench/results/probe-digits.json").read_text())
    page = tmp_path / "page.md"
    page.write_text("mine\n<!-- probe -->\nold\n<!-- /probe -->\n<!-- placement -->\n<!-- /placement -->\n")
    record["probe"]["teacher"]["accuracy"] = 0.123
    report(record, page, tmp_path)
    text = page.read_text()
    assert text.startswith("mine\n") and "old" not in text and "(teacher on clean images: 0.123)" in text
    names = {f"probe-{name}.png" for name in ("semantic-gap", "alignment", "progression", "placement")}
    assert {file.name for file in tmp_path.glob("*.png")} == names
