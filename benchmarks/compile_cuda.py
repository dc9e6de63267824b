"""Compiles every kernel that a model's step launches on a card, without a card, and tells what the compiler made of it.

    python benchmarks/compile_cuda.py random:bloomz-7b1 --weights bf16,int4-g128 --rows 1,8 --capability 90

The step runs over tensors without contents (PyTorch's "meta" device), so that a model of any size takes no memory; its
launches are recorded, and each different one is compiled by Triton and NVIDIA's assembler, which come with the triton
package. Spilled registers and loads that are narrower than 16 bytes are what to look for.
"""

from __future__ import annotations

import os

os.environ["TRITON_INTERPRET"] = "0"

import argparse
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia import __file__ as nvidia_backend
from triton.compiler import ASTSource
from triton.runtime.jit import JITFunction

from anthesis.checkpoint import open_checkpoint
from anthesis.devices.accelerator.exchange import Exchange
from anthesis.devices.accelerator.matrices import Matrix, matrix_shapes
from anthesis.devices.accelerator.sizes import StepSize, power_of_two
from anthesis.devices.accelerator.step import Step
from anthesis.devices.cuda.operations import CudaOperations
from anthesis.models import trace
from anthesis.program.builder import Finish
from anthesis.program.fuse import fuse
from anthesis.program.ir import Program, Value
from anthesis.program.partition import partition
from anthesis.quantize import weight_kind

META = torch.device("meta")
_TOOLS = Path(nvidia_backend).parent / "bin"
_TYPES = {
    torch.float32: "*fp32", torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float8_e4m3fn: "*fp8e4nv",
    torch.int8: "*i8", torch.int32: "*i32", torch.int64: "*i64", torch.uint8: "*u8",
    torch.float64: "*fp64",
}  # fmt: skip


@dataclass(frozen=True)
class Launch:
    """A kernel with the types and constants that it is compiled for.

    Attributes:
        kernel: Triton's function.
        signature: type of each argument, "constexpr" of constants.
        constants: by name.
        aligned: names of the arguments that are multiples of 16: pointers, and sizes.
        options: warps and stages.
    """

    kernel: Any
    signature: tuple[tuple[str, str], ...]
    constants: tuple[tuple[str, Any], ...]
    aligned: tuple[str, ...]
    options: tuple[tuple[str, Any], ...]


