"""What kind of array goes where, what comes back, and what is refused before anything is written."""

from __future__ import annotations

import doctest
import math
import subprocess
import sys
import types

import numpy as np
import pytest

import terramind_cube.kernels as public
from terramind_cube.kernels import pixels, reference
from terramind_cube.kernels.rules import Restoration, Standardization

torch = pytest.importorskip("torch")

LEVELS = (8, 8, 8, 6, 5)
CUDA = "terramind_cube.kernels.cuda"


def rng():
    return np.random.default_rng(0)


def images(dtype="uint16", shape=(2, 3, 8, 12)):
    return rng().integers(0, 200, shape).astype(dtype)


MEAN, STD = [50.0, 100.0, 20.0], [10.0, 3.0, 0.7]
HOW = {"mean": MEAN, "std": STD, "nodata": 7}


# Kinds of arrays.


def calls(kind):
    """Every public function on small arrays of a kind: name, function that calls it, result."""
    make = {"NumPy": np.asarray, "torch": lambda x: torch.from_numpy(np.array(x))}[kind]
    x, units = images(), rng().normal(size=(2, 3, 8, 12)).astype(np.float32)
    latent = rng().normal(size=(2, 5, 4, 3)).astype(np.float32)
    ids = rng().integers(0, math.prod(LEVELS), (2, 4, 3))
    valid = rng().random((8, 12)) < 0.5
    probability = rng().random((10, 4, 5), np.float32)
    cells = np.arange(6), np.arange(6)[::-1].copy()
    return {
        "normalize": lambda: public.normalize(make(x), **HOW),
        "patches": lambda: public.normalize(make(x), **HOW, patch_px=4),
        "tiles": lambda: public.normalize(make(x), **HOW, corners=[(1, 2, 3)], tile_px=4),
        "denormalize": lambda: public.denormalize(
            make(units), mean=MEAN, std=STD, dtype="int16", valid=make(valid), nodata=-1
        ),
        "valid_pixels": lambda: public.valid_pixels(make(x), nodata=7),
        "fsq_quantize": lambda: public.fsq_quantize(make(latent), LEVELS),
        "fsq_dequantize": lambda: public.fsq_dequantize(make(ids), LEVELS),
        "classes": lambda: public.class_map(make(probability))[0],
        "confidence": lambda: public.class_map(make(probability))[1],
        "uniform": lambda: public.philox_uniform(
            (1, 2), *cells, make(np.empty((2, 3, 7), np.float32))
        ),
        "normal": lambda: public.philox_normal((1, 2), *cells, make(np.empty((6, 7), np.float32))),
    }


def blended(make):
    total, weight = make(np.zeros((3, 8, 20), np.float32)), make(np.zeros((8, 20), np.float32))
    for column in (0, 6):
        values = make(rng().random((3, 8, 10), np.float32) + column)
        weights = make(rng().random((8, 10), np.float32))
        public.blend_accumulate(values, weights, (0, 1, 4, column, 8, 9), total, weight)
    out = make(np.empty((3, 5, 20), np.float32))
    assert public.blend_finish(total, weight, 4, out) is out
    return out


@pytest.mark.parametrize("is_inference", [False, True])
@pytest.mark.parametrize("name", list(calls("NumPy")))
def test_tensors_give_what_arrays_give(name, is_inference):
    expected = calls("NumPy")[name]()
    assert isinstance(expected, np.ndarray)
    with torch.inference_mode(is_inference):
        found = calls("torch")[name]()
    assert isinstance(found, torch.Tensor)
    assert found.is_inference() == is_inference
    assert found.numpy().dtype == expected.dtype
    np.testing.assert_array_equal(found.numpy(), expected)


def test_blending_takes_both_kinds():
    expected = blended(np.array)
    np.testing.assert_array_equal(blended(lambda x: torch.from_numpy(np.array(x))), expected)
    assert np.isnan(expected[:, :, 15:]).all()
    assert not np.isnan(expected[:, :, :15]).any()


def test_tensors_that_require_grad_are_taken_as_they_are():
    x = torch.from_numpy(images("float32")).requires_grad_()
    found = public.normalize(x, **HOW)
    assert not found.requires_grad
    np.testing.assert_array_equal(found, public.normalize(images("float32"), **HOW))


def test_out_is_written_to_and_returned():
    x = images()
    for out in (np.empty(x.shape, np.float32), torch.empty(x.shape)):
        given = x if isinstance(out, np.ndarray) else torch.from_numpy(x)
        assert public.normalize(given, **HOW, out=out) is out
        np.testing.assert_array_equal(np.asarray(out), public.normalize(x, **HOW))
    classes, confidence = np.empty((4, 5), np.uint8), np.empty((4, 5), np.float32)
    probability = rng().random((10, 4, 5), np.float32)
    found = public.class_map(probability, classes, confidence)
    assert found[0] is classes
    assert found[1] is confidence
    np.testing.assert_array_equal(classes, probability.argmax(0))


def test_memory_is_shared_with_tensors(monkeypatch):
    seen = {}

    def engine(x, corners, rule, out):
        seen.update(x=x, out=out)

    monkeypatch.setattr("terramind_cube.kernels.cpu.normalize", engine)
    x, out = torch.from_numpy(images()), torch.empty((2, 3, 8, 12), dtype=torch.bfloat16)
    public.normalize(x, **HOW, dtype="bfloat16", out=out)
    assert seen["x"].ctypes.data == x.data_ptr()
    assert seen["out"].ctypes.data == out.data_ptr()
    assert seen["out"].dtype == np.uint16


