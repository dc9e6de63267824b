"""Which kernel does what on a card: one row by `one_row`, several by `several_rows`, many by the library."""

from __future__ import annotations

import math
from typing import Any

import torch

from anthesis.devices.accelerator.matrices import Matrix
from anthesis.devices.accelerator.operations import Attention, NormWeights, Operations, Product, Tensors
from anthesis.devices.accelerator.sizes import TILE, StepSize, power_of_two
from anthesis.devices.cuda.kernels.attend import attend_rows, attend_tiles, store_rows
from anthesis.devices.cuda.kernels.choose import best_of_row
from anthesis.devices.cuda.kernels.draw import draw_of_row, scores_of_row
from anthesis.devices.cuda.kernels.few import look_up, normalise
from anthesis.devices.cuda.kernels.one_row import one_row
from anthesis.devices.cuda.kernels.rows import several_rows
from anthesis.devices.cuda.tiles import one_row_tiles, several_rows_tiles
from anthesis.program.ir import BLOCK_TOKENS
from anthesis.program.sample import Sample

LIBRARY_ROWS = 128
"""From so many rows on the library's products are faster, a conversion of the matrix to bf16 included."""

CHUNK_BLOCKS = 2
"""Blocks of 64 keys that one program of `attend_rows` looks at."""

_CONVERTED_ELEMENTS = 1 << 27
"""Of a quantised matrix that are there in bf16 at once: the largest heads would take gigabytes."""

_BEST_BLOCK = 8192
_DRAW_BLOCK = 4096
_LOOK_UP_BLOCK = 1024
_LEAST_COUNTERS = 1 << 12
_EXACT = ("fp32", "fp16")
"""Kinds whose inputs are not rounded: bf16 would lose what these kinds keep, and fp16 has too small a range."""


