"""Exported models: the same bits and the same images after a round trip, a card that claims nothing, no damaged folder read."""

import json
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from erw import cli
from erw.card import Licences
from erw.checkpoint import check_resumable, found, read_meta, read_tensors, sha256
from erw.config import config_from_dict
from erw.errors import UserError
from erw.exported import import_export, read_export, write_export
from erw.sample import balanced_labels, generate, load_run
from folders import write_checkpoint, write_run
from tiny import BATCH, tiny

LAST = 6 * BATCH


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of ERW with heads, a checkpoint in the warm-up and one at its end, evaluated twice."""
    evals = ({"images": 80, "frechet": 9.5, "accuracy": 0.5}, {"images": 96, "frechet": 4.25, "accuracy": 0.75})
    config = tiny("erw", "/home/me/runs/erw", data={"path": "/data/secret/digits"}, eval={"name": "digits", "count": 20})
    folder = write_run(tmp_path_factory.mktemp("export") / "erw", config, evals=evals)
    write_checkpoint(folder, config, 2 * BATCH)
    write_checkpoint(folder, config, LAST)
    return folder


@pytest.fixture
def exported(run, tmp_path):
    write_export(run, tmp_path / "exported")
    return tmp_path / "exported"


def sampled(path) -> torch.Tensor:
    config, model, _ = load_run(path, torch.device("cpu"))
    return generate(model, config.objective, config.sample, balanced_labels(4, 10), seed=1)


def same_bits(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


def test_a_round_trip_gives_the_same_bits_and_images(run, exported, tmp_path):
    checkpoint = import_export(exported, tmp_path / "back")
    ema = read_tensors(found(run / "checkpoints")[-1], "ema")
    assert any(name.startswith("projectors.") for name in ema) and "pos_embed" in ema
    assert same_bits(read_tensors(checkpoint, "ema"), ema) and same_bits(read_tensors(checkpoint, "weights"), ema)
    images = sampled(run)
    assert torch.equal(sampled(tmp_path / "back"), images) and images.abs().max() > 0.1
    meta = read_meta(checkpoint)
    assert (meta.images, meta.phase, meta.steps) == (LAST, "full", 6) and config_from_dict(meta.config).method.name == "erw"
    with pytest.raises(UserError, match="holds no optimizer state"):
        check_resumable(checkpoint)
    write_export(tmp_path / "back", tmp_path / "again")
    for name in ("model.safetensors", "config.json"):
        assert (exported / name).stat().st_mode == (exported / "README.md").stat().st_mode
        assert (tmp_path / "again" / name).read_bytes() == (exported / name).read_bytes()


def test_bf16_rounds_once_and_then_goes_round_exactly(run, tmp_path):
    write_export(run, tmp_path / "half", dtype="bf16")
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {t.dtype for n, t in stored.items() if n != "pos_embed"} == {torch.bfloat16}
    assert stored["pos_embed"].dtype == torch.float32
    checkpoint = import_export(tmp_path / "half", tmp_path / "back")
    ema, back = read_tensors(found(run / "checkpoints")[-1], "ema"), read_tensors(checkpoint, "ema")
    for name, value in ema.items():
        assert torch.equal(back[name], value if name == "pos_embed" else value.bfloat16().float())
    write_export(tmp_path / "back", tmp_path / "again", dtype="bf16")
    assert same_bits(load_file(tmp_path / "again" / "model.safetensors"), stored)
    assert "Measured with the run's own weights in fp32" in (tmp_path / "half" / "README.md").read_text()


def test_raw_weights_are_others_and_the_card_says_so(run, tmp_path):
    write_export(run, tmp_path / "raw", weights="weights")
    checkpoint = found(run / "checkpoints")[-1]
    assert same_bits(load_file(tmp_path / "raw" / "model.safetensors"), read_tensors(checkpoint, "weights"))
    assert "the raw weights, not the EMA" in (tmp_path / "raw" / "README.md").read_text()


def test_the_card_tells_what_is_known_and_not_stated_for_the_rest(exported):
    card = (exported / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: erw\n") and "license:" not in card.split("---")[1]
    for words in (
        "# SiT of 3 blocks, width 32, patch 2, ERW, on digits", "the EMA of the weights after 96 training images, fp32",
        "warmup, 48 images planned: blocks 1..1 on clean latents at t = 0; alignment of block 1, weight 1",
        "| all | 96 | 2 | 3.50e+09 |", "Device: a CPU.", "| Frechet distance (lower is better) | 4.25 |",
        "At image 96, beside training.",
        "Protocol: digits: 20 samples of the EMA, labels balanced, ode with 20 steps, no guidance.",
        "erw import exported --out runs/exported", "| these weights | not stated |", "| the data (digits) | not stated |",
        "| the teacher (digits-contrastive) | not stated |", "| the VAE | none was used |",
    ):  # fmt: skip
        assert words in card, (words, card)
    weights = load_file(exported / "model.safetensors")
    counted = sum(t.numel() for n, t in weights.items() if not n.startswith("projectors.") and n != "pos_embed")
    assert f"| parameters | {counted:,} |" in card


def test_licences_stand_in_the_card(run, tmp_path):
    licences = Licences(weights='apache-2.0 "as is"', data="CC | BY", teacher="<b>MIT</b>")
    write_export(run, tmp_path / "x", licences=licences)
    card = (tmp_path / "x" / "README.md").read_text()
    assert 'license: "apache-2.0 \\"as is\\""' in card and r"| CC \| BY |" in card and "&lt;b>MIT" in card
    with pytest.raises(UserError, match="--vae-license: this run used no vae"):
        write_export(run, tmp_path / "y", licences=Licences(vae="MIT"))
    with pytest.raises(UserError, match="in one line each"):
        write_export(run, tmp_path / "y", licences=Licences(data="a\nb"))
    assert not (tmp_path / "y").exists()


def test_an_earlier_checkpoint_has_its_own_figures(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run" / "evals.jsonl").write_text('{"images": 80, "frechet": 9.5}\n{"images": 112, "frechet": 1.5}\n')
    write_export(tmp_path / "run", tmp_path / "x")
    card = (tmp_path / "x" / "README.md").read_text()
    assert "| 9.5 |" in card and "1.5" not in card
    assert "At image 80, the last evaluation before this checkpoint, beside training." in card
    shutil.copytree(found(run / "checkpoints")[-1], tmp_path / "alone" / "checkpoint")
    write_export(tmp_path / "alone" / "checkpoint", tmp_path / "y")
    card = (tmp_path / "y" / "README.md").read_text()
    assert "Results: not stated." in card and "Device: not stated." in card and "| all | 96 | 2 | 3.50e+09 |" in card


def test_what_erw_eval_said_of_this_checkpoint_is_in_the_card(run, tmp_path):
    shutil.copytree(run, tmp_path / "run")
    for images, fid in ((32, 99.5), (LAST, 12.75)):
        folder = tmp_path / "run" / f"samples-{images:012d}"
        folder.mkdir()
        record = {
            "results": {"inception": {"fid": fid}},
            "protocol": {"samples": {"count": 50}, "sampling": {"sampler": "sde"}},
        }
        (folder / "samples-eval-inception.json").write_text(json.dumps(record))
    write_export(tmp_path / "run", tmp_path / "x")
    card = (tmp_path / "x" / "README.md").read_text()
    assert "| FID (lower is better) | 12.75 |" in card and "99.5" not in card and "| 4.25 |" in card
    assert "Protocol (`erw eval`): 50 samples by sde" in card


def test_no_place_of_this_machine_leaves_it(exported, tmp_path):
    for file in ("config.json", "README.md"):
        assert not re.search(r"/home/me|/data/secret", (exported / file).read_text()), file
    config = json.loads((exported / "config.json").read_text())["config"]
    assert config["data"]["path"] == "digits" and config["train"]["out"] == "erw"


def test_an_imported_public_model_is_exported_too(tmp_path):
    from erw.convert import import_public
    from erw.latents import LatentConfig
    from published import MODEL, published_weights, random_sit

    torch.save(published_weights(random_sit(MODEL)), tmp_path / "x.pt")
    import_public(tmp_path / "x.pt", "repa", tmp_path / "run", LatentConfig(kind="vae"), 2)
    write_export(tmp_path / "run", tmp_path / "out", licences=Licences(vae="MIT"))
    card = (tmp_path / "out" / "README.md").read_text()
    assert "these weights were imported" in card and "| started from | x.pt |" in card and "sd-vae-ft-ema) | MIT |" in card
    assert same_bits(read_export(tmp_path / "out").weights, torch.load(tmp_path / "x.pt"))


def damage(what: str, folder):
    file, config = folder / "model.safetensors", folder / "config.json"
    described = json.loads(config.read_text())
    weights = load_file(file)
    if what == "bit":
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    elif what == "cut":
        file.write_bytes(file.read_bytes()[:-7])
    elif what == "missing":
        file.unlink()
    elif what == "checksum":
        described["files"]["model.safetensors"]["sha256"] = "0" * 64
    elif what == "no safetensors":
        file.write_bytes(b"hello, this is text")
    elif what in ("shape", "name"):
        key = "final_layer.linear.bias"
        weights = {n: t for n, t in weights.items() if n != key} | {key if what == "shape" else "bias": torch.zeros(3)}
        save_file(weights, file)
    elif what == "no accounts":
        del described["accounts"]
    elif what == "setting":
        described["config"]["model"]["colour"] = 1
    elif what == "version":
        described["version"] = 2
    elif what == "format":
        described["format"] = "other"
    if what in ("no safetensors", "shape", "name"):  # whoever changes both files still hands on no other model
        described["files"]["model.safetensors"] = {"bytes": file.stat().st_size, "sha256": sha256(file)}
    config.write_text("{" if what == "json" else json.dumps(described))


@pytest.mark.parametrize(
    ("what", "says"),
    [
        ("bit", "model.safetensors does not match its checksum: get it again"),
        ("cut", "does not match its checksum"),
        ("checksum", "does not match its checksum"),
        ("missing", "model.safetensors is missing"),
        ("no safetensors", "model.safetensors cannot be read"),
        ("shape", "final_layer.linear.bias has shape"),
        ("name", "missing: final_layer.linear.bias; unexpected: bias"),
        ("no accounts", "config.json is not whole"),
        ("setting", "settings: can not match"),
        ("version", "has version 2 of the format, this erw reads 1"),
        ("format", "no folder that erw export wrote"),
        ("json", "config.json cannot be read"),
    ],
)
def test_a_damaged_folder_gets_one_line_and_makes_no_run(what, says, exported, tmp_path, capsys):
    damage(what, exported)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["import", str(exported), "--out", str(tmp_path / "run")])
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and says in error and len(error.splitlines()) == 1, error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["export", "WARM", "--out", "OUT"], "lies in the warm-up: it is no whole model"),
        (["export", "RUN", "--out", "EXPORTED"], "exists: name another folder"),
        (["export", "RUN", "--out", "FILE/x"], "cannot be written"),
        (["export", "/nowhere", "--out", "OUT"], "does not exist: name a run"),
        (["export", "CUT", "--out", "OUT"], "is truncated"),
        (["export", "RUN", "--out", "OUT", "--dtype", "fp8"], "invalid choice: 'fp8'"),
        (["import", "EXPORTED", "--out", "RUN"], "already holds a run"),
        (["import", "EXPORTED", "--out", "OUT", "--from", "sit"], "--from is for .pt files"),
        (["import", "EXPORTED", "--out", "OUT", "--num-heads", "2"], "--num-heads is for .pt files"),
        (["import", "EXPORTED/model.safetensors", "--out", "OUT"], "is a part of an exported folder: name the folder"),
        (["import", "RUN", "--out", "OUT"], "is a run already"),
        (["convert", "RUN"], "'convert' is not a command"),
    ],
)
def test_mistakes_in_exporting_get_one_line(arguments, says, run, exported, tmp_path, capsys):
    cut = tmp_path / "cut"
    shutil.copytree(found(run / "checkpoints")[-1], cut)
    (cut / "ema.safetensors").write_bytes(b"short")
    (tmp_path / "file").write_text("a file")
    places = {"WARM": found(run / "checkpoints")[0], "RUN": run, "EXPORTED": exported, "OUT": tmp_path / "out", "CUT": cut,
              "FILE/x": tmp_path / "file" / "x", "EXPORTED/model.safetensors": exported / "model.safetensors"}  # fmt: skip
    before = sorted(p.name for p in tmp_path.iterdir())
    with pytest.raises(SystemExit) as stopped:
        cli.main([str(places.get(a, a)) for a in arguments])
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and says in error and len(error.splitlines()) == 1, error
    assert sorted(p.name for p in tmp_path.iterdir()) == before
