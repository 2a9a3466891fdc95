"""Arguments that would give wrong numbers in silence: they are refused by name, nothing is written."""

from __future__ import annotations

import math
import subprocess
import sys

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from numpy.lib.stride_tricks import as_strided

import terramind_cube.kernels as public

torch = pytest.importorskip("torch")

ONE = {"mean": [1.0], "std": [1.0]}
TENSOR = torch.ones(1, 4, 4)


def f32(*shape):
    return np.ones(shape, np.float32)


def u16(*shape):
    return np.ones(shape, np.uint16)


# Memory.


def overlapping(change):
    """Every function, with memory for its arguments of which `change` makes two overlap."""
    memory = {
        "x": f32(1, 4, 4), "out": f32(1, 4, 4), "valid": np.ones((4, 4), bool),
        "is_valid": np.ones((4, 4), bool), "latent": f32(1, 2, 4, 4), "codes": f32(1, 2, 4, 4),
        "ids": np.ones((1, 4, 4), np.int64), "classes": np.ones((4, 4), np.uint8),
        "values": f32(1, 4, 4), "weights": f32(4, 4), "total": f32(1, 4, 4), "weight": f32(4, 4),
        "rows": np.arange(4), "cols": np.arange(4), "noise": f32(4, 2), "levels": (8, 8),
        "place": (0, 0, 0, 0, 4, 4), "confidence": f32(4, 4),
    }  # fmt: skip
    one, other = change
    shape, dtype = memory[other].shape, memory[other].dtype
    size = max(memory[one].nbytes, memory[other].nbytes)
    room = np.ones(size, np.uint8)
    for name in (one, other):
        array = memory[name]
        memory[name] = room[: array.nbytes].view(array.dtype).reshape(array.shape)
        memory[name][...] = 1
    assert memory[other].shape == shape
    assert memory[other].dtype == dtype
    return memory


OVERLAPS = [
    (lambda m: public.normalize(m["x"], **ONE, out=m["out"]), "x", "out"),
    (lambda m: public.denormalize(m["x"], **ONE, out=m["out"]), "x", "out"),
    (lambda m: public.denormalize(m["x"], **ONE, valid=m["valid"], out=m["out"]), "valid", "out"),
    (lambda m: public.valid_pixels(m["x"], nodata=0, out=m["is_valid"]), "x", "is_valid"),
    (lambda m: public.fsq_quantize(m["latent"], m["levels"], m["ids"]), "latent", "ids"),
    (lambda m: public.fsq_dequantize(m["ids"], m["levels"], m["codes"]), "ids", "codes"),
    (lambda m: public.class_map(m["x"], m["classes"], m["confidence"]), "x", "classes"),
    (lambda m: public.class_map(m["x"], m["classes"], m["confidence"]), "x", "confidence"),
    (lambda m: public.class_map(m["x"], m["classes"], m["confidence"]), "classes", "confidence"),
    *[
        (
            lambda m: public.blend_accumulate(
                m["values"], m["weights"], m["place"], m["total"], m["weight"]
            ),
            one,
            other,
        )
        for one, other in (
            ("values", "total"),
            ("values", "weight"),
            ("weights", "total"),
            ("weights", "weight"),
            ("total", "weight"),
        )
    ],
    *[
        (lambda m: public.blend_finish(m["total"], m["weight"], 0, m["out"]), one, other)
        for one, other in (("total", "out"), ("weight", "out"), ("total", "weight"))
    ],
    *[
        (lambda m, draw=draw: draw((1, 2), m["rows"], m["cols"], m["noise"]), one, "noise")
        for draw in (public.philox_uniform, public.philox_normal)
        for one in ("rows", "cols")
    ],
]


@pytest.mark.parametrize("kind", ["NumPy", "torch"])
@pytest.mark.parametrize(("call", "one", "other"), OVERLAPS)
def test_what_is_written_shares_no_memory(call, one, other, kind):
    memory = overlapping((one, other))
    if kind == "torch":
        for name in memory.keys() - {"rows", "cols", "levels", "place"}:
            memory[name] = torch.from_numpy(memory[name])
    before = np.asarray(memory[other]).copy()
    with pytest.raises(ValueError, match=r": expected memory of its own, got .* overlaps"):
        call(memory)
    np.testing.assert_array_equal(memory[other], before)