def test_strided_arrays_are_written_in_place():
    x = images()
    wide = np.full((2, 3, 8, 24), -1, np.float32)
    public.normalize(x[..., ::-1], **HOW, out=wide[..., ::2])
    np.testing.assert_array_equal(wide[..., ::2], public.normalize(x, **HOW)[..., ::-1])
    assert (wide[..., 1::2] == -1).all()
    tensor = torch.full((2, 3, 8, 24), -1.0)
    public.normalize(torch.from_numpy(x), **HOW, out=tensor[..., 6:18])
    np.testing.assert_array_equal(tensor[..., 6:18], public.normalize(x, **HOW))
    assert (tensor[..., 18:] == -1).all()


def test_importing_the_kernels_is_light():
    code = """
import sys
import terramind_cube.kernels as kernels
import numpy as np
kernels.normalize(np.ones((1, 2, 2), "uint8"), mean=[0], std=[1])
kernels.fsq_quantize(np.ones((1, 2, 2), "float32"), (8, 8))
assert not {"torch", "cupy", "numba.cuda", "numba_cuda", "terramind_cube.kernels.cuda"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


# The functions against their definition.


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64", ">u2", ">f4"])
@pytest.mark.parametrize("shape", [(3, 8, 12), (2, 3, 8, 12), (2, 1, 3, 8, 12), (0, 3, 8, 12)])
def test_normalize_takes_any_leading_axes(dtype, shape):
    x = images(dtype, shape)
    found = public.normalize(x, **HOW)
    assert found.shape == shape
    assert found.dtype == np.float32
    expected = (x.astype(np.float64) - np.array(MEAN)[:, None, None]) / np.array(STD)[:, None, None]
    expected = np.where((x == 7).any(axis=-3, keepdims=True), 0, expected)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)


def test_normalize_is_the_formula_with_an_offset():
    x = rng().integers(1, 12000, (2, 3, 16, 20)).astype(np.uint16)
    x[1, 2, 3, 5] = 0
    found = public.normalize(x, mean=[800, 900, 700], std=[300, 2, 1], nodata=0, offset=-1000)
    mean, std = np.array([800, 900, 700.0]), np.array([300, 2, 1.0])
    expected = (x.astype(np.float64) - 1000 - mean[:, None, None]) / std[:, None, None]
    expected[1, :, 3, 5] = 0
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert (found[1, :, 3, 5] == 0).all()


def test_power_becomes_decibels():
    x = np.array([[[0.1, 0.0, -1.0], [np.nan, np.inf, 1e-3]]], np.float32)
    found = public.normalize(x, mean=[-10], std=[5], from_power=True)
    np.testing.assert_allclose(found, [[[0, 0, 0], [0, 0, -4]]], atol=1e-6)


def test_without_nodata_nothing_is_masked():
    x = np.array([[[np.nan, np.inf, 0]], [[1, 1, 1]]], np.float32)
    found = public.normalize(x, mean=[0, 0], std=[1, 1])
    np.testing.assert_array_equal(found, x)
    np.testing.assert_array_equal(
        public.normalize(x, mean=[0, 0], std=[1, 1], nodata=math.nan)[1], [[0, 0, 1]]
    )


@pytest.mark.parametrize("kind", ["NumPy", "torch"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_patches_are_in_the_order_of_terramind_s_patch_embedding(kind, dtype):
    x = images() if kind == "NumPy" else torch.from_numpy(images())
    found = public.normalize(x, **HOW, dtype=dtype, patch_px=4)
    image = torch.from_numpy(public.normalize(images(), **HOW))
    expected = image.unflatten(3, (3, 4)).unflatten(2, (2, 4)).permute(0, 2, 4, 3, 5, 1)
    expected = expected.to(getattr(torch, dtype))
    if kind == "NumPy":
        assert found.dtype == ("uint16" if dtype == "bfloat16" else "float32")
        found = torch.from_numpy(found)
        found = found.view(torch.bfloat16) if dtype == "bfloat16" else found
    assert found.shape == (2, 2, 3, 4, 4, 3)
    assert found.dtype == expected.dtype
    assert torch.equal(found, expected)


@pytest.mark.parametrize("patch", [None, 2])
def test_tiles_are_cut_where_their_corners_are(patch):
    x = images()
    corners = [(1, 4, 8), (0, 0, 0), (1, 3, 5), (1, 4, 8)]
    found = public.normalize(x, **HOW, corners=corners, tile_px=4, patch_px=patch)
    for tile, (image, row, column) in zip(found, corners, strict=True):
        cut = x[image, :, row : row + 4, column : column + 4]
        np.testing.assert_array_equal(tile, public.normalize(cut, **HOW, patch_px=patch))
    single = public.normalize(x[1], **HOW, corners=[(0, 3, 5)], tile_px=4, patch_px=patch)
    np.testing.assert_array_equal(single[0], found[2])
    none = np.empty((0, 3), np.int64)
    assert len(public.normalize(x, **HOW, corners=none, tile_px=4, patch_px=patch)) == 0


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32"])
def test_denormalize_defaults_to_what_the_dtype_holds(dtype):
    x = np.array([[[-1e9, 1e9, np.nan, 0.25]]], np.float32)
    found = public.denormalize(x, mean=[10], std=[2], dtype=dtype)
    assert found.dtype == dtype
    low, high = (np.iinfo(dtype).min, np.iinfo(dtype).max) if dtype != "float32" else (-2e9, 2e9)
    nodata = np.nan if dtype == "float32" else 0
    exact = 10.5 if dtype == "float32" else 10  # halves to even ones
    np.testing.assert_allclose(found, [[[low, high, nodata, exact]]], rtol=1e-6)


def test_denormalize_writes_its_rows_in_the_dtype_of_out():
    x = rng().normal(size=(3, 2, 12)).astype(np.float32)
    valid = rng().random((2, 12)) < 0.5
    out = np.full((3, 8, 12), 9, np.int16)
    found = public.denormalize(
        x, mean=MEAN, std=STD, limits=(0, 80), nodata=-5, valid=valid, first_row=4, out=out
    )
    assert found is out
    expected = np.full((1, 3, 8, 12), 9, np.int16)
    rule = Restoration(np.float32(MEAN), np.float32(STD), (0.0, 80.0), -5.0)
    reference.denormalize(x[None], 4, rule, valid, expected)
    np.testing.assert_array_equal(out, expected[0])
    assert (out[:, :4] == 9).all()
    assert (out[:, 4:6][:, ~valid] == -5).all()


def test_denormalize_is_the_inverse_of_normalize():
    x = rng().integers(1, 10000, (2, 3, 8, 12)).astype(np.uint16)
    standardised = public.normalize(x, mean=MEAN, std=[900, 1000, 800])
    found = public.denormalize(standardised, mean=MEAN, std=[900, 1000, 800], dtype="uint16")
    np.testing.assert_array_equal(found, x)


@pytest.mark.parametrize("nodata", [7, math.nan, None])
def test_pixels_are_valid_in_every_channel(nodata):
    x = images("float32")
    x[0, 1, 2, 3], x[1, 2, 0, 0] = np.nan, np.inf
    expected = np.isfinite(x).all(axis=1)
    if nodata == 7:
        expected &= (x != 7).all(axis=1)
    np.testing.assert_array_equal(public.valid_pixels(x, nodata=nodata), expected)
    np.testing.assert_array_equal(public.valid_pixels(x[0], nodata=nodata), expected[0])


def test_codes_come_back_as_the_same_tokens():
    ids = np.arange(math.prod(LEVELS)).reshape(3, 64, 80)
    codes = public.fsq_dequantize(ids, LEVELS)
    assert codes.shape == (3, 5, 64, 80)
    with np.errstate(divide="ignore"):
        latent = np.log(codes) - np.log1p(-codes)
    np.testing.assert_array_equal(public.fsq_quantize(latent, LEVELS), ids)
    short = public.fsq_quantize(latent, LEVELS, out=np.empty(ids.shape, np.int32))
    assert short.dtype == np.int32
    np.testing.assert_array_equal(short, ids)
    np.testing.assert_array_equal(public.fsq_dequantize(short, LEVELS), codes)


def test_fields_of_any_dimension_are_quantized():
    latent = rng().normal(size=(4, 5)).astype(np.float32)
    ids = public.fsq_quantize(latent, LEVELS)
    assert ids.shape == (4,)
    assert public.fsq_dequantize(ids, LEVELS).shape == (4, 5)
    assert public.fsq_quantize(np.empty((0, 5, 2, 2), np.float32), LEVELS).shape == (0, 2, 2)
    assert public.fsq_dequantize(np.empty((0, 2), np.int64), LEVELS).shape == (0, 5, 2)


# What is refused.


def u16(*shape):
    return np.ones(shape, np.uint16)


def f32(*shape):
    return np.ones(shape, np.float32)


def read_only(array):
    array.flags.writeable = False
    return array


ONE = {"mean": [1.0], "std": [1.0]}
FEW = {"mean": [1.0, 2.0], "std": [1.0, 2.0]}


@pytest.mark.parametrize(
    ("x", "how", "message"),
    [
        (u16(2, 4, 4), ONE, r"mean: expected 2 numbers for the 2 channels of x, got 1"),
        (u16(2, 4, 4), {**FEW, "std": [1.0]}, r"std: expected 2 numbers .* got 1"),
        (u16(2, 4, 4), {**FEW, "std": [1.0, 0]}, r"std: expected positive .* got \[1.0, 0.0\]"),
        (u16(2, 4, 4), {**FEW, "std": [1.0, -2]}, r"std: expected positive"),
        (u16(2, 4, 4), {**FEW, "std": [1.0, 1e-45]}, r"std: expected positive"),
        (u16(2, 4, 4), {**FEW, "std": [1.0, math.nan]}, r"std: expected finite .* got \[1.0, nan\]"),
        (u16(2, 4, 4), {**FEW, "mean": [math.inf, 1]}, r"mean: expected finite"),
        (u16(2, 4, 4), {**FEW, "offset": math.nan}, r"offset: expected a finite .* got nan"),
        (u16(4, 4), ONE, r"x: expected shape \(..., C, H, W\), got \(4, 4\)"),
        (np.ones((1, 4, 4), np.int64), ONE, r"x: expected uint8, .*, got int64"),
        (torch.ones((1, 4, 4), dtype=torch.bfloat16), ONE, r"x: expected .*, got bfloat16"),
        (torch.ones((1, 4, 4), device="meta"), ONE, r"x: expected a dense tensor on cpu or cuda"),
        (torch.ones((1, 4, 4)).to_sparse(), ONE, r"x: expected a dense tensor"),
        (u16(1, 4, 4), {**ONE, "dtype": "float16"}, r"dtype: expected 'float32' or .* 'float16'"),
        (u16(1, 4, 6), {**ONE, "patch_px": 4}, r"patch_px: expected a divisor of 4 and 6"),
        (u16(1, 4, 4), {**ONE, "patch_px": 0}, r"patch_px: expected a positive whole .* got 0"),
        (u16(1, 4, 4), {**ONE, "corners": [(0, 0, 0)]}, r"corners, tile_px: expected both"),
        (u16(1, 4, 4), {**ONE, "tile_px": 4}, r"corners, tile_px: expected both"),
        (u16(1, 4, 4), {**ONE, "corners": [(0, 0)], "tile_px": 4}, r"corners: .* got \(1, 2\)"),
        (u16(1, 4, 4), {**ONE, "corners": [(0, 0, 0.0)], "tile_px": 4}, r"corners: .* got \[\(0, 0, 0.0\)\]"),
        (u16(1, 4, 4), {**ONE, "corners": [(0, 1, 0)], "tile_px": 4}, r"corners: .*\(0, 1, 0\)"),
        (u16(2, 1, 9, 9), {**ONE, "corners": [(0, 1, 5), (2, 0, 0)], "tile_px": 4}, r"\(2, 0, 0\)"),
        (u16(1, 9, 9), {**ONE, "corners": [(0, -1, 0)], "tile_px": 4}, r"got \(0, -1, 0\)"),
        (u16(1, 1, 1, 9, 9), {**ONE, "corners": [(0, 0, 0)], "tile_px": 4}, r"x: expected shape"),
        (u16(1, 4, 4), {**ONE, "corners": [(0, 0, 0)], "tile_px": 0}, r"tile_px: expected a pos"),
        (u16(1, 4, 4), {**ONE, "out": f32(1, 4, 5)}, r"out: expected float32 \(1, 4, 4\), got"),
        (u16(1, 4, 4), {**ONE, "out": u16(1, 4, 4)}, r"out: expected float32 .*, got uint16"),
        (u16(1, 4, 4), {**ONE, "out": f32(1, 4, 4), "dtype": "bfloat16"}, r"out: expected uint16"),
        (u16(1, 4, 4), {**ONE, "out": read_only(f32(1, 4, 4))}, r"out: .* that is read-only"),
        (u16(1, 4, 4), {**ONE, "out": torch.ones(1, 4, 4)}, r"out: .*NumPy array on cpu as x, .*tor"),
        (torch.ones(1, 4, 4), {**ONE, "out": f32(1, 4, 4)}, r"out: .*torch array on cpu as x"),
        (torch.ones(1, 4, 4), {**ONE, "out": torch.ones(1).expand(1, 4, 4)}, r"out: .* repeats"),
        (f32(1, 4, 4), {**ONE, "out": f32(1, 4, 4).astype(">f4")}, r"out: .* swaps bytes"),
        (f32(1, 4, 4), {**ONE, "out": f32(4, 3, 3)}, r"out: expected float32 \(1, 4, 4\)"),
        (
            f32(2, 3, 1, 4, 4),
            {**ONE, "out": np.ones((3, 2, 1, 4, 4), np.float32).swapaxes(0, 1)},
            r"out: expected an array whose axes can be merged",
        ),
    ],
)  # fmt: skip
def test_normalize_refuses_what_does_not_fit(x, how, message, monkeypatch):
    out = how.get("out")
    before = None if out is None else np.asarray(out).copy()
    monkeypatch.setattr("terramind_cube.kernels.cpu.normalize", never)
    with pytest.raises(ValueError, match=message):
        public.normalize(x, **how)
    if out is not None:
        np.testing.assert_array_equal(np.asarray(out), before)


def never(*arguments):
    raise AssertionError("a kernel was launched")


@pytest.mark.parametrize("x", [[[[1]]], None, "x", 3.0])
def test_what_is_no_array_is_named(x):
    with pytest.raises(TypeError, match=f"x: expected a NumPy array.* got {type(x).__name__}"):
        public.normalize(x, mean=[1.0], std=[1.0])


def test_masks_are_not_lost_in_silence():
    with pytest.raises(TypeError, match="x: expected an array without a mask"):
        public.normalize(np.ma.masked_less(f32(1, 2, 2), 0), mean=[1.0], std=[1.0])


def test_an_input_is_not_overwritten_while_it_is_read():
    x = f32(1, 4, 8)
    for out in (x, x[:, :, ::-1]):
        with pytest.raises(ValueError, match=r"out: .* overlaps x"):
            public.normalize(x, mean=[1.0], std=[2.0], out=out)
    assert (x == 1).all()
    public.normalize(x[..., ::2], mean=[1.0], std=[2.0], out=x[..., 1::2])
    assert (x[..., 1::2] == 0).all()


@pytest.mark.parametrize(
    ("x", "how", "message"),
    [
        (f32(2, 4, 4), ONE, "mean: expected 2 numbers"),
        (f32(4, 4), ONE, "x: expected shape"),
        (u16(1, 4, 4), ONE, "x: expected float32, got uint16"),
        (f32(1, 4, 4), {**ONE, "dtype": "int64"}, "dtype: expected 'uint8' or .* got 'int64'"),
        (f32(1, 4, 4), {**ONE, "limits": (3, 1)}, r"limits: .* got \(3, 1\)"),
        (f32(1, 4, 4), {**ONE, "limits": (math.nan, 1)}, "limits: "),
        (f32(1, 4, 4), {**ONE, "dtype": "uint8", "nodata": -1}, "nodata: .* uint8 holds, got -1"),
        (f32(1, 4, 4), {**ONE, "dtype": "uint8", "nodata": 0.5}, "nodata: .* got 0.5"),
        (f32(1, 4, 4), {**ONE, "dtype": "int16", "nodata": math.nan}, "nodata: .* got nan"),
        (f32(1, 4, 4), {**ONE, "nodata": 1e300}, r"nodata: .* float32 holds, got 1e\+300"),
        (f32(1, 4, 4), {**ONE, "valid": np.ones((4, 5), bool)}, r"valid: .*\(4, 4\), got \(4, 5\)"),
        (f32(1, 4, 4), {**ONE, "valid": f32(4, 4)}, "valid: expected bool, got float32"),
        (f32(1, 4, 4), {**ONE, "valid": torch.ones(4, 4).bool()}, "valid: .* NumPy .* got a torch"),
        (f32(1, 4, 4), {**ONE, "first_row": 1}, r"first_row: expected 0 .. 0 .* got 1"),
        (f32(1, 4, 4), {**ONE, "out": f32(1, 8, 4), "first_row": 5}, r"first_row: expected 0 .. 4"),
        (f32(1, 4, 4), {**ONE, "out": f32(1, 8, 4), "first_row": -1}, r"first_row: .* got -1"),
        (f32(1, 4, 4), {**ONE, "out": f32(1, 3, 4)}, r"out: expected at least 4 rows"),
        (f32(1, 4, 4), {**ONE, "out": f32(2, 4, 4)}, r"out: expected .* \(1, 4, 4\), got"),
        (f32(1, 4, 4), {**ONE, "out": f32(1, 4, 4).astype("f8")}, r"out: .* got float64"),
        (f32(1, 4, 4), {**ONE, "out": u16(1, 4, 4), "dtype": "int16"}, r"out: expected int16"),
        (f32(1, 4, 4), {**ONE, "out": u16(1, 4, 4), "nodata": -1}, r"nodata: .* uint16 holds"),
    ],
)  # fmt: skip
def test_denormalize_refuses_what_does_not_fit(x, how, message, monkeypatch):
    monkeypatch.setattr("terramind_cube.kernels.cpu.denormalize", never)
    with pytest.raises(ValueError, match=message):
        public.denormalize(x, **how)


def nan_latent():
    latent = f32(1, 5, 2, 2)
    latent[0, 3, 1, 1] = np.nan
    return latent


IDS = np.zeros((1, 2, 2), np.int64)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("fsq_quantize", (nan_latent(), LEVELS), "latent: expected numbers, got NaN"),
        ("fsq_quantize", (f32(1, 4, 2, 2), LEVELS), r"latent: expected shape \(B, 5, ...\)"),
        ("fsq_quantize", (f32(5), LEVELS), r"latent: expected shape \(B, 5, ...\)"),
        ("fsq_quantize", (f32(1, 5, 2, 2).astype("f8"), LEVELS), "latent: .*, got float64"),
        ("fsq_quantize", (f32(1, 2, 2), (8, 1)), r"levels: .* got \(8, 1\)"),
        ("fsq_quantize", (f32(1, 2, 2), (8, 2.5)), r"levels: .* got \(8, 2.5\)"),
        ("fsq_quantize", (f32(1, 0, 2), ()), "levels: "),
        ("fsq_quantize", (f32(1, 4, 2), (2**20,) * 4), "levels: .* int64 can count"),
        ("fsq_quantize", (f32(1, 5, 2, 2), LEVELS, IDS[:, :1]), r"out: expected int64 or int32"),
        ("fsq_quantize", (f32(1, 5, 2, 2), LEVELS, IDS.astype("i2")), r"out: .* got int16"),
        (
            "fsq_quantize",
            (f32(1, 2, 2, 2), (2**20, 2**20), IDS.astype("i4")),
            r"out: expected int64 for levels",
        ),
        ("fsq_dequantize", (IDS - 1, LEVELS), "ids: expected 0 .. 15359 .* got -1"),
        ("fsq_dequantize", (IDS + 15360, LEVELS), "ids: expected 0 .. 15359 .* got 15360"),
        ("fsq_dequantize", (IDS.astype("f4"), LEVELS), "ids: expected int64, int32, got float32"),
        ("fsq_dequantize", (np.zeros((), "i8"), LEVELS), r"ids: .*\(B, ...\)"),
        ("fsq_dequantize", (IDS, LEVELS, f32(1, 4, 2, 2)), r"out: expected float32 \(1, 5, 2, 2\)"),
        ("class_map", (f32(0, 2, 2),), r"probability: expected shape \(C, H, W\)"),
        ("class_map", (f32(257, 2, 2),), "probability: .* 1 .. 256"),
        ("class_map", (f32(3, 2, 2).astype("f8"),), "probability: .*, got float64"),
        ("class_map", (f32(3, 2, 2), np.ones((2, 2), "i8")), "classes: expected uint8"),
        ("class_map", (f32(3, 2, 2), None, f32(2, 3)), r"confidence: expected float32 \(2, 2\)"),
        ("valid_pixels", (f32(2, 2),), "x: expected shape"),
    ],
)  # fmt: skip
def test_tokens_and_classes_refuse_what_does_not_fit(name, arguments, message, monkeypatch):
    monkeypatch.setattr(f"terramind_cube.kernels.cpu.{name}", never)
    options = {"nodata": 0} if name == "valid_pixels" else {}
    with pytest.raises(ValueError, match=message):
        getattr(public, name)(*arguments, **options)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"values": f32(8, 8)}, r"values: expected 3 axes, got shape \(8, 8\)"),
        ({"values": f32(2, 8, 8).astype("f8")}, "values: .*, got float64"),
        ({"values": torch.ones(2, 8, 8)}, "weights: expected a torch array on cpu as values"),
        ({"weights": f32(8, 7)}, r"weights: expected shape \(8, 8\), got \(8, 7\)"),
        ({"total": f32(3, 10, 20)}, "total: expected 2 channels, got"),
        ({"total": f32(10, 20)}, r"total: expected shape \(K, R, W\)"),
        ({"total": read_only(f32(2, 10, 20))}, "total: .* that is read-only"),
        ({"weight": f32(10, 21)}, r"weight: expected float32 \(10, 20\)"),
        ({"place": (0, 0, 0, 0, 8)}, "place: expected 6 whole numbers"),
        ({"place": (1, 0, 0, 0, 8, 8)}, "place: expected a part of a tile"),
        ({"place": (0, 1, 0, 0, 8, 8)}, "place: expected a part of a tile"),
        ({"place": (0, 0, 0, 13, 8, 8)}, "place: .* 10 rows of 20 columns"),
        ({"place": (0, 0, -1, 0, 8, 8)}, "place: "),
        ({"values": f32(2, 11, 8), "weights": f32(11, 8), "place": (0, 0, 0, 0, 11, 8)}, "place: "),
    ],
)
def test_blending_refuses_what_does_not_fit(change, message, monkeypatch):
    monkeypatch.setattr("terramind_cube.kernels.cpu.blend_accumulate", never)
    arguments = {
        "values": f32(2, 8, 8),
        "weights": f32(8, 8),
        "place": (0, 0, 25, 12, 8, 8),
        "total": f32(2, 10, 20),
        "weight": f32(10, 20),
    }
    with pytest.raises(ValueError, match=message):
        public.blend_accumulate(**{**arguments, **change})


@pytest.mark.parametrize(
    ("first", "out", "message"),
    [
        (0, f32(2, 11, 20), "out: expected at most 10 rows .* got 11"),
        (-1, f32(2, 2, 20), "out: .* got 2 from row -1"),
        (0, f32(3, 2, 20), r"out: expected float32 \(2, 2, 20\)"),
        (0, f32(2, 20), r"out: expected shape \(K, n, W\)"),
        (0, torch.ones(2, 2, 20), "total: expected a torch array on cpu as out"),
    ],
)
def test_finishing_refuses_what_does_not_fit(first, out, message):
    total, weight = f32(2, 10, 20), f32(10, 20)
    with pytest.raises(ValueError, match=message):
        public.blend_finish(total, weight, first, out)
    assert (total == 1).all()


@pytest.mark.parametrize(
    ("key", "rows", "out", "message"),
    [
        ((1, 2), np.arange(5), f32(6, 7), r"rows: expected a NumPy array of int64 \(6,\)"),
        ((1, 2), np.arange(6, dtype=np.int32), f32(6, 7), "rows: .* got int32"),
        ((1, 2), list(range(6)), f32(6, 7), "rows: .* got list"),
        ((1, 2**32), np.arange(6), f32(6, 7), "key: expected two words of 32 bits"),
        ((1,), np.arange(6), f32(6, 7), "key: "),
        ((1, 2), np.arange(6), u16(6, 7), "out: expected float32 .* got uint16"),
        ((1, 2), np.arange(6), f32(6, 7)[0, 0, ...], r"out: expected shape \(..., count\)"),
        ((1, 2), np.arange(6), read_only(f32(6, 7)), "out: .* read-only"),
    ],
)
def test_noise_refuses_what_does_not_fit(key, rows, out, message):
    for function in (public.philox_uniform, public.philox_normal):
        with pytest.raises(ValueError, match=message):
            function(key, rows, np.arange(6), np.asarray(out))


# Arrays on a device, without one: engines are recorded, so that checks come before a launch.


class DeviceArray:
    """Offers memory of the host as if it were a GPU's."""

    def __init__(self, values, *, is_read_only=False):
        self.values, self.is_read_only = values, is_read_only

    @property
    def __cuda_array_interface__(self):
        strides = None if self.values.flags.c_contiguous else self.values.strides
        return {
            "shape": self.values.shape,
            "typestr": self.values.dtype.str,
            "data": (self.values.ctypes.data, self.is_read_only),
            "strides": strides,
            "version": 3,
        }


