"""What metadata say of the numbers in files, in every spelling that was met."""

from datetime import UTC, datetime

import pystac
import pytest

from terramind_cube.modalities import MODALITIES
from terramind_cube.stac import open_catalog
from terramind_cube.stac.bands import locate_bands
from terramind_cube.stac.calibration import processing_baseline
from tests.stac.memory_api import open_client

S2, S1RTC, S1GRD = (MODALITIES[name] for name in ("S2L2A", "S1RTC", "S1GRD"))


def make(collection, keys, fields=None, properties=None, item_id="item"):
    when = datetime(2024, 5, 1, tzinfo=UTC)
    item = pystac.Item(item_id, None, None, when, dict(properties or {}), collection=collection)
    for key in keys:
        asset = pystac.Asset(
            f"/data/{key}.tif", media_type="image/tiff", extra_fields=dict(fields or {})
        )
        item.add_asset(key, asset)
    return item


def optical(properties=None, fields=None, item_id="item"):
    return make("sentinel-2-l2a", S2.bands, fields, properties, item_id)


@pytest.mark.parametrize(
    ("name", "value", "baseline"),
    [
        ("s2:processing_baseline", "05.11", 5.11), ("s2:processing_baseline", 5.11, 5.11),
        ("s2:processing_baseline", "5.11", 5.11), ("s2:processing_baseline", "0511", 5.11),
        ("s2:processing_baseline", "N0511", 5.11), ("processing:version", "05.00", 5.0),
        ("processing:version", 5.0, 5.0), ("processing:version", "2.14", 2.14),
        ("processing:version", "sen2cor 2.11.0", None), ("s2:processing_baseline", None, None),
    ],
)  # fmt: skip
def test_baseline_is_read_in_every_spelling(name, value, baseline):
    item = optical({name: value})
    assert processing_baseline(item) == baseline
    assert locate_bands(item, S2).offset_dn == (-1000 if baseline and baseline >= 4 else 0)


@pytest.mark.parametrize(
    "name", ["s2:product_uri", "s2:product_id", "sentinel:product_id", "title"]
)
def test_baseline_stands_in_the_name_of_the_product(name):
    product = "S2B_MSIL2A_20200705T101559_N0500_R065_T32TMT_20230530T175912"
    assert locate_bands(optical({name: f"{product}.SAFE"}), S2).offset_dn == -1000
    assert locate_bands(optical(item_id=product), S2).offset_dn == -1000


@pytest.mark.parametrize("flag", [True, "true", "True", 1])
def test_flag_beats_fields_and_baseline(flag):
    told = {"raster:scale": 1e-4, "raster:offset": -0.1}
    properties = {"earthsearch:boa_offset_applied": flag, "s2:processing_baseline": "05.11"}
    assert locate_bands(optical(properties, told), S2).offset_dn == 0
    assert (
        locate_bands(
            optical({**properties, "earthsearch:boa_offset_applied": False}, told), S2
        ).offset_dn
        == -1000
    )


def test_band_that_says_nothing_is_like_the_others():
    item = optical({}, {"raster:scale": 1e-4, "raster:offset": -0.1})
    item.assets["B09"].extra_fields.clear()
    assert locate_bands(item, S2).offset_dn == -1000


def test_fields_that_know_the_file_alone_leave_it_to_the_baseline():
    plain = {"raster:bands": [{"scale": 1.0, "offset": 0.0, "data_type": "uint16"}]}
    assert locate_bands(optical({"s2:processing_baseline": "05.11"}, plain), S2).offset_dn == -1000
    assert locate_bands(optical({"s2:processing_baseline": "02.14"}, plain), S2).offset_dn == 0
    zero = {"raster:scale": 1e-4, "raster:offset": 0}
    assert locate_bands(optical({"s2:processing_baseline": "05.11"}, zero), S2).offset_dn == 0


@pytest.mark.parametrize("unit", ["DN", "amplitude", "counts", "digital number"])
def test_units_of_raw_numbers_are_refused(unit):
    item = make("sentinel-1-grd", ("vv", "vh"), {"raster:bands": [{"unit": unit}]})
    with pytest.raises(ValueError, match="uncalibrated"):
        locate_bands(item, S1GRD)


