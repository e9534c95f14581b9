"""What the kernels become on a GPU, without one: ``python -m erw.bench.kernel_code`` compiles every kernel at every launch
configuration of the published sizes ahead of time and reads the machine code.

For each: registers a thread, shared memory and the occupancy that follows, and faults: spills (stack, local), too much shared
memory, atomics, no global access of 128 bits where rows are that wide. ``--write`` puts the table into a Markdown file. Must
run without TRITON_INTERPRET.
"""

import argparse
import json
import multiprocessing
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton

from erw.bench._code_table import caption, markdown, section_name
from erw.bench._options import named, numbers
from erw.bench._section import with_section
from erw.bench._sources import Source, sources
from erw.errors import UserError, exits_cleanly
from erw.kernels import SPECS
from erw.kernels._launch import INTERPRETED
from erw.models.sit import SIZES

TARGETS = (80, 90, 100)
# Sizes and chips for which each kind of dtypes is compiled. All heuristics see of dtypes is in the first.
COVERAGE = {"mixed": (tuple(SIZES), TARGETS), "bf16": (("L", "XL"), (90,)), "fp32": (("XL",), (90,))}
# A multiprocessor: registers of each of its four parts, threads, blocks, shared memory; of that a block, and what the system
# takes of it for each block.
_REGISTERS, _THREADS, _BLOCKS, _SYSTEM = 16384, 2048, 32, 1024
_SHARED = {80: 166_912, 90: 232_448, 100: 232_448}
NARROW = {
    "_norm.total loads": "reads up to 1,024 partial sums, of which there may be any number",
    "_norm.total stores": "writes one number",
    "_norm.squares stores": "writes one number a program",
    "_sum.mean_rows stores": "writes one number a sample",
    "adamw_ema.prepare loads": "reads single numbers",
    "adamw_ema.prepare stores": "writes single numbers",
    "cosine_alignment.forward stores": "writes three numbers a token",
    "velocity_mse.forward stores": "writes one number a program",
    "_contrast.forward stores": "writes numbers a token",
    "_contrast.backward stores": "in fp32, 16 columns at a time are one number a thread: whole sectors, in many instructions",
}
"""Kernels of whose loads, or stores, none needs to be 128 bits wide, and why."""


