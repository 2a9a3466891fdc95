"""Pixels at the places of another raster's."""

import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from scipy.ndimage import map_coordinates

from terramind_cube.cube.sampling import sample

NAN = float("nan")
TILE = GeoBox((1200, 1200), Affine(20, 0, 300000, 0, -20, 5300040), "EPSG:32633")
DEGREES = GeoBox((900, 700), Affine(1 / 2400, 0, 12.3, 0, -1 / 3600, 47.85), "EPSG:4326")
AREA = GeoBox((300, 400), Affine(10, 0, 756000, 0, -10, 5295000), "EPSG:32632")


def exact_places(native, geobox):
    """Rows and columns of every pixel's centre by PROJ itself."""
    columns, rows = np.meshgrid(np.arange(geobox.shape.x) + 0.5, np.arange(geobox.shape.y) + 0.5)
    a = geobox.affine
    x, y = a.c + a.a * columns, a.f + a.e * rows
    transformer = Transformer.from_crs(geobox.crs.proj, native.crs.proj, always_xy=True)
    x, y = transformer.transform(x, y)
    b = native.affine
    return (y - b.f) / b.e, (x - b.c) / b.a


def reader(pixels):
    return lambda window: pixels[window[0] : window[1], window[2] : window[3]]


def sampled_places(native, geobox):
    """Rows and columns of every pixel's centre, as ramps of pixels tell them."""
    ramps = np.mgrid[: native.shape.y, : native.shape.x] + 0.5
    return [sample(native, geobox, "bilinear", NAN, reader(ramp)) for ramp in ramps]


@pytest.mark.parametrize("native", [TILE, DEGREES])
def test_places_are_those_of_proj(native):
    rows, columns = sampled_places(native, AREA)
    expected = exact_places(native, AREA)
    assert np.abs(rows - expected[0]).max() < 0.002
    assert np.abs(columns - expected[1]).max() < 0.002


def test_places_beside_a_pole_are_exact_too():
    """Meridians turn within a cell of the lattice: no interpolation there."""
    native = GeoBox((1200, 120), Affine(1 / 120, 0, -164, 0, -1 / 1200, -89), "EPSG:4326")
    polar = GeoBox((200, 200), Affine(90, 0, 1.965e6, 0, -90, 1.92e6), "EPSG:32761")
    rows, columns = sampled_places(native, polar)
    expected = exact_places(native, polar)
    # A ramp has no slope beyond the centres of the outermost pixels.
    inside = (expected[0] > 1) & (expected[0] < 1199) & (expected[1] > 1) & (expected[1] < 119)
    assert inside.sum() > 1000
    assert np.abs(rows - expected[0])[inside].max() < 0.02
    assert np.abs(columns - expected[1])[inside].max() < 0.02


@pytest.mark.parametrize(("method", "fill", "dtype"), [
    ("nearest", 0, "uint16"), ("bilinear", NAN, "float32"), ("bilinear", 0, "uint16"),
])  # fmt: skip
@settings(max_examples=15, deadline=None)
@given(
    y=st.integers(0, 200),
    x=st.integers(0, 300),
    height=st.integers(1, 90),
    width=st.integers(1, 90),
)
def test_pixels_do_not_depend_on_the_part_that_is_asked_for(
    method, fill, dtype, y, x, height, width
):
    rng = np.random.default_rng(0)
    for native in (TILE, DEGREES):
        pixels = rng.integers(1, 9000, native.shape.yx).astype(dtype)
        pixels[rng.random(pixels.shape) < 0.05] = fill
        whole = sample(native, AREA, method, fill, reader(pixels))
        part = sample(native, AREA[y : y + height, x : x + width], method, fill, reader(pixels))
        expected = whole[y : y + height, x : x + width]
        np.testing.assert_array_equal(part, expected)
        assert part.dtype == pixels.dtype


def test_nearest_pixel_holds_the_place():
    pixels = np.arange(1200 * 1200, dtype="uint32").reshape(1200, 1200) + 1
    found = sample(TILE, AREA, "nearest", 0, reader(pixels))
    rows, columns = exact_places(TILE, AREA)
    assert (found == pixels[rows.astype(int), columns.astype(int)]).mean() > 0.9999


def test_interpolation_is_that_of_scipy():
    pixels = np.random.default_rng(0).normal(500, 100, DEGREES.shape.yx).astype("float32")
    found = sample(DEGREES, AREA, "bilinear", NAN, reader(pixels))
    rows, columns = exact_places(DEGREES, AREA)
    expected = map_coordinates(pixels.astype(float), [rows - 0.5, columns - 0.5], order=1)
    np.testing.assert_allclose(found, expected, atol=0.5)
    assert np.median(np.abs(found - expected)) < 0.01


def test_invalid_neighbours_have_no_weight():
    native = GeoBox((4, 4), Affine(10, 0, 0, 0, -10, 40), "EPSG:32632")
    shifted = GeoBox((4, 4), Affine(10, 0, 5, 0, -10, 40), "EPSG:32632")
    pixels = np.array([[1, 3, NAN, 5]] * 4, "float32")
    found = sample(native, shifted, "bilinear", NAN, reader(pixels))
    # Half of either neighbour; the edge's own pixel reaches to the raster's end, and no further.
    np.testing.assert_array_equal(found[0], [2, 3, 5, NAN])
    assert sample(native, GeoBox((4, 4), Affine(10, 0, 900, 0, -10, 40), "EPSG:32632"),
                  "bilinear", NAN, reader(pixels)) is None  # fmt: skip


@pytest.mark.parametrize("west", [179.0, -180.00014])
def test_tiles_beside_the_antimeridian_are_read_from_either_side(west):
    native = GeoBox((360, 3600), Affine(1 / 3600, 0, west, 0, -1 / 3600, -16.95), "EPSG:4326")
    pixels = np.ones(native.shape.yx, "float32")
    middle = Transformer.from_crs(4326, 32701, always_xy=True).transform(180, -17)
    area = GeoBox(
        (100, 200),
        Affine(10, 0, round(middle[0], -1) - 1000, 0, -10, round(middle[1], -1)),
        "EPSG:32701",
    )
    found = np.isfinite(sample(native, area, "bilinear", NAN, reader(pixels)))
    # Half of the area lies on either side; the eastern tile begins half a pixel before the line.
    assert found.mean() == pytest.approx(0.5, abs=0.02)
    assert found[:, 0].all() == (west > 0)
    assert found[:, -1].all() == (west < 0)
