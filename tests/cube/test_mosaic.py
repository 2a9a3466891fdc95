"""Lazy mosaics: what is in a graph, and what its tasks read."""

import dask
import numpy as np
import pytest
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from shapely.geometry import box, mapping

from terramind_cube.cube.assets import Reading
from terramind_cube.cube.chunking import ChunkedGrid
from terramind_cube.cube.mosaic import ItemSource, Mosaic, lazy_mosaic
from terramind_cube.cube.radiometry import Radiometry
from terramind_cube.stac.bands import BandLocation
from tests.cube.scenes import CRS, LEFT, SIZE_PX, TOP, grid, write_tiff

DN = Radiometry("reflectance", "uint16", 0)
PLAIN = Mosaic("S2L2A", "uint16", 0, Reading())


def source(folder, name, pixels, left=LEFT, footprint=None):
    path = write_tiff(folder / f"{name}.tif", pixels, left=left, nodata=0)
    where = GeoBox(pixels.shape[-2:], Affine(10, 0, left, 0, -10, TOP), CRS)
    place = BandLocation("data", str(path), 1)
    return ItemSource(name, (place,), DN, "nearest", (None,), footprint or where)


@settings(max_examples=80, deadline=None)
@given(
    left=st.integers(-60, 160), top=st.integers(-60, 160), width=st.integers(1, 90),
    height=st.integers(1, 90), chunk=st.integers(7, 120),
)  # fmt: skip
def test_every_chunk_with_a_pixel_is_touched(left, top, width, height, chunk):
    area = ChunkedGrid(grid(100), {"y": chunk, "x": chunk})
    item = GeoBox((height, width), Affine(10, 0, LEFT + 10 * left, 0, -10, TOP - 10 * top), CRS)
    touched = set(area.touched(item))
    edges = [np.cumsum((0, *lengths)) for lengths in area.chunks]
    for y in range(len(area.chunks[0])):
        for x in range(len(area.chunks[1])):
            rows = max(edges[0][y], top), min(edges[0][y + 1], top + height)
            columns = max(edges[1][x], left), min(edges[1][x + 1], left + width)
            if rows[0] < rows[1] and columns[0] < columns[1]:
                assert (y, x) in touched
    # And hardly more: pixels three away are out of reach.
    far = GeoBox((height, width), Affine(10, 0, LEFT + 1040, 0, -10, TOP - 10 * top), CRS)
    assert area.touched(far) == []


def test_geometries_and_other_crs_are_tested_in_degrees():
    area = ChunkedGrid(grid(2000), {"y": 500, "x": 500})
    corner = area.geobox[:200, :200].extent.to_crs("EPSG:4326")
    small = GeoBox((20, 20), Affine(1e-3, 0, corner.boundingbox.left, 0, -1e-3,
                                    corner.boundingbox.top), "EPSG:4326")  # fmt: skip
    assert (0, 0) in area.touched(small)
    assert (3, 3) not in area.touched(small)
    assert (0, 0) in area.touched(corner.json)
    assert area.touched(mapping(box(100, 10, 101, 11))) == []
    assert len(area.touched(None)) == 16


def test_graph_has_a_task_for_each_chunk_and_no_more(tmp_path):
    pixels = np.ones((SIZE_PX, SIZE_PX), "uint16")
    west = source(tmp_path, "west", pixels)
    east = source(tmp_path, "east", pixels * 2, left=LEFT + 480)
    area = ChunkedGrid(grid(96), {"y": 48, "x": 32})
    cube = lazy_mosaic([[west, east], [west]], [0, 1, None, 0], 1, area, PLAIN)
    assert cube.shape == (4, 1, 96, 96)
    graph = dict(cube.__dask_graph__())
    assert len(graph) == 4 * 2 * 3
    # Sources stand with the chunks that they touch alone, and dates share what is the same.
    counts = [len(graph[(cube.name, 0, 0, 0, x)].args[0].sources) for x in range(3)]
    assert counts == [1, 2, 1]
    assert all(graph[(cube.name, 3, 0, 0, x)].dependencies for x in range(3))
    values = cube.compute()
    np.testing.assert_array_equal(values[0, 0, 0, [0, 47, 48, 95]], [1, 1, 2, 2])
    np.testing.assert_array_equal(values[1, 0, 0, [0, 47, 48, 95]], [1, 1, 0, 0])
    np.testing.assert_array_equal(values[3], values[0])
    assert not values[2].any()


