"""Reading what is to be evaluated: the same pixels from every container, and one line for each that is broken."""

import zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from erw.errors import UserError
from erw.evaluate.extract import extract
from erw.evaluate.images import open_images

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 6, 5, 3), dtype=np.uint8)


class Mean:
    """The mean of each channel as features."""

    name, width, facts = "mean", 3, {"weights": "none"}

    def __call__(self, pixels):
        assert pixels.dtype == torch.uint8 and pixels.shape[1] == 3
        return {"features": pixels.float().mean(dim=(2, 3))}


def _whole(images, size=3) -> np.ndarray:
    parts = list(images.parts(size))
    assert [len(part) for part in parts] == [3, 3, 1]
    return np.concatenate(parts)


def _folder(path, suffix, **options):
    path.mkdir()
    for i, pixels in enumerate(PIXELS):
        Image.fromarray(pixels).save(path / f"{i:06d}.{suffix}", **options)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_is_read_in_parts(save, tmp_path):
    save(tmp_path / "a.npz", arr_0=PIXELS, labels=np.arange(7))
    images = open_images(tmp_path / "a.npz")
    assert images.count == 7 and images.shape == (6, 5, 3) and images.labels.tolist() == list(range(7))
    assert np.array_equal(_whole(images), PIXELS) and np.array_equal(_whole(images), PIXELS)


def test_labels_may_be_adms_second_array(tmp_path):
    np.savez(tmp_path / "a.npz", PIXELS, np.arange(7))
    assert open_images(tmp_path / "a.npz").labels.tolist() == list(range(7))


def test_all_containers_hold_the_same_images(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=PIXELS)
    kinds = [tmp_path / "a.npz", _folder(tmp_path / "png", "png"), _folder(tmp_path / "webp", "webp", lossless=True)]
    found = [extract(open_images(kind), Mean()) for kind in kinds]
    assert len({one.sha256 for one in found}) == 1
    assert torch.equal(found[0].features, torch.from_numpy(PIXELS).float().mean(dim=(1, 2)))
    assert all(torch.equal(one.features, found[0].features) for one in found)
    np.savez(tmp_path / "b.npz", arr_0=PIXELS[::-1].copy())
    assert extract(open_images(tmp_path / "b.npz"), Mean()).sha256 != found[0].sha256


def test_grey_images_are_shown_three_times(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=PIXELS[..., :1])
    features = extract(open_images(tmp_path / "a.npz"), Mean()).features
    assert torch.equal(features[:, 0], features[:, 2])
    (tmp_path / "grey").mkdir()
    Image.fromarray(PIXELS[0, ..., 0]).save(tmp_path / "grey" / "0.png")
    assert open_images(tmp_path / "grey").shape == (6, 5, 1)


def test_samples_in_a_folder_beside_their_overview(tmp_path):
    np.savez(tmp_path / "samples.npz", arr_0=PIXELS)
    Image.fromarray(PIXELS[0]).resize((50, 50)).save(tmp_path / "samples.png")
    assert open_images(tmp_path).count == 7
    folder = _folder(tmp_path / "png", "png")
    Image.fromarray(PIXELS[0]).resize((50, 50)).save(folder / "samples.png")
    assert open_images(folder).count == 7


def test_labels_of_image_files_and_images_of_a_dataset(tmp_path):
    folder = _folder(tmp_path / "images", "png")
    np.save(tmp_path / "labels.npy", np.arange(7))
    assert open_images(folder).labels.tolist() == open_images(tmp_path).labels.tolist() == list(range(7))
    np.save(tmp_path / "labels.npy", np.arange(6))
    with pytest.raises(UserError, match=r"labels.npy has shape \(6,\) for 7 images"):
        open_images(folder)
    (tmp_path / "data").mkdir()
    np.save(tmp_path / "data" / "images.npy", PIXELS.transpose(0, 3, 1, 2))
    dataset = open_images(tmp_path / "data")
    assert np.array_equal(_whole(dataset), PIXELS) and dataset.shape == (6, 5, 3)
    np.save(tmp_path / "data" / "images.npy", PIXELS)
    with pytest.raises(UserError, match="images.npy is uint8 of shape"):
        open_images(tmp_path / "data")


