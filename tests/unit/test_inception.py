"""FID's Inception with random weights in the true layout: graph, resize, spatial features, and files that are not it."""

import zipfile

import pytest
import torch
import torch.nn.functional as F

from erw.errors import UserError
from erw.evaluate.inception import FILES, Inception, find_weights

pytest.importorskip("torch_fidelity", reason="needs pip install 'erw[eval]'")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    from erw.bench.evaluators import photographs, random_weights

    file = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(random_weights(photographs(64, 4)), file)
    return file


@pytest.fixture(scope="module")
def pixels():
    from erw.bench.evaluators import photographs

    return photographs(80, 2)


@pytest.fixture(scope="module")
def inception(file):
    return Inception(file, CPU)


@pytest.fixture(scope="module")
def found(inception, pixels):
    return inception(pixels)


def test_shapes(found):
    assert {name: (tuple(x.shape), x.dtype) for name, x in found.items()} == {
        "features": ((2, 2048), torch.float32),
        "logits": ((2, 1008), torch.float32),
        "spatial": ((2, 2023), torch.float32),
    }
    assert all(x.isfinite().all() and x.std() > 0.01 for x in found.values())


def test_logits_have_no_bias(found, inception):
    """As the Inception Score takes them from the TensorFlow graph."""
    weight = inception.network.fc.weight
    torch.testing.assert_close(found["logits"], found["features"] @ weight.T, rtol=1e-4, atol=1e-4)


def test_spatial_features_are_the_first_channels_of_6d_with_channels_last(found, inception, pixels):
    """Layer by layer, from the resize on, beside the hook."""
    network = inception.network
    with torch.no_grad():
        x = (_tensorflow_resize(pixels.float()) - 128) / 128
        for name in ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "MaxPool_1", "Conv2d_3b_1x1", "Conv2d_4a_3x3",
                     "MaxPool_2", "Mixed_5b", "Mixed_5c", "Mixed_5d", "Mixed_6a", "Mixed_6b", "Mixed_6c"):  # fmt: skip
            x = getattr(network, name)(x)
        branch = network.Mixed_6d.branch1x1(x)
    assert branch.shape[1:] == (192, 17, 17)
    rows = found["spatial"].view(2, 17, 17, 7)
    torch.testing.assert_close(rows, branch[:, :7].permute(0, 2, 3, 1), rtol=1e-3, atol=1e-3)


def _tensorflow_resize(images: torch.Tensor, side: int = 299) -> torch.Tensor:
    """Output pixel i is read at i * in / out, not at its centre; bilinear between neighbours, the last one repeated."""
    place = torch.arange(side) * (images.shape[-1] / side)
    low = place.long()
    high, share = (low + 1).clamp(max=images.shape[-1] - 1), place - low
    rows = images[:, :, low] + (images[:, :, high] - images[:, :, low]) * share.view(1, 1, -1, 1)
    return rows[..., low] + (rows[..., high] - rows[..., low]) * share


def test_another_resize_is_another_result(found, inception, pixels):
    """What the libraries' defaults differ by is no rounding."""
    centred = F.interpolate(pixels.float(), 299, mode="bilinear", align_corners=False).round().clamp(0, 255).to(torch.uint8)
    other = inception(centred)["features"]
    assert (other - found["features"]).abs().max() > 0.1 * found["features"].std()


def test_the_same_image_alone_and_in_company(found, inception, pixels):
    alone = inception(pixels[1:])
    torch.testing.assert_close(alone["features"][0], found["features"][1], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(alone["spatial"][0], found["spatial"][1], rtol=1e-3, atol=1e-3)


def test_the_record_says_which_weights_and_that_nobody_published_them(file, capsys):
    facts = Inception(file, CPU).facts
    assert facts["weights"]["file"] == "random.pth" and facts["weights"]["published"] is False
    assert len(facts["weights"]["sha256"]) == 64 and "no antialiasing" in facts["resize"]
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1 and "is not the published Inception" in lines[0]


def test_torchmetrics_without_antialiasing_computes_the_same(found, file, pixels):
    fid = pytest.importorskip("torchmetrics.image.fid", reason="torchmetrics is not installed; erw does not need it")
    with torch.no_grad():
        theirs = fid.NoTrainInceptionV3("inception", ["2048"], str(file), antialias=False)(pixels)
    torch.testing.assert_close(theirs, found["features"], rtol=1e-5, atol=1e-5)


def test_missing_weights_are_named_with_where_to_get_them(monkeypatch, tmp_path):
    monkeypatch.setenv("ERW_CACHE", str(tmp_path))
    with pytest.raises(UserError) as refused:
        find_weights(None)
    message = str(refused.value)
    assert FILES[0] in message and "mseitzer/pytorch-fid" in message and "--weights" in message and str(tmp_path) in message
    assert "\n" not in message
    (tmp_path / FILES[1]).touch()
    assert find_weights(None) == tmp_path / FILES[1]
    with pytest.raises(UserError, match="nowhere.pth is not a file"):
        find_weights(tmp_path / "nowhere.pth")


def _not_zipped(file):
    file.write_bytes(b"hello")


def _torchvisions(file):
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, file)


def _one_tensor_less(file, whole):
    weights = dict(whole)
    del weights["Mixed_6d.branch1x1.conv.weight"]
    torch.save(weights, file)


class _Executes:
    def __reduce__(self):
        return print, ("executed",)


@pytest.mark.parametrize(
    ("write", "says"),
    [
        (_not_zipped, "is not a file of weights"),
        (lambda f: torch.save([torch.zeros(2)], f), "no fc.weight"),
        (lambda f: torch.save({"model": 1}, f), "no fc.weight"),
        (_torchvisions, "classifies into 1000, FID's Inception into 1008"),
        (lambda f: torch.save({"fc.weight": torch.zeros(1008, 2048)}, f), "another layout"),
        (lambda f: torch.save(_Executes(), f), "is not a file of weights"),
        (lambda f: zipfile.ZipFile(f, "w").close(), "is not a file of weights"),
    ],
    ids=["text", "list", "other", "torchvision", "empty", "code", "zip"],
)
def test_a_wrong_file_of_weights_gets_one_line(write, says, tmp_path, capsys):
    write(tmp_path / "a.pth")
    with pytest.raises(UserError, match=says) as refused:
        Inception(tmp_path / "a.pth", CPU)
    assert "\n" not in str(refused.value) and "executed" not in capsys.readouterr().out


def test_a_layer_that_is_missing_is_named(file, tmp_path):
    _one_tensor_less(tmp_path / "a.pth", torch.load(file, weights_only=True))
    with pytest.raises(UserError, match="Mixed_6d.branch1x1.conv.weight"):
        Inception(tmp_path / "a.pth", CPU)


def test_truncated_weights_get_one_line(file, tmp_path):
    (tmp_path / "a.pth").write_bytes(file.read_bytes()[:1_000_000])
    with pytest.raises(UserError, match="is not a file of weights"):
        Inception(tmp_path / "a.pth", CPU)