def test_what_is_too_hard_to_tell_counts_as_shared(monkeypatch):
    room = f32(12, 64, 64)
    x, out = room[0:6, 0:60:3, 1:61:5], room[3:9, 1:61:3, 0:36:3]
    monkeypatch.setattr("terramind_cube.kernels.dispatch._OVERLAP_WORK", 1)
    with pytest.raises(np.exceptions.TooHardError):
        np.shares_memory(x, out, max_work=1)
    with pytest.raises(ValueError, match=r"out: .* overlaps x"):
        public.normalize(x, mean=[1.0] * 6, std=[1.0] * 6, out=out)


@pytest.mark.parametrize("strides", [(4, 4), (8, 4), (4, 8), (0, 4), (-8, 4), (12, 8)])
def test_out_has_each_number_in_a_place_of_its_own(strides):
    out = as_strided(f32(64)[32:], (1, 4, 4), (4, *strides))
    tensor = torch.ones(64).as_strided((1, 4, 4), (1, *(abs(step) // 4 for step in strides)))
    windows = torch.ones(8).unfold(0, 4, 1)[None, :4]
    for x, given in ((u16(1, 4, 4), out), (TENSOR, tensor), (TENSOR, windows)):
        with pytest.raises(ValueError, match=r"out: .* that repeats elements"):
            public.normalize(x, **ONE, out=given)


@pytest.mark.parametrize("cut", [np.s_[:, ::2, ::-3], np.s_[:, ::-1, 2:6], np.s_[:, :1, 5:6]])
def test_out_may_be_any_part_of_an_array(cut):
    out = f32(1, 8, 12)[cut].swapaxes(1, 2)
    public.normalize(u16(*out.shape), **ONE, out=out)
    assert (out == 0).all()


@pytest.mark.parametrize("name", ["total", "weight", "values", "weights", "out"])
def test_sums_are_arrays(name):
    memory = {
        "values": f32(2, 4, 4), "weights": f32(4, 4), "total": f32(2, 4, 4), "weight": f32(4, 4),
        "out": f32(2, 4, 4), name: None,
    }  # fmt: skip
    message = f"^{name}: expected a NumPy array, .* got NoneType"
    if name != "out":
        with pytest.raises(TypeError, match=message):
            public.blend_accumulate(
                memory["values"], memory["weights"], (0,) * 6, memory["total"], memory["weight"]
            )
    if name in ("total", "weight", "out"):
        with pytest.raises(TypeError, match=message):
            public.blend_finish(memory["total"], memory["weight"], 0, memory["out"])


@pytest.mark.parametrize("wrap", [xr.DataArray, da.from_array])
def test_the_way_from_a_cube_is_named(wrap):
    with pytest.raises(TypeError, match=r"x: .*: use cube.terramind.normalize, or its values\."):
        public.normalize(wrap(u16(1, 4, 4)), **ONE)


# Numbers.


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ((-10, 300), [0, 7, 255]),
        ((0.5, 9.7), [1, 7, 9]),
        ((-math.inf, math.inf), [0, 7, 255]),
        ((6.5, 7.5), [7, 7, 7]),
        (np.array([2, 9]), [2, 7, 9]),
    ],
)
def test_limits_of_whole_numbers_are_those_between(limits, expected):
    x = np.array([[[-1e9, 7, 1e9]]], np.float32)
    found = public.denormalize(x, mean=[0], std=[1], dtype="uint8", limits=limits)
    np.testing.assert_array_equal(found, [[expected]])


@pytest.mark.parametrize("limits", [(-10, -5), (256, 300), (0.2, 0.8), (-0.5, -0.1)])
def test_limits_leave_some_number(limits):
    with pytest.raises(ValueError, match="limits: expected some uint8 between them, got"):
        public.denormalize(f32(1, 4, 4), **ONE, dtype="uint8", limits=limits)


def test_limits_beyond_float32_bound_nothing():
    x = np.array([[[-1e9, 7, 1e9]]], np.float32)
    found = public.denormalize(x, mean=[0], std=[1], limits=(-1e300, 1e300))
    np.testing.assert_array_equal(found, x)


def test_power_has_no_offset():
    with pytest.raises(ValueError, match=r"offset: expected 0 with from_power, got -3: .* power"):
        public.normalize(f32(1, 4, 4), **ONE, offset=-3, from_power=True)
    public.normalize(f32(1, 4, 4), **ONE, offset=0.0, from_power=True)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"mean": [1e300], "std": [1e300]}, r"std: .* 1.18e-38 .. 8.51e\+37.*1e\+300"),
        ({"mean": [0], "std": [1e-40]}, "std: .* 1.18e-38"),
        ({"mean": [1e39]}, r"mean: .* 3.4e\+38, which float32 holds, got \[1e\+39\]"),
        ({"mean": [4e38]}, r"mean: .* 3.4e\+38"),
        ({"offset": 1e300}, r"mean - offset .* offset 1e\+300"),
        ({"mean": [1.7e308], "offset": -1.7e308}, "mean - offset"),
        ({"mean": ["1"]}, r"mean: expected 1 numbers, got \['1'\]"),
        ({"mean": "1"}, "mean: "),
        ({"mean": [1j]}, "mean: "),
        ({"mean": None}, "mean: "),
        ({"mean": 1.0}, "mean: "),
        ({"mean": [[1.0], [1.0, 2.0]]}, "mean: "),
        ({"std": np.ma.masked_less([1.0], 2)}, "std: "),
        ({"std": [1j]}, "std: "),
        ({"nodata": "1"}, "nodata: expected a number, got '1'"),
        ({"nodata": "abc"}, "nodata: "),
        ({"nodata": [1]}, "nodata: "),
        ({"nodata": 1j}, "nodata: "),
        ({"offset": None}, "offset: expected a number, got None"),
        ({"offset": [1]}, "offset: "),
        ({"from_power": "no"}, "from_power: expected True or False, got 'no'"),
        ({"from_power": 1}, "from_power: "),
        ({"corners": [(0, 0, 0), (0, 0)], "tile_px": 4}, "corners: expected whole numbers of"),
        ({"corners": "abc", "tile_px": 4}, "corners: "),
        ({"corners": [(0, 0, 0)], "tile_px": "4"}, "tile_px: expected a positive whole number"),
        ({"patch_px": 1.0}, "patch_px: expected a positive whole number, got 1.0"),
        ({"patch_px": True}, "patch_px: expected a positive whole number, got True"),
        ({"dtype": float}, "dtype: expected 'float32' or 'bfloat16'"),
        ({"dtype": None}, "dtype: "),
    ],
)  # fmt: skip
def test_normalize_takes_numbers_alone(how, message):
    out = f32(1, 4, 4)
    with pytest.raises(ValueError, match=message):
        public.normalize(u16(1, 4, 4), **{**ONE, **how}, out=out)
    assert (out == 1).all()


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"limits": 5}, "limits: expected a least and a greatest value, got 5"),
        ({"limits": (None, 1)}, "limits: "),
        ({"limits": "ab"}, "limits: "),
        ({"limits": (1, 2, 3)}, r"limits: .* got \(1, 2, 3\)"),
        ({"nodata": "1"}, "nodata: expected a number"),
        ({"nodata": [1]}, "nodata: "),
        ({"first_row": 1.7}, "first_row: expected a whole number, got 1.7"),
        ({"first_row": "1"}, "first_row: "),
        ({"mean": [1e39]}, "mean: "),
        ({"std": [1e39]}, "std: "),
        ({"dtype": np.int64}, "dtype: "),
    ],
)
def test_denormalize_takes_numbers_alone(how, message):
    out = f32(1, 8, 4)
    with pytest.raises(ValueError, match=message):
        public.denormalize(f32(1, 4, 4), **{**ONE, **how}, out=out)
    assert (out == 1).all()