def test_lower_sources_are_not_read_where_upper_ones_are_whole(tmp_path):
    whole = source(tmp_path, "whole", np.ones((SIZE_PX, SIZE_PX), "uint16"))
    lower = source(tmp_path, "lower", np.ones((SIZE_PX, SIZE_PX), "uint16"))
    (tmp_path / "lower.tif").unlink()
    area = ChunkedGrid(grid(), {"y": -1, "x": -1})
    assert lazy_mosaic([[whole, lower]], [0], 1, area, PLAIN).compute().all()
    with pytest.raises(OSError, match=r"lower\.tif of item 'lower'"):
        lazy_mosaic([[lower, whole]], [0], 1, area, PLAIN).compute()


def test_holes_are_filled_pixel_by_pixel_from_below(tmp_path):
    rng = np.random.default_rng(0)
    layers = [rng.integers(1, 9000, (SIZE_PX, SIZE_PX)).astype("uint16") for _ in range(3)]
    for layer in layers[:2]:
        layer[rng.random(layer.shape) < 0.5] = 0
    sources = [source(tmp_path, f"s{n}", layer) for n, layer in enumerate(layers)]
    area = ChunkedGrid(grid(), {"y": 20, "x": 30})
    found = lazy_mosaic([sources], [0], 1, area, PLAIN).compute()[0, 0]
    expected = np.select([layer != 0 for layer in layers], layers)
    np.testing.assert_array_equal(found, expected)


def test_margin_is_read_and_cut_off(tmp_path):
    pixels = np.arange(1, SIZE_PX**2 + 1, dtype="uint16").reshape(SIZE_PX, SIZE_PX)
    item = source(tmp_path, "a", pixels)
    area = ChunkedGrid(grid(), {"y": 13, "x": 17})

    def neighbour(padded):
        return np.roll(padded, 2, axis=1)

    mosaic = Mosaic("x", "uint16", 0, Reading(), margin_px=2, finish=neighbour)
    found = lazy_mosaic([[item]], [0], 1, area, mosaic).compute()[0, 0]
    np.testing.assert_array_equal(found[:, 2:], pixels[:, :-2])
    assert not found[:, :2].any()


def test_names_follow_from_what_is_read(tmp_path):
    pixels = np.ones((SIZE_PX, SIZE_PX), "uint16")
    one, other = (source(tmp_path, name, pixels) for name in ("a", "b"))
    area = ChunkedGrid(grid(), {"y": 20, "x": 20})

    def name(steps, **change):
        return lazy_mosaic(
            steps, [0], 1, change.get("area", area), change.get("mosaic", PLAIN)
        ).name

    assert name([[one]]) == name([[one]])
    names = {
        name([[one]]), name([[other]]), name([[one, other]]), name([[other, one]]),
        name([[one]], area=ChunkedGrid(grid(64), {"y": 20, "x": 20})),
        name([[one]], area=ChunkedGrid(grid(), {"y": 30, "x": 20})),
        name([[one]], mosaic=Mosaic("S2L2A", "uint16", 0, Reading(on_error="nodata"))),
    }  # fmt: skip
    assert len(names) == 7
    # How a file is reached shapes no pixel.
    assert name([[one]], mosaic=Mosaic("S2L2A", "uint16", 0, Reading(sign=str.upper))) in names


def test_part_of_a_cube_reads_its_own_chunks_only(tmp_path):
    item = source(tmp_path, "a", np.ones((SIZE_PX, SIZE_PX), "uint16"))
    area = ChunkedGrid(grid(), {"y": 12, "x": 12})
    cube = lazy_mosaic([[item]], [0], 1, area, PLAIN)
    (part,) = dask.optimize(cube[..., 5:20, 0:3])
    reads = [k for k in part.__dask_graph__() if "S2L2A" in str(k)]
    assert len(reads) <= 4
