"""Which bands an item holds, whoever wrote it."""

from datetime import UTC, datetime

import pystac
import pytest

from terramind_cube.modalities import MODALITIES
from terramind_cube.stac import StaticCatalog, find_bands
from terramind_cube.stac.bands import locate_bands
from terramind_cube.stac.legends import LEGENDS

S2, L1C = MODALITIES["S2L2A"], MODALITIES["S2L1C"]
EARTH_SEARCH = (
    "coastal", "blue", "green", "red", "rededge1", "rededge2", "rededge3", "nir", "nir08", "nir09",
    "swir16", "swir22",
)  # fmt: skip
RESOLUTION = {"B01": 60, "B09": 60, "B02": 10, "B03": 10, "B04": 10, "B08": 10}


def make_item(collection, assets, properties=None, item_id="item"):
    when = datetime(2024, 5, 1, tzinfo=UTC)
    item = pystac.Item(item_id, None, None, when, dict(properties or {}), collection=collection)
    for key, fields in assets.items():
        extra = dict(fields)
        media, roles = extra.pop("type", "image/tiff"), extra.pop("roles", None)
        href = extra.pop("href", f"/data/{key}.tif")
        item.add_asset(key, pystac.Asset(href, media_type=media, roles=roles, extra_fields=extra))
    return item


def keys(item, modality=S2):
    return [(band.asset, band.index) for band in locate_bands(item, modality).bands]


def test_asset_keys_of_the_providers_are_known():
    picture = {"roles": ["visual"], "eo:bands": [{"name": n} for n in ("red", "green", "blue")]}
    extras = {
        "visual": picture,
        "scl": {},
        "blue-jp2": {"type": "image/jp2"},
        "B02": {"type": "image/png"},
    }
    item = make_item("sentinel-2-l2a", extras | {key: {} for key in EARTH_SEARCH})
    assert keys(item) == [(key, 1) for key in EARTH_SEARCH]

    names = {f"{b}_{r}m": {} for b in S2.bands for r in (20, 60) if r >= RESOLUTION.get(b, 20)}
    names |= {f"{b}_10m": {} for b, r in RESOLUTION.items() if r == 10}
    found = keys(make_item("sentinel-2-l2a", names))
    assert found == [(f"{b}_{RESOLUTION.get(b, 20)}m", 1) for b in S2.bands]


def test_visual_asset_never_stands_in_for_a_band():
    visual = {"visual": {"eo:bands": [{"name": "B04"}]}}
    rest = {band: {} for band in S2.bands if band != "B04"}
    with pytest.raises(ValueError, match="lacks B04 of S2L2A"):
        locate_bands(make_item("sentinel-2-l2a", visual | rest), S2)


def test_files_are_found_by_the_names_of_their_bands():
    stack = {"eo:bands": [{"name": band} for band in L1C.bands]}
    item = make_item(None, {"stack": stack})
    assert keys(item, L1C) == [("stack", i) for i in range(1, 14)]
    assert locate_bands(item, S2) is None
    # STAC 1.1: names in `bands`; of two places the file of its own wins.
    alone = {"swir": {"bands": [{"name": "x", "eo:common_name": "swir22"}]}}
    item = make_item("s2l2a", {"stack": {"bands": [{"name": b} for b in S2.bands]}} | alone)
    assert keys(item)[-2:] == [("stack", 11), ("swir", 1)]


def test_quicklook_beside_the_data_is_no_band():
    item = make_item("cop-dem-glo-30", {"dem_ql": {}, "data": {}})
    assert keys(item, MODALITIES["DEM"]) == [("data", 1)]


def test_other_sensors_are_not_taken_for_sentinel():
    landsat = {f"B{n:02}": {} for n in (1, 2, 3, 4, 5, 6, 7, 9, 10, 11)}
    for modality in (S2, L1C):
        assert locate_bands(make_item("HLSL30.v1.5", landsat), modality) is None


