"""Sampling to disk: the same bytes however it is dealt out or stopped, and no folder of other images touched."""

import errno
import hashlib
import json
import os
import tracemalloc
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from erw import cli
from erw.engine.ranks import Ranks
from erw.errors import RankError, UserError, exits_cleanly
from erw.files import lock
from erw.models.blocks import SiTBlock
from erw.objectives import Ddpm, Flow
from erw.sample import BlockSampler, balanced_labels, generate, job, load_run, to_uint8
from erw.sample.files import write_npz
from erw.sample.job import SampleJob, run_job
from erw.samplers import SAMPLERS, SampleConfig
from untrained import untrained

ALONE = Ranks(0, 1, torch.device("cpu"))
COUNT, BATCH = 11, 4


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("run"))[0]


def files_of(folder: Path) -> dict[str, str]:
    """SHA-256 of every file but the lock."""
    found = (p for p in folder.rglob("*") if p.is_file() and p.name != ".lock")
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in found}


def sampled(run: Path, out: Path, **options) -> Path:
    return run_job(SampleJob(**{"path": run, "out": out, "count": COUNT, "batch": BATCH, **options}), ALONE)[0]


@pytest.fixture(scope="module")
def wholes(run, tmp_path_factory):
    """An undisturbed folder of each format."""
    folder = tmp_path_factory.mktemp("whole")
    for form in ("npz", "png"):
        sampled(run, folder / form, format=form)
    return folder


# ---- blocks -----------------------------------------------------------------------------------------------------------


def block_sampler(name: str, tmp_path, labels, batch: int, **settings) -> BlockSampler:
    objective = Ddpm() if name in ("ddpm", "ddim") else Flow()
    run, _ = untrained(tmp_path / objective.name, "dit" if isinstance(objective, Ddpm) else "sit")
    _, model, _ = load_run(run, torch.device("cpu"))
    config = SampleConfig(sampler=name, steps=3, guidance=2.0, tolerance=1e-2, **settings)
    return BlockSampler(model, objective, config, labels, seed=5, batch=batch)


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_blocks_bits_depend_neither_on_order_nor_on_what_was_asked_for_beside_it(name, tmp_path):
    labels = balanced_labels(2 * BATCH + 1, 10)
    sampler = block_sampler(name, tmp_path, labels, BATCH, eta=0.5)
    first, second, last = sampler.blocks()
    assert (len(first), len(last)) == (BATCH, 1)  # one row alone rounds otherwise than four
    forward = [sampler.latents(block) for block in (first, second, last)]
    assert all(part.shape[0] == BATCH and part.std() > 0.1 for part in forward)
    backward = [sampler.latents(block) for block in (last, second, first)]
    assert all(torch.equal(a, b) for a, b in zip(forward, reversed(backward), strict=True))
    more = block_sampler(name, tmp_path, balanced_labels(3 * BATCH, 10), BATCH, eta=0.5)
    if name != "dopri5":  # whose steps depend on the whole block, the image that fills it up included
        assert torch.equal(more.latents(more.blocks()[2])[0], forward[2][0])
    whole = block_sampler(name, tmp_path, labels, len(labels), eta=0.5)
    together = whole.latents(whole.blocks()[0])
    assert torch.allclose(together, torch.cat(forward)[: len(labels)], atol=0.1 if name == "dopri5" else 1e-4)


def test_both_halves_of_guidance_are_one_batch_and_only_within_its_interval(run):
    _, model, _ = load_run(run, torch.device("cpu"))
    rows = []
    model.register_forward_pre_hook(lambda module, given: rows.append(len(given[0])))
    config = SampleConfig(sampler="ode", steps=4, guidance=3.0, guidance_low=0.3, guidance_high=0.8)
    generate(model, Flow(), config, balanced_labels(3, 10), seed=0, batch=3)
    assert rows == [3, 6, 6, 3]  # t = 1, 0.75, 0.5, 0.25
    plain = generate(model, Flow(), replace(config, guidance=1.0), balanced_labels(3, 10), seed=0)
    assert not torch.equal(plain, generate(model, Flow(), config, balanced_labels(3, 10), seed=0))