@pytest.mark.parametrize(
    "properties",
    [{"sar:product_type": "GRD"}, {"product:type": "GRD"}, {"product:type": "IW_GRDH_1S"},
     {"sar:product_type": "SLC"}, {"sar:product_type": "GRD_HD"}],
)  # fmt: skip
@pytest.mark.parametrize("collection", [None, "my-radar"])
def test_raw_radar_is_no_rtc_whatever_its_names(properties, collection):
    item = make(collection, ("vv", "vh"), None, properties)
    assert locate_bands(item, S1RTC) is None
    with pytest.raises(ValueError, match="uncalibrated"):
        locate_bands(item, S1GRD)


def test_corrected_products_keep_the_type_of_what_they_were_made_of():
    corrected = make(
        None, ("vv", "vh"), None, {"sar:product_type": "GRD"}, "S1A_IW_GRDH_20240419_rtc"
    )
    assert locate_bands(corrected, S1RTC) is not None
    provided = make("sentinel-1-rtc", ("vv", "vh"), None, {"sar:product_type": "GRD"})
    assert locate_bands(provided, S1RTC).unit == "linear"


def test_calibrated_sigma_nought_is_power():
    item = make("sentinel-1-grd", ("vv", "vh"), None, {"sar:product_type": "GRD"})
    for asset in item.assets.values():
        asset.roles = ["data", "sigma0"]
    assert locate_bands(item, S1GRD).unit == "linear"


def test_landsat_and_harmonised_data_are_not_sentinel():
    keys = ("coastal", "blue", "green", "red", "nir08", "swir16", "swir22")
    assert locate_bands(make("landsat-c2-l2", keys, None, {"platform": "landsat-8"}), S2) is None
    assert locate_bands(make(None, keys), S2) is None
    assert (
        locate_bands(make("HLSS30.v2.0", S2.bands, None, {"platform": "sentinel-2a"}), S2) is None
    )
    for told in ({"platform": "Sentinel-2B"}, {"platform": "S2A"}, {"platform": "Sentinel2A"},
                 {"constellation": "Sentinel 2"}):  # fmt: skip
        assert locate_bands(make("scenes", S2.bands, None, told), S2) is not None
    assert locate_bands(make(None, ("vv", "vh"), None, {"platform": "S1A"}), S1RTC) is not None


@pytest.mark.parametrize(
    "break_it",
    [
        lambda item: item["assets"]["B02"].pop("href"),
        lambda item: item["properties"].update(datetime="yesterday"),
        lambda item: item.update(assets=None),
    ],
)
def test_server_that_sends_no_stac_is_named(break_it):
    raw = optical().to_dict(include_self_link=False)
    raw["geometry"], raw["bbox"] = {"type": "Point", "coordinates": [9, 48]}, [9, 48, 9, 48]
    client = open_client([raw])
    catalog = open_catalog(client)
    assert len(catalog.search(collections=["sentinel-2-l2a"])) == 1
    break_it(raw)
    with pytest.raises(ValueError, match=r"http://mem\.local/ returns what is no valid STAC"):
        open_catalog(open_client([raw])).search(collections=["sentinel-2-l2a"])


@pytest.mark.parametrize(
    "change",
    [
        lambda item: item.assets["B02"].extra_fields.update({"raster:bands": {"scale": 1}}),
        lambda item: item.assets["B02"].extra_fields.update({"alternate": [1]}),
    ],
)
def test_what_is_no_stac_names_the_item(change):
    item = optical()
    change(item)
    with pytest.raises(
        ValueError, match="Item 'item' of collection 'sentinel-2-l2a' is no valid STAC"
    ):
        locate_bands(item, S2)


def test_odd_fill_values_and_empty_alternates_are_let_be():
    item = optical({}, {"nodata": "none", "alternate": {"https": None}})
    found = locate_bands(item, S2)
    assert found.nodata == 0  # the provider's own
    assert found.bands[0].alternate is None


def test_offset_in_digital_numbers_needs_no_scale():
    assert locate_bands(optical({}, {"raster:bands": [{"offset": -1000}]}), S2).offset_dn == -1000


def test_bands_of_other_scales_or_fill_values_are_refused():
    for name, values in (("raster:scale", (1.0, 0.5)), ("nodata", (-5, -9))):
        item = make("s1rtc", ("vv", "vh"), {"raster:unit": "dB"})
        for asset, value in zip(item.assets.values(), values, strict=True):
            asset.extra_fields[name] = value
        with pytest.raises(ValueError, match=r"bands of item 'item' differ in"):
            locate_bands(item, S1RTC)