class CuPyArray(DeviceArray):
    """With what CuPy's arrays have beside the interface."""

    def __init__(self, values, device=0, **options):
        super().__init__(values, **options)
        self.device = Device(device)
        self.shape, self.dtype = values.shape, values.dtype

    def reshape(self, shape):
        return CuPyArray(self.values.reshape(shape), self.device.id)

    def __ne__(self, other):
        return self.values != other.values

    __hash__ = None

    def min(self):
        return self.values.min()

    def max(self):
        return self.values.max()


class Device:
    def __init__(self, number):
        self.id = number

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None


@pytest.fixture
def launches(monkeypatch):
    """Calls of the engine for GPUs, in place of which the reference computes."""
    seen = []

    def bare(x):
        return x.values if isinstance(x, CuPyArray) else x

    def record(name):
        def engine(*arguments):
            seen.append((name, arguments))
            getattr(reference, name)(*map(bare, arguments))

        return engine

    engine = types.ModuleType(CUDA)
    for name in public.__all__:
        setattr(engine, name, record(name))
    cupy = types.ModuleType("cupy")
    cupy.ndarray = CuPyArray
    cupy.empty = lambda shape, dtype: CuPyArray(np.empty(shape, dtype))
    cupy.cuda = types.SimpleNamespace(is_available=lambda: False)
    monkeypatch.setitem(sys.modules, CUDA, engine)
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    return seen