def test_decoding_is_bounded_and_covers_the_block(run):
    _, model, _ = load_run(run, torch.device("cpu"))

    class Space:
        rows: list[int] = []

        def decode(self, latents):
            self.rows.append(len(latents))
            return latents + 1

    config = SampleConfig(sampler="ode", steps=2)
    sampler = BlockSampler(model, Flow(), config, balanced_labels(70, 10), seed=0, batch=70)
    (block,) = sampler.blocks()
    assert torch.equal(sampler.images(block, Space()), sampler.latents(block) + 1)
    assert Space.rows == [32, 32, 6]


def test_bf16_is_near_and_not_the_same(run):
    config = SampleConfig(sampler="ode", steps=4)
    found = {}
    for precision in ("fp32", "bf16"):
        _, model, _ = load_run(run, torch.device("cpu"))
        sampler = BlockSampler(model, Flow(), config, balanced_labels(8, 10), seed=0, precision=precision)
        found[precision] = sampler.latents(sampler.blocks()[0])
    gap = (found["bf16"] - found["fp32"]).abs().max() / found["fp32"].abs().max()
    assert 1e-5 < gap < 0.03


def test_compiled_blocks_give_the_same_images_and_compile_once_a_shape(run, wholes, tmp_path, monkeypatch):
    """By torch.compile's front end alone; its code generator takes most of a minute."""
    compile = torch.nn.Module.compile
    monkeypatch.setattr(SiTBlock, "compile", lambda block, **options: compile(block, backend="eager", **options))
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    guided = {"guidance": 2.0, "guidance_high": 0.6}
    plain = np.load(sampled(run, tmp_path / "plain", changes=guided))["arr_0"]
    fast = np.load(sampled(run, tmp_path / "fast", changes=guided, compile=True))["arr_0"]
    assert np.abs(plain.astype(int) - fast).max() <= 1
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 2  # with guidance and without, for all blocks


# ---- folders ----------------------------------------------------------------------------------------------------------


def test_the_npz_holds_what_generate_gives(run, tmp_path):
    data = np.load(sampled(run, tmp_path / "out", labels="random", seed=3))
    config, model, _ = load_run(run, torch.device("cpu"))
    labels = torch.from_numpy(data["labels"])
    assert len(labels) == COUNT and len(set(labels.tolist())) > 3
    pixels = to_uint8(generate(model, config.objective, config.sample, labels, seed=3, batch=BATCH))
    assert np.array_equal(data["arr_0"], pixels) and data["arr_0"].dtype == np.uint8
    assert ((pixels > 0) & (pixels < 255)).mean() > 0.2  # not all black and white, where every error is rounded away
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [".lock", "manifest.json", "samples.npz", "samples.png"]


def test_the_manifest_says_what_was_done_and_how_fast(run, tmp_path):
    sampled(run, tmp_path, changes={"guidance": 1.5, "guidance_high": 0.7}, batch=64)
    found = json.loads((tmp_path / "manifest.json").read_text())
    meta = json.loads((next((run / "checkpoints").iterdir()) / "meta.json").read_text())
    assert found["complete"] and found["sampling"]["images"] == COUNT and found["sampling"]["ranks"] == 1
    assert found["sampling"]["images_per_second"] == pytest.approx(COUNT / found["sampling"]["seconds"])
    asked = found["protocol"]
    assert asked["checkpoint"] == meta["files"]["ema.safetensors"]["sha256"] and asked["torch"] == torch.__version__
    assert (asked["guidance"], asked["guidance_high"], asked["batch"], asked["seed"]) == (1.5, 0.7, COUNT, 0)


