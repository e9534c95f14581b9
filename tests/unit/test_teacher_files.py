"""Teachers' weights from files: the papers' own wrappings, and files that do not fit."""

import pytest
import timm
import torch
from safetensors.torch import save_file

from erw.errors import UserError
from erw.teachers import TeacherConfig, load_teacher, teacher_specs
from erw.teachers.names import SHORT_NAMES
from teachers import CPU, small_networks


class TestFiles:
    NAME = "timm:vit_tiny_patch16_224.augreg_in21k"

    @pytest.fixture(autouse=True)
    def small_ones(self):
        """Files are of small networks."""
        with small_networks():
            yield

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
