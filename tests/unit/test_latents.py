"""Latent spaces: VAEs from folders (random weights of diffusers' classes; no hub is reachable in tests), pixels, scales."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from erw.build import fit_to_data
from erw.data.arrays import ArrayDataset
from erw.data.stream import stream
from erw.errors import UserError
from erw.latents import LatentConfig, Pixels, VaeLatents, latent_space, open_vae, settled, vae_facts
from erw.options import parse
from erw.presets import preset
from erw.settings import from_dict, to_dict
from erw.types import StoredLatents
from vaes import save_kl, save_tiny

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("vaes")
    return {
        "kl": save_kl(root / "kl"),
        "f16d32": save_kl(root / "f16d32", channels=32, levels=5, scaling_factor=0.3, shift_factor=0.1),
        "tiny": save_tiny(root / "tiny"),
    }


@pytest.fixture(scope="module")
def images():
    return torch.randint(0, 256, (3, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


class TestVae:
    def test_facts_are_what_the_network_does(self, folders, images):
        expected = {"kl": ("vae", 4, 8, 0.18215, 0.0), "f16d32": ("vae", 32, 16, 0.3, 0.1), "tiny": ("latents", 4, 8, 1.0, 0.0)}
        for name, (kind, channels, stride, scale, shift) in expected.items():
            vae = open_vae(folders[name], CPU)
            facts = vae.facts
            assert (facts.kind, facts.channels, facts.stride, facts.scale, facts.shift) == (
                kind,
                channels,
                stride,
                scale,
                shift,
            )
            assert facts == vae_facts(folders[name]) and len(facts.digest) == 64
            stored = vae.encode(images)
            assert stored.shape == (3, channels * (2 if kind == "vae" else 1), 64 // stride, 64 // stride)
            assert stored.dtype == torch.float32
            decoded = vae.decode(stored[:, :channels])
            assert decoded.shape == (3, 3, 64, 64) and decoded.abs().max() <= 1
            assert from_dict(StoredLatents, json.loads(json.dumps(to_dict(facts)))) == facts

    def test_moments_are_those_of_diffusers_one_image_at_a_time(self, folders, images):
        """As REPA's preprocessing makes them: x / 127.5 - 1, mean and std of the posterior."""
        vae = open_vae(folders["kl"], CPU)
        moments = vae.encode(images)
        for i in range(len(images)):
            posterior = vae.network.encode(images[i : i + 1].float() / 127.5 - 1).latent_dist
            torch.testing.assert_close(
                moments[i : i + 1], torch.cat([posterior.mean, posterior.std], dim=1), rtol=1e-4, atol=1e-5
            )

    def test_float_images_encode_as_the_bytes_they_come_from(self, folders, images):
        vae = open_vae(folders["kl"], CPU)
        assert torch.equal(vae.encode(images), vae.encode(images.float() / 127.5 - 1))

    def test_equal_calls_have_equal_bits_and_modes_differ_by_rounding(self, folders, images):
        plain, last = open_vae(folders["kl"], CPU), open_vae(folders["kl"], CPU, channels_last=True)
        half = open_vae(folders["kl"], CPU, "bf16", channels_last=True)
        moments = plain.encode(images)
        assert torch.equal(moments, plain.encode(images))
        assert last.encode(images).is_contiguous() and half.encode(images).dtype == torch.float32
        torch.testing.assert_close(last.encode(images), moments, rtol=1e-4, atol=1e-5)
        error = (half.encode(images) - moments).norm() / moments.norm()
        assert 0 < error < 0.02

    def test_a_tiny_autoencoder_is_deterministic(self, folders, images):
        space = VaeLatents(LatentConfig(kind="latents", vae=folders["tiny"]))
        stored = open_vae(folders["tiny"], CPU).encode(images)
        first, later = space.draw(stored, 0, torch.arange(3)), space.draw(stored, 0, torch.arange(3) + 1000)
        assert torch.equal(first, later) and torch.equal(first, stored)
        assert space.decode(first).shape == images.shape

    def test_statistics_for_each_channel_come_from_the_config(self, tmp_path):
        mean, std = [0.5, -0.5], [2.0, 4.0]
        folder = save_kl(tmp_path, channels=2, levels=2, scaling_factor=1.0, latents_mean=mean, latents_std=std)
        space = VaeLatents(LatentConfig(kind="vae", vae=folder))
        moments = torch.zeros(1, 4, 2, 2)
        moments[:, 0], moments[:, 1] = 2.5, 3.5
        latents = space.draw(moments, 0, torch.arange(1))
        assert torch.equal(latents, torch.ones(1, 2, 2, 2)) and space.channels(4) == 2
        with pytest.raises(UserError, match="--latents.scale has 2 numbers for 4 channels"):
            space.channels(8)
        decoded = space.decode(latents)
        torch.testing.assert_close(decoded, open_vae(folder, CPU).decode(moments[:, :2]))

    @pytest.mark.parametrize(
        ("spoil", "says"),
        [
            (shutil.rmtree, "cannot be had"),
            (lambda f: (f / "config.json").write_text("{"), "cannot be had"),
            (lambda f: (f / "config.json").write_text('{"_class_name": "VQModel"}'), "is a VQModel"),
            (lambda f: (f / "diffusion_pytorch_model.safetensors").unlink(), "cannot be had"),
            (lambda f: _cut(f / "diffusion_pytorch_model.safetensors"), "cannot be had"),
            (lambda f: _drop_a_weight(f / "diffusion_pytorch_model.safetensors"), "do not fit its config, the first is"),
        ],
    )
    def test_a_bad_folder_is_one_line(self, folders, tmp_path, spoil, says, monkeypatch):
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        folder = tmp_path / "vae"
        shutil.copytree(folders["kl"], folder)
        spoil(folder)
        with pytest.raises(UserError, match=says) as refusal:
            open_vae(str(folder), CPU)
        assert "\n" not in str(refusal.value) and str(folder) in str(refusal.value)

    def test_images_that_do_not_fill_the_stride(self, folders):
        with pytest.raises(UserError, match="sides are multiples of 8, not"):
            open_vae(folders["kl"], CPU).encode(torch.zeros(1, 3, 60, 64, dtype=torch.uint8))


