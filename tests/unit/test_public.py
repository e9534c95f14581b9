"""Public checkpoints: read with their meaning, turned back, and refused in one line where they are something else."""

import os
import pickle
from dataclasses import replace

import pytest
import torch

from erw import cli
from erw.checkpoint import KEYS, check_resumable, found, read_meta
from erw.convert import export_public, import_public
from erw.errors import UserError
from erw.latents import LatentConfig
from erw.models.embed import TimestepEmbedder
from erw.models.sit import SiT, sized
from erw.objectives import Ddpm, Flow
from erw.public import CONVENTIONS, _reflected, read_public, to_public
from erw.sample import load_run
from published import CHANNELS, MODEL, published_weights, random_sit, training_checkpoint

FIRST_TIME_LAYER = "t_embedder.mlp.0.weight"


def network(convention: str) -> SiT:
    return random_sit(replace(MODEL, learn_sigma=CHANNELS[convention]))


def loaded(public) -> SiT:
    model = SiT(public.config).eval()
    model.load_state_dict({n: w for n, w in public.weights.items() if not n.startswith("projectors.")})
    return model


def write(weights: dict, file):
    torch.save(weights, file)
    return file


@pytest.mark.parametrize("layout", ["bare", "ema", "model", "module", "legacy", "half"])
def test_every_published_layout_is_read(layout, tmp_path):
    weights, file = published_weights(network("dit")), tmp_path / "dit.pt"
    if layout == "ema":
        training_checkpoint(weights, file)
    elif layout == "legacy":
        torch.save(weights, file, _use_new_zipfile_serialization=False)
    else:
        held = {
            "bare": weights,
            "model": {"model": weights},
            "module": {"ema": {f"module.{name}": value for name, value in weights.items()}},
            "half": {name: value if name == "pos_embed" else value.bfloat16() for name, value in weights.items()},
        }[layout]
        torch.save(held, file)
    public = read_public(file, "dit", num_heads=2)
    assert public.config == replace(MODEL, learn_sigma=True)
    assert public.objective == Ddpm() and public.sample.sampler == "ddpm" and public.sample.guidance_channels == 3
    assert public.weights.keys() == weights.keys()
    for name, value in weights.items():
        expected = value.bfloat16().float() if layout == "half" and name != "pos_embed" else value
        assert public.weights[name].dtype == torch.float32 and torch.equal(public.weights[name], expected)


