"""The operations on rows: each kind with its shape rule, its cost and its reference implementation side by side.

`attend` and `sample`, which need more room, have files of their own.

The reference implementations compute in the dtype of the arrays they get (float32 or float64). They treat each row by
the same call on the same shapes, so a row's result does not depend on the rows beside it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np

from anthesis.program.ir import Array, Arrays, Cost, Dim, Op, Step, Value

Activation = Literal["gelu", "gelu_tanh", "silu", "relu"]


def by_row(function: Callable[[Array], Array], x: Array) -> Array:
    """Applies a function to each row alone.

    Args:
        function: (K,) -> (N,), in the dtype of `x`.
        x: (R, K) float32 or float64.

    Returns:
        (R, N) in the dtype of `x`.
    """
    return np.stack([function(row) for row in x])


def activate(x: Array, activation: Activation) -> Array:
    """The named activation of every element.

    Args:
        x: (R, F) or any other shape, float32 or float64.
        activation: its name; "gelu_tanh" is the tanh approximation 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))).

    Returns:
        (R, F), the shape of `x`, in its dtype, float32 or float64.

    Source:
        Hendrycks and Gimpel, arXiv:1606.08415 (GELU and its approximation, SiLU).
    """
    if activation == "relu":
        return np.asarray(np.maximum(x, 0))
    if activation == "silu":
        small = np.exp(-np.abs(x))  # exp(-x) overflows for a large negative x
        return np.asarray(np.where(x >= 0, x, x * small) / (1 + small))
    if activation == "gelu_tanh":
        near = np.clip(x, -20, 20)  # tanh is exactly 1 long before, and the cube of a large x overflows
        inner = x.dtype.type(math.sqrt(2 / math.pi)) * (near + x.dtype.type(0.044715) * near * near * near)
        return np.asarray(0.5 * x * (1 + np.tanh(inner)))
    erf = np.frompyfunc(math.erf, 1, 1)
    return np.asarray(0.5 * x * (1 + erf(x * x.dtype.type(math.sqrt(0.5))).astype(x.dtype)))


def _elements(value: Value, step: Step) -> int:
    sizes = step.sizes()
    return math.prod(dim if isinstance(dim, int) else sizes[dim] for dim in value.shape)


def _activation_bytes(values: Mapping[str, Value], names: tuple[str, ...], step: Step) -> int:
    rows = (values[name] for name in names if values[name].kind not in ("weight", "cache"))
    return sum(value.nbytes(step.sizes()) for value in rows)


@dataclass(frozen=True, kw_only=True)
class Embed(Op):
    """out[r] = weight[ids[r] + offset]; ids outside this rank's share of the rows give zeros."""

    kind: ClassVar[str] = "embed"
    ids: str
    weight: str
    out: str
    offset: int = 0

    def reads(self) -> tuple[str, ...]:
        return self.ids, self.weight

    def writes(self) -> tuple[str, ...]:
        return (self.out,)

    def infer(self, values: Mapping[str, Value]) -> tuple[Value, ...]:
        ids, weight = values[self.ids], values[self.weight]
        return (Value(self.out, (ids.shape[0], weight.shape[1]), "fp32", "buffer", (None, weight.axes[1])),)

    def cost(self, values: Mapping[str, Value], step: Step) -> Cost:
        weight = values[self.weight]
        rows = min(step.sizes()[str(values[self.ids].shape[0])], weight.static_shape[0])
        one_row = Value(weight.name, (1, *weight.shape[1:]), weight.dtype, "weight").nbytes()
        return Cost(weight_bytes=rows * one_row, activation_bytes=_activation_bytes(values, self.writes(), step))

    def evaluate(self, arrays: Arrays) -> tuple[Array, ...]:
        weight = arrays[self.weight]
        rows = arrays[self.ids].astype(np.int64) + self.offset
        present = (rows >= 0) & (rows < len(weight))
        return (np.where(present[:, None], weight[np.where(present, rows, 0)], weight.dtype.type(0)),)


@dataclass(frozen=True, kw_only=True)
class Norm(Op):
    """Layer norm or root-mean-square norm over each run of `width` elements (a whole row, or each head).

    Source:
        Ba et al., arXiv:1607.06450; Zhang and Sennrich, arXiv:1910.07467.
    """

    kind: ClassVar[str] = "norm"
    x: str
    weight: str
    out: str
    bias: str | None = None
    norm: Literal["layer", "rms"]
    epsilon: float
    width: int

    def reads(self) -> tuple[str, ...]:
        return (self.x, self.weight) if self.bias is None else (self.x, self.weight, self.bias)

    def writes(self) -> tuple[str, ...]:
        return (self.out,)

    def infer(self, values: Mapping[str, Value]) -> tuple[Value, ...]:
        x, weight = values[self.x], values[self.weight]
        assert weight.shape == (self.width,), f"{self.out}: the weight {weight} is not {self.width} wide"
        assert isinstance(x.shape[1], int), f"{self.out}: {x} has a symbolic width"
        assert x.shape[1] % self.width == 0, f"{self.out}: {x} is not made of runs of {self.width}"
        return (Value(self.out, x.shape, "fp32", "buffer", x.axes),)

    def cost(self, values: Mapping[str, Value], step: Step) -> Cost:
        weight_bytes = sum(values[name].nbytes() for name in self.reads()[1:])
        moved = _activation_bytes(values, self.reads() + self.writes(), step)
        return Cost(weight_bytes, activation_bytes=moved, flops=5 * _elements(values[self.x], step))

    def evaluate(self, arrays: Arrays) -> tuple[Array, ...]:
        weight = arrays[self.weight]
        bias = None if self.bias is None else arrays[self.bias]

        def one_row(row: Array) -> Array:
            runs = row.reshape(-1, self.width)
            if self.norm == "layer":
                runs = runs - runs.mean(axis=1, keepdims=True)
            scale = 1 / np.sqrt((runs * runs).mean(axis=1, keepdims=True) + row.dtype.type(self.epsilon))
            result = runs * scale * weight
            return np.asarray((result if bias is None else result + bias).reshape(-1))

        return (by_row(one_row, arrays[self.x]),)


