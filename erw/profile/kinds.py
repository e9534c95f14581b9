"""The kind of work that an operator or a CUDA kernel does, told by its name."""

KINDS = ("GEMM", "attention", "memory-bound", "communication")
"""Kinds of work. Where several run at once the time counts for the first, so communication is what nothing hides."""

# Looked for in this order: attention's kernels have cutlass in their names too.
_WORDS = {
    "communication": ("nccl", "c10d", "gloo", "record_param_comms", "allreduce", "all_reduce", "allgather", "reduce_scatter"),
    "attention": ("attention", "attn", "flash", "fmha", "sdpa", "scaled_dot"),
    "GEMM": (
        "gemm", "nvjet", "cutlass", "cublas", "xmma", "wgmma", "splitk", "triton_tem", "convolution", "conv2d", "aten::mm",
        "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear", "aten::matmul", "mkldnn_linear", "mkldnn::",
    ),
}  # fmt: skip


def kind_of(name: str) -> str:
    """One of ``KINDS``; what is not known moves memory."""
    lower = name.lower()
    return next((kind for kind, words in _WORDS.items() if any(word in lower for word in words)), "memory-bound")
