"""The backbone: published sizes and names, precision rules, odd shapes, recompute."""

import pytest
import torch

from erw.errors import UserError
from erw.models.sit import SiT, SiTConfig, sized
from erw.step import public_name
from tiny import MODEL


def drawn(config: SiTConfig, seed: int = 0) -> SiT:
    """A model whose every parameter is non-zero: at its zero initialisation every model outputs 0."""
    torch.manual_seed(seed)
    model = SiT(config)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.05)
    return model


@pytest.mark.parametrize(("size", "millions"), [("B/2", 130), ("L/2", 458), ("XL/2", 675)])
def test_parameter_counts_are_the_published_ones(size, millions):
    with torch.device("meta"):
        model = SiT(sized(size))
    count = sum(p.numel() for p in model.parameters())
    assert round(count / 1e6) == millions


@pytest.mark.parametrize("size", [f"{s}/{p}" for s in ("S", "B", "L", "XL") for p in (2, 4, 8)])
def test_every_size_builds(size):
    with torch.device("meta"):
        model = SiT(sized(size))
        out = model(torch.zeros(1, 4, 32, 32), torch.zeros(1), torch.zeros(1, dtype=torch.long))
    assert out.prediction.shape == (1, 4, 32, 32)


def test_parameter_names_are_those_of_public_checkpoints():
    names = set(SiT(sized("S/2", qk_norm=True)).state_dict())
    block = {"attn.qkv", "attn.proj", "attn.q_norm", "attn.k_norm", "mlp.fc1", "mlp.fc2", "adaLN_modulation.1"}
    expected = {"pos_embed", "y_embedder.embedding_table.weight"}
    layers = {"x_embedder.proj", "t_embedder.mlp.0", "t_embedder.mlp.2", "final_layer.linear",
              "final_layer.adaLN_modulation.1"} | {f"blocks.{i}.{n}" for i in range(12) for n in block}  # fmt: skip
    expected |= {f"{layer}.{part}" for layer in layers for part in ("weight", "bias")}
    assert names == expected
    assert public_name("model.blocks.0.attn.qkv.weight") == "blocks.0.attn.qkv.weight"
    assert public_name("heads.projectors.0.2.bias") == "projectors.0.2.bias"


@pytest.mark.parametrize(("size", "patch", "channels"), [(10, 2, 3), (9, 3, 1), (6, 1, 2), (8, 8, 1)])
@pytest.mark.parametrize("rope", [False, True])
def test_any_shape_trains(size, patch, channels, rope):
    config = SiTConfig(depth=2, width=24, num_heads=2, patch_size=patch, input_size=size, in_channels=channels,
                       num_classes=3, rope=rope, qk_norm=rope)  # fmt: skip
    model = drawn(config)
    x = torch.randn(2, channels, size, size)
    out = model(x, torch.rand(2), torch.tensor([0, 3]), taps=(1,))
    out.prediction.square().mean().backward()
    assert out.prediction.shape == x.shape and out.taps[1].shape == (2, config.tokens, 24)
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_patches_go_where_they_came_from():
    # With one patch's token changed, only that patch of the output of a block-free model changes.
    config = SiTConfig(depth=1, width=16, num_heads=1, patch_size=2, input_size=8, in_channels=1, num_classes=2)
    model = drawn(config)
    model.blocks = torch.nn.ModuleList()
    x, t, y = torch.zeros(1, 1, 8, 8), torch.zeros(1), torch.zeros(1, dtype=torch.long)
    changed = x.clone()
    changed[0, 0, 2:4, 6:8] = 1.0
    difference = (model(changed, t, y).prediction - model(x, t, y).prediction)[0, 0].abs() > 0
    expected = torch.zeros(8, 8, dtype=torch.bool)
    expected[2:4, 6:8] = True
    assert torch.equal(difference, expected)


def test_tokens_lie_as_rows_from_the_first_block_on():
    """A convolution's result is transposed in memory, and whatever is computed of it would stay so."""
    model, seen = SiT(MODEL), []
    model.blocks[-1].register_forward_pre_hook(lambda _, given: seen.append(given[0].is_contiguous()))
    x = torch.randn(2, MODEL.in_channels, MODEL.input_size, MODEL.input_size)
    model(x, torch.rand(2), torch.zeros(2, dtype=torch.long))
    assert seen == [True]