def _cut(file):
    file.write_bytes(file.read_bytes()[:1000])


def _drop_a_weight(file):
    from safetensors.torch import load_file, save_file

    weights = load_file(file)
    weights.pop("encoder.conv_in.weight")
    save_file(weights, file)


STORED = StoredLatents(kind="vae", vae="folder/vae", scale=0.5, shift=0.25, channels=4, stride=8)


class TestSettled:
    def test_the_manifest_decides_what_the_user_left_open(self):
        found = settled(LatentConfig(kind="vae", vae="folder/vae"), STORED)
        assert (found.scale, found.shift) == (0.5, 0.25)
        assert settled(LatentConfig(kind="vae", vae="folder/vae", scale=0.5), STORED) == found

    def test_without_a_manifest_the_vae_decides(self, folders):
        found = settled(LatentConfig(kind="vae", vae=folders["f16d32"]), None)
        assert (found.scale, found.shift) == (0.3, 0.1)
        assert settled(LatentConfig(kind="vae", vae=folders["f16d32"], scale=2.0), None).scale == 2.0

    def test_the_papers_vae_needs_no_hub(self, monkeypatch):
        monkeypatch.setattr("erw.latents.vae._read_config", lambda name: pytest.fail("looked for a config"))
        assert settled(LatentConfig(kind="vae"), None).scale == 0.18215
        assert settled(LatentConfig(kind="pixels"), None) == LatentConfig(kind="pixels")

    def test_one_encoder_with_two_decoders_is_one(self):
        stored = replace(STORED, vae="stabilityai/sd-vae-ft-mse", scale=0.18215, shift=0.0)
        assert settled(LatentConfig(kind="vae", vae="/models/sd-vae-ft-ema"), stored).scale == 0.18215

    @pytest.mark.parametrize(
        ("ours", "says"),
        [
            ({"kind": "pixels"}, "holds moments of a VAE, --latents.kind is pixels: set --latents.kind vae"),
            ({"kind": "latents"}, "set --latents.kind vae"),
            ({"vae": "other"}, "encoded by folder/vae, --latents.vae is other: set --latents.vae folder/vae"),
            ({"scale": 0.18215}, "--latents.scale is 0.18215, the dataset's manifest says 0.5: leave the option out"),
            ({"shift": 0.0}, "--latents.shift is 0.0, the dataset's manifest says 0.25"),
        ],
    )
    def test_a_conflict_is_one_line(self, ours, says):
        with pytest.raises(UserError, match=says) as refusal:
            settled(LatentConfig(**{"kind": "vae", "vae": "folder/vae"} | ours), STORED)
        assert "\n" not in str(refusal.value)

    def test_options_take_a_number_or_one_a_channel(self):
        scales = [parse(["in256-sit-s2", "--latents.scale", text])[0].latents.scale for text in ("0.3", "1,2,3", "none")]
        assert scales == [0.3, (1.0, 2.0, 3.0), None]
        for bad in ("x", ",", "1,x"):
            with pytest.raises(UserError, match="--latents.scale takes none, a number, or one a channel"):
                parse(["in256-sit-s2", "--latents.scale", bad])

    @pytest.mark.parametrize("scale", [0.3, (1.0, 2.0), None])
    def test_they_survive_json(self, scale):
        config = LatentConfig(kind="vae", scale=scale)
        assert from_dict(LatentConfig, json.loads(json.dumps(to_dict(config)))) == config


