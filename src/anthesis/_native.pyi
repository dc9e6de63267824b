# Written by hand after native/src/module.cpp and bind_*.cpp; tests/test_native.py compares the two.

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Place = tuple[bool, int, int]
Part = tuple[Matrix, Matrix | None, Vector | None, Vector | None, bool, Place, bool]

def handover(first_core: int, second_core: int) -> float: ...
def read_bandwidth(nbytes: int, threads: int, seconds: float) -> list[float]: ...
def cpu_features() -> dict[str, bool]: ...
def sample(
    logits: NDArray[np.float32],
    positions: NDArray[np.int32],
    temperature: NDArray[np.float32],
    top_k: NDArray[np.int32],
    top_p: NDArray[np.float32],
    min_p: NDArray[np.float32],
    repetition_penalty: NDArray[np.float32],
    seed: NDArray[np.uint64],
    seen: NDArray[np.uint8],
    usable: int,
    threads: int,
    token: NDArray[np.int32],
    logprob: NDArray[np.float32],
    top_tokens: NDArray[np.int32],
    top_logprobs: NDArray[np.float32],
) -> None: ...

class Pool:
    def __init__(self, threads: int) -> None: ...
    @property
    def size(self) -> int: ...

class Arena:
    def __init__(self) -> None: ...

class Vector:
    def __init__(self, values: NDArray[np.float32]) -> None: ...
    def values(self) -> NDArray[np.float32]: ...

class Matrix:
    @property
    def shape(self) -> tuple[int, int]: ...
    @property
    def nbytes(self) -> int: ...
    def row(self, row: int, out: NDArray[np.float32]) -> None: ...

class LayerCache: ...

class Norm:
    def __init__(self, weight: Vector, bias: Vector | None, epsilon: float, centered: bool) -> None: ...

def pack_matrix(
    arena: Arena,
    pool: Pool,
    kind: str,
    columns: int,
    values: NDArray[np.uint8],
    scales: NDArray[np.uint16] | None,
    minimums: NDArray[np.uint16] | None,
    has_biases: bool,
) -> Matrix: ...
def matrix_bytes(kind: str, rows: int, columns: int) -> int: ...
def make_cache(
    arena: Arena, blocks: int, kv_heads: int, head_dim: int, is_bf16: bool, old: LayerCache | None
) -> LayerCache: ...
def multiply_add_peak(kind: str, threads: int, seconds: float) -> float: ...
def kernels() -> list[str]: ...
def chosen_kernels() -> str: ...

class Program:
    def __init__(self, pool: Pool, floats_per_row: int, floats_per_logit_row: int) -> None: ...
    def add_embed(self, matrix: Matrix, positions: bool, offset: int, out: Place) -> None: ...
    def add_norm(self, norm: Norm, width: int, x: Place, out: Place) -> None: ...
    def add_linear(
        self,
        x: Place,
        norm: Norm | None,
        parts: Sequence[Part],
        activation: str | None,
        residual: Place | None,
        best_of: int,
    ) -> None: ...
    def add_angles(self, frequencies: Sequence[float], out: Place) -> None: ...
    def add_rotate(self, x: Place, angles: Place, head_dim: int, out: Place) -> None: ...
    def add_attend(
        self,
        cache: LayerCache,
        q: Place,
        k: Place,
        v: Place,
        out: Place,
        angles: Place | None,
        queries_per_kv_head: int,
        first_head: int,
        first_kv_head: int,
        heads: int,
        scale: float,
        slopes: Sequence[float],
        window: int,
    ) -> None: ...
    def add_elementwise(
        self, kind: str, a: Place, b: Place | None, vector: Vector | None, activation: str | None, out: Place
    ) -> None: ...
    def add_argmax(self, logits: Place, usable: int, of_candidates: bool) -> None: ...
    def add_sample(self, logits: Place, usable: int, top: int) -> None: ...
    def measure(self, on: bool) -> None: ...
    def seconds(self) -> list[float]: ...
    def run(self, inputs: Mapping[str, NDArray[Any]], outputs: Mapping[str, NDArray[Any]]) -> None: ...