def test_position_tables_stay_fp32_and_exact_under_bf16():
    model = SiT(sized("S/2", rope=True))
    tables = model.pos_embed.clone(), model.rope.clone()
    model.bfloat16()
    assert model.blocks[0].attn.qkv.weight.dtype == torch.bfloat16
    assert torch.equal(model.pos_embed, tables[0]) and torch.equal(model.rope, tables[1])
    assert model.pos_embed.dtype == model.rope.dtype == torch.float32


@pytest.mark.parametrize("residual", ["float32", "bfloat16"])
def test_residual_stream_keeps_its_dtype_under_bf16(residual):
    config = SiTConfig(**{**MODEL.__dict__, "residual_dtype": residual})
    model = drawn(config).bfloat16()
    out = model(torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([1, 2]), taps=(1, 3))
    assert {tap.dtype for tap in out.taps.values()} == {getattr(torch, residual)}
    assert out.prediction.dtype == torch.bfloat16


def test_time_is_not_rounded_under_bf16():
    # 0.5 and 0.5005 are the same number in bf16; their embeddings must differ.
    model = drawn(MODEL).bfloat16()
    a, b = (model.t_embedder.sinusoid(torch.tensor([t])) for t in (0.5, 0.5005))
    assert a.dtype == torch.float32 and not torch.equal(a, b)


def test_rope_turns_by_relative_position():
    # Scores of rotated queries and keys depend on the offset between positions, in each axis.
    from erw.kernels._heads import turned
    from erw.models.embed import rope_table

    table = rope_table(5, 16)
    q, k = torch.randn(16), torch.randn(16)
    at = lambda v, row, column: turned(v.expand(25, 16), table)[row * 5 + column]  # noqa: E731
    score = at(q, 1, 1) @ at(k, 3, 2)
    assert torch.allclose(score, at(q, 2, 0) @ at(k, 4, 1), atol=1e-5)
    assert not torch.allclose(score, at(q, 1, 1) @ at(k, 2, 3), atol=1e-3)
    assert torch.allclose(at(q, 3, 3).norm(), q.norm(), atol=1e-5)


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_recompute_leaves_losses_and_gradients_equal(mode):
    x, t, y = torch.randn(2, 1, 8, 8), torch.rand(2), torch.tensor([1, 2])
    grads = {}
    for setting in ("none", mode):
        model = drawn(MODEL).train()
        model.recompute = setting
        model(x, t, y).prediction.square().mean().backward()
        grads[setting] = {n: p.grad for n, p in model.named_parameters()}
    assert all(torch.equal(grads["none"][n], grads[mode][n]) for n in grads["none"])


def test_recompute_saves_memory():
    def saved(mode: str) -> int:
        model = drawn(SiTConfig(**{**MODEL.__dict__, "width": 64})).train()
        model.recompute = mode
        total = 0

        def count(tensor):
            nonlocal total
            total += tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(count, lambda t: t):
            model(torch.randn(8, 1, 8, 8), torch.rand(8), torch.zeros(8, dtype=torch.long))
        return total

    assert saved("full") < saved("none")


def test_a_prefix_has_nothing_else():
    model = drawn(MODEL).keep_span(1, 1)
    assert len(model.blocks) == 1 and model.final_layer is None
    out = model(torch.randn(1, 1, 8, 8), torch.zeros(1), torch.tensor([0]), taps=(1,))
    assert out.prediction is None and out.taps[1].shape == (1, 16, 32)


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"num_heads": 5}, "num_heads 5 does not divide"),
        ({"patch_size": 3}, "patch_size 3 does not divide"),
        ({"depth": 0}, "depth must be at least 1"),
        ({"width": 30, "num_heads": 3}, "multiple of 4"),
        ({"width": 36, "num_heads": 6, "rope": True}, "head width that 4 divides"),
    ],
)
def test_impossible_models_are_refused(fields, says):
    with pytest.raises(UserError, match=says):
        SiTConfig(**{**MODEL.__dict__, **fields})


def test_unknown_size_is_refused():
    with pytest.raises(UserError, match="known: S, B, L, XL"):
        sized("XXL/2")