class CudaOperations(Operations):
    """Triton kernels and the library's products.

    Args:
        invariant: only kernels whose results for a row don't depend on what is beside it.
    """

    kernels = "Triton"

    def __init__(self, invariant: bool = False) -> None:
        self._invariant = invariant
        self._counters: dict[tuple[torch.device, int], torch.Tensor] = {}

    def embed(self, ids: torch.Tensor, matrix: Matrix, offset: int) -> torch.Tensor:
        """See `Operations.embed`: (R,) int32 gives (R, E) float32."""
        rows, width = len(ids), matrix.shape[1]
        out = torch.empty((rows, width), device=ids.device)
        look_up[(rows, _parts(width, _LOOK_UP_BLOCK))](
            ids, *_pointers(matrix), out, offset, matrix.shape[0], width, *_kind(matrix), _LOOK_UP_BLOCK
        )
        return out

    def norm(self, x: torch.Tensor, norm: NormWeights) -> torch.Tensor:
        """See `Operations.norm`: (R, E) float32."""
        return self._normalised(x, norm, torch.float32)

    def linear(self, x: torch.Tensor, product: Product, residual: torch.Tensor | None) -> tuple[torch.Tensor, ...]:
        """See `Operations.linear`: (R, K) float32 gives (R, N) float32 each."""
        rows = len(x)
        if rows >= LIBRARY_ROWS and not self._invariant:
            return super().linear(x, product, residual)
        if len(product.matrices) == 1:
            whole = self._multiplied(x, product, product.matrices[0], product.biases[0], residual)
            return (whole,) if product.gated or len(product.widths) == 1 else whole.split(product.widths, 1)
        assert not product.gated, "gates of two kinds are taken apart before"
        outs = []
        for i, (matrix, bias) in enumerate(zip(product.matrices, product.biases, strict=True)):
            outs.append(self._multiplied(x, product, matrix, bias, residual if i == 0 else None, first=i == 0))
        return tuple(outs)

    def multiply(self, x: torch.Tensor, matrix: Matrix) -> torch.Tensor:
        """See `Operations.multiply`: the library's product of (R, K) with (N, K), summed in float32."""
        if matrix.kind.name in _EXACT:
            return x @ matrix.values.float().t()
        x = x.bfloat16()
        step = max(1, _CONVERTED_ELEMENTS // matrix.shape[1]) if matrix.scales is not None else matrix.shape[0]
        parts = []
        for start in range(0, matrix.shape[0], step):
            part = matrix.rows(slice(start, start + step))
            # values with a scale for each row are exact in bf16, and the scales multiply the sums
            weights = part.values.bfloat16() if part.is_scaled_by_row else part.converted(torch.bfloat16)
            product = _in_float32(x, weights.t())
            if part.is_scaled_by_row:
                assert part.scales is not None
                product = product * part.scales.float().view(1, -1)
            parts.append(product)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def attend(
        self,
        attention: Attention,
        q: torch.Tensor,
        k: torch.Tensor,
        v: torch.Tensor,
        cache: torch.Tensor,
        inputs: Tensors,
        size: StepSize,
    ) -> torch.Tensor:
        """See `Operations.attend`; q (R, H * D), k, v (R, K * D), result (R, H * D) float32; cache (128 * P, K * D)."""
        op, heads, kv_heads, head = attention.op, attention.heads, attention.kv_heads, attention.op.head_dim
        rows = size.rows
        # columns of one product, it may be: only each row has to be in one piece
        q_stride, k_stride, v_stride = (x.stride(0) for x in (q, k, v))
        out = torch.empty((rows, heads * head), device=q.device)
        nothing = q  # where a kernel reads none
        angles = nothing if attention.angles is None else inputs[attention.angles]
        slopes = nothing if attention.slopes is None else attention.slopes
        power, is_turned = power_of_two(head), attention.angles is not None
        flags = attention.slopes is not None, op.window or 0, is_turned
        if size.tiles:
            store_rows[(rows,)](
                k, v, k_stride, v_stride, cache, inputs["key_rows"], angles, kv_heads, power_of_two(kv_heads), head,
                power, is_turned,
            )  # fmt: skip
        if size.tiles and not self._invariant:
            out.zero_()  # rows that only fill the step up are in no tile
            attend_tiles[(size.tiles, heads)](
                q, q_stride, cache, inputs["tile_first"], inputs["tile_count"], inputs["tile_position"],
                inputs["tile_blocks"], angles, slopes, attention.kv_head_of, out, op.scale, heads, kv_heads, head,
                power, size.blocks, TILE, *flags,
            )  # fmt: skip
            return out
        chunks = _parts(size.blocks, CHUNK_BLOCKS)
        parts = torch.empty((rows, heads, chunks, head + 2), device=q.device) if chunks > 1 else nothing
        places = inputs["row_places"] if size.tiles else nothing
        attend_rows[(chunks, heads, rows)](
            q, k, v, q_stride, k_stride, v_stride, cache, inputs["positions"], inputs["key_rows"],
            inputs["tile_blocks"], places, angles, slopes, attention.kv_head_of, parts,
            self._zeros(rows * heads, q.device), out, op.scale, heads, kv_heads, head, power, size.blocks,
            CHUNK_BLOCKS, chunks, *flags, not size.tiles, TILE if size.tiles else 0,
        )  # fmt: skip
        return out

    def argmax(self, logits: torch.Tensor, usable: int, first_id: int) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Operations.argmax`: (L, V) float32 gives (L,) float32 and (L,) int32."""
        if usable == 0:
            return super().argmax(logits, usable, first_id)
        rows, parts = len(logits), _parts(usable, _BEST_BLOCK)
        scores, tokens = logits.new_empty(rows), logits.new_empty(rows, dtype=torch.int32)
        part_scores, part_tokens = logits.new_empty((rows, parts)), tokens.new_empty((rows, parts))
        best_of_row[(parts, rows)](
            logits, part_scores, part_tokens, self._zeros(rows, logits.device), scores, tokens, logits.shape[1],
            usable, first_id, parts, power_of_two(parts), _BEST_BLOCK, num_warps=8,
        )  # fmt: skip
        return scores, tokens

    def sample(self, op: Sample, logits: torch.Tensor, inputs: Tensors, size: StepSize) -> torch.Tensor:
        """See `Operations.sample`: (L, V) float32 gives (L,) int32; filters that need an order are the library's."""
        if not size.draws and not size.penalises:
            return self.argmax(logits, op.usable, 0)[1]
        if size.sorts or not size.draws:
            return super().sample(op, logits, inputs, size)
        rows, parts = len(logits), _parts(op.usable, _DRAW_BLOCK)
        scores = logits.new_empty((rows, op.usable), dtype=torch.float64)
        part_logits, part_scores = logits.new_empty((rows, parts)), scores.new_empty((rows, parts))
        part_tokens = logits.new_empty((rows, parts), dtype=torch.int32)
        part_noisy, part_drawn = torch.empty_like(part_scores), torch.empty_like(part_tokens)
        tokens = logits.new_empty(rows, dtype=torch.int32)
        seen = inputs["seen"] if size.penalises else part_tokens
        scores_of_row[(parts, rows)](
            logits, seen, inputs["temperature"], inputs["repetition_penalty"], scores, part_logits, part_scores,
            part_tokens, logits.shape[1], op.usable, seen.shape[1], parts, size.penalises, _DRAW_BLOCK, num_warps=8,
        )  # fmt: skip
        draw_of_row[(parts, rows)](
            scores, part_logits, part_scores, part_tokens, part_noisy, part_drawn, self._zeros(rows, logits.device),
            inputs["temperature"], inputs["min_p"], inputs["seed"], inputs["positions"], inputs["logit_rows"], tokens,
            op.usable, parts, power_of_two(parts), _DRAW_BLOCK, num_warps=8,
        )  # fmt: skip
        return tokens

    def _multiplied(
        self,
        x: torch.Tensor,
        product: Product,
        matrix: Matrix,
        bias: torch.Tensor | None,
        residual: torch.Tensor | None,
        first: bool = True,
    ) -> torch.Tensor:
        """One matrix's product; what comes after the first of several has only its bias."""
        rows, (columns, width) = len(x), matrix.shape
        is_one = len(product.matrices) > 1 or len(product.widths) == 1 or product.gated
        assert is_one or (product.activation is None and residual is None), "they are of the first result only"
        gated = product.gated and first
        columns = columns // 2 if gated else columns
        out = torch.empty((rows, columns), device=x.device)
        nothing = x
        follow = (
            nothing if bias is None else bias,
            nothing if residual is None else residual.contiguous(),
            out,
        )
        activation = (product.activation if first else None) or "none"
        after = bias is not None, activation, gated, residual is not None
        kind = _kind(matrix)
        norm = product.norm
        if rows == 1 and not self._invariant:
            tiles = one_row_tiles(matrix.kind, columns, width)
            before: tuple[Any, ...] = (nothing, nothing, 0.0)
            if norm is not None:
                before = norm.weight, nothing if norm.bias is None else norm.bias, norm.op.epsilon
            one_row[(_parts(columns, tiles.rows),)](
                x, *before, *_pointers(matrix), *follow, columns, width, power_of_two(width), *kind,
                "none" if norm is None else norm.op.norm, norm is not None and norm.bias is not None, *after,
                tiles.rows, tiles.columns, num_warps=tiles.warps,
            )  # fmt: skip
            return out
        dtype = torch.float32 if matrix.kind.name in _EXACT else torch.bfloat16
        x = x.to(dtype).contiguous() if norm is None else self._normalised(x, norm, dtype)
        many = several_rows_tiles(matrix.kind, 16 if self._invariant else rows)
        several_rows[(_parts(columns, many.outputs), _parts(rows, many.rows))](
            x, *_pointers(matrix), *follow, rows, columns, width, *kind, *after, many.rows, many.outputs,
            many.columns, num_warps=many.warps, num_stages=many.stages,
        )  # fmt: skip
        return out

    def _normalised(self, x: torch.Tensor, norm: NormWeights, dtype: torch.dtype) -> torch.Tensor:
        x = x.contiguous()
        out = torch.empty(x.shape, dtype=dtype, device=x.device)
        width = norm.op.width
        normalise[(x.numel() // width,)](
            x, norm.weight, x if norm.bias is None else norm.bias, out, norm.op.epsilon, width, power_of_two(width),
            norm.op.norm, norm.bias is not None, num_warps=4 if width <= 4096 else 8,
        )  # fmt: skip
        return out

    def _zeros(self, count: int, device: torch.device) -> torch.Tensor:
        """Counters that are zero between launches: of all kernels, which run one after the other.

        None is ever let go of, since captured graphs go on using them.
        """
        size = max(power_of_two(count), _LEAST_COUNTERS)
        if (device, size) not in self._counters:
            self._counters[device, size] = torch.zeros(size, dtype=torch.int32, device=device)
        return self._counters[device, size]


def _in_float32(x: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """The product of bf16 (R, K) and (K, N), summed in float32, which the library has for cards only."""
    if x.is_cuda:
        return torch.mm(x, weights, out_dtype=torch.float32)
    return x.float() @ weights.float()


def _pointers(matrix: Matrix) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Values, scales and minimums; in place of those that there are none of, values."""
    scales = matrix.values if matrix.scales is None else matrix.scales
    return matrix.values, scales, matrix.values if matrix.minimums is None else matrix.minimums


def _kind(matrix: Matrix) -> tuple[str, int, bool]:
    """(what kernels call the kind, columns of a group, whether it has minimums)."""
    kind = matrix.kind
    if kind.bits == 4:
        return "four", kind.group_size or 1, kind.has_minimum
    return {"none": "float", "row": "row", "group": "group"}[kind.scaled_by], kind.group_size or 1, False


def _parts(count: int, size: int) -> int:
    return math.ceil(count / size)


assert BLOCK_TOKENS == 64, "the kernels' blocks have 64 keys"