def test_a_converted_sit_is_minus_the_published_one_with_time_turned_round(tmp_path):
    theirs = network("sit")
    public = read_public(write(published_weights(theirs), tmp_path / "sit.pt"), "sit", num_heads=2)
    ours = loaded(public)
    x, t, y = torch.randn(6, 4, 8, 8), torch.tensor([0.0, 1e-3, 0.3, 0.5, 0.97, 1.0]), torch.arange(6)
    expected = -theirs(x, 1 - t, y).prediction
    assert torch.allclose(ours(x, t, y).prediction, expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(ours(x, t, y).prediction, -theirs(x, t, y).prediction, rtol=1e-3, atol=1e-3)
    assert public.objective == Flow() and public.sample.sampler == "sde" and public.sample.guidance_channels == 3


def test_the_reflection_of_time_is_exact_and_its_own_inverse():
    weight, t = torch.randn(8, 256, dtype=torch.float64), torch.rand(50, dtype=torch.float64)
    w = torch.exp(-torch.log(torch.tensor(10000.0)) * torch.arange(128) / 128).double()

    def seen(layer, t):
        return torch.cat([torch.cos(t[:, None] * w), torch.sin(t[:, None] * w)], dim=1) @ layer.double().T

    once = _reflected(weight.float())
    assert torch.allclose(seen(once, t), seen(weight.float(), 1 - t), atol=1e-5)
    assert torch.allclose(_reflected(once), weight.float(), atol=1e-6)
    assert torch.allclose(TimestepEmbedder.sinusoid(t).double(), seen(torch.eye(256), t), atol=1e-6)


def test_repa_files_are_ours_as_they_are_with_projectors(tmp_path):
    weights = published_weights(network("repa"), projector_width=24)
    public = read_public(training_checkpoint(weights, tmp_path / "repa.pt", path_type="linear", prediction="v"), "repa", 2)
    assert all(torch.equal(public.weights[name], value) for name, value in weights.items())
    assert "projectors.0.4.bias" in public.weights
    assert public.sample.guidance_channels == 0 and not public.config.learn_sigma


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_there_and_back(convention, tmp_path):
    weights = published_weights(network(convention), projector_width=24 if convention == "repa" else 0)
    back = to_public(read_public(write(weights, tmp_path / "x.pt"), convention, 2).weights, convention)
    assert back.keys() == weights.keys()
    for name, value in weights.items():
        if convention == "sit" and name == FIRST_TIME_LAYER:
            assert torch.allclose(back[name], value, rtol=0, atol=1e-7)
        else:
            assert torch.equal(back[name], value), name


def test_projectors_go_to_repa_only():
    weights = published_weights(network("repa"), projector_width=24)
    assert set(weights) - set(to_public(weights, "sit")) == {n for n in weights if n.startswith("projectors.")}


def test_the_shape_is_read_from_the_weights(tmp_path):
    config = replace(MODEL, depth=3, width=48, num_heads=4, patch_size=4, input_size=16, in_channels=3, num_classes=7,
                     mlp_ratio=2.0, qk_norm=True)  # fmt: skip
    file = write(published_weights(random_sit(config)), tmp_path / "x.pt")
    assert read_public(file, "repa", num_heads=4).config == config


def test_a_published_size_knows_its_heads(tmp_path):
    with torch.device("meta"):
        expected = SiT(sized("XL/2", learn_sigma=True)).state_dict()
    table = SiT(replace(MODEL, width=1152, num_heads=16, input_size=32)).pos_embed
    # One number stands for each tensor: the file is small.
    weights = {n: torch.zeros(1).expand(v.shape) for n, v in expected.items()} | {"pos_embed": table}
    file = write(weights, tmp_path / "xl.pt")
    assert read_public(file, "sit").config == sized("XL/2", learn_sigma=True)
    with pytest.raises(UserError, match="num_heads 12 is not right .* have 16"):
        read_public(file, "sit", num_heads=12)


def without(name: str):
    return lambda weights: {n: w for n, w in weights.items() if n != name}


@pytest.mark.parametrize(
    ("change", "convention", "says"),
    [
        (without("blocks.1.attn.qkv.bias"), "sit", "missing: blocks.1.attn.qkv.bias; unexpected: none"),
        (without("pos_embed"), "sit", "missing: pos_embed; unexpected: .* more"),
        (lambda w: {**w, **dict.fromkeys("abcd", torch.ones(1))}, "sit", "unexpected: a, b, c and 1 more"),
        (lambda w: {**w, "projectors.0.0.bias": torch.ones(3)}, "sit", "unexpected: projectors.0.0.bias"),
        (lambda w: {**w, "blocks.1.mlp.fc2.bias": torch.ones(3)}, "sit", r"fc2.bias has shape \(3,\), .* ask for \(32,\)"),
        (lambda w: {**w, "pos_embed": w["pos_embed"] + 1e-3}, "sit", "pos_embed is not the fixed sine-cosine table"),
        (lambda w: {**w, "pos_embed": w["pos_embed"] * torch.nan}, "sit", "pos_embed is not the fixed"),
        (lambda w: {**w, "pos_embed": torch.ones(1, 17, 32)}, "sit", r"pos_embed has shape \(1, 17, 32\)"),
        (lambda w: {**w, "pos_embed": torch.ones(3)}, "sit", "not 3 dimensions"),
        (lambda w: {**w, "a": 3}, "sit", "'a' is no tensor of weights"),
        (lambda w: w, "repa", "gives 8 channels for 4, convention repa gives 4: it may be sit or dit"),
        (lambda w: w, "stt", "convention 'stt' is not known; did you mean sit"),
        (lambda w: list(w.values()), "sit", "holds a list, not a dict"),
    ],
)
def test_another_layout_gets_one_line(change, convention, says, tmp_path):
    with pytest.raises(UserError, match=says) as error:
        read_public(write(change(published_weights(network("sit"))), tmp_path / "x.pt"), convention, 2)
    assert "\n" not in str(error.value)


def test_heads_that_nothing_tells_are_asked_for(tmp_path):
    file = write(published_weights(network("sit")), tmp_path / "x.pt")
    with pytest.raises(UserError, match="say them with --num-heads"):
        read_public(file, "sit")
    four = write(published_weights(network("repa")), tmp_path / "four.pt")
    with pytest.raises(UserError, match="gives 4 channels for 4, convention sit gives 8: it may be repa"):
        read_public(four, "sit", 2)


@pytest.mark.parametrize(
    ("convention", "args", "interpolant"),
    [("sit", {"path_type": "GVP", "prediction": "velocity"}, "cosine"), ("repa", {"path_type": "cosine"}, "cosine"),
     ("sit", {"path_type": "VP"}, None), ("sit", {"path_type": "Linear", "prediction": "noise"}, None),
     ("dit", {"path_type": "Linear"}, None), ("repa", {"path_type": "Linear"}, None)],
)  # fmt: skip
def test_a_training_checkpoints_options_are_heeded(convention, args, interpolant, tmp_path):
    file = training_checkpoint(published_weights(network(convention)), tmp_path / "x.pt", **args)
    if interpolant:
        assert read_public(file, convention, 2).objective == Flow(interpolant=interpolant)
    else:
        with pytest.raises(UserError, match=f"was trained with path_type {args['path_type']}"):
            read_public(file, convention, 2)


class Malicious:
    """Unpickled, it would make a folder."""

    def __init__(self, folder):
        self.folder = str(folder)

    def __reduce__(self):
        return os.mkdir, (self.folder,)


@pytest.mark.parametrize("layout", ["zip", "legacy", "pickle"])
def test_a_file_that_would_run_code_is_refused_and_runs_none(layout, tmp_path):
    file, trace = tmp_path / "evil.pt", tmp_path / "trace"
    held = {"ema": published_weights(network("sit")), "args": Malicious(trace)}
    if layout == "pickle":
        file.write_bytes(pickle.dumps(held["args"], protocol=2))
    else:
        torch.save(held, file, _use_new_zipfile_serialization=layout == "zip")
    with pytest.raises(UserError, match="evil.pt was refused, nothing in it was run: .* asks for .*mkdir"):
        read_public(file, "sit", 2)
    assert not trace.exists()


@pytest.mark.parametrize("damage", ["missing", "folder", "text", "empty", "cut", "zip"])
def test_what_is_no_torch_file_is_named(damage, tmp_path):
    file = tmp_path / "x.pt"
    if damage == "folder":
        file.mkdir()
    elif damage != "missing":
        whole = write(published_weights(network("sit")), tmp_path / "whole").read_bytes()
        content = {"text": b"hello, this is text", "empty": b"", "cut": whole[: len(whole) // 2], "zip": whole[-200:]}
        file.write_bytes(content[damage])
    says = {"missing": "does not exist", "folder": "is a folder"}.get(damage, "x.pt is not a whole file of torch.save")
    with pytest.raises(UserError, match=says):
        read_public(file, "sit", 2)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_convert_makes_a_run_and_writes_it_back(convention, tmp_path):
    weights = published_weights(network(convention))
    file, run, back = write(weights, tmp_path / "x.pt"), tmp_path / "runs" / "x", tmp_path / "back" / "x.pt"
    checkpoint = import_public(file, convention, run, LatentConfig(kind="pixels"), 2)
    assert found(run / "checkpoints") == [checkpoint] and read_meta(checkpoint).images == 0
    assert {f.stem for f in checkpoint.glob("*.safetensors")} == {"weights", "ema"} < set(KEYS)
    config, model, _ = load_run(run, torch.device("cpu"))
    assert config.sample == CONVENTIONS[convention].sample and config.latents.kind == "pixels"
    assert config.objective == CONVENTIONS[convention].objective and config.train.init_convention == convention
    if convention != "sit":
        assert all(torch.equal(model.state_dict()[name], value) for name, value in weights.items())
    export_public(run, convention, back)
    again = torch.load(back, weights_only=True)["ema"]
    assert all(torch.allclose(again[name], value, rtol=0, atol=1e-7) for name, value in weights.items())
    with pytest.raises(UserError, match=f"holds no optimizer state.*--train.init_from {checkpoint}"):
        check_resumable(checkpoint)
    with pytest.raises(UserError, match="already holds a run"):
        import_public(file, convention, run, LatentConfig(), 2)
    with pytest.raises(UserError, match="exists: name another file"):
        export_public(run, convention, back)


def test_what_a_convention_cannot_mean_is_not_exported(tmp_path):
    file = write(published_weights(network("dit")), tmp_path / "x.pt")
    import_public(file, "dit", tmp_path / "dit", LatentConfig(), 2)
    with pytest.raises(UserError, match="cannot go --to sit: it has --objective.name ddpm, models there have flow"):
        export_public(tmp_path / "dit", "sit", tmp_path / "y.pt")
    import_public(file, "sit", tmp_path / "sit", LatentConfig(), 2)
    with pytest.raises(UserError, match="cannot go --to repa: it has --model.learn_sigma True, models there have False"):
        export_public(tmp_path / "sit", "repa", tmp_path / "y.pt")
    cosine = training_checkpoint(published_weights(network("sit")), tmp_path / "gvp.pt", path_type="GVP")
    import_public(cosine, "sit", tmp_path / "gvp", LatentConfig(), 2)
    with pytest.raises(UserError, match="cannot go --to sit: it has --objective.interpolant cosine"):
        export_public(tmp_path / "gvp", "sit", tmp_path / "y.pt")
    assert not (tmp_path / "y.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["import", "/nowhere.pt", "--from", "sit", "--out", "OUT"], "'/nowhere.pt' does not exist"),
        (["import", "FILE", "--from", "repaa", "--out", "OUT"], "invalid choice: 'repaa'"),
        (["import", "FILE", "--from", "sit", "--out", "OUT"], "say them with --num-heads"),
        (["import", "FILE", "--out", "OUT"], "say whose code wrote it with --from sit, dit, repa"),
        (["import", "FILE", "--from", "sit"], "required: --out"),
        (["import", "FILE", "--from", "sit", "--num-heads", "2", "--out", "FILE"], "is a file: name a folder"),
        (["export", "FILE", "--to", "sit", "--out", "OUT"], "neither a checkpoint nor"),
        (["export", "FILE", "--to", "sit", "--out", "OUT", "--dtype", "bf16"], "--dtype is for --to erw"),
        (["export", "FILE", "--to", "sit", "--out", "OUT", "--data-license", "x"], "--data-license is for --to erw"),
    ],
)
def test_mistakes_in_converting_get_one_line(arguments, says, tmp_path, capsys):
    file = write(published_weights(network("sit")), tmp_path / "x.pt")
    with pytest.raises(SystemExit) as stopped:
        cli.main([{"FILE": str(file), "OUT": str(tmp_path / "out")}.get(a, a) for a in arguments])
    error = capsys.readouterr().err.strip()
    assert stopped.value.code == 2 and says in error and len(error.splitlines()) == 1, error
    assert not (tmp_path / "out").exists()


def test_the_commands_convert_both_ways(tmp_path, capsys):
    file, run, back = write(published_weights(network("sit")), tmp_path / "x.pt"), tmp_path / "run", tmp_path / "back.pt"
    cli.main(["import", str(file), "--from", "sit", "--out", str(run), "--num-heads", "2", "--vae", "folder"])
    assert load_run(run, torch.device("cpu"))[0].latents == LatentConfig(kind="vae", vae="folder")
    cli.main(["export", str(run), "--to", "sit", "--out", str(back)])
    assert back.exists() and str(back) in capsys.readouterr().out