@dataclass
class Recorded:
    """Launches in the order in which they first came, and how often each did."""

    counts: Counter[Launch] = field(default_factory=Counter)

    def __call__(self, kernel: JITFunction, arguments: tuple[Any, ...], options: dict[str, Any]) -> None:
        signature, constants, aligned = [], [], []
        for parameter, value in zip(kernel.params, arguments, strict=True):
            name = parameter.name
            if parameter.is_constexpr:
                signature.append((name, "constexpr"))
                constants.append((name, value))
            elif isinstance(value, torch.Tensor):
                signature.append((name, _TYPES[value.dtype]))
                aligned.append(name)
            elif isinstance(value, int):
                signature.append((name, "i32"))
                if value % 16 == 0:
                    aligned.append(name)
            else:
                signature.append((name, "fp32"))
        launch = Launch(kernel, tuple(signature), tuple(constants), tuple(aligned), tuple(options.items()))
        self.counts[launch] += 1


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a kernel.

    Attributes:
        registers: of a thread.
        spilled_bytes: of a thread's stack.
        shared_bytes: of a program.
        instructions: of the machine code, by name.
    """

    registers: int
    spilled_bytes: int
    shared_bytes: int
    instructions: Counter[str]


def record(program: Program, rows: int, blocks: int, invariant: bool = False, prompt: bool = False) -> Recorded:
    """The launches of one step.

    Args:
        program: of one rank.
        rows: of tokens.
        blocks: of the cache to which attention looks.
        invariant: the step of a batch-invariant device.
        prompt: the rows are those of one prompt.
    """
    recorded = Recorded()
    launch = JITFunction.__getitem__
    JITFunction.__getitem__ = lambda kernel, grid: lambda *arguments, **options: recorded(kernel, arguments, options)  # type: ignore[method-assign]
    try:
        weights = {value.name: _empty(value) for value in program.of_kind("weight")}
        caches = {
            v.name: torch.empty(128 * 2, v.static_width, dtype=torch.bfloat16 if v.dtype == "bf16" else torch.float32,
                                device=META)
            for v in program.of_kind("cache")
        }  # fmt: skip
        ranks = None if program.world_size == 1 else _NoRanks(program.world_size)
        step = Step(program, weights, caches, CudaOperations(invariant), ranks, META)
        tiles = -(-rows // 16) if prompt else 0
        draws = any(value.name == "temperature" for value in program.of_kind("input"))
        size = StepSize(rows, 1 if prompt else rows, tiles, blocks, selects=prompt, draws=draws, penalises=draws)
        step.run(_inputs(program, step, size), size)
    finally:
        JITFunction.__getitem__ = launch  # type: ignore[method-assign]
    return recorded


def compile_for(launch: Launch, capability: int) -> Compiled:
    """Compiles a kernel for cards of a compute capability, 90 for 9.0."""
    names = [parameter.name for parameter in launch.kernel.params]
    source = ASTSource(
        fn=launch.kernel,
        signature=dict(launch.signature),
        constexprs=dict(launch.constants),
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in launch.aligned},
    )
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=dict(launch.options))
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(made.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        code = _tool("nvdisasm", "-c", file.name)
    registers, stack = (int(re.search(rf"{name}:(\d+)", usage)[1]) for name in ("REG", "STACK"))  # type: ignore[index]
    instructions = re.findall(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ )?([A-Z][A-Z0-9_.]+)", code, re.MULTILINE)
    return Compiled(registers, stack, made.metadata.shared, Counter(instructions))


def main() -> None:
    """Prints a line for each kernel."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default="random:bloomz-7b1")
    parser.add_argument("--weights", default="bf16")
    parser.add_argument("--rows", default="1")
    parser.add_argument("--blocks", type=int, default=2)
    parser.add_argument("--capability", type=int, default=90)
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--prompt", action="store_true")
    parser.add_argument("--invariant", action="store_true")
    parser.add_argument("--sample", action="store_true", help="the step draws its tokens, with a repetition penalty")
    arguments = parser.parse_args()
    for kind in arguments.weights.split(","):
        with open_checkpoint(arguments.model, weights=kind) as checkpoint:
            finish: Finish = "sample" if arguments.sample else "argmax"
            traced = trace(checkpoint.config, finish, checkpoint.kind_of)
        program = fuse(partition(traced, 0, arguments.tp))
        for rows in map(power_of_two, map(int, arguments.rows.split(","))):
            found = record(program, rows, arguments.blocks, arguments.invariant, arguments.prompt)
            print(f"{arguments.model} {kind}, {rows} rows: {sum(found.counts.values())} launches of our own kernels")
            for launch, count in found.counts.items():
                print("\n".join(_lines(launch, count, compile_for(launch, arguments.capability))), flush=True)


def _lines(launch: Launch, count: int, made: Compiled) -> Iterator[str]:
    shown = ("N", "K", "KIND", "GROUP", "NORM", "ACTIVATION", "BLOCK_N", "BLOCK_K", "BLOCK_R", "CHUNKS", "D")
    constants = " ".join(f"{name}={value}" for name, value in launch.constants if name in shown)
    yield (
        f"  {count:4} x {launch.kernel.__name__} {constants}: {made.registers} registers, {made.spilled_bytes} bytes "
        f"spilled, {made.shared_bytes} shared, {sum(made.instructions.values())} instructions"
    )
    yield "         " + " ".join(f"{name} {times}" for name, times in made.instructions.most_common(14))
    loads = {name: times for name, times in made.instructions.items() if name.startswith(("LDG", "LDL", "STL"))}
    yield "         " + " ".join(f"{name} {times}" for name, times in loads.items())


class _NoRanks(Exchange):
    """Exchanges of shapes only."""

    def __init__(self, size: int) -> None:
        self.size = size

    def sum(self, x: torch.Tensor) -> torch.Tensor:
        return x

    def gather(self, x: torch.Tensor) -> torch.Tensor:
        return x.expand(self.size, *x.shape)


def _empty(value: Value) -> Any:
    if len(value.shape) == 1:
        return torch.empty(value.static_shape, device=META)
    tensors = [torch.empty(shape, dtype=dtype, device=META) for shape, dtype in matrix_shapes(value)]
    rows, columns = value.static_shape
    return Matrix(weight_kind(value.dtype), (rows, columns), *tensors)


def _inputs(program: Program, step: Step, size: StepSize) -> dict[str, torch.Tensor]:
    from anthesis.devices.accelerator.inputs import StepInputs

    made = StepInputs(program, size, step.frequencies, None, torch.device("cpu"), False)
    return {name: tensor.to(META) for name, tensor in made.tensors.items()}


def _tool(name: str, *arguments: str) -> str:
    return subprocess.run([_TOOLS / name, *arguments], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
