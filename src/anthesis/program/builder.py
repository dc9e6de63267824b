"""Records a model's token step: a family's `trace` calls these methods in the order of the computation.

Weights are named by what they are ("layers.3.attention.q"), alike in all families; docs/adding-a-model.md lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

from anthesis.config import ModelConfig
from anthesis.program.attend import Attend
from anthesis.program.ir import BLOCK_TOKENS, Axis, Op, Program, Value
from anthesis.program.ops import Activate, Activation, Add, Embed, Linear, Mul, Norm, Rope, SelectRows
from anthesis.program.sample import Argmax, Sample

Finish = Literal["argmax", "sample", "logits", "cache"]


def native_kind(name: str, shape: tuple[int, ...]) -> str:
    """The weight kind where nothing else is known: bf16 for a matrix, fp32 for a vector."""
    return "bf16" if len(shape) > 1 else "fp32"


class Builder:
    """A program in the making.

    Args:
        config: the model's sizes.
        finish: what the program ends with: the best token, a sampled token, the logits, or nothing but what it stored
            in the cache (the earlier chunks of a prompt).
        kind_of: (weight name, shape) -> weight kind; matrices are bf16 and vectors fp32 unless given.
        cache_dtype: "fp32" or "bf16".
        top_logprobs: for finish "sample": how many most likely tokens to report (at most all there are) beside the
            chosen one's log-probability; None: no log-probabilities.
    """

    def __init__(
        self,
        config: ModelConfig,
        finish: Finish = "argmax",
        kind_of: Callable[[str, tuple[int, ...]], str] = native_kind,
        cache_dtype: str = "bf16",
        top_logprobs: int | None = None,
    ) -> None:
        self.config = config
        self._finish = finish
        self._kind_of = kind_of
        self._cache_dtype = cache_dtype
        self._top_logprobs = top_logprobs
        self._values: dict[str, Value] = {}
        self._ops: list[Op] = []
        self._outputs: tuple[str, ...] = ()
        head = config.head_dim
        self._axes = {
            axis.name: axis
            for axis in (
                Axis("heads", config.num_heads * head, unit=head),
                Axis("kv_heads", config.num_kv_heads * head, unit=head, follows="heads"),
                Axis("ffn", config.ffn_size),
                Axis("vocab", config.vocab_size),
            )
        }
        self.tokens = self._input("tokens", ("R",), "int32")
        self.positions = self._input("positions", ("R",), "int32")

    def program(self) -> Program:
        """What was recorded."""
        needed = set(self._outputs)
        ops = []
        for op in reversed(self._ops):
            if isinstance(op, Attend) or needed.intersection(op.writes()):
                needed.update(op.reads())
                ops.append(op)
        return Program(self.config, self._values, (), self._axes, self._outputs).with_ops(reversed(ops))

    def embed(self, name: str, rows: int, ids: str | None = None, offset: int = 0, axis: str | None = "vocab") -> str:
        """Rows of the table `name`.weight (rows, E) for `ids` (the tokens unless given); returns (R, E)."""
        weight = self._weight(f"{name}.weight", (rows, self.config.hidden_size), (axis, None))
        return self._add(Embed(ids=ids or self.tokens, weight=weight, out=f"{name}.rows", offset=offset))

    def norm(
        self,
        x: str,
        name: str,
        epsilon: float,
        kind: Literal["layer", "rms"],
        bias: bool = False,
        width: int | None = None,
    ) -> str:
        """Normalises each run of `width` elements (the whole row unless given); returns the shape of `x`."""
        width = width or self._values[x].static_width
        weight = self._weight(f"{name}.weight", (width,))
        bias_name = self._weight(f"{name}.bias", (width,)) if bias else None
        return self._add(
            Norm(x=x, weight=weight, bias=bias_name, out=f"{name}.out", norm=kind, epsilon=epsilon, width=width)
        )

    def linear(self, x: str, name: str, out: str, bias: bool = False) -> str:
        """x `name`.weight^T + `name`.bias.

        Args:
            x: name of (R, in), split along the axis it was made with.
            name: of the weight.
            out: axis of the result ("heads", "kv_heads", "ffn"), or "hidden".
            bias: whether `name`.bias exists.

        Returns:
            Name of (R, out).
        """
        source = self._values[x]
        axis = None if out == "hidden" else out
        width = self.config.hidden_size if axis is None else self._axes[axis].elements
        weight = self._weight(f"{name}.weight", (width, source.static_width), (axis, source.axes[1]))
        if not bias:
            return self._add(Linear(x=x, weights=(weight,), outs=(f"{name}.out",)))
        product = self._add(Linear(x=x, weights=(weight,), outs=(f"{name}.product",)))
        bias_name = self._weight(f"{name}.bias", (width,), (axis,))
        return self._add(Add(a=product, b=bias_name, out=f"{name}.out"))

    def rope(self, x: str, frequencies: tuple[float, ...], divisors: str | None = None) -> str:
        """Rotary embedding by the rows' positions; `divisors` names a stored weight (D/2,) that divides them."""
        stored = None if divisors is None else self._weight(divisors, (len(frequencies),))
        out = f"{x.removesuffix('.out')}.rotated"
        return self._add(Rope(x=x, positions=self.positions, out=out, frequencies=frequencies, divisors=stored))

    def attend(self, q: str, k: str, v: str, layer: int, alibi: bool = False, window: int | None = None) -> str:
        """Attention over the layer's cache, over the last `window` keys if one is given; returns (R, H D)."""
        config = self.config
        width = config.num_kv_heads * config.head_dim
        shape = ("P", 2, BLOCK_TOKENS, width)
        cache = Value(f"cache.{layer}", shape, self._cache_dtype, "cache", (None, None, None, "kv_heads"))
        self._values[cache.name] = cache
        return self._add(
            Attend(
                q=q,
                k=k,
                v=v,
                cache=cache.name,
                positions=self.positions,
                slots=self._input("slots", ("R",), "int32"),
                segments=self._input("segments", ("B", 3), "int32"),
                block_table=self._input("block_table", ("B", "M"), "int32"),
                out=f"layers.{layer}.attended",
                head_dim=config.head_dim,
                num_heads=config.num_heads,
                num_kv_heads=config.num_kv_heads,
                scale=config.head_dim**-0.5,
                alibi=alibi,
                window=window,
            )
        )

    def activation(self, x: str, activation: Activation) -> str:
        """activation(x)."""
        return self._add(Activate(x=x, out=f"{x.removesuffix('.out')}.activated", activation=activation))

    def mul(self, a: str, b: str, out: str) -> str:
        """a * b, as `out`."""
        return self._add(Mul(a=a, b=b, out=out))

    def add(self, a: str, b: str, out: str) -> str:
        """a + b, as `out`."""
        return self._add(Add(a=a, b=b, out=out))

    def select_rows(self, x: str) -> str:
        """The rows whose logits are wanted; returns (L, E)."""
        return self._add(SelectRows(x=x, rows=self._input("logit_rows", ("L",), "int32"), out="selected"))

    def logits(self, x: str, tied: bool) -> None:
        """The end of every trace: the output head (the embedding if tied), and what the program finishes with."""
        config = self.config
        shape = (config.vocab_size, config.hidden_size)
        weight = self._weight("embed.weight" if tied else "head.weight", shape, ("vocab", None))
        logits = self._add(Linear(x=x, weights=(weight,), outs=("logits",)))
        if self._finish == "cache":
            return
        if self._finish == "logits":
            self._outputs = (logits,)
        elif self._finish == "argmax":
            self._add(Argmax(logits=logits, score="score", token="token", usable=config.usable_vocab_size))
            self._outputs = ("token",)
        else:
            row = ("L",)
            top = self._top_logprobs
            logprobs = {}
            if top is not None:
                logprobs = {"logprob": "logprob", "top_tokens": "top_tokens", "top_logprobs": "top_logprobs"}
            op = Sample(
                logits=logits,
                positions=self.positions,
                logit_rows="logit_rows",
                temperature=self._input("temperature", row, "fp32"),
                top_k=self._input("top_k", row, "int32"),
                top_p=self._input("top_p", row, "fp32"),
                min_p=self._input("min_p", row, "fp32"),
                repetition_penalty=self._input("repetition_penalty", row, "fp32"),
                seed=self._input("seed", row, "uint64"),
                seen=self._input("seen", ("L", -(-config.vocab_size // 8)), "uint8"),
                token="token",
                usable=config.usable_vocab_size,
                top=None if top is None else min(top, config.usable_vocab_size),
                **logprobs,
            )
            self._add(op)
            self._outputs = op.writes()

    def _input(self, name: str, shape: tuple[int | str, ...], dtype: str) -> str:
        self._values.setdefault(name, Value(name, shape, dtype, "input"))
        return name

    def _weight(self, name: str, shape: tuple[int, ...], axes: tuple[str | None, ...] = ()) -> str:
        kind = self._kind_of(name, shape)
        value = Value(name, shape, kind, "weight", axes, start=(0,) * len(shape), full_shape=shape)
        assert self._values.setdefault(name, value) == value, f"{name} is used as {value} and {self._values[name]}"
        return name

    def _add(self, op: Op) -> str:
        for value in op.infer(self._values):
            assert value.name not in self._values, f"{value.name} is computed twice"
            self._values[value.name] = value
        self._ops.append(op)
        return op.writes()[0]
