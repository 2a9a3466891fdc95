"""Picking and averaging pixels of another raster: compiled and defined alike."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from terramind_cube.kernels import cpu, reference


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
