"""Small scenes on disk and their items, for tests of cubes."""

import re
import warnings
from contextlib import contextmanager
from datetime import UTC, datetime

import numpy as np
import pystac
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox

from terramind_cube.modalities import MODALITIES

CRS = "EPSG:32632"
LEFT, TOP = 500160.0, 5326400.0  # on the lattice of 160 m cells
SIZE_PX = 48
S2 = MODALITIES["S2L2A"]


@contextmanager
def warns_user(match):
    """`pytest.warns` would raise the third parties' warnings again, without their module."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UserWarning)
        yield
    assert [w for w in caught if re.search(match, str(w.message))]


def write_tiff(path, pixels, *, left=LEFT, top=TOP, resolution_m=10.0, crs=CRS, **profile):
    pixels = np.atleast_3d(pixels.T).T
    profile = {"driver": "GTiff", "crs": crs, **profile}
    with rasterio.open(
        path,
        "w",
        count=pixels.shape[0],
        height=pixels.shape[1],
        width=pixels.shape[2],
        dtype=pixels.dtype,
        transform=Affine(resolution_m, 0, left, 0, -resolution_m, top),
        **profile,
    ) as dataset:
        dataset.write(pixels)
    return path


def make_item(item_id, when, assets, *, collection=None, raster=None, properties=None):
    """An item whose geometry is the footprint of its first file; `when` may be a pair."""
    with rasterio.open(next(iter(assets.values()))) as dataset:
        footprint = GeoBox.from_rio(dataset).extent.to_crs("EPSG:4326")
    start, end = when if isinstance(when, tuple) else (None, None)
    item = pystac.Item(
        item_id,
        footprint.json,
        list(footprint.boundingbox),
        None if start else when,
        dict(properties or {}),
        start_datetime=start,
        end_datetime=end,
        collection=collection,
    )
    for key, href in assets.items():
        fields = {} if raster is None else {"raster:bands": [raster]}
        item.add_asset(key, pystac.Asset(str(href), media_type="image/tiff", extra_fields=fields))
    return item


def day(text):
    return datetime.fromisoformat(text).replace(hour=10, tzinfo=UTC)


def s2_item(folder, item_id, when, *, value=1000, raster=None, properties=None, **where):
    """A scene of one file with all bands: band i is `value + i` everywhere."""
    values = np.arange(12, dtype="uint16") + value
    pixels = np.broadcast_to(values[:, None, None], (12, SIZE_PX, SIZE_PX))
    path = write_tiff(folder / f"{item_id}.tif", pixels, nodata=0, **where)
    item = make_item(item_id, when, {"data": path}, collection="my-s2l2a", properties=properties)
    if raster is not None:
        item.assets["data"].extra_fields["raster:bands"] = [raster] * 12
    return item


def s1_item(folder, item_id, when, vv=-10.0, *, raster=None, collection="my-s1rtc"):
    files = {
        band: write_tiff(
            folder / f"{item_id}_{band}.tif", np.full((SIZE_PX, SIZE_PX), value, "float32")
        )
        for band, value in (("vv", vv), ("vh", vv / 2))
    }
    return make_item(item_id, when, files, collection=collection, raster=raster)


def grid(size_px=SIZE_PX, left=LEFT, top=TOP, crs=CRS):
    return GeoBox((size_px, size_px), Affine(10, 0, left, 0, -10, top), crs)
