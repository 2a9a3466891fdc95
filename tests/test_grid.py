"""Tiles cover every pixel, are anchored in the world, and agree between overlapping areas."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from terramind_cube.grid import AxisTiles, Region, TileGrid, regions


def area(height, width, row, col, resolution=10.0):
    affine = Affine(resolution, 0, col * resolution, 0, -resolution, -row * resolution)
    return GeoBox((height, width), affine, "EPSG:32632")


def grid(geobox, overlap=32, tile=224, patch=16):
    return TileGrid.over(geobox, tile_px=tile, patch_px=patch, overlap_px=overlap)


axes = st.builds(
    AxisTiles,
    length_px=st.integers(1, 1500),
    world_px=st.integers(-20_000, 20_000).map(lambda cell: cell * 16),
    tile_px=st.just(224),
    patch_px=st.just(16),
    overlap_px=st.integers(0, 13).map(lambda patches: patches * 16),
    is_aligned=st.booleans(),
)


@given(axes)
def test_tiles_cover_the_area_in_whole_patches_and_stay_inside_it(axis):
    covered = np.zeros(axis.padded_px, bool)
    for start in axis.starts:
        assert start % 16 == 0
        assert 0 <= start <= axis.padded_px - 224
        covered[start : start + 224] = True
    assert covered[: axis.length_px].all()
    assert axis.padded_px - axis.length_px < 16 or axis.padded_px == 224


@given(axes, st.integers(0, 40), st.integers(1, 60))
def test_overlapping_areas_agree_on_tiles_wholly_inside_both(axis, shift_cells, length_cells):
    first = AxisTiles(axis.length_px // 16 * 16 + 16, axis.world_px, 224, 16, axis.overlap_px, True)
    shift = shift_cells * 16
    second = AxisTiles(length_cells * 16, axis.world_px + shift, 224, 16, axis.overlap_px, True)
    stride = 224 - axis.overlap_px
    low = max(first.world_px, second.world_px)
    high = min(first.world_px + first.length_px, second.world_px + second.length_px)
    lattice = {w for w in range(low, high - 223) if w % stride == 0}
    assert lattice <= {s + first.world_px for s in first.starts}
    assert lattice <= {s + second.world_px for s in second.starts}


def test_an_area_of_one_tile_is_one_tile_wherever_it_lies():
    for col in (0, 16, 100 * 16, -37 * 16):
        assert grid(area(224, 224, col, col)).tile_count == 1
    off_lattice = GeoBox((224, 224), Affine(10, 0, 549892.697, 0, -10, 6344077.614), "EPSG:32632")
    assert grid(off_lattice).tile_count == 1


def test_tile_starts_of_known_areas():
    assert grid(area(896, 896, 0, 192)).x.starts == (0, 192, 384, 576, 672)
    assert grid(area(896, 896, 0, 224 * 3), overlap=0).x.starts == (0, 224, 448, 672)
    assert grid(area(896, 896, 0, 16), overlap=0).x.starts == (0, 208, 432, 656, 672)
    assert grid(area(230, 100, 0, 0)).y.starts == (0, 16)
    assert grid(area(230, 100, 0, 0)).x.padded_px == 224


def test_world_cells_follow_the_crs_with_rows_downwards():
    rows, cols = grid(area(224, 448, -480_000, 32_000)).cells((0, 192))
    np.testing.assert_array_equal(rows, np.arange(-30_000, -30_000 + 14))
    np.testing.assert_array_equal(cols, np.arange(2_000 + 12, 2_000 + 12 + 14))


def test_window_of_a_region_holds_its_tiles_within_the_area():
    tiles = grid(area(2000, 2000, 0, 0))
    region = Region(896, 1792, 0, 896)
    window = tiles.window(region)
    for y, x in tiles.tiles(region):
        assert window.y0 <= y
        assert min(y + 224, 2000) <= window.y1
        assert window.x0 <= x
        assert min(x + 224, 2000) <= window.x1
    assert window == Region(768, 2000, 0, 992)


def test_tiles_come_row_by_row():
    starts = grid(area(500, 700, 0, 0)).tiles(Region(0, 500, 0, 700))
    assert list(starts) == sorted(starts)


def test_regions_tile_an_area_exactly_once():
    count = np.zeros((1000, 905), int)
    for region in regions((1000, 905), 448):
        count[region.y0 : region.y1, region.x0 : region.x1] += 1
    assert (count == 1).all()


@pytest.mark.parametrize("overlap", [-16, 8, 224, 300])
def test_overlaps_that_do_not_fit_are_refused(overlap):
    with pytest.raises(ValueError, match="multiple of the model's patch"):
        grid(area(448, 448, 0, 0), overlap=overlap)


def test_grids_that_are_not_north_up_are_refused():
    south_up = GeoBox((64, 64), Affine(10, 0, 0, 0, 10, 0), "EPSG:32632")
    with pytest.raises(ValueError, match="north-up"):
        grid(south_up)
