"""Real tiles, described by STAC items in three ways, come through untouched."""

from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pystac
import pytest
import rasterio
from odc.geo.geobox import GeoBox

from terramind_cube.cube.load import load_cube

TILES = {
    "282D_485L_3_3": (datetime(2021, 7, 23, 13, 40, tzinfo=UTC), datetime(2021, 7, 21, tzinfo=UTC)),
    "433D_629L_3_1": (datetime(2020, 4, 8, 14, 20, tzinfo=UTC), datetime(2020, 4, 11, tzinfo=UTC)),
    "609U_541L_3_0": (datetime(2020, 1, 11, 16, 50, tzinfo=UTC), datetime(2020, 1, 11, tzinfo=UTC)),
}
MODALITIES = ("S2L2A", "S1RTC", "DEM")


@pytest.fixture(scope="module")
def folder():
    path = Path(__file__).resolve().parents[2] / "shared" / "data" / "terramesh"
    if not path.is_dir():
        path = Path(__file__).resolve().parents[3] / "shared" / "data" / "terramesh"
    if not path.is_dir():
        pytest.skip("shared/ with the TerraMesh tiles is not beside this clone")
    return path


def make_items(folder, tile, layout):
    """One item per modality, or one with all of them, from multi-band files without metadata."""
    scene_time, radar_time = TILES[tile]
    with rasterio.open(folder / "S2L2A" / f"{tile}.tif") as dataset:
        footprint = GeoBox.from_rio(dataset).extent.to_crs("EPSG:4326")

    def item(item_id, when, collection, assets):
        made = pystac.Item(
            item_id, footprint.json, list(footprint.boundingbox), when, {}, collection=collection
        )
        for key, modality in assets.items():
            made.add_asset(key, pystac.Asset(str(folder / modality / f"{tile}.tif")))
        return made

    if layout == "one item":
        return [item(tile, scene_time, None, {name: name for name in MODALITIES})]
    return [
        item(
            f"{tile}-{name}",
            radar_time if name == "S1RTC" else scene_time,
            f"terramesh-{name.lower()}" if layout == "collections" else "tiles",
            {"data" if layout == "collections" else name: name},
        )
        for name in MODALITIES
    ]


@pytest.mark.parametrize(
    ("tile", "layout"),
    [
        ("282D_485L_3_3", "collections"),
        ("433D_629L_3_1", "asset keys"),
        ("609U_541L_3_0", "one item"),
        ("609U_541L_3_0", "collections"),
    ],
)
def test_tile_is_read_pixel_by_pixel_on_its_own_grid(folder, tile, layout):
    with rasterio.open(folder / "S2L2A" / f"{tile}.tif") as dataset:
        geobox = GeoBox.from_rio(dataset)
    items = make_items(folder, tile, layout)
    cube = load_cube(items, geobox=geobox, modalities=MODALITIES, chunks={"y": 150, "x": 224})
    for name in MODALITIES:
        with rasterio.open(folder / name / f"{tile}.tif") as dataset:
            expected = dataset.read()
        values = cube[name].values.reshape(expected.shape)
        np.testing.assert_array_equal(values, expected.astype(values.dtype))
    assert cube["S2L2A"].dtype == "uint16"
    assert cube["S1RTC"].dtype == "float32"
    assert cube["DEM"].dims == ("y", "x")
    scene_time, radar_time = TILES[tile]
    expected_time = scene_time if layout == "one item" else radar_time
    assert cube["S1RTC_time"].values[0] == np.datetime64(expected_time.replace(tzinfo=None))
    np.testing.assert_allclose(
        (cube["x"].values[0] - 5, cube["y"].values[0] + 5),
        (geobox.affine.c, geobox.affine.f),
        atol=1e-6,
    )
