"""The ImageNet path at toy size: VAE moments and cached features from disk, ERW under ZeRO-2 in bf16, decoded samples."""

import json

import numpy as np
import pytest
from PIL import Image

pytestmark = [pytest.mark.slow, pytest.mark.dist]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """64 rows of moments with features of the right shape, and a small AutoencoderKL with random weights."""
    from diffusers import AutoencoderKL

    folder = tmp_path_factory.mktemp("imagenet")
    generator = np.random.default_rng(0)
    moments = generator.normal(size=(64, 8, 32, 32))
    moments[:, 4:] = np.abs(moments[:, 4:]) * 0.1
    np.save(folder / "latents.npy", moments.astype(np.float16))
    np.save(folder / "labels.npy", generator.integers(0, 1000, 64))
    np.save(folder / "features.npy", generator.normal(size=(64, 256, 768)).astype(np.float16))
    teacher = {"name": "dinov2-b", "width": 768, "grid": 16, "flops_per_image": 46_100_000_000}
    (folder / "manifest.json").write_text(json.dumps({"num_classes": 1000, "teachers": [teacher]}))
    block = {"down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4}
    vae = AutoencoderKL(block_out_channels=[32] * 4, latent_channels=4, norm_num_groups=8, **block)
    vae.save_pretrained(folder / "vae")
    return folder


def test_moments_to_pictures(folder, run_erw, tmp_path):
    run = tmp_path / "run"
    small = ["--model.depth", "2", "--model.width", "48", "--model.num_heads", "2", "--method.depth", "1",
             "--method.projection_depth", "2", "--method.projector_width", "32"]  # fmt: skip
    length = ["--batch", "8", "--images", "32", "--method.warmup_images", "16", "--train.log_every", "8"]
    done = run_erw("in256-erw-s2", *small, *length, "--data.path", str(folder), "--data.workers", "1", "--engine.accumulation",
                   "2", "--engine.recompute", "selective", "--latents.vae", str(folder / "vae"), "--out", str(run),
                   ranks=2)  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    rows = [json.loads(row) for row in (run / "metrics.jsonl").read_text().splitlines()]
    assert [row["phase"] for row in rows if "loss" in row] == ["warmup"] * 2 + ["full"] * 2
    done = run_erw("sample", str(run), "--count", "2", "--steps", "3", "--guidance", "2.0", program="-m erw.cli")
    assert done.returncode == 0, done.stderr[-3000:]
    pixels = np.load(run / "samples-000000000032" / "samples.npz")["arr_0"]
    assert pixels.shape == (2, 256, 256, 3)
    assert Image.open(run / "samples-000000000032" / "samples.png").mode == "RGB"


def test_features_of_another_teacher_are_refused(folder, run_erw, tmp_path):
    manifest = json.loads((folder / "manifest.json").read_text())
    other = tmp_path / "data"
    other.mkdir()
    for name in ("latents.npy", "labels.npy"):
        (other / name).symlink_to(folder / name)
    np.save(other / "features.npy", np.zeros((64, 256, 24), np.float16))
    manifest["teachers"][0] |= {"name": "mae-b", "width": 24}
    (other / "manifest.json").write_text(json.dumps(manifest))
    done = run_erw("in256-repa-s2", "--data.path", str(other), "--out", str(tmp_path / "run"))
    assert done.returncode == 2 and "caches features of mae-b (width 24, grid 16)" in done.stderr
    assert "Traceback" not in done.stderr
