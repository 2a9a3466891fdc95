"""Fast equals reference, and the reference is what it claims to be (promise 6)."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import terramind_cube.kernels as public
from terramind_cube.kernels import cpu, reference

DTYPES = st.sampled_from(["uint8", "uint16", "int16", "float32"])


def constants(channels):
    rng = np.random.default_rng(channels)
    return rng.uniform(0, 3000, channels), rng.uniform(1, 2000, channels)


def words(*values):
    return tuple(np.array([value], np.uint64) for value in values)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(counter, key, expected):
    found = reference.philox(words(*counter), key)
    assert tuple(int(word[0]) for word in found) == expected


@settings(deadline=None, max_examples=30)
@given(
    key=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    cells=hnp.arrays(np.int64, st.tuples(st.integers(0, 6), st.just(2)),
                     elements=st.integers(-(2**33), 2**33)),
    count=st.integers(1, 23),
)  # fmt: skip
def test_uniform_numbers_are_equal_on_every_engine(key, cells, count):
    ours, theirs = (np.full((len(cells), count), np.nan, np.float32) for _ in range(2))
    cpu.philox_uniform(key, cells[:, 0], cells[:, 1], ours)
    reference.philox_uniform(key, cells[:, 0], cells[:, 1], theirs)
    np.testing.assert_array_equal(ours, theirs)
    assert ((ours > 0) & (ours < 1)).all()


@settings(deadline=None, max_examples=30)
@given(
    key=st.tuples(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1)),
    cells=hnp.arrays(np.int64, st.tuples(st.integers(0, 6), st.just(2)),
                     elements=st.integers(-(2**33), 2**33)),
    count=st.integers(1, 23),
    is_strided=st.booleans(),
)  # fmt: skip
def test_normal_numbers_are_nearly_equal_on_every_engine(key, cells, count, is_strided):
    ours, theirs = (np.full((len(cells), count), np.nan, np.float32) for _ in range(2))
    if is_strided:
        ours = np.repeat(ours, 2, axis=1)[:, ::2]
    cpu.philox_normal(key, cells[:, 0], cells[:, 1], ours)
    reference.philox_normal(key, cells[:, 0], cells[:, 1], theirs)
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


ENGINES = pytest.mark.parametrize("engine", [cpu, reference], ids=["cpu", "reference"])


def normal(engine, cells=4000, count=50):
    out = np.full((cells, count), np.nan, np.float32)
    engine.philox_normal((3, 5), np.arange(cells), np.arange(cells)[::-1].copy(), out)
    return out


@ENGINES
def test_normal_numbers_are_those_of_box_and_muller(engine):
    uniform = np.empty((6, 8), np.float32)
    cells = np.arange(6)
    reference.philox_uniform((3, 5), cells, cells[::-1].copy(), uniform)
    radius = np.sqrt(-2 * np.log(uniform[:, ::2].astype(np.float64)))
    angle = 2 * np.pi * uniform[:, 1::2].astype(np.float64)
    for count in (8, 7, 1):
        found = normal(engine, 6, count)
        expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(6, 8)
        np.testing.assert_allclose(found, expected[:, :count], rtol=0, atol=2e-6)


@ENGINES
@pytest.mark.parametrize("count", [50, 51])
def test_normal_numbers_have_the_moments_of_a_normal_distribution(engine, count):
    found = normal(engine, count=count).astype(np.float64)
    assert np.isfinite(found).all()
    assert abs(found.mean()) < 0.01
    assert abs(found.std() - 1) < 0.01
    assert abs((found**3).mean()) < 0.04
    assert abs((found**4).mean() - 3) < 0.08
    inside = [(np.abs(found) < bound).mean() for bound in (0.5, 1, 2, 3)]
    np.testing.assert_allclose(inside, [0.3829, 0.6827, 0.9545, 0.9973], rtol=0, atol=0.004)


@ENGINES
def test_normal_numbers_are_independent(engine):
    found = normal(engine).astype(np.float64)
    for first, second in (
        (found[:-1], found[1:]),  # cells
        (found[:, :-1:2], found[:, 1::2]),  # the two of a pair
        (found[:, 1:-1:2], found[:, 2::2]),  # pairs
    ):
        for power in (1, 2):  # a pair shares its radius
            correlation = np.corrcoef(first.ravel() ** power, second.ravel() ** power)[0, 1]
            assert abs(correlation) < 0.012


@settings(deadline=None, max_examples=60)
@given(
    x=DTYPES.flatmap(
        lambda dtype: hnp.arrays(
            dtype, hnp.array_shapes(min_dims=4, max_dims=4, min_side=0, max_side=5)
        )
    ),
    nodata=st.sampled_from([None, 0.0, float("nan"), -32768.0]),
    is_strided=st.booleans(),
)
def test_normalize_equals_the_reference_bit_for_bit(x, nodata, is_strided):
    mean, std = constants(x.shape[1])
    shift, scale = mean.astype(np.float32), (1 / std).astype(np.float32)
    if is_strided:
        x = np.repeat(x, 2, axis=-1)[..., ::2]
    expected = np.empty(x.shape, np.float32)
    with np.errstate(all="ignore"):
        reference.normalize(x, shift, scale, nodata, expected)
    found = np.empty(x.shape, np.float32)
    cpu.normalize(x, shift, scale, nodata, found)
    np.testing.assert_array_equal(found, expected)


def test_public_normalize_is_the_formula():
    rng = np.random.default_rng(0)
    x = rng.integers(1, 12000, (2, 12, 16, 20)).astype(np.uint16)
    x[1, 4, 3, 5] = 0
    mean, std = constants(12)
    found = public.normalize(x, mean=mean, std=std, nodata=0, offset=-1000)
    expected = (x.astype(np.float64) - 1000 - mean[:, None, None]) / std[:, None, None]
    expected[1, :, 3, 5] = 0
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    assert (found[1, :, 3, 5] == 0).all()


def test_out_is_written_to_and_returned():
    x = np.ones((3, 4, 4), np.float32)
    out = np.empty_like(x)
    result = public.normalize(x, mean=[0, 1, 2], std=[1, 1, 2], out=out)
    assert result is out
    np.testing.assert_array_equal(out[:, 0, 0], [1, 0, -0.5])


@pytest.mark.parametrize(
    ("x", "arguments", "message"),
    [
        (np.zeros((2, 4, 4), np.uint16), {"mean": [1.0], "std": [1.0]}, "2 channels"),
        (np.zeros((2, 4, 4), np.uint16), {"mean": [1.0] * 2, "std": [1.0, 0]}, "positive"),
        (np.zeros((4, 4), np.uint16), {"mean": [1.0], "std": [1.0]}, "shape"),
        (np.zeros((1, 4, 4), np.int64), {"mean": [1.0], "std": [1.0]}, "int64"),
        (
            np.zeros((1, 4, 4), np.uint8),
            {"mean": [1.0], "std": [1.0], "out": np.zeros((1, 4, 5), np.float32)},
            "out must be",
        ),
    ],
)
def test_arrays_that_do_not_fit_are_refused(x, arguments, message):
    with pytest.raises(ValueError, match=message):
        public.normalize(x, **arguments)


def test_other_array_libraries_are_named():
    with pytest.raises(TypeError, match="list"):
        public.normalize([[[1]]], mean=[1.0], std=[1.0])


@st.composite
def lattices(draw):
    """A small grid in a raster: nodes that turn, stretch and leave it, cells to leave out."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    height, width = draw(st.integers(1, 70)), draw(st.integers(1, 70))
    top, left = draw(st.integers(0, 31)), draw(st.integers(0, 31))
    cells = -(-(top + height) // 32), -(-(left + width) // 32)
    j, i = np.mgrid[: cells[0] + 1, : cells[1] + 1] * 32.0
    turn, scale = draw(st.floats(-0.5, 0.5)), draw(st.floats(0.3, 2.0))
    nodes = np.stack([j - turn * i, i + turn * j]) * scale + rng.uniform(-20, 20, (2, 1, 1))
    shape = draw(st.integers(1, 90)), draw(st.integers(1, 90))
    is_bent = rng.random(cells) < draw(st.sampled_from([0.0, 0.3]))
    return rng, nodes, is_bent, (top, left, 0, 0, *shape), (height, width)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@given(lattice=lattices())
@settings(max_examples=40, deadline=None)
def test_sampling_twins_agree(dtype, lattice):
    rng, nodes, is_bent, frame, shape = lattice
    fill = float("nan") if dtype == "float32" else 0
    pixels = rng.integers(1, 200, frame[4:]).astype(dtype)
    pixels[rng.random(pixels.shape) < 0.2] = fill
    for name, further in (("pick", ()), ("blend", (fill,))):
        outs = [np.full(shape, fill, dtype) for _ in range(2)]
        for room, out in zip((reference, cpu), outs, strict=True):
            getattr(room, name)(pixels, nodes, is_bent, frame, *further, out)
        if name == "pick" or dtype != "float32":
            np.testing.assert_array_equal(*outs)
        else:
            np.testing.assert_allclose(*outs, rtol=1e-6)


def test_sampling_of_part_of_a_raster_never_leaves_it():
    nodes = np.stack(np.mgrid[:2, :2] * 32.0)
    is_bent = np.zeros((1, 1), bool)
    pixels = np.ones((4, 4), "uint16")
    out = np.zeros((32, 32), "uint16")
    # The window holds less than is needed: what it lacks stays as it was.
    cpu.pick(pixels, nodes, is_bent, (0, 0, 10, 10, 32, 32), out)
    assert out.sum() == 16
    assert (out[10:14, 10:14] == 1).all()