def test_raw_radar_products_are_refused():
    detected = {"sar:product_type": "GRD"}
    item = make_item("sentinel1-grd", {"vv": {}, "vh": {}}, detected)
    with pytest.raises(ValueError, match="uncalibrated"):
        locate_bands(item, MODALITIES["S1GRD"])
    assert locate_bands(item, MODALITIES["S1RTC"]) is None
    calibrated = {"raster:bands": [{"unit": "dB"}]}
    item = make_item("sentinel1-grd", {"vv": calibrated, "vh": calibrated}, detected)
    assert locate_bands(item, MODALITIES["S1GRD"]).unit == "dB"


def test_one_item_may_hold_several_modalities():
    item = make_item("tiles", {"S2L2A": {}, "terramesh_S1RTC": {}, "DEM": {}, "thumbnail": {}})
    assert keys(item) == [("S2L2A", i) for i in range(1, 13)]
    assert locate_bands(item, S2).bands[3].file_bands == 12
    assert keys(item, MODALITIES["S1RTC"]) == [("terramesh_S1RTC", 1), ("terramesh_S1RTC", 2)]
    assert keys(item, MODALITIES["DEM"]) == [("DEM", 1)]
    assert locate_bands(item, MODALITIES["LULC"]) is None


@pytest.mark.parametrize(
    ("collection", "unit", "expected"),
    [
        ("sentinel-1-rtc", None, "linear"),
        ("sentinel-1-rtc", "dB", "dB"),
        ("my-sentinel-1-rtc", None, None),
        ("s1rtc", "1", "linear"),
        (None, None, None),
    ],
)
def test_backscatter_unit_follows_metadata_then_the_provider(collection, unit, expected):
    raster = {} if unit is None else {"raster:bands": [{"unit": unit, "nodata": -32768}]}
    item = make_item(collection, {"vv": raster, "vh": raster})
    found = locate_bands(item, MODALITIES["S1RTC"])
    assert found.unit == expected
    is_known = unit is not None or collection == "sentinel-1-rtc"
    assert found.nodata == (-32768 if is_known else None)


@pytest.mark.parametrize(
    ("fields", "properties", "offset_dn"),
    [
        ({}, {}, 0),
        ({"raster:bands": [{"scale": 0.0001, "offset": -0.1}]}, {}, -1000),
        ({"raster:scale": 0.0001, "raster:offset": -0.1}, {}, -1000),
        ({"bands": [{"raster:scale": 0.0001, "raster:offset": -0.1}]}, {}, -1000),
        ({"raster:bands": [{"scale": 1, "offset": 0}]}, {}, 0),
        (
            {"raster:bands": [{"scale": 0.0001, "offset": -0.1}]},
            {"earthsearch:boa_offset_applied": True},
            0,
        ),
    ],
)
def test_offset_is_read_in_every_spelling(fields, properties, offset_dn):
    item = make_item("sentinel-2-l2a", dict.fromkeys(S2.bands, fields), properties)
    assert locate_bands(item, S2).offset_dn == offset_dn


def test_other_scale_or_mixed_offsets_are_refused():
    scaled = {"raster:bands": [{"scale": 0.01}]}
    with pytest.raises(ValueError, match=r"'B01' of item 'item' has scale 0\.01"):
        locate_bands(make_item("sentinel-2-l2a", dict.fromkeys(S2.bands, scaled)), S2)
    told = {"raster:scale": 1e-4, "raster:offset": 0.0}
    mixed = dict.fromkeys(S2.bands, told) | {"B02": {"raster:offset": -0.1}}
    with pytest.raises(ValueError, match=r"differ in offset: \[-1000, 0\]"):
        locate_bands(make_item("sentinel-2-l2a", mixed), S2)


def test_legend_of_the_annual_map_is_that_of_its_collections_only():
    lulc = MODALITIES["LULC"]
    for collection, key in (
        ("io-lulc-annual-v02", "data"), ("io-10m-annual-lulc", "supercell"), ("esri-lulc", "data"),
    ):  # fmt: skip
        found = locate_bands(make_item(collection, {key: {}}), lulc)
        assert (found.legend, found.told_by) == (LEGENDS["impact-observatory"], "provider")
    assert locate_bands(make_item("lulc", {"data": {}}), lulc).legend is None


