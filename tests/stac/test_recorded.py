"""Recorded responses of public providers: which file is which band, and what its numbers mean.

Every expectation is written out by hand from the metadata of the responses; how it follows stands
beside it.
"""

import copy
import re
from urllib.parse import urljoin

import pytest

from terramind_cube.modalities import MODALITIES
from terramind_cube.stac import open_catalog
from terramind_cube.stac.bands import locate_bands
from terramind_cube.stac.finding import find_bands
from terramind_cube.stac.legends import LEGENDS
from terramind_cube.stac.providers import LOADABLE
from tests.stac.memory_api import MemoryApi, connect, open_client
from tests.stac.recordings import RECORDINGS, read_items

# pystac cannot migrate the storage fields of Earth Search's Collection 1.
pytestmark = pytest.mark.filterwarnings("ignore:Could not parse bucket:UserWarning")

# Keys in the model's order of bands: B01 .. B08, B8A, B09, (B10,) B11, B12.
COLOURS = (
    "coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "nir09",
    "swir16", "swir22",
)  # fmt: skip
LABELS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
# Of the resolutions that CDSE offers, the one whose role is "sampling:original".
CDSE_KEYS = (
    "B01_60m", "B02_10m", "B03_10m", "B04_10m", "B05_20m", "B06_20m", "B07_20m", "B08_10m",
    "B8A_20m", "B09_60m", "B11_20m", "B12_20m",
)  # fmt: skip
L1C_KEYS = (*COLOURS[:10], "cirrus", *COLOURS[10:])
NATIVE_M = dict(zip(LABELS, (60, 10, 10, 10, 20, 20, 20, 10, 20, 60, 20, 20), strict=True))
NATIVE_M["B10"] = 60

# (recording, collection, modality): items of it, keys, DN to add, key of the scene classification.
OPTICAL = {
    # offset -0.1 at scale 1e-4 and no flag: -1000.
    ("earth-search", "sentinel-2-c1-l2a", "S2L2A"): (6, COLOURS, -1000, "scl"),
    # offset -0.1 as well, but earthsearch:boa_offset_applied is true.
    ("earth-search", "sentinel-2-l2a", "S2L2A"): (6, COLOURS, 0, "scl"),
    ("earth-search", "sentinel-2-l1c", "S2L1C"): (5, L1C_KEYS, -1000, None),
    # offset 0 at scale 1e-4, flag false, baseline 02.14.
    ("earth-search 2020", "sentinel-2-l2a", "S2L2A"): (1, COLOURS, 0, "scl"),
    # No raster fields and no baseline but _N0214_ in sentinel:product_id.
    ("earth-search v0", "sentinel-s2-l2a-cogs", "S2L2A"): (1, LABELS, 0, "SCL"),
    # The Planetary Computer says nothing of offsets: baselines 02.12, 04.00, 05.10, 05.11 decide.
    ("pc s2 2019", "sentinel-2-l2a", "S2L2A"): (33, LABELS, 0, "SCL"),
    ("pc s2 06VVN", "sentinel-2-l2a", "S2L2A"): (1, LABELS, 0, "SCL"),
    # With a data type and nodata in raster:bands, still without an offset.
    ("pc s2 06VVN raster", "sentinel-2-l2a", "S2L2A"): (1, LABELS, 0, "SCL"),
    ("pc s2 strip", "sentinel-2-l2a", "S2L2A"): (9, LABELS, 0, "SCL"),
    ("pc s2 35MNM", "sentinel-2-l2a", "S2L2A"): (13, LABELS, 0, "SCL"),
    ("pc s2 2022", "sentinel-2-l2a", "S2L2A"): (1, LABELS, -1000, "SCL"),
    ("pc s2 2024", "sentinel-2-l2a", "S2L2A"): (4, LABELS, -1000, "SCL"),
    ("pc s2 2025", "sentinel-2-l2a", "S2L2A"): (1, LABELS, -1000, "SCL"),
    # Scenes of 2020, reprocessed to 05.00: raster:offset -0.1 on the assets.
    ("cdse 35UPU", "sentinel-2-l2a", "S2L2A"): (1, CDSE_KEYS, -1000, "SCL_20m"),
    ("cdse", "sentinel-2-l2a", "S2L2A"): (4, CDSE_KEYS, -1000, "SCL_20m"),
    # stactools: offset 0 (02.09, 02.12) or -0.1 (05.09, 05.00, 04.00) at scale 1e-4.
    ("tools 01LAC", "sentinel2-l1c-example", "S2L1C"): (1, L1C_KEYS, 0, None),
    ("tools 07HFE", "sentinel2-l2a-example", "S2L2A"): (1, COLOURS, 0, "scl"),
    ("tools 01WCP", None, "S2L2A"): (1, COLOURS, -1000, "scl"),
    ("tools 01VCG", None, "S2L2A"): (1, COLOURS, -1000, "scl"),
    ("tools 33XWJ", None, "S2L2A"): (1, COLOURS, -1000, "scl"),
}

