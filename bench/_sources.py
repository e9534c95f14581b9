"""What the kernels are compiled from: every launch that forward and backward of an operation make at the published sizes,
recorded from tensors that hold nothing, each distinct one once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from erw.kernels import Case, Spec
from erw.kernels._launch import Launch, Pointer, recording
from erw.models.sit import SIZES

_TYPES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16", torch.int64: "i64", torch.int32: "i32"}
# Dtypes of the residual stream and of what matmuls take. The first is how models train unless they are told otherwise.
DTYPES = {
    "mixed": {"stream": torch.float32, "matmul": torch.bfloat16},
    "bf16": {"stream": torch.bfloat16, "matmul": torch.bfloat16},
    "fp32": {"stream": torch.float32, "matmul": torch.float32},
}
# Tokens and the batches that take the heuristics' branches at that number of tokens: the same configurations as all of 1, 2,
# 3, 8, ..., 1,024 at each. 257 tokens, one without a position, in batches that nothing divides: fewer numbers are multiples
# of 16, and tensors begin where they may.
SHAPES = {256: (256, 128, 64, 32, 16, 8, 1), 257: (3,), 1024: (64, 8), 64: (256,), 16: (1024, 8)}
# A loop that runs more often is the same code with another number in it; only the shortest ones are folded.
_LONG = 4
# Numbers that are the length of a row in memory of which a program does a part.
_LENGTHS = ("elements", "columns")


@dataclass(frozen=True)
class Source:
    """What Triton compiles for a launch: types by parameter, constants, and which arguments 16 divides."""

    launch: Launch
    signature: dict[str, str]
    constants: dict[str, object]
    divisible: tuple[int, ...]
    wide: bool  # whether rows start at multiples of 16 bytes and have as many for each thread: 128 bits are possible

    @classmethod
    def of(cls, launch: Launch) -> "Source":
        """As Triton specialises a real launch."""
        signature, constants, divisible, wide = {}, dict(launch.constants), [], True
        general = {parameter.name for parameter in launch.kernel.params if parameter.do_not_specialize}
        for position, name in enumerate(launch.kernel.arg_names):
            value = launch.arguments.get(name)
            if name in launch.constants:
                signature[name] = "constexpr"
            elif isinstance(value, Pointer):
                signature[name] = f"*{_TYPES[value.dtype]}"
                divisible += [position] * value.aligned
            elif isinstance(value, float):
                signature[name] = "fp32"
            elif name not in general and (value is None or value == 1):
                signature[name], constants[name] = "constexpr", value
            else:
                signature[name] = "i32" if abs(value) < 2**31 else "i64"
                if name not in general:
                    divisible += [position] * (value % 16 == 0)
                    wide &= value % 16 == 0 or not name.endswith("_stride") and name not in _LENGTHS
                    wide &= name not in _LENGTHS or value >= launch.num_warps * 32 * 8
        return cls(launch, signature, constants, tuple(divisible), wide)

    @property
    def name(self) -> str:
        """The kernel's file and what it is called there, such as adaln_modulate.forward."""
        kernel = self.launch.kernel
        return f"{kernel.__module__.rpartition('.')[2]}.{kernel.__name__.strip('_').removesuffix('_kernel')}"

    @property
    def key(self) -> str:
        """Equal for launches that run the same machine code, but for how often a long loop runs."""
        constants = {n: min(v, _LONG) if n == "STEPS" else v for n, v in self.constants.items()}
        return f"{self.name} {self.launch.num_warps} {self.signature} {constants} {self.divisible}"

    def compiled_for(self, target: int):
        """Triton's compiled kernel for compute capability ``target``."""
        attributes = {(position,): [["tt.divisibility", 16]] for position in self.divisible}
        source = ASTSource(self.launch.kernel, self.signature, self.constants, attributes)
        return triton.compile(source, target=GPUTarget("cuda", target, 32), options={"num_warps": self.launch.num_warps})


def cases(size: str) -> list[Case]:
    """Width and heads of a published size with every number of tokens and batch of ``SHAPES``."""
    _, width, heads = SIZES[size]
    return [Case(batch=b, tokens=t, width=width, heads=heads) for t, batches in SHAPES.items() for b in batches]


def launches_of(spec: Spec, case: Case, dtypes: str) -> list[Launch]:
    """What forward and backward of ``spec`` would launch, from tensors that hold nothing."""
    roles = DTYPES[dtypes] | {"float32": torch.float32}
    with torch.device("meta"):
        made = spec.inputs(case, torch.Generator())
        inputs = {n: t.to(roles[spec.roles[n]]) if t.is_floating_point() else t for n, t in made.items()}
        with recording() as launches:
            spec.trace(**inputs)
    return launches


def sources(spec: Spec, size: str, dtypes: str) -> Iterator[Source]:
    """Each distinct source of ``spec`` at a published size, once."""
    seen = set()
    for case in cases(size):
        for source in map(Source.of, launches_of(spec, case, dtypes)):
            if source.key not in seen:
                seen.add(source.key)
                yield source