def test_digits_are_built_in():
    images = open_images("digits-held-out")
    assert images.count == 360 and images.shape == (8, 8, 1) and len(images.labels) == 360
    pixels = np.concatenate(list(images.parts(100)))
    assert pixels.dtype == np.uint8 and pixels.min() == 0 and pixels.max() == 255 and len(np.unique(pixels)) == 17


def _truncated_archive(path):
    np.savez(path, arr_0=PIXELS)
    path.write_bytes(path.read_bytes()[:300])


def _flipped_bit(path):
    np.savez(path, arr_0=PIXELS)
    data = bytearray(path.read_bytes())
    data[400] ^= 1
    path.write_bytes(data)


def _short_array(path):
    """A whole zip archive around an array that ends early."""
    np.savez(path, arr_0=PIXELS)
    with zipfile.ZipFile(path) as archive:
        data = archive.read("arr_0.npy")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("arr_0.npy", data[:-10])


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (lambda p: np.savez(p, images=PIXELS), "holds images, not arr_0"),
        (lambda p: np.savez(p), "holds nothing, not arr_0"),
        (lambda p: np.savez(p, arr_0=PIXELS / 255), "arr_0 is float64, not uint8"),
        (lambda p: np.savez(p, arr_0=PIXELS.transpose(0, 3, 1, 2).copy()), "move the channels to the end"),
        (lambda p: np.savez(p, arr_0=PIXELS[0]), r"has shape \(6, 5, 3\)"),
        (lambda p: np.savez(p, arr_0=PIXELS[:0]), "no image in it"),
        (lambda p: np.savez(p, arr_0=np.asfortranarray(PIXELS)), "Fortran order"),
        (lambda p: np.savez(p, arr_0=PIXELS, labels=np.arange(3)), r"labels have shape \(3,\) for 7 images"),
        (_truncated_archive, "not a whole .npz"),
        (_flipped_bit, "CRC"),
        (_short_array, "ends in image 6"),
        (lambda p: p.write_bytes(b""), "not a whole .npz"),
        (lambda p: p.write_text("hello"), "not a whole .npz"),
        (lambda p: np.save(p.open("wb"), PIXELS), "a single array, not an .npz"),
    ],
    ids=["no arr_0", "nothing", "float", "NCHW", "one image", "empty", "fortran", "labels", "truncated", "flipped", "short",
         "zero bytes", "text", "npy"],
)  # fmt: skip
def test_a_broken_npz_gets_one_line(write, says, tmp_path):
    write(tmp_path / "a.npz")
    with pytest.raises(UserError, match=says) as refused:
        list(open_images(tmp_path / "a.npz").parts(3))
    assert "a.npz" in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda p: (p / "000004.png").write_bytes((p / "000004.png").read_bytes()[:40]), "000004.png is not a whole image"),
        (lambda p: (p / "000005.png").write_text("no image"), "000005.png is not a whole image"),
        (lambda p: Image.fromarray(PIXELS[0, :4]).save(p / "000003.png"), "000003.png is 5x4.*others beside it are 5x6"),
        (lambda p: Image.fromarray(PIXELS[0, ..., 0]).save(p / "000003.png"), "with 1 channels"),
        (lambda p: [file.unlink() for file in p.iterdir()], "holds no image"),
    ],
    ids=["truncated", "text", "mixed sizes", "mixed channels", "empty"],
)
def test_a_broken_folder_gets_one_line(spoil, says, tmp_path):
    folder = _folder(tmp_path / "png", "png")
    spoil(folder)
    with pytest.raises(UserError, match=says) as refused:
        list(open_images(folder).parts(3))
    assert "\n" not in str(refused.value)


def test_nothing_there_gets_one_line(tmp_path):
    with pytest.raises(UserError, match="nowhere' does not exist"):
        open_images(tmp_path / "nowhere")