# (recording, collection, modality): items of it, keys, fill value that the item or provider tells.
OTHERS = {
    ("pc rtc", "sentinel-1-rtc", "S1RTC"): (4, ("vv", "vh"), -32768),
    ("pc rtc 2025", "sentinel-1-rtc", "S1RTC"): (1, ("vv", "vh"), -32768),
    ("tools rtc", "sentinel1-rtc-aws", "S1RTC"): (1, ("gamma0_vv", "gamma0_vh"), 0),
    ("earth-search dem", "cop-dem-glo-30", "DEM"): (10, ("data",), None),
    ("pc dem", "cop-dem-glo-30", "DEM"): (4, ("data",), None),
    ("pc dem one", "cop-dem-glo-30", "DEM"): (1, ("data",), None),
    # Beside it lie eleven more rasters: quicklooks and masks.
    ("tools dem", "cop-dem-glo-30", "DEM"): (1, ("data",), None),
    ("pc lulc 2023", "io-lulc-annual-v02", "LULC"): (4, ("data",), 0),
    ("pc lulc 2022", "io-lulc-9-class", "LULC"): (1, ("data",), 0),
    ("pc lulc 2020", "io-lulc", "LULC"): (4, ("data",), 0),
    ("pc lulc one", "io-lulc", "LULC"): (1, ("data",), 0),
}

# An asset named "calibration" must not pass for the reason.
UNCALIBRATED = "(uncalibrated|not calibrated|without calibration)"
GROUND_RANGE = {"earth-search": 3, "pc grd": 1, "tools grd": 1}
FOREIGN = ("pc naip", "hls", "pc worldcover")