def _write(folder, latents, manifest):
    np.save(folder / "latents.npy", latents)
    np.save(folder / "labels.npy", np.arange(len(latents)) % 10)
    (folder / "manifest.json").write_text(json.dumps({"num_classes": 10, **manifest}))
    return ArrayDataset(str(folder))


def test_a_tokenizer_of_32_channels_at_patch_1(folders, images, tmp_path):
    """f16d32: 64 pixels to 4x4 latents of 32 channels, a token each; the model's shape is settings, the data is checked."""
    vae = open_vae(folders["f16d32"], CPU)
    dataset = _write(tmp_path, vae.encode(images).numpy(), {"latents": to_dict(vae.facts)})
    base = preset("in256-sit-s2")
    config = replace(base, latents=replace(base.latents, vae=folders["f16d32"]))
    with pytest.raises(UserError, match="the data has 32 and 4: set --model.in_channels 32 --model.input_size 4"):
        fit_to_data(config, dataset)
    config = replace(config, model=replace(config.model, in_channels=32, input_size=4, patch_size=1))
    config, space = fit_to_data(config, dataset)
    assert (config.latents.scale, config.latents.shift, config.model.tokens) == (0.3, 0.1, 16)
    batch = next(stream(dataset, 0, 0, 3, 3, 0, 1))
    latents = space.draw(batch.latents, 0, batch.index)
    assert latents.shape == (3, 32, 4, 4) and space.decode(latents).shape == (3, 3, 64, 64)


def test_each_epoch_draws_another_posterior_sample(folders, images, tmp_path):
    vae = open_vae(folders["kl"], CPU)
    dataset = _write(tmp_path, vae.encode(images).numpy(), {"latents": to_dict(vae.facts)})
    space = latent_space(settled(LatentConfig(kind="vae", vae=folders["kl"]), dataset.stored))
    epochs = [[], []]
    for start in (0, 3):
        batch = next(stream(dataset, 0, start, 3, 3, 0, 1))
        order = batch.labels.argsort()  # the same images in both
        assert torch.equal(batch.labels[order], torch.arange(3))
        epochs[start // 3] = space.draw(batch.latents, 0, batch.index)[order], batch.latents[order]
    (first, moments), (second, again) = epochs
    assert torch.equal(moments, again) and not torch.equal(first, second)
    mean, std = moments.chunk(2, dim=1)
    for drawn in (first, second):
        noise = (drawn / 0.18215 - mean) / std
        assert noise.std() == pytest.approx(1, abs=0.1) and noise.mean() == pytest.approx(0, abs=0.1)


def test_stored_bytes_are_pixels_and_what_teachers_see(images, tmp_path):
    facts = StoredLatents(kind="pixels", channels=3)
    dataset = _write(tmp_path, images.numpy(), {"latents": to_dict(facts)})
    rows = np.array([2, 0])
    fetched = dataset.fetch(rows)["latents"]
    assert fetched.dtype == torch.uint8 and dataset.has_images and torch.equal(dataset.images(rows), images[[2, 0]])
    drawn = Pixels().draw(fetched, 0, torch.arange(2))
    assert drawn.dtype == torch.float32 and torch.equal(drawn, images[[2, 0]].float() / 127.5 - 1)
    assert drawn.min() >= -1 and drawn.max() <= 1


def test_a_manifest_that_garbles_its_latents(images, tmp_path):
    with pytest.raises(UserError, match="manifest.json: latents: .*kind"):
        _write(tmp_path, images.numpy(), {"latents": {"kind": "voxels", "channels": 3}})
