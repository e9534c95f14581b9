"""Nothing from outside is unpickled, run by a shell or followed out of its folder; no credential is written down."""

import ast
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from erw.checkpoint.layout import fault, read_meta
from erw.data.arrays import ArrayDataset
from erw.errors import UserError, exits_cleanly
from erw.files import plain_name
from erw.presets import preset
from erw.redact import redacted

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [p for folder in ("erw", "kernels", "bench") for p in (ROOT / folder).rglob("*.py")] + [ROOT / "train_ds.py"]


def called(node: ast.Call) -> str:
    return ast.unparse(node.func)


def given(node: ast.Call, name: str) -> object:
    return next((k.value.value for k in node.keywords if k.arg == name and isinstance(k.value, ast.Constant)), None)


def dangers(tree: ast.AST) -> list[str]:
    """Calls that run code or a shell out of data."""
    found = []
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        name = called(node)
        bad = name in ("eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "yaml.load", "marshal.loads")
        bad |= name == "torch.load" and given(node, "weights_only") is not True
        bad |= name == "np.load" and given(node, "allow_pickle") is True
        bad |= name.startswith("subprocess.") and given(node, "shell") is True
        bad |= name.endswith(".load_checkpoint")  # DeepSpeed's unpickles
        if bad:
            found.append(f"{node.lineno}: {ast.unparse(node)}")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_source_runs_what_it_reads(path):
    assert not dangers(ast.parse(path.read_text(encoding="utf-8")))


@pytest.mark.parametrize("code", [
    "torch.load(f)", "torch.load(f, weights_only=False)", "eval(x)", "subprocess.run(c, shell=True)", "pickle.load(f)",
    "engine.load_checkpoint(d)", "np.load(f, allow_pickle=True)",
])  # fmt: skip
def test_the_rule_can_fail(code):
    assert dangers(ast.parse(code))


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/b", "..", ".", "", "a\\b", "a\0b", 3, None])
def test_names_that_leave_their_folder(name):
    assert not plain_name(name)


def test_a_checkpoint_that_names_files_elsewhere_is_refused(tmp_path):
    checkpoint = tmp_path / "000000000016"
    checkpoint.mkdir()
    (tmp_path / "secret").write_text("secret")
    meta = {"format": 1, "files": {"../secret": {"bytes": 6, "sha256": "0" * 64}}}
    (checkpoint / "meta.json").write_text(json.dumps(meta))
    assert "'../secret', which is no file of this folder" in fault(checkpoint)
    with pytest.raises(UserError, match="no file of this folder"):
        read_meta(checkpoint)


def test_a_data_set_that_names_features_elsewhere_is_refused(tmp_path):
    import numpy as np

    entry = {"name": "dinov2-b", "width": 8, "grid": 2, "flops_per_image": 1, "file": "../features.npy"}
    (tmp_path / "manifest.json").write_text(json.dumps({"num_classes": 2, "teachers": [entry]}))
    np.save(tmp_path / "latents.npy", np.zeros((2, 4, 4, 4), np.float16))
    np.save(tmp_path / "labels.npy", np.zeros(2, np.int64))
    with pytest.raises(UserError, match="is no file of this folder"):
        ArrayDataset(str(tmp_path))


@pytest.mark.parametrize(("text", "clean"), [
    ("s3 at https://me:pass@host:9000/b", "s3 at https://***@host:9000/b"),
    ("https://host/b?X-Amz-Signature=abc&x=1", "https://host/b?X-Amz-Signature=***&x=1"),
    ("the value hf_abcdefgh leaks", "the value *** leaks"),
    ("--data.path /data/a@b: no such folder", "--data.path /data/a@b: no such folder"),
])  # fmt: skip
def test_messages_lose_credentials(monkeypatch, text, clean):
    monkeypatch.setenv("HF_TOKEN", "hf_abcdefgh")
    assert redacted(text) == clean


def test_errors_and_settings_do_not_repeat_a_password(capsys):
    config = preset("digits-sit")
    config = replace(config, data=replace(config.data, path="s3://me:hunter22@host/bucket"))

    @exits_cleanly
    def main() -> None:
        config.check()

    with pytest.raises(SystemExit):
        main()
    said = capsys.readouterr().err
    assert "hunter22" not in said and "--data.path holds credentials (s3://***@host/bucket)" in said and "environment" in said


def test_a_pickle_from_outside_is_refused(tmp_path):
    """The one road by which .pt files come in (`erw.public`) reads tensors alone."""
    from erw.public import read_public

    class Evil:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / "ran", "code ran"))

    torch.save({"ema": Evil()}, tmp_path / "x.pt")
    with pytest.raises(UserError):
        read_public(tmp_path / "x.pt", "sit")
    assert not (tmp_path / "ran").exists()