def items_of(recording, collection):
    """Return the raw items of a collection and what pystac-client makes of them, page by page."""
    raw = read_items(recording)
    api = MemoryApi(raw, page_size=3)
    found = [i for i in connect(api).search().items() if i.collection_id == collection]
    assert len(api.searches) == -(-len(raw) // 3)
    return [item for item in raw if item.get("collection") == collection], found


def absolute(raw, key):
    own = [link["href"] for link in raw["links"] if link["rel"] == "self"]
    made = f"http://mem.local/collections/{raw.get('collection')}/items/{raw['id']}"
    return urljoin(own[0] if own else made, raw["assets"][key]["href"])


@pytest.mark.parametrize("case", OPTICAL, ids=lambda case: "-".join(map(str, case)))
def test_optical_bands_and_their_offset(case):
    recording, collection, name = case
    count, keys, offset_dn, classes = OPTICAL[case]
    raw, items = items_of(recording, collection)
    assert len(items) == count
    labels = LABELS if name == "S2L2A" else (*LABELS[:10], "B10", *LABELS[10:])
    for source, item in zip(raw, items, strict=True):
        found = locate_bands(item, MODALITIES[name])
        assert tuple(band.asset for band in found.bands) == keys
        assert {band.index for band in found.bands} == {1}
        assert found.offset_dn == offset_dn
        for label, band in zip(labels, found.bands, strict=True):
            if not source["assets"][band.asset]["href"].startswith("."):
                assert band.href == absolute(source, band.asset)
            # The file names tell the band, and those with a resolution its own.
            named = re.search(
                r"(?:/R(\d+)m)?/[^/]*?(B\d[\dA])(?:_(\d+)m)?\.(?:tif|jp2)$", band.href
            )
            assert named, band.href
            assert named[2] == label
            assert {int(m) for m in (named[1], named[3]) if m} <= {NATIVE_M[label]}
        if classes is None:
            assert found.scene_classes is None
        else:
            assert found.scene_classes.asset == classes
        others = {"S2L2A", "S2L1C"} - {name}
        assert all(locate_bands(item, MODALITIES[other]) is None for other in others)


@pytest.mark.parametrize("case", OTHERS, ids=lambda case: "-".join(case))
def test_radar_elevation_and_land_cover(case):
    recording, collection, name = case
    count, keys, nodata = OTHERS[case]
    raw, items = items_of(recording, collection)
    assert len(items) == count
    for source, item in zip(raw, items, strict=True):
        found = locate_bands(item, MODALITIES[name])
        assert tuple(band.asset for band in found.bands) == keys
        assert [band.href for band in found.bands] == [absolute(source, key) for key in keys]
        assert found.nodata == nodata
        assert found.unit == ("linear" if name == "S1RTC" else None)  # gamma nought
        if name == "LULC":  # the items' words for their classes, as the table has them
            assert found.told_by == "item"
            assert set(LEGENDS["impact-observatory"]) > set(found.legend)
            assert len(found.legend) in {10, 11}
        others = set(LOADABLE) - {name}
        assert all(locate_bands(item, MODALITIES[other]) is None for other in others)


@pytest.mark.parametrize("recording", GROUND_RANGE)
def test_raw_ground_range_products_are_refused_with_the_reason(recording):
    """In every flavour: HH alone and `proj:epsg` 4326, without proj, from stactools."""
    raw = [i for i in read_items(recording) if i["properties"].get("sar:product_type") == "GRD"]
    client = open_client(raw)
    items = list(client.search().items())
    assert len(items) == GROUND_RANGE[recording]
    for item in items:
        with pytest.raises(ValueError, match=rf"(?s){item.id}.*{UNCALIBRATED}"):
            locate_bands(item, MODALITIES["S1GRD"])
        assert locate_bands(item, MODALITIES["S1RTC"]) is None
    catalog = open_catalog(client)
    with pytest.raises(ValueError, match=UNCALIBRATED):
        find_bands(catalog, MODALITIES["S1GRD"], area=None, datetime=None)
    with pytest.raises(ValueError, match=r"S1RTC.*sentinel-?1-grd"):
        find_bands(catalog, MODALITIES["S1RTC"], area=None, datetime=None)


@pytest.mark.parametrize("recording", FOREIGN)
def test_other_data_are_taken_for_nothing(recording):
    """Aerial images, Landsat with Sentinel-2's band names, land cover of another legend."""
    client = open_client(read_items(recording))
    items = list(client.search().items())
    assert items
    for name in LOADABLE:
        assert not any(locate_bands(item, MODALITIES[name]) for item in items)
        with pytest.raises(ValueError, match=name):
            find_bands(open_catalog(client), MODALITIES[name], area=None, datetime=None)


@pytest.mark.parametrize(
    ("recording", "properties", "bands", "offset_dn"),
    [
        # The baseline stands in the product's name alone (_N0510_).
        ("pc s2 2024", {"s2:processing_baseline": None}, None, -1000),
        # A tool has added what it sees in the files: that says nothing of the offset.
        ("pc s2 2024", {}, {"data_type": "uint16", "nodata": 0}, -1000),
        ("pc s2 2019", {}, {"data_type": "uint16", "nodata": 0}, 0),
        # Somebody has subtracted it and says so.
        ("pc s2 2024", {"sentinel:boa_offset_applied": True}, None, 0),
        ("earth-search", {"earthsearch:boa_offset_applied": False}, None, -1000),
        ("earth-search", {"earthsearch:boa_offset_applied": None}, None, -1000),
        # A date tells nothing: an acquisition of 2020 has the offset, one "of 2024" has none.
        ("cdse", {"processing:version": None}, None, -1000),
        ("pc s2 2019", {"datetime": "2024-01-01T00:00:01.024000Z"}, None, 0),
        # An offset of 0 that is declared beats the baseline.
        ("pc s2 2024", {}, {"scale": 0.0001, "offset": 0}, 0),
        ("pc s2 2019", {}, {"scale": 0.0001, "offset": -0.1}, -1000),
    ],
)
def test_offset_follows_flag_then_raster_fields_then_baseline(
    recording, properties, bands, offset_dn
):
    raw = next(i for i in read_items(recording) if i["collection"] == "sentinel-2-l2a")
    raw = copy.deepcopy(raw)
    for name, value in properties.items():
        if value is None:
            del raw["properties"][name]
        else:
            raw["properties"][name] = value
    for asset in raw["assets"].values() if bands else ():
        asset["raster:bands"] = [bands]
    (item,) = open_client([raw]).search().items()
    assert locate_bands(item, MODALITIES["S2L2A"]).offset_dn == offset_dn


@pytest.mark.parametrize(
    ("names", "modality", "collection"),
    [
        # Collection 1 comes first, the newest annual map comes first.
        (("earth-search",), "S2L2A", "sentinel-2-c1-l2a"),
        (("pc lulc 2020", "pc lulc 2022", "pc lulc 2023"), "LULC", "io-lulc-annual-v02"),
        (("pc lulc 2020", "pc lulc 2022"), "LULC", "io-lulc-9-class"),
        (("pc lulc 2020", "pc worldcover"), "LULC", "io-lulc"),
        (("pc rtc", "pc grd"), "S1RTC", "sentinel-1-rtc"),
    ],
)
def test_preferred_collection_is_found(names, modality, collection):
    catalog = open_catalog(open_client(read_items(*names)))
    found = find_bands(catalog, MODALITIES[modality], area=None, datetime=None)
    assert {bands.item.collection_id for bands in found} == {collection}


def test_every_recording_with_a_modality_is_covered():
    tested = {case[0] for case in (*OPTICAL, *OTHERS)} | set(GROUND_RANGE) | set(FOREIGN)
    assert tested == set(RECORDINGS)
