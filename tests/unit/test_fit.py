"""What a preset leaves to the dataset, and what a dataset that cannot say it gets for an answer."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from erw.build import fit_to_data, open_data, taken_from
from erw.errors import UserError
from erw.presets import PRESETS, preset
from erw.types import CachedTeacher, StoredLatents, TeacherSpec

SPEC = TeacherSpec(name="dinov2-b", width=768, grid=16)


def dataset(**changes):
    """Moments of an autoencoder of 16 channels in a folder, three classes, features of one teacher."""
    stored = StoredLatents(kind="vae", vae="models/f16", channels=16, stride=16, scale=0.5, shift=0.1)
    own = {"num_classes": 3, "channels": 32, "size": 32, "has_images": False, "cached": {"dinov2-b": CachedTeacher(SPEC, 5)}}
    return SimpleNamespace(**own | {"stored": stored} | changes)


def test_classes_shape_autoencoder_and_teacher_are_the_datasets():
    config = taken_from(preset("folder-erw"), dataset())
    config.check()
    assert (config.model.num_classes, config.model.in_channels, config.model.input_size) == (3, 16, 32)
    assert (config.latents.kind, config.latents.vae, config.teacher.name) == ("vae", "models/f16", "dinov2-b")
    config, _ = fit_to_data(config, dataset())
    assert (config.latents.scale, config.latents.shift) == (0.5, 0.1)


def test_what_the_user_names_stays():
    config = preset("folder-repa")
    config = replace(config, teacher=replace(config.teacher, name="mae-b", source="online"))
    config = replace(config, latents=replace(config.latents, vae="elsewhere/f16"))
    config = taken_from(config, dataset())
    assert config.teacher.name == "mae-b" and config.latents.vae == "elsewhere/f16"


def test_pixels_need_no_autoencoder():
    pixels = dataset(stored=StoredLatents(kind="pixels", channels=3), channels=3, cached={})
    config, _ = fit_to_data(taken_from(preset("folder-sit"), pixels), pixels)
    assert config.latents.kind == "pixels" and config.teacher.name == "none" and config.model.in_channels == 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"stored": None}, "does not say what its latents are: prepare it with erw prepare, or give --data.fit false"),
        (
            {"cached": {}},
            "method erw needs a teacher and .* holds no features: prepare it with --teachers, or train folder-sit",
        ),
    ],
)
def test_a_dataset_that_cannot_say_it(changes, says):
    with pytest.raises(UserError, match=says):
        taken_from(preset("folder-erw"), dataset(**changes))


@pytest.mark.parametrize("name", [name for name in PRESETS if name.startswith("folder-")])
def test_a_folder_preset_names_the_missing_dataset(name):
    with pytest.raises(UserError, match="--data.path '' is not a folder"):
        open_data(preset(name))


@pytest.mark.parametrize("method", ["sit", "repa", "erw"])
def test_larger_images_are_the_same_settings_on_more_tokens(method):
    small, large = preset(f"in256-{method}-b2"), preset(f"in512-{method}-b2")
    assert large.model.tokens == 4 * small.model.tokens == 1024
    assert replace(large.model, input_size=32) == small.model and large.method == small.method


def test_cifar10s_pixels_have_imagenets_tokens():
    cifar, imagenet = preset("cifar10-erw-s2"), preset("in256-erw-s2")
    assert cifar.model.tokens == imagenet.model.tokens == 256 and cifar.optim == imagenet.optim
    assert replace(cifar.method, warmup_images=imagenet.method.warmup_images) == imagenet.method
