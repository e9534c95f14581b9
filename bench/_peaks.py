"""What the device can do at best: measured GEMM rate and copy bandwidth. Published peaks: `erw.devices`."""

import torch

from erw.bench._timing import interleave


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
