"""Teachers: each family of timm with random weights in two blocks, for no hub is reachable in tests."""

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from erw.errors import UserError
from erw.teachers import TeacherConfig, load_teacher
from erw.teachers.base import resampled
from erw.teachers.timm import described
from teachers import CLIP, CPU, HALF, IMAGENET, photographs, small, small_networks

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


@pytest.fixture(scope="class", params=list(FAMILIES))
def family(request, tmp_path_factory):
    """(name, its file of random weights, the teacher in fp32 on 16x16 tokens)."""
    name, file = request.param, tmp_path_factory.mktemp("weights") / "weights.safetensors"
    known = small(described(name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(timm.create_model(known.model, num_classes=0, **known.options).state_dict(), file)
    with small_networks():
        yield name, file, load_teacher(name, CPU, 16, TeacherConfig(name=name, file=str(file), precision="fp32"))


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
