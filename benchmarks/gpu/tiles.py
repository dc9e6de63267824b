"""Which pieces of a matrix suit a card: the kernel of one row, with other tiles than those that it has."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import Any
from unittest.mock import patch

import torch

from anthesis.checkpoint import open_checkpoint
from anthesis.checkpoint.random import RandomWeight
from anthesis.devices import open_device
from anthesis.devices.accelerator.matrices import Matrix, matrix_bytes
from anthesis.devices.accelerator.operations import Product
from anthesis.devices.cuda import CudaDevice
from anthesis.devices.cuda.operations import CudaOperations
from anthesis.devices.cuda.tiles import OneRowTiles, one_row_tiles
from anthesis.program.ir import Value
from anthesis.quantize import weight_kind
from gpu.work import Row

READ_BYTES = 512 << 20
"""Of several matrices, one after the other: many times what a card's cache holds."""

PASSES = 5
CANDIDATES = (
    OneRowTiles(8, 1024, 4), OneRowTiles(4, 1024, 4), OneRowTiles(4, 2048, 4), OneRowTiles(2, 2048, 4),
    OneRowTiles(8, 2048, 8), OneRowTiles(16, 1024, 4), OneRowTiles(8, 512, 2),
)  # fmt: skip


def compare(rows: Sequence[Row]) -> Iterator[dict[str, Any]]:
    """Bytes per second of a product of one row with the MLP's first matrix, with each of the tiles.

    Yields:
        What is known so far: by weights a list of tiles, each with its median of `bytes_per_s`, or with an `error`; the
        first ones are those that the kernel has.
    """
    device = open_device("cuda")
    assert isinstance(device, CudaDevice)
    found: dict[str, Any] = {}
    for row in rows:
        with open_checkpoint(row.source) as checkpoint:
            config = checkpoint.config
        shape = config.ffn_size, config.hidden_size
        chosen = one_row_tiles(weight_kind(row.weights), *shape)
        results = found[row.weights] = []
        matrices = _matrices(device, row.weights, shape, READ_BYTES if device.device.type == "cuda" else 1)
        nbytes = len(matrices) * matrix_bytes(Value("w", shape, row.weights, "weight"))
        # interpreted on the host, each program takes milliseconds: one try with few of them shows that it works
        on_card = device.device.type == "cuda"
        for tiles in dict.fromkeys([chosen, *CANDIDATES]) if on_card else (OneRowTiles(64, 1024, 4),):
            one: dict[str, Any] = asdict(tiles)
            try:
                run = _products(device, matrices, tiles)
                samples = [nbytes / device.seconds_of(run) for _ in range(PASSES if on_card else 1)]
                one["bytes_per_s"] = statistics.median(samples)
            except Exception as error:  # noqa: BLE001 (whatever a compiler may raise of tiles that don't fit)
                one["error"] = f"{type(error).__name__}: {error}"[:300]
            results.append(one)
            yield found


def _matrices(device: CudaDevice, kind: str, shape: tuple[int, int], read_bytes: int) -> list[Matrix]:
    count = max(1, read_bytes // matrix_bytes(Value("w", shape, kind, "weight")))
    recipes = (RandomWeight(seed, "w.weight", shape, (0, 0), shape, weight_kind(kind)) for seed in range(count))
    made = (device.make(recipe, frozenset()) for recipe in recipes)
    return [matrix for matrix in made if isinstance(matrix, Matrix)]


def _products(device: CudaDevice, matrices: Sequence[Matrix], tiles: OneRowTiles) -> Callable[[], torch.Tensor]:
    """What multiplies one row with each of the matrices: on a card a graph of these launches."""
    operations = CudaOperations()
    x = torch.randn(1, matrices[0].shape[1], device=device.device)
    out: list[torch.Tensor] = []

    def run() -> torch.Tensor:
        with (
            torch.inference_mode(),
            patch("anthesis.devices.cuda.operations.one_row_tiles", lambda kind, outputs, width: tiles),
        ):
            for matrix in matrices:
                out[:] = operations.linear(x, Product((matrix,), (None,), (matrix.shape[0],), None, None, False), None)
        return out[0]

    run()
    if device.device.type == "cpu":
        return run
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()

    def replay() -> torch.Tensor:
        graph.replay()
        return out[0]

    return replay