def test_preferred_collection_wins():
    items = tuple(
        make_item(name, {band: {} for band in S2.bands}, item_id=name)
        for name in ("sentinel-2-l2a", "sentinel-2-c1-l2a")
    )
    found = find_bands(StaticCatalog("two", items), S2, area=None, datetime=None)
    assert [bands.item.id for bands in found] == ["sentinel-2-c1-l2a"]


def test_local_hrefs_are_paths_and_remote_ones_stay(tmp_path):
    assets = {
        "vv": {"href": "file:///data/a%20b.tif"},
        "vh": {"href": "s3://bucket/vh.tif"},
    }
    item = make_item("s1rtc", assets)
    item.set_self_href("https://example.org/items/item.json")
    item.assets["vv"].href = "file:///data/a%20b.tif"
    hrefs = [band.href for band in locate_bands(item, MODALITIES["S1RTC"]).bands]
    assert hrefs == ["/data/a b.tif", "s3://bucket/vh.tif"]
    item.assets["vv"].href, item.assets["vh"].href = "./vv.tif", "/data/vh.tif"
    hrefs = [band.href for band in locate_bands(item, MODALITIES["S1RTC"]).bands]
    assert hrefs == ["https://example.org/items/vv.tif", "/data/vh.tif"]


ZARR = "application/vnd+zarr; version=2"


def test_assets_that_are_zarr_are_named_so():
    bands = {"SR_10m": ("B02", "B03", "B04", "B08"), "SR_20m": ("B05", "B06", "B07", "B8A")}
    groups = {
        key: {"type": ZARR, "href": f"https://x.org/y.zarr/{key}", "bands": [{"name": n} for n in names]}
        for key, names in bands.items()
    }  # fmt: skip
    named = {band: {"type": ZARR, "href": f"https://x.org/y.zarr/{band}"} for band in S2.bands}
    untyped = {band: {"type": None, "href": f"https://x.org/y.zarr/{band}"} for band in S2.bands}
    for collection in ("sentinel-2-l2a", "my-scenes"):
        for assets in (groups, named, untyped):
            with pytest.raises(ValueError, match=r"lacks B.* are Zarr.*Cloud-Optimized GeoTIFF"):
                locate_bands(make_item(collection, assets), S2)
    # Beside rasters they are left alone.
    both = {f"zarr_{band}": fields for band, fields in named.items()}
    rasters = {band: {} for band in S2.bands}
    assert keys(make_item("sentinel-2-l2a", both | rasters)) == [(b, 1) for b in S2.bands]
    scene_classes = {"SCL": {"type": ZARR, "href": "https://x.org/y.zarr/SCL"}}
    found = locate_bands(make_item("sentinel-2-l2a", rasters | scene_classes), S2)
    assert found.scene_classes is None


def test_digital_earth_australia_names_the_band_that_it_lacks():
    """ga_s2am_ard_3 has no water vapour band: the others are read where they are asked for."""
    names = {
        "coastal_aerosol": "B01", "blue": "B02", "green": "B03", "red": "B04", "red_edge_1": "B05",
        "red_edge_2": "B06", "red_edge_3": "B07", "nir_1": "B08", "nir_2": "B8A", "swir_2": "B11",
        "swir_3": "B12",
    }  # fmt: skip
    item = make_item(
        "ga_s2am_ard_3", {f"nbart_{key}": {} for key in names}, {"platform": "sentinel-2a"}
    )
    with pytest.raises(ValueError, match=r"lacks B09 of S2L2A.*bands=\{'S2L2A': \['B01'"):
        locate_bands(item, S2)
    found = locate_bands(item, S2, list(names.values()))
    assert [place.asset for place in found.bands] == [
        f"nbart_{key}" for key in sorted(names, key=lambda key: S2.bands.index(names[key]))
    ]