@pytest.mark.parametrize("form", ["png", "webp"])
def test_pictures_are_lossless_and_named_by_image(run, wholes, tmp_path, form):
    pixels = np.load(wholes / "npz" / "samples.npz")["arr_0"]
    folder = sampled(run, tmp_path / form, format=form)
    assert sorted(p.name for p in folder.iterdir()) == [f"{i:06d}.{form}" for i in range(COUNT)]
    found = np.stack([np.asarray(Image.open(p).convert("L")) for p in sorted(folder.iterdir())])
    assert np.array_equal(found, pixels[..., 0])
    assert np.load(tmp_path / form / "labels.npy").tolist() == [i % 10 for i in range(COUNT)]
    grids = [np.asarray(Image.open(name / "samples.png").convert("L")) for name in (tmp_path / form, wholes / "npz")]
    assert np.array_equal(*grids)


def test_coloured_pictures_too(tmp_path):
    run, _ = untrained(tmp_path / "run", model={"in_channels": 3})
    pixels = np.load(sampled(run, tmp_path / "npz"))["arr_0"]
    for form in ("png", "webp"):
        folder = sampled(run, tmp_path / form, format=form)
        assert np.array_equal(np.stack([np.asarray(Image.open(p)) for p in sorted(folder.iterdir())]), pixels)


def test_a_complete_folder_is_left_alone(run, tmp_path, monkeypatch):
    sampled(run, tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.iterdir() if p.name != ".lock"}
    monkeypatch.setattr(job, "load_run", None)  # nobody may ask for the model
    assert sampled(run, tmp_path) == tmp_path / "samples.npz"
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.iterdir() if p.name != ".lock"}


class Killed(Exception):
    pass


def dying(*args, **kwargs):
    raise Killed


@pytest.mark.parametrize("form", ["npz", "png"])
@pytest.mark.parametrize("moment", ["second block", "half a block", "result", "grid", "end"])
def test_stopped_at_any_moment_it_goes_on_to_the_same_bytes(run, wholes, tmp_path, monkeypatch, form, moment):
    with monkeypatch.context() as patch:
        if moment == "second block":
            whole = BlockSampler.images
            patch.setattr(BlockSampler, "images", lambda s, b, space: dying() if b.number == 1 else whole(s, b, space))
        elif moment == "half a block":  # a file is written and not renamed yet
            names = iter(range(2 if form == "npz" else 6))  # the manifest, the first block, an image of the second
            replace = os.replace
            patch.setattr("erw.files.os.replace", lambda *a: replace(*a) if next(names, None) is not None else dying())
        elif moment == "result":
            store = "ArrayStore" if form == "npz" else "PictureStore"
            patch.setattr(f"erw.sample.store.{store}.finish", dying)
        elif moment == "grid":
            patch.setattr(job, "_draw_grid", dying)
        else:
            patch.setattr("erw.sample.store.ArrayStore.clear", dying)
            patch.setattr("erw.sample.store.PictureStore.clear", dying)
        with pytest.raises(Killed):
            sampled(run, tmp_path / "parts", format=form)
    done = []
    images = BlockSampler.images
    monkeypatch.setattr(BlockSampler, "images", lambda s, b, space: done.append(b.number) or images(s, b, space))
    sampled(run, tmp_path / "parts", format=form)
    assert done == ([1, 2] if "block" in moment else [])
    parts, whole = files_of(tmp_path / "parts"), files_of(wholes / form)
    assert parts.pop("manifest.json") and whole.pop("manifest.json") and parts == whole