@pytest.mark.parametrize("nodata", ["1", [1], 1j, "abc"])
def test_pixels_are_compared_with_numbers(nodata):
    with pytest.raises(ValueError, match="nodata: expected a number, got"):
        public.valid_pixels(u16(1, 4, 4), nodata=nodata)


@pytest.mark.parametrize(
    "levels",
    [
        None, 8, math.nan, [[8, 8]], ["8", "8"], "88", (8.5, 8), (2**22 + 1, 2), ((8,), (8, 8)),
        iter((8, 8)), torch.tensor([8.0, 8.0], requires_grad=True),
    ],
)  # fmt: skip
def test_levels_are_whole_numbers_that_are_counted_exactly(levels):
    for call in (public.fsq_quantize, public.fsq_dequantize):
        x = f32(1, 2, 4, 4) if call is public.fsq_quantize else np.ones((1, 4, 4), np.int64)
        with pytest.raises(ValueError, match=r"levels: expected whole numbers in 2 .. 4194304"):
            call(x, levels)


def test_the_greatest_levels_come_back():
    ids = np.array([[0, 1, 2**22 - 1, 2**21]])
    codes = public.fsq_dequantize(ids, (2**22,))
    np.testing.assert_array_equal(np.rint(codes[:, 0] * np.float64(2**22 - 1)), ids)