def test_device_arrays_go_to_their_engine_and_come_back(launches):
    x = images()
    found = public.normalize(CuPyArray(x), **HOW, dtype="bfloat16", patch_px=4)
    assert isinstance(found, CuPyArray)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(
        found.values, public.normalize(x, **HOW, dtype="bfloat16", patch_px=4)
    )
    name, (pixels, corners, rule, out) = launches[0]
    assert name == "normalize"
    assert pixels.shape == x.shape
    assert out.shape == (2, 2, 3, 4, 4, 3)
    assert isinstance(rule, Standardization)
    assert corners.tolist() == [[0, 0, 0], [1, 0, 0]]
    assert len(launches) == 1


def test_every_function_takes_device_arrays(launches):
    units, latent = rng().normal(size=(1, 3, 4, 6)), rng().normal(size=(1, 5, 4, 3))
    made = public.denormalize(CuPyArray(np.float32(units)), mean=MEAN, std=STD, dtype="uint8")
    np.testing.assert_array_equal(
        made.values, public.denormalize(np.float32(units), mean=MEAN, std=STD, dtype="uint8")
    )
    assert public.valid_pixels(CuPyArray(images()), nodata=7).dtype == np.bool_
    ids = public.fsq_quantize(CuPyArray(np.float32(latent)), LEVELS)
    np.testing.assert_array_equal(ids.values, public.fsq_quantize(np.float32(latent), LEVELS))
    codes = public.fsq_dequantize(ids, LEVELS)
    np.testing.assert_array_equal(codes.values, public.fsq_dequantize(ids.values, LEVELS))
    classes, confidence = public.class_map(CuPyArray(rng().random((10, 4, 5), np.float32)))
    assert (classes.dtype, confidence.dtype) == (np.uint8, np.float32)
    for function in (public.philox_uniform, public.philox_normal):
        out = CuPyArray(f32(6, 7))
        assert function((1, 2), np.arange(6), np.arange(6), out) is out
    np.testing.assert_array_equal(blended(CuPyArray).values, blended(np.array))
    assert {name for name, _ in launches} == set(public.__all__) - {"normalize"}