BIASED = "linear with bias"
"""How a matrix is used to whose product a bias is added (`Op.use_of`)."""


@dataclass(frozen=True, kw_only=True)
class Linear(Op):
    """outs[i] = activation(x weights[i]^T + biases[i]) + residual; gated: out = activation(first) * second.

    As traced it is one plain product; `fuse` adds what follows it, and joins products of the same input.

    Attributes:
        wide_inputs: a device that rounds the inputs of products with integers keeps sixteen bits of these, not eight
            (`widen` decides). The reference implementation rounds nothing.
    """

    kind: ClassVar[str] = "linear"
    x: str
    weights: tuple[str, ...]
    outs: tuple[str, ...]
    biases: tuple[str | None, ...] = ()
    activation: Activation | None = None
    gated: bool = False
    residual: str | None = None
    wide_inputs: bool = False

    def reads(self) -> tuple[str, ...]:
        optional = (*self.biases, self.residual)
        return (self.x, *self.weights, *(name for name in optional if name is not None))

    def writes(self) -> tuple[str, ...]:
        return self.outs

    def use_of(self, name: str) -> str:
        """Tells apart the matrices to whose product a bias is added."""
        biased = any(
            bias is not None and name == weight for weight, bias in zip(self.weights, self.biases, strict=False)
        )
        return BIASED if biased else self.kind

    def infer(self, values: Mapping[str, Value]) -> tuple[Value, ...]:
        x = values[self.x]
        for name in self.weights:
            weight = values[name]
            assert weight.shape[1] == x.shape[1], f"{self.outs}: {x} does not fit {weight}"
            assert weight.axes[1] == x.axes[1], (
                f"{self.outs}: {x} is split along {x.axes[1]}, {weight} {weight.axes[1]}"
            )
        results = self.weights[:1] if self.gated else self.weights
        assert len(results) == len(self.outs), f"{self.outs}: one output for each of {results}"
        shapes: list[tuple[Dim, str | None]] = [(values[name].shape[0], values[name].axes[0]) for name in results]
        return tuple(
            Value(out, (x.shape[0], width), "fp32", "buffer", (None, axis))
            for out, (width, axis) in zip(self.outs, shapes, strict=True)
        )

    def cost(self, values: Mapping[str, Value], step: Step) -> Cost:
        weights = [values[name] for name in self.reads() if values[name].kind == "weight"]
        rows = step.sizes()[str(values[self.x].shape[0])]
        return Cost(
            weight_bytes=sum(weight.nbytes() for weight in weights),
            activation_bytes=_activation_bytes(values, self.reads() + self.writes(), step),
            flops=sum(2 * rows * math.prod(values[name].static_shape) for name in self.weights),
        )

    def evaluate(self, arrays: Arrays) -> tuple[Array, ...]:
        x = arrays[self.x]
        products = []
        for i, name in enumerate(self.weights):
            weight = arrays[name]
            product = by_row(lambda row, weight=weight: weight @ row, x)  # type: ignore[misc]
            bias = self.biases[i] if self.biases else None
            products.append(product if bias is None else product + arrays[bias])
        if self.activation is not None:
            products[0] = by_row(lambda row: activate(row, self.activation or "relu"), products[0])
        if self.gated:
            products = [products[0] * products[1]]
        if self.residual is not None:
            products[0] = arrays[self.residual] + products[0]
        return tuple(products)