@dataclass(frozen=True, kw_only=True)
class Code:
    """One kernel compiled for one chip; ``loads`` and ``stores`` are bits of the widest global access."""

    kernel: str
    target: int
    registers: int
    spilled: int
    shared: int
    num_warps: int
    loads: int
    stores: int
    atomics: int
    wide: bool

    @property
    def occupancy(self) -> float:
        """Share of the threads that a multiprocessor can hold, as registers and shared memory allow."""
        a_warp = -(-self.registers * 32 // 256) * 256
        blocks = min(_REGISTERS // max(1, a_warp) * 4 // self.num_warps, _BLOCKS, _THREADS // (32 * self.num_warps))
        blocks = min(blocks, (_SHARED[self.target] + _SYSTEM) // (self.shared + _SYSTEM))
        return blocks * 32 * self.num_warps / _THREADS

    @property
    def narrow(self) -> list[str]:
        """Of loads and stores, those without an access of 128 bits."""
        return [f"{self.kernel} {way}" for way in ("loads", "stores") if getattr(self, way) < 128]

    @property
    def faults(self) -> list[str]:
        """What must not be; empty for good code."""
        found = [f"spills {self.spilled} bytes"] * bool(self.spilled) + [f"{self.atomics} atomics"] * bool(self.atomics)
        found += [f"{self.shared} bytes of shared memory"] * (self.shared > _SHARED[self.target])
        return found + [f"{n.split()[1]} below 128 bits" for n in self.narrow if self.wide and n not in NARROW]


def inspect(source: Source, target: int) -> Code:
    """Compile one launch and read its code."""
    compiled = source.compiled_for(target)
    ptx = compiled.asm["ptx"]
    usage = _resource_usage(compiled.asm["cubin"])
    copies = [128] * len(re.findall(r"\bcp\.async\.cg\.shared\.global\b", ptx))  # into shared memory, 16 bytes each
    return Code(
        kernel=source.name,
        target=target,
        registers=usage["REG"],
        spilled=usage["STACK"] + usage["LOCAL"],
        shared=compiled.metadata.shared,
        num_warps=compiled.metadata.num_warps,
        loads=max(_widths("ld", ptx) + copies, default=0),
        stores=max(_widths("st", ptx), default=0),
        atomics=len(re.findall(r"(?<![\w.])(?:atom|red|multimem)\.", ptx)),
        wide=source.wide,
    )


def _widths(instruction: str, ptx: str) -> list[int]:
    """Bits of each global access."""
    found = re.findall(rf"\b{instruction}\.global[\w.:]*?(?:\.v(\d))?\.b(\d+)\b", ptx)
    return [int(lanes or 1) * int(bits) for lanes, bits in found]


def _resource_usage(cubin: bytes) -> dict[str, int]:
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run([tool, "-res-usage", file.name], capture_output=True, text=True, check=True).stdout
    return {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", text)}


@dataclass(frozen=True)
class Found:
    """That an operation at a width runs a kernel in some dtypes, and its code."""

    operation: str
    width: int
    dtypes: str
    code: Code


_jobs: list[tuple[Source, int]] = []  # for child processes, which a Source cannot be sent to


def _inspected(number: int) -> Code:
    return inspect(*_jobs[number])


def survey(sizes: Sequence[str], targets: Sequence[int], operations: Sequence[str], processes: int) -> list[Found]:
    """These operations as ``COVERAGE`` has it; each distinct source compiled once."""
    wanted, numbers = [], {}
    _jobs.clear()
    for spec in SPECS:
        if spec.name not in operations:
            continue
        for dtypes, (covered, chips) in COVERAGE.items():
            for size in (size for size in covered if size in sizes):
                for source in sources(spec, size, dtypes):
                    for target in (chip for chip in chips if chip in targets):
                        if (source.key, target) not in numbers:
                            numbers[source.key, target] = len(_jobs)
                            _jobs.append((source, target))
                        wanted.append((spec.name, SIZES[size][1], dtypes, numbers[source.key, target]))
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        codes = pool.map(_inspected, range(len(_jobs)), chunksize=8)
    return [Found(name, width, dtypes, codes[number]) for name, width, dtypes, number in wanted]


@exits_cleanly
def main(arguments: list[str] | None = None) -> None:
    """Command line. Exit code 1 where a kernel has a fault."""
    parser = argparse.ArgumentParser(prog="python -m erw.bench.kernel_code", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", default=",".join(SIZES), help="published sizes (default: all)")
    parser.add_argument("--targets", default=",".join(map(str, TARGETS)), help="compute capabilities (default: all)")
    parser.add_argument("--operations", default="", help="only these, with commas between")
    parser.add_argument("--processes", type=int, default=1, help="that compile side by side")
    parser.add_argument("--write", type=Path, help="Markdown file whose section for this version of triton is written anew")
    parser.add_argument("--json", type=Path, help="file for everything found")
    options = parser.parse_args(arguments)
    if INTERPRETED:
        raise UserError("TRITON_INTERPRET is set, and the interpreter compiles nothing: unset it")
    sizes, targets = named("--sizes", options.sizes, SIZES), numbers("--targets", options.targets)
    operations = named("--operations", options.operations, [spec.name for spec in SPECS])
    found = survey(sizes, targets, operations, options.processes)
    table = markdown(found, NARROW)
    print(table)
    if options.json:
        options.json.write_text(
            json.dumps([asdict(f) | {"faults": f.code.faults, "narrow": f.code.narrow} for f in found]), encoding="utf-8"
        )
    if options.write:
        text = options.write.read_text(encoding="utf-8")
        body = f"{caption(found, triton.__version__, torch.__version__)}\n\n{table}"
        text = with_section(text, section_name(triton.__version__), body, options.write.name)
        options.write.write_text(text, encoding="utf-8")
    if any(f.code.faults for f in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