def test_nothing_is_launched_for_no_pixels(launches):
    assert public.normalize(CuPyArray(u16(0, 3, 4, 4)), **HOW).shape == (0, 3, 4, 4)
    assert public.fsq_quantize(CuPyArray(f32(0, 5, 2, 2)), LEVELS).shape == (0, 2, 2)
    assert not launches


def test_other_libraries_arrays_need_out(launches, monkeypatch):
    x, out = DeviceArray(images()), DeviceArray(f32(2, 3, 8, 12))
    with pytest.raises(ValueError, match="x: a DeviceArray cannot be allocated here; give out="):
        public.normalize(x, **HOW)
    monkeypatch.setattr(sys.modules[CUDA], "normalize", lambda *given: launches.append(given))
    assert public.normalize(x, **HOW, out=out) is out
    pixels, _, _, target = launches[0]
    assert pixels.__cuda_array_interface__["data"] == x.__cuda_array_interface__["data"]
    assert target.shape == (2, 3, 8, 12)
    assert target.dtype == np.float32


def test_other_libraries_arrays_are_reshaped_by_their_interface(launches, monkeypatch):
    monkeypatch.setattr(sys.modules[CUDA], "normalize", lambda *given: launches.append(given))
    x, out = DeviceArray(u16(2, 2, 3, 8, 12)), DeviceArray(f32(2, 2, 3, 8, 12))
    public.normalize(x, **HOW, out=out)
    for array, given in zip(launches[0][::3], (x, out), strict=True):
        interface = array.__cuda_array_interface__
        assert interface["shape"] == (4, 3, 8, 12)
        assert interface["data"] == given.__cuda_array_interface__["data"]


