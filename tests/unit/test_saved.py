"""Bytes that a block keeps, counted on tensors that hold nothing."""

import json

from erw.bench import saved

TOKENS, WIDTH, BATCH = 256, 384, 2


def test_bytes_of_a_block_by_policy(tmp_path, capsys):
    path = tmp_path / "saved.json"
    saved.main(["--size", "S", "--batch", str(BATCH), "--out", str(path)])
    rows = {(r["step"], r["recompute"], r["residual"]): r for r in json.loads(path.read_text())["rows"]}
    element = BATCH * TOKENS * WIDTH
    # With full recompute a block keeps its inputs: the residual stream, and six vectors of modulation.
    for step in ("erw reference", "erw fused"):
        for residual, size in (("float32", 4), ("bfloat16", 2)):
            assert 0 <= rows[step, "full", residual]["bytes_per_block"] - size * element <= 2 * 8 * BATCH * WIDTH
    # Kernels keep each of these once, in bf16: two inputs of adaLN, qkv, attention, two branches, the MLP's input, its 4 D.
    expected = 2 * element * (2 + 3 + 1 + 2 + 1 + 4)
    assert abs(rows["erw fused", "none", "bfloat16"]["bytes_per_block"] / expected - 1) < 0.1
    assert rows["reference", "-", "float32"]["less_than_reference"] == 1
    order = [rows[key]["bytes_per_block"] for key in (
        ("erw fused", "full", "float32"), ("erw fused", "none", "float32"), ("erw reference", "none", "float32"),
        ("reference", "-", "float32"))]  # fmt: skip
    assert order == sorted(order)
    assert "less than the reference" in capsys.readouterr().out
    page = tmp_path / "page.md"
    page.write_text("<!-- saved bytes -->\n<!-- /saved bytes -->\n")
    saved.main(["--out", str(path), "--write", str(page)])
    assert page.read_text().count("\n| erw fused |") == 6 and "S/2, batch 2" in page.read_text()
