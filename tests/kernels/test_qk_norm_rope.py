"""What is particular to `qk_norm_rope`: views, what is launched, arguments that do not fit each other."""

from functools import partial

import pytest
import torch

from erw.bench._modes import kept_bytes
from erw.kernels import qk_norm_rope
from erw.kernels._launch import INTERPRETED, recording

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
B, T, HEADS, H = 2, 5, 3, 8
needs_kernels = pytest.mark.skipif(DEVICE == "cpu" and not INTERPRETED, reason="needs a CUDA device or TRITON_INTERPRET=1")


def qkv(**options):
    return torch.randn(B, T, 3, HEADS, H, device=DEVICE, **options)


def rope(tokens=T, width=H):
    angles = torch.randn(tokens, width, device=DEVICE)
    return torch.stack((angles.cos(), angles.sin()))


def test_without_norm_and_rope_nothing_is_launched_and_nothing_copied():
    packed = qkv()
    with recording() as launches:
        parts = qk_norm_rope(packed)
    assert launches == []
    for number, part in enumerate(parts):
        assert part.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()
        assert torch.equal(part, packed[:, :, number].transpose(1, 2))


@needs_kernels
def test_v_is_a_view_and_q_and_k_lie_as_attention_reads_them():
    packed = qkv()
    q, k, v = qk_norm_rope(packed, rope=rope())
    assert v.untyped_storage().data_ptr() == packed.untyped_storage().data_ptr()
    assert q.transpose(1, 2).is_contiguous() and k.transpose(1, 2).is_contiguous()


@needs_kernels
def test_only_statistics_are_saved_beside_the_inputs():
    inputs = {"qkv": qkv(), "rope": rope()}
    kept = kept_bytes(partial(qk_norm_rope, norm="layer"), ("qkv", "rope"), inputs)
    assert kept == 4 * (2 * 2 * B * T * HEADS)  # fp32 mean and rstd of each head of q and k


@needs_kernels
def test_prefix_tokens_are_not_turned():
    packed, prefix = qkv(), 1
    q, k, _ = qk_norm_rope(packed, rope=rope(T - prefix), prefix=prefix)
    assert torch.equal(q[:, :, :prefix], packed[:, :prefix, 0].transpose(1, 2))
    assert not torch.equal(k[:, :, prefix:], packed[:, prefix:, 1].transpose(1, 2))


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"norm": "batch"}, "norm is 'batch', should be one of none, rms, layer"),
        ({"norm": "rms", "q_weight": torch.ones(H)}, "given are"),
        ({"norm": "none", "q_weight": torch.ones(H), "k_weight": torch.ones(H)}, "with norm 'none', given are"),
        ({"norm": "rms", "q_weight": torch.ones(H + 1), "k_weight": torch.ones(H)}, "q_weight has shape"),
        ({"rope": torch.ones(2, T + 1, H)}, "rope has shape"),
        ({"rope": torch.ones(2, T - 1, H), "prefix": 2}, "rope has shape"),
        ({"rope": torch.ones(2, T, H), "prefix": T + 1}, "prefix is 6, should be between 0 and T = 5"),
    ],
)
def test_what_does_not_fit_is_named(options, named):
    with pytest.raises(ValueError, match=named):
        qk_norm_rope(qkv(), **options)


def test_rope_needs_an_even_head_width():
    with pytest.raises(ValueError, match="head width 7, should be even"):
        qk_norm_rope(torch.randn(B, T, 3, HEADS, 7), rope=torch.ones(2, T, 7))