def strided(dtype, *shape):
    return CuPyArray(np.ones((*shape, 2), dtype)[..., 0])


@pytest.mark.parametrize(
    ("x", "how", "message"),
    [
        (strided("u2", 1, 4, 4), {}, r"x: expected a C-contiguous .* got strides of \(64, 16, 4\)"),
        (CuPyArray(u16(4, 4, 1).T), {}, "x: expected a C-contiguous device array"),
        (CuPyArray(u16(1, 4, 4)[:, ::2]), {}, r"x: expected a C-contiguous .* \(32, 16, 2\)"),
        (CuPyArray(u16(1, 4, 4)), {"out": strided("f4", 1, 4, 4)}, "out: expected a C-contiguous"),
        (CuPyArray(u16(1, 4, 4)), {"out": f32(1, 4, 4)}, "out: .* CuPy array on cuda:0 as x, got a"),
        (u16(1, 4, 4), {"out": CuPyArray(f32(1, 4, 4))}, "out: .* NumPy array on cpu as x, got a C"),
        (CuPyArray(u16(1, 4, 4)), {"out": torch.ones(1, 4, 4)}, "out: .* got a torch array on cpu"),
        (CuPyArray(u16(1, 4, 4)), {"out": CuPyArray(f32(1, 4, 4), 1)}, "out: .* on cuda:1"),
        (
            CuPyArray(u16(1, 4, 4)),
            {"out": CuPyArray(f32(1, 4, 4), is_read_only=True)},
            "out: .* read-only",
        ),
        (CuPyArray(f32(1, 4, 4).astype("f8")), {}, "x: .* got float64: convert it to float32"),
        (CuPyArray(u16(2, 4, 4)), {}, "mean: expected 2 numbers for the 2 channels of x"),
        (CuPyArray(u16(1, 4, 6)), {"patch_px": 4}, "patch_px: expected a divisor"),
    ],
)  # fmt: skip
def test_device_arrays_are_checked_before_a_launch(x, how, message, launches):
    with pytest.raises(ValueError, match=message):
        public.normalize(x, **ONE, **how)
    assert not launches


