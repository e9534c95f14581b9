"""Planted faults: for each operation, name -> (text of its source file, what stands there instead).

Each is a mistake that someone could make and a lax tolerance would pass.
"""

MUTANTS: dict[str, dict[str, tuple[str, str]]] = {
    "adaln_modulate": {
        "mean kept in bf16": (
            "    mean = tl.sum(x, axis=1) / D\n",
            "    mean = (tl.sum(x, axis=1) / D).to(tl.bfloat16).to(tl.float32)\n",
        ),
        "wrong eps": ("EPS = 1e-6\n", "EPS = 1e-5\n"),
        "sample variance": ("tl.sum(centred * centred, axis=1) / D + eps", "tl.sum(centred * centred, axis=1) / (D - 1) + eps"),
        "missing mean term in dx": ("(g - mean_g[:, None] - normed", "(g - normed"),
        "missing variance term in dx": (" - normed * mean_gn[:, None])", ")"),
        "last partial tile dropped": ("parts = triton.cdiv(tokens, cut.rows)", "parts = max(1, tokens // cut.rows)"),
        "scale for 1 + scale": ("* (1.0 + scale)[None, :]", "* scale[None, :]"),
        "another batch's shift": ("shift_ptr + b * shift_stride", "shift_ptr + 0 * shift_stride"),
        "dscale without the norm": ("dscale += tl.sum(dout * normed, axis=0)", "dscale += tl.sum(dout * x, axis=0)"),
        "masked columns in the variance": ("tl.where(inside[None, :], x - mean[:, None], 0.0)", "x - mean[:, None]"),
    },
}  # fmt: skip
