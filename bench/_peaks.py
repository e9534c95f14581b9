"""What the device can do at best: published dense bf16 peaks, and measured GEMM rate and copy bandwidth."""

import torch

from erw.bench._timing import interleave

# Dense bf16 tensor-core peak in TFLOP/s (no sparsity), by a word of the device's name. Vendor data sheets.
BF16_PEAKS = {"A100": 312.0, "H100": 989.5, "H800": 989.5, "H200": 989.5}


def bf16_peak(name: str) -> float | None:
    """Published dense bf16 peak of the device called ``name`` in TFLOP/s, None where it is not in the table."""
    # Hopper's PCIe and NVL boards run at lower clocks and have other peaks; A100's boards share one.
    if "A100" not in name and ("PCIe" in name or "NVL" in name):
        return None
    return next((peak for word, peak in BF16_PEAKS.items() if word in name), None)


def measured_peaks(device: torch.device, *, size: int, copy_mib: int, rounds: int) -> dict[str, float | int]:
    """bf16 GEMM of ``size`` cubed in TFLOP/s, and a copy of ``copy_mib`` MiB in GB/s (bytes read plus written)."""
    a, b = (torch.randn(size, size, device=device).to(torch.bfloat16) for _ in range(2))
    product = torch.empty_like(a)
    source = torch.empty(copy_mib * 2**20, dtype=torch.int8, device=device).random_(0, 100)
    target = torch.empty_like(source)
    measured = interleave(
        {"gemm": lambda: torch.mm(a, b, out=product), "copy": lambda: target.copy_(source)},
        device=device,
        rounds=rounds,
        warmup=3,
        calls={"gemm": 5, "copy": 5},
    )
    return {
        "gemm_size": size,
        "gemm_tflops": 2 * size**3 / measured["gemm"].median / 1e12,
        "copy_mib": copy_mib,
        "copy_gb_per_s": 2 * source.numel() / measured["copy"].median / 1e9,
    }