def test_wrong_numbers_on_a_device_are_found_before_a_launch(launches):
    with pytest.raises(ValueError, match="latent: expected numbers, got NaN"):
        public.fsq_quantize(CuPyArray(nan_latent()), LEVELS)
    with pytest.raises(ValueError, match=r"ids: expected 0 .. 15359"):
        public.fsq_dequantize(CuPyArray(IDS + 15360), LEVELS)
    memory = CuPyArray(f32(1, 4, 4))
    with pytest.raises(ValueError, match=r"out: .* overlaps x"):
        public.normalize(memory, **ONE, out=memory)
    assert not launches


def test_single_rows_may_have_any_stride_on_a_device(launches):
    values = np.ones((2, 1, 4, 4), np.uint16)[1:]
    x = CuPyArray(np.lib.stride_tricks.as_strided(values, strides=(999, 999, 8, 2)))
    assert public.normalize(x, **ONE).shape == (1, 1, 4, 4)


def test_without_numba_cuda_the_way_out_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, CUDA, None)
    x, out = DeviceArray(u16(1, 4, 4)), DeviceArray(f32(1, 4, 4))
    with pytest.raises(ImportError, match=r"pip install 'terramind-cube\[cuda12\]'"):
        public.normalize(x, **ONE, out=out)


def test_sums_of_other_libraries_are_added_to(launches):
    memory = [DeviceArray(f32(*shape)) for shape in ((2, 8, 8), (8, 8), (2, 10, 20), (10, 20))]
    seen = []
    engine = sys.modules[CUDA]
    engine.blend_accumulate = lambda *given: seen.append(given)
    engine.blend_finish = lambda *given: seen.append(given)
    values, weights, total, weight = memory
    out = DeviceArray(f32(2, 5, 20))
    public.blend_accumulate(values, weights, (0, 0, 1, 2, 8, 8), total, weight)
    assert public.blend_finish(total, weight, 3, out) is out
    shapes = [[getattr(array, "shape", array) for array in given] for given in seen]
    assert shapes == [
        [(2, 8, 8), (8, 8), (0, 0, 1, 2, 8, 8), (2, 10, 20), (10, 20)],
        [(2, 10, 20), (10, 20), 3, (2, 5, 20)],
    ]
    with pytest.raises(ValueError, match=r"total: expected memory of its own, .* overlaps values"):
        public.blend_accumulate(values, weights, (0,) * 6, values, DeviceArray(f32(8, 8)))