def test_a_full_disk_is_one_line_and_loses_nothing(run, wholes, tmp_path, monkeypatch):
    room = iter(range(3))  # the manifest and two blocks

    def sync(descriptor):
        if next(room, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("erw.files.os.fsync", sync)
        with pytest.raises(RankError, match=r"000002.npy cannot be written: No space left on device; finished images are kept"):
            sampled(run, tmp_path / "parts")
    assert len(list((tmp_path / "parts" / "blocks").glob("*.npy"))) == 2
    assert sampled(run, tmp_path / "parts").read_bytes() == (wholes / "npz" / "samples.npz").read_bytes()


# ---- other people's folders -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def halves(run, tmp_path_factory):
    """A folder of each format, stopped before its end."""
    folder = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job, "_draw_grid", dying)
        for form in ("npz", "png"):
            with pytest.raises(Killed):
                sampled(run, folder / form, format=form)
    return folder


@pytest.mark.parametrize("form", ["npz", "png"])
@pytest.mark.parametrize("complete", [True, False])
@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("seed 0, this command has 1", {"seed": 1}),
        ("count 11, this command has 12", {"count": 12}),
        ("batch 4, this command has 5", {"batch": 5}),
        ("labels balanced, this command has random", {"labels": "random"}),
        ("weights ema, this command has weights", {"weights": "weights"}),
        ("precision fp32, this command has bf16", {"precision": "bf16"}),
        ("compile False, this command has True", {"compile": True}),
        ("format ", {"format": "webp"}),
        ("steps 4, this command has 5", {"changes": {"steps": 5}}),
        ("guidance_high 1.0, this command has 0.7", {"changes": {"guidance": 1.0, "guidance_high": 0.7}}),
    ],
)
def test_another_protocol_is_refused_by_name_and_touches_nothing(run, wholes, halves, form, complete, field, options):
    folder = (wholes if complete else halves) / form
    before = files_of(folder)
    assert len(before) >= 3
    with pytest.raises(UserError) as refused:
        sampled(run, folder, **{"format": form, **options})
    text = str(refused.value)
    assert f"holds images sampled with {field}" in text and "name another --out" in text and "\n" not in text
    assert files_of(folder) == before


def test_another_checkpoint_or_version_is_refused(run, tmp_path):
    sampled(run, tmp_path / "out")
    other, _ = untrained(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="sampled with checkpoint [0-9a-f]{64}, this command has"):
        sampled(other, tmp_path / "out")
    manifest = tmp_path / "out" / "manifest.json"
    for name in ("torch", "erw"):
        found = json.loads(manifest.read_text())
        manifest.write_text(json.dumps({**found, "protocol": {**found["protocol"], name: "0.0.1"}}))
        with pytest.raises(UserError, match=f"sampled with {name} 0.0.1, this command has"):
            sampled(run, tmp_path / "out")
        manifest.write_text(json.dumps(found))
    assert sampled(run, tmp_path / "out").exists()


def test_a_folder_of_other_things_is_not_written_to(run, tmp_path):
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "000000.png").write_bytes(b"a holiday")
    with pytest.raises(UserError, match="holds files but no manifest.json"):
        sampled(run, tmp_path, format="png")
    assert [p.name for p in tmp_path.rglob("*")] == ["images", "000000.png"]
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(UserError, match="manifest.json cannot be read"):
        sampled(run, tmp_path, format="png")
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(UserError, match="is a file: name a folder"):
        sampled(run, file)


def test_two_at_once_are_refused(run, tmp_path):
    with lock(tmp_path, "erw sample"), pytest.raises(UserError, match="another erw sample is at work"):
        sampled(run, tmp_path)
    assert sampled(run, tmp_path).exists()


# ---- the archive ------------------------------------------------------------------------------------------------------


