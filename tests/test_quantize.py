"""Weight kinds: bytes, layout, error, slices."""

import ml_dtypes
import numpy as np
import pytest

from anthesis.errors import RequestError
from anthesis.quantize import WEIGHT_KINDS, WeightTensor, pack_nibbles, quantize, unpack_nibbles, weight_kind

QUANTISED = [name for name in WEIGHT_KINDS if name not in ("fp32", "bf16", "fp16")]
# Relative root mean squared errors of normally distributed elements, each a little above what is reached.
ERRORS = {
    "fp32": 0.0, "bf16": 2e-3, "fp16": 4e-4, "fp8": 0.03, "int8": 0.011, "int8-g32": 6e-3, "int4": 0.086,
    "int4-g64": 0.095, "int4-g128": 0.105, "int4m": 0.077, "int4m-g64": 0.088, "int4m-g128": 0.099,
}  # fmt: skip


def normal(*shape, scale=0.02, seed=0):
    return (np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32)


def relative_error(found, true):
    return float(np.sqrt(np.mean((found - true) ** 2) / np.mean(true**2)))


def assert_same(a: WeightTensor, b: WeightTensor):
    assert (a.kind, a.shape) == (b.kind, b.shape)
    for x, y in ((a.values, b.values), (a.scales, b.scales), (a.minimums, b.minimums)):
        assert (x is None) == (y is None)
        if x is not None:
            np.testing.assert_array_equal(x.view(np.uint8), y.view(np.uint8))


@pytest.mark.parametrize("name", WEIGHT_KINDS)
def test_error_and_bytes(name):
    true = normal(600, 1024)
    tensor = quantize(true, weight_kind(name))
    assert relative_error(tensor.dequantize(), true) <= ERRORS[name]
    assert tensor.nbytes == weight_kind(name).nbytes(true.shape)
    stored = [array for array in (tensor.values, tensor.scales, tensor.minimums) if array is not None]
    assert tensor.nbytes == sum(array.nbytes for array in stored)


@pytest.mark.parametrize(
    ("name", "nbytes"),
    [("fp32", 4096), ("bf16", 2048), ("fp8", 1024 + 8 * 4), ("int8", 1024 + 8 * 2), ("int8-g32", 1024 + 32 * 2),
     ("int4", 512 + 64), ("int4m", 512 + 128), ("int4-g128", 512 + 16), ("int4m-g64", 512 + 64)],
)  # fmt: skip
def test_nbytes_by_hand(name, nbytes):
    assert weight_kind(name).nbytes((8, 128)) == nbytes


def test_four_bit_order():
    values = np.arange(64, dtype=np.uint8)[None] % 16
    packed = pack_nibbles(values)
    assert packed.shape == (1, 32)
    for run in range(2):
        for j in range(16):
            byte = packed[0, run * 16 + j]
            assert byte & 15 == values[0, run * 32 + j]
            assert byte >> 4 == values[0, run * 32 + j + 16]
    np.testing.assert_array_equal(unpack_nibbles(packed), values)


def test_formulas_in_float64():
    true = normal(3, 128)
    for name in QUANTISED:
        kind = weight_kind(name)
        tensor = quantize(true, kind)
        values = unpack_nibbles(tensor.values) if kind.bits == 4 else tensor.values
        values = values.astype(np.float64)
        if name.startswith("int4") and not kind.has_minimum:
            values -= 8
        scales = np.repeat(tensor.scales.reshape(3, -1).astype(np.float64), kind.group_size or 128, axis=1)
        expected = values * scales
        if kind.has_minimum:
            expected += np.repeat(tensor.minimums.astype(np.float64), kind.group_size, axis=1)
        np.testing.assert_array_equal(tensor.dequantize(np.float64), expected)
        np.testing.assert_allclose(tensor.dequantize(), expected, rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize(("name", "ggml"), [("int4", "Q4_0"), ("int4m", "Q4_1"), ("int8-g32", "Q8_0")])
@pytest.mark.parametrize("tails", [False, True])
def test_not_worse_than_the_usual_rounding(name, ggml, tails):
    gguf = pytest.importorskip("gguf")
    true = normal(200, 512)
    if tails:
        true = true**3
    kind = gguf.GGMLQuantizationType[ggml]
    usual = gguf.quants.dequantize(gguf.quants.quantize(true, kind), kind)
    ours = quantize(true, weight_kind(name)).dequantize()
    factor = {"int4": 0.98 if tails else 0.95, "int4m": 0.97, "int8-g32": 1.001}[name]
    assert relative_error(ours, true) <= factor * relative_error(usual, true)


@pytest.mark.parametrize("name", WEIGHT_KINDS)
def test_rows_are_quantised_by_themselves(name):
    true, kind = normal(1100, 512), weight_kind(name)  # more than one chunk
    whole = quantize(true, kind)
    assert_same(whole.rows(slice(700, 703)), quantize(true[700:703], kind))
    index = np.array([5, 1000, 5, 0])
    assert_same(whole.rows(index), quantize(true[index], kind))
    if kind.scaled_by != "row":
        assert_same(whole.columns(128, 384), quantize(np.ascontiguousarray(true[:, 128:384]), kind))
    np.testing.assert_array_equal(whole.columns(128, 384).dequantize(), whole.dequantize()[:, 128:384])


@pytest.mark.parametrize("name", QUANTISED)
def test_zeros_stay_zeros(name):
    true = normal(2, 256)
    true[0] = 0
    true[1, :128] = 0
    found = quantize(true, weight_kind(name)).dequantize()
    assert not found[0].any()
    assert not found[1, :128].any()


@pytest.mark.parametrize("name", ["int4", "int4m", "int8-g32", "int4-g128"])
def test_widths_and_cuts_that_do_not_fit(name):
    group = weight_kind(name).group_size
    with pytest.raises(RequestError, match=f"width 80 .* {name}.* {group}"):
        quantize(normal(2, 80), weight_kind(name))
    with pytest.raises(RequestError, match=f"{name}'s groups of {group}"):
        quantize(normal(2, 256), weight_kind(name)).columns(0, 16)


def test_unknown_kind_lists_the_known():
    with pytest.raises(RequestError, match=r"'int3'.*int4m-g128"):
        weight_kind("int3")


@pytest.mark.parametrize("bad", [np.nan, np.inf, -3e38])
@pytest.mark.parametrize("name", QUANTISED)
def test_elements_that_can_not_be_represented(name, bad):
    true = normal(2, 128)
    true[1, 3] = bad
    if name == "fp8" and np.isfinite(bad):
        pytest.skip("fp8 has fp32 scales")
    with pytest.raises(RequestError, match="not finite or too large"):
        quantize(true, weight_kind(name))


def test_fp16_overflow_is_an_error():
    with pytest.raises(RequestError, match="fp16"):
        quantize(np.full((1, 4), 1e6, np.float32), weight_kind("fp16"))


def test_conversion_goes_through_the_numbers():
    tensor = quantize(normal(8, 128), weight_kind("bf16"))
    assert tensor.convert(tensor.kind) is tensor
    np.testing.assert_array_equal(tensor.convert(weight_kind("fp32")).values, tensor.values.astype(np.float32))
    assert tensor.values.dtype == ml_dtypes.bfloat16
    assert_same(tensor.convert(weight_kind("int4m")), quantize(tensor.dequantize(), weight_kind("int4m")))
