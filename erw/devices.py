"""What accelerators can do by their data sheets: peaks, memory, links, power. Nothing here is measured."""

import re
from dataclasses import dataclass

GB = 1e9
"""Data sheets count in powers of ten; a card has a few percent more memory than its gigabytes say."""


@dataclass(frozen=True, kw_only=True)
class Device:
    """One kind of accelerator.

    name        what ``--gpu`` calls it
    pattern     of the name that its driver gives; boards that run at other clocks do not match
    tflops      dense bf16 peak with fp32 sums, TFLOP/s (no sparsity)
    fp32        TFLOP/s in fp32 (not TF32)
    memory      GB
    bandwidth   of its memory, GB/s
    link        to the others of its machine, GB/s in one direction
    per_node    of them in the usual machine
    watts       board power
    """

    name: str
    pattern: str
    tflops: float
    fp32: float
    memory: float
    bandwidth: float
    link: float
    per_node: int
    watts: float


_SXM = r"(?!.*(PCIe|NVL))"
DEVICES = {
    device.name: device
    for device in (
        Device(name="a100", pattern=r"\bA100\b", tflops=312.0, fp32=19.5, memory=80, bandwidth=2039, link=300, per_node=8, watts=400),
        Device(name="h100", pattern=_SXM + r".*\bH100\b", tflops=989.5, fp32=67.0, memory=80, bandwidth=3350, link=450, per_node=8, watts=700),
        Device(name="h800", pattern=_SXM + r".*\bH800\b", tflops=989.5, fp32=67.0, memory=80, bandwidth=3350, link=200, per_node=8, watts=700),
        Device(name="h200", pattern=_SXM + r".*\bH200\b", tflops=989.5, fp32=67.0, memory=141, bandwidth=4800, link=450, per_node=8, watts=700),
        Device(name="b200", pattern=r"\bB200\b", tflops=2250.0, fp32=75.0, memory=180, bandwidth=7700, link=900, per_node=8, watts=1000),
        Device(name="l40s", pattern=r"\bL40S\b", tflops=362.0, fp32=91.6, memory=48, bandwidth=864, link=32, per_node=8, watts=350),
        Device(name="4090", pattern=r"\bRTX 4090\b(?! (D|Laptop))", tflops=165.2, fp32=82.6, memory=24, bandwidth=1008, link=32, per_node=8,
               watts=450),
    )
}  # fmt: skip


def device_called(name: str) -> Device | None:
    """The entry for a device whose driver calls it ``name``, None where there is none."""
    return next((device for device in DEVICES.values() if re.search(device.pattern, name)), None)


def bf16_peak(name: str) -> float | None:
    """Published dense bf16 peak of the device called ``name`` in TFLOP/s, None where it is not in the table."""
    device = device_called(name)
    return None if device is None else device.tflops
