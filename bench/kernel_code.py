"""What the kernels become on a GPU, without one: ``python -m erw.bench.kernel_code`` compiles every kernel at every launch
configuration of the published sizes ahead of time and reads the machine code.

For each: registers a thread, spilled bytes (stack, local), shared memory, warps and the occupancy that follows, the widest
global access, atomics. ``--write`` puts the table into docs/kernels.md. Must run without TRITON_INTERPRET.
"""

import argparse
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
import triton
from torch._subclasses import FakeTensorMode
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from erw.errors import UserError, exits_cleanly
from erw.kernels import SPECS, Case, Spec
from erw.kernels._launch import INTERPRETED, Launch, recording
from erw.models.sit import SIZES

TARGETS = (80, 90, 100)
# Registers a multiprocessor, threads it can hold, shared memory a block may use.
_LIMITS = {80: (65536, 2048, 166_912), 90: (65536, 2048, 232_448), 100: (65536, 2048, 232_448)}
_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64", torch.int32: "i32"}
_DTYPES = {"stream": torch.float32, "matmul": torch.bfloat16, "float32": torch.float32}


@dataclass(frozen=True, kw_only=True)
class Code:
    """One kernel compiled for one chip."""

    operation: str
    kernel: str
    width: int
    target: int
    registers: int
    spilled: int
    shared: int
    num_warps: int
    widest: int  # bits of the widest global access
    atomics: int

    @property
    def occupancy(self) -> float:
        """Share of the threads that a multiprocessor can hold, as registers and shared memory allow."""
        registers, threads, shared = _LIMITS[self.target]
        a_warp = -(-self.registers * 32 // 256) * 256
        blocks = registers // max(1, a_warp * self.num_warps)
        if self.shared:
            blocks = min(blocks, shared // self.shared)
        return min(blocks, 32, threads // (32 * self.num_warps)) * 32 * self.num_warps / threads

    @property
    def faults(self) -> list[str]:
        """What must not be: spills, atomics, too much shared memory."""
        found = [f"spills {self.spilled} bytes"] * bool(self.spilled) + [f"{self.atomics} atomics"] * bool(self.atomics)
        return found + ["too much shared memory"] * (self.shared > _LIMITS[self.target][2])


def launches_of(spec: Spec, case: Case) -> list[Launch]:
    """What forward and backward of ``spec`` would launch, from tensors that hold nothing."""
    with FakeTensorMode():
        made = spec.inputs(case, torch.Generator())
        inputs = {n: t.to(_DTYPES[spec.roles[n]]) if t.is_floating_point() else t for n, t in made.items()}
        with recording() as launches:
            spec.trace(**inputs)
    return launches


@dataclass(frozen=True)
class Source:
    """What Triton compiles for a launch: types by parameter, constants, and which arguments 16 divides."""

    launch: Launch
    signature: dict[str, str]
    constants: dict[str, object]
    divisible: tuple[int, ...]

    @classmethod
    def of(cls, launch: Launch) -> "Source":
        """As Triton specialises a real launch, whose tensors start at multiples of 16 bytes."""
        signature, constants, divisible = {}, dict(launch.constants), []
        general = {parameter.name for parameter in launch.kernel.params if parameter.do_not_specialize}
        for position, name in enumerate(launch.kernel.arg_names):
            value = launch.arguments.get(name)
            if name in launch.constants:
                signature[name] = "constexpr"
            elif isinstance(value, torch.dtype):
                signature[name] = f"*{_TYPES[value]}"
                divisible.append(position)
            elif isinstance(value, float):
                signature[name] = "fp32"
            elif name in general:
                signature[name] = "i32"
            elif value is None or value == 1:
                signature[name], constants[name] = "constexpr", value
            else:
                signature[name] = "i32"
                divisible += [position] * (value % 16 == 0)
        return cls(launch, signature, constants, tuple(divisible))

    @property
    def key(self) -> str:
        """Equal for launches that run the same machine code."""
        kernel, warps = self.launch.kernel.__name__, self.launch.num_warps
        return f"{kernel} {warps} {self.signature} {self.constants} {self.divisible}"

    def compiled_for(self, target: int):
        """Triton's compiled kernel for compute capability ``target``."""
        attributes = {(position,): [["tt.divisibility", 16]] for position in self.divisible}
        source = ASTSource(self.launch.kernel, self.signature, self.constants, attributes)
        return triton.compile(source, target=GPUTarget("cuda", target, 32), options={"num_warps": self.launch.num_warps})


def inspect(spec: Spec, source: Source, width: int, target: int) -> Code:
    """Compile one launch and read its code."""
    compiled = source.compiled_for(target)
    ptx, cubin = compiled.asm["ptx"], compiled.asm["cubin"]
    usage = _resource_usage(cubin)
    accesses = re.findall(r"\b(?:ld|st)\.global[\w.:]*?(?:\.v(\d))?\.b(\d+)\b", ptx)
    accesses += [("16", "8")] * len(re.findall(r"\bcp\.async\.cg\.shared\.global\b", ptx))  # which copies 16 bytes
    return Code(
        operation=spec.name,
        kernel=source.launch.kernel.__name__.strip("_").removesuffix("_kernel"),
        width=width,
        target=target,
        registers=usage["REG"],
        spilled=usage["STACK"] + usage["LOCAL"],
        widest=max((int(lanes or 1) * int(bits) for lanes, bits in accesses), default=0),
        atomics=len(re.findall(r"\b(?:atom|red)\.(?:global|shared|async)", ptx)),
        shared=compiled.metadata.shared,
        num_warps=compiled.metadata.num_warps,
    )


def _resource_usage(cubin: bytes) -> dict[str, int]:
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


def cases(sizes: tuple[str, ...]) -> list[Case]:
    """The published widths and head widths at 256 tokens; batches that take each branch of the heuristics."""
    return [Case(batch=b, tokens=256, width=SIZES[s][1], heads=SIZES[s][2]) for s in sizes for b in (256, 32, 8)]


def survey(sizes: tuple[str, ...], targets: tuple[int, ...], operations: tuple[str, ...] = ()) -> list[Code]:
    """Each distinct kernel configuration of each operation, once for each target."""
    found = {}
    for spec in SPECS:
        if operations and spec.name not in operations:
            continue
        for case in cases(sizes):
            for source in map(Source.of, launches_of(spec, case)):
                for target in targets:
                    if (source.key, target) not in found:
                        found[source.key, target] = inspect(spec, source, case.width, target)
    return list(found.values())


def markdown(codes: list[Code]) -> str:
    """A table with a row for each kernel configuration and chip."""
    rows = [HEADER, ["---"] * len(HEADER)]
    rows += [
        [c.operation, c.kernel, str(c.width), f"sm_{c.target}", str(c.num_warps), str(c.registers), str(c.spilled),
         str(c.shared), f"{c.occupancy:.0%}", str(c.widest), ", ".join(c.faults) or "none"]
        for c in codes
    ]  # fmt: skip
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


HEADER = ["operation", "kernel", "width", "chip", "warps", "registers", "spilled", "shared", "occupancy", "widest", "faults"]


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line. Exit code 1 where a kernel spills, uses atomics or too much shared memory."""
    parser = argparse.ArgumentParser(prog="python -m erw.bench.kernel_code", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default="S,B,L,XL", help="published sizes (default S,B,L,XL)")
    parser.add_argument("--targets", default=",".join(map(str, TARGETS)), help="compute capabilities (default 80,90,100)")
    parser.add_argument("--operations", default="", help="only these, with commas between")
    parser.add_argument("--write", type=Path, help="Markdown file whose <!-- kernel code --> section is written anew")
    options = parser.parse_args(arguments)
    if INTERPRETED:
        raise UserError("TRITON_INTERPRET is set, and the interpreter compiles nothing: unset it")
    operations = tuple(filter(None, options.operations.split(",")))
    codes = survey(tuple(options.sizes.split(",")), tuple(map(int, options.targets.split(","))), operations)
    print(markdown(codes))
    if any(code.faults for code in codes):
        sys.exit(1)


if __name__ == "__main__":
    main()