@dataclass(frozen=True, kw_only=True)
class Rope(Op):
    """Rotates each head's pairs (i, i + D/2) by position * frequencies[i].

    Attributes:
        frequencies: radians per position of each pair, (D/2,).
        divisors: name of a stored weight (D/2,) that divides the frequencies (GGUF's rope_freqs), or None.

    Source:
        Su et al., arXiv:2104.09864, in the order of pairs that GPT-NeoX introduced.
    """

    kind: ClassVar[str] = "rope"
    x: str
    positions: str
    out: str
    frequencies: tuple[float, ...]
    divisors: str | None = None

    def reads(self) -> tuple[str, ...]:
        return (self.x, self.positions) if self.divisors is None else (self.x, self.positions, self.divisors)

    def writes(self) -> tuple[str, ...]:
        return (self.out,)

    def infer(self, values: Mapping[str, Value]) -> tuple[Value, ...]:
        x = values[self.x]
        assert isinstance(x.shape[1], int), f"{self.out}: {x} has a symbolic width"
        assert x.shape[1] % (2 * len(self.frequencies)) == 0, f"{self.out}: {x} is not made of heads"
        return (Value(self.out, x.shape, "fp32", "buffer", x.axes),)

    def cost(self, values: Mapping[str, Value], step: Step) -> Cost:
        moved = _activation_bytes(values, self.reads() + self.writes(), step)
        weight_bytes = 0 if self.divisors is None else values[self.divisors].nbytes()
        return Cost(weight_bytes, activation_bytes=moved, flops=3 * _elements(values[self.x], step))

    def evaluate(self, arrays: Arrays) -> tuple[Array, ...]:
        x = arrays[self.x]
        frequencies = np.array(self.frequencies)
        if self.divisors is not None:
            frequencies = frequencies / arrays[self.divisors]
        angles = arrays[self.positions].astype(np.float64)[:, None] * frequencies
        cos, sin = np.cos(angles).astype(x.dtype)[:, None], np.sin(angles).astype(x.dtype)[:, None]
        heads = x.reshape(len(x), -1, 2, len(frequencies))
        first, second = heads[:, :, 0], heads[:, :, 1]
        rotated = np.stack([first * cos - second * sin, second * cos + first * sin], axis=2)
        return (rotated.reshape(x.shape),)


@dataclass(frozen=True, kw_only=True)
class Activate(Op):
    """out = activation(x)."""

    kind: ClassVar[str] = "activation"
    x: str
    out: str
    activation: Activation

    def reads(self) -> tuple[str, ...]:
        return (self.x,)

    def writes(self) -> tuple[str, ...]:
        return (self.out,)

    def infer(self, values: Mapping[str, Value]) -> tuple[Value, ...]:
        x = values[self.x]
        return (Value(self.out, x.shape, "fp32", "buffer", x.axes),)

    def cost(self, values: Mapping[str, Value], step: Step) -> Cost:
        elements = _elements(values[self.x], step)
        return Cost(activation_bytes=_activation_bytes(values, (self.x, self.out), step), flops=8 * elements)

    def evaluate(self, arrays: Arrays) -> tuple[Array, ...]:
        return (by_row(lambda row: activate(row, self.activation), arrays[self.x]),)


@dataclass(frozen=True, kw_only=True)
class Add(Op):
    """out = a + b, of two equal shapes, or rows and one vector (a bias)."""

    kind: ClassVar[str] = "add"
    a: str
    b: str
    out: str

    def reads(self) -> tuple[str, ...]:
        return self.a, self.b

    def writes(self) -> tuple[str, ...]:
        return (self.out,)

    def infer(self, values: Mapping[str, Value]) -> tuple[Value, ...]:
        a, b = values[self.a], values[self.b]
        assert b.shape in (a.shape, a.shape[1:]), f"{self.out}: {a} and {b} can't be combined"
        assert b.axes[-1] == a.axes[-1], f"{self.out}: {a} is split along {a.axes[-1]}, {b} along {b.axes[-1]}"
        return (Value(self.out, a.shape, "fp32", "buffer", a.axes),)

    def cost(self, values: Mapping[str, Value], step: Step) -> Cost:
        weight_bytes = sum(values[name].nbytes() for name in self.reads() if values[name].kind == "weight")
        moved = _activation_bytes(values, self.reads() + self.writes(), step)
        return Cost(weight_bytes, activation_bytes=moved, flops=_elements(values[self.a], step))

    def evaluate(self, arrays: Arrays) -> tuple[Array, ...]:
        return (arrays[self.a] + arrays[self.b],)


@dataclass(frozen=True, kw_only=True)
class Mul(Add):
    """out = a * b, of two equal shapes."""

    kind: ClassVar[str] = "mul"

    def evaluate(self, arrays: Arrays) -> tuple[Array, ...]:
        return (arrays[self.a] * arrays[self.b],)


@dataclass(frozen=True, kw_only=True)
class SelectRows(Op):
    """out[l] = x[rows[l]]: the rows whose logits are wanted."""

    kind: ClassVar[str] = "select_rows"
    x: str
    rows: str
    out: str

    def reads(self) -> tuple[str, ...]:
        return self.x, self.rows

    def writes(self) -> tuple[str, ...]:
        return (self.out,)

    def infer(self, values: Mapping[str, Value]) -> tuple[Value, ...]:
        x = values[self.x]
        return (Value(self.out, (values[self.rows].shape[0], x.shape[1]), x.dtype, "buffer", x.axes),)

    def cost(self, values: Mapping[str, Value], step: Step) -> Cost:
        return Cost(activation_bytes=2 * _activation_bytes(values, self.writes(), step))

    def evaluate(self, arrays: Arrays) -> tuple[Array, ...]:
        return (arrays[self.x][arrays[self.rows]],)