@pytest.mark.parametrize(
    "key", [(1.9, 2), ("1", "2"), "12", None, 5, (1, 2, 3), (1, -1), (1, 2**70)]
)
def test_keys_are_words(key):
    for draw in (public.philox_uniform, public.philox_normal):
        with pytest.raises(ValueError, match="key: expected two words of 32 bits, got"):
            draw(key, np.arange(4), np.arange(4), f32(4, 2))


@pytest.mark.parametrize("place", [(0.9, 0, 0, 0, 4, 4), "abcdef", None, 6, (0, 0, "0", 0, 4, 4)])
def test_places_are_whole_numbers(place):
    total = f32(1, 4, 4)
    with pytest.raises(ValueError, match="place: expected 6 whole numbers, got"):
        public.blend_accumulate(f32(1, 4, 4), f32(4, 4), place, total, f32(4, 4))
    assert (total == 1).all()


@pytest.mark.parametrize("first_row", [1.7, "1", None])
def test_rows_to_finish_are_whole_numbers(first_row):
    with pytest.raises(ValueError, match="first_row: expected a whole number, got"):
        public.blend_finish(f32(1, 4, 4), f32(4, 4), first_row, f32(1, 2, 4))


def test_numbers_of_any_library_are_taken():
    x = images = np.arange(16, dtype=np.uint16).reshape(1, 4, 4)
    expected = public.normalize(images, mean=[3.0], std=[2.0], nodata=5, patch_px=2)
    for wrap in (np.int64, np.array, torch.tensor):
        found = public.normalize(
            x, mean=np.array([3]), std=torch.tensor([2.0]), nodata=wrap(5), patch_px=wrap(2)
        )
        np.testing.assert_array_equal(found, expected)
        tiles = public.normalize(TENSOR, **ONE, corners=[(0, wrap(1), 0)], tile_px=wrap(3))
        assert tiles.shape == (1, 1, 3, 3)


@pytest.mark.parametrize("dtype", ["float32", np.float32, np.dtype("float32"), torch.float32])
def test_dtypes_may_be_those_of_a_library(dtype):
    for x in (f32(1, 4, 4), TENSOR):
        assert public.normalize(x, **ONE, dtype=dtype).dtype == x.dtype
        assert public.denormalize(x, **ONE, dtype=dtype).dtype == x.dtype
    found = public.normalize(TENSOR, **ONE, dtype=torch.bfloat16)
    assert found.dtype == torch.bfloat16
    assert public.denormalize(f32(1, 4, 4), **ONE, dtype=np.uint8).dtype == np.uint8


@pytest.mark.parametrize("nodata", [-9999, 65536, 0.5, math.nan, 1e300])
def test_what_no_pixel_can_be_masks_none(nodata):
    x = np.array([[[0, 1, 65535]]], np.uint16)
    np.testing.assert_array_equal(
        public.normalize(x, mean=[0], std=[1], nodata=nodata), x.astype(np.float32)
    )
    assert public.valid_pixels(x, nodata=nodata).all()


# Without a place to keep what was compiled.


def test_without_a_folder_for_the_cache_kernels_are_compiled_anew():
    code = """
import warnings
from numba.core import caching

caching.CacheImpl._locator_classes = []
with warnings.catch_warnings(record=True) as seen:
    warnings.simplefilter("always")
    import terramind_cube.kernels as kernels
messages = [str(warning.message) for warning in seen if warning.category is UserWarning]
assert len(messages) == 1 and "NUMBA_CACHE_DIR" in messages[0], messages
import numpy as np
ids = np.array([[1, 5]])
assert kernels.fsq_dequantize(ids, (2, 4)).tolist() == [[[1, 1], [0, np.float32(2 / 3)]]]
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