@pytest.mark.parametrize("library", ["cupy", "torch", "numba.cuda"])
def test_numbers_of_other_libraries_are_checked(launches, library, monkeypatch):
    seen = []

    def converts(name, wrap):
        return lambda array: seen.append(name) or wrap(array._owner.values)

    numba_cuda = types.SimpleNamespace(as_cuda_array=converts("numba.cuda", DeviceCopy))
    monkeypatch.setitem(sys.modules, "numba.cuda", numba_cuda)
    monkeypatch.setattr(torch, "as_tensor", converts("torch", torch.from_numpy))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: library == "torch")
    cupy = sys.modules["cupy"]
    cupy.asarray, cupy.cuda.is_available = converts("cupy", np.asarray), lambda: library == "cupy"
    with pytest.raises(ValueError, match="latent: expected numbers, got NaN"):
        public.fsq_quantize(DeviceArray(nan_latent()), LEVELS, DeviceArray(IDS.copy()))
    with pytest.raises(ValueError, match=r"ids: expected 0 .. 15359"):
        public.fsq_dequantize(DeviceArray(IDS + 15360), LEVELS, DeviceArray(f32(1, 5, 2, 2)))
    assert seen == [library] * 2
    monkeypatch.setitem(sys.modules, CUDA, None)
    with pytest.raises(ImportError, match=r"ids is a DeviceArray .* pip install"):
        public.fsq_dequantize(DeviceArray(IDS), LEVELS, DeviceArray(f32(1, 5, 2, 2)))
    assert len(seen) == 2


class DeviceCopy:
    """What Numba makes of another library's array."""

    def __init__(self, values):
        self.copy_to_host = lambda: values


def test_the_example_of_the_documentation_is_right():
    assert doctest.testmod(pixels).failed == 0