def test_the_archive_is_streamed_and_is_what_adms_evaluator_opens(tmp_path):
    generator = np.random.default_rng(0)
    first = generator.integers(0, 256, (64, 64, 64, 3), np.uint8)  # 0.8 MB

    def parts():
        for shift in range(40):
            yield first + np.uint8(shift)

    labels = np.arange(40 * 64)
    tracemalloc.start()
    write_npz(tmp_path / "a.npz", parts(), (40 * 64, 64, 64, 3), labels)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    size = (tmp_path / "a.npz").stat().st_size
    assert size > 31e6 and peak < 5e6
    with zipfile.ZipFile(tmp_path / "a.npz") as archive, archive.open("arr_0.npy") as member:
        assert np.lib.format.read_magic(member) == (1, 0)
        assert np.lib.format.read_array_header_1_0(member) == ((2560, 64, 64, 3), False, np.dtype("uint8"))
    data = np.load(tmp_path / "a.npz")
    assert np.array_equal(data["arr_0"], np.concatenate(list(parts()))) and np.array_equal(data["labels"], labels)


# ---- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--count", "0"], "--count must be at least 1, not 0"),
        (["--count", "many"], "invalid int value"),
        (["--batch", "-1"], "--batch must be at least 1, not -1"),
        (["--format", "jpg"], "invalid choice: 'jpg'"),
        (["--precision", "fp8"], "invalid choice: 'fp8'"),
        (["--precision", "tf32"], "precision tf32 is an NVIDIA GPU's"),
        (["--sampler", "ddpm"], "does not fit --objective.name flow"),
        (["--guidance-low", "0.8", "--guidance-high", "0.2"], "lies above --sample.guidance_high"),
        (["--labels", "10"], "classes of this model are 0..9"),
        (["--labels", "/nowhere.npy"], "/nowhere.npy cannot be read"),
        (["--labels", "SHORT.npy"], "11 class numbers are wanted"),
        (["--labels", "FLOAT.npy"], "11 class numbers are wanted"),
        (["--out", "/proc/nothing"], "--out /proc/nothing cannot be written"),
        (["--out", "FLOAT.npy"], "is a file: name a folder"),
    ],
)
def test_mistakes_get_one_line(run, capsys, tmp_path, monkeypatch, arguments, says):
    if says.startswith("precision tf32") and torch.cuda.is_available():
        pytest.skip("a GPU has TF32")
    monkeypatch.chdir(tmp_path)
    np.save("SHORT.npy", np.arange(10))
    np.save("FLOAT.npy", np.zeros(20))
    before = files_of(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["sample", str(run), "--count", "11", "--out", "out", *arguments])
    lines = capsys.readouterr().err.splitlines()
    assert stopped.value.code == 2 and len(lines) == 1 and says in lines[0], lines
    assert files_of(tmp_path) == before


def test_labels_from_a_file(run, tmp_path):
    np.save(tmp_path / "mine.npy", np.array([7, 3] * 6, np.uint8))
    data = np.load(sampled(run, tmp_path / "out", labels=str(tmp_path / "mine.npy")))
    assert data["labels"].tolist() == ([7, 3] * 6)[:COUNT]


def test_weights_that_are_not_finite_are_said_so(run, tmp_path, monkeypatch):
    broken = load_run(run, torch.device("cpu"))
    broken[1].final_layer.linear.bias.fill_(float("nan"))
    monkeypatch.setattr(job, "load_run", lambda *given: broken)
    with pytest.raises(RankError, match="images 0 to 3 came out as NaN or infinity"):
        sampled(run, tmp_path)


@pytest.mark.parametrize(("error", "lines"), [(UserError, 0), (RankError, 1)])
def test_a_rank_says_what_is_its_own_trouble(monkeypatch, capsys, error, lines):
    @exits_cleanly
    def main():
        raise error("trouble")

    monkeypatch.setenv("RANK", "1")
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2 and capsys.readouterr().err.count("erw: error: trouble") == lines


@pytest.mark.parametrize(("rank", "said"), [("0", "erw: interrupted: what was saved before stays\n"), ("1", "")])
def test_ctrl_c_is_one_line(monkeypatch, capsys, rank, said):
    @exits_cleanly
    def main():
        raise KeyboardInterrupt

    monkeypatch.setenv("RANK", rank)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 130 and capsys.readouterr().err == said
