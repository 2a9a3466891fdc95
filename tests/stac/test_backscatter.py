"""Radar items of many makers: which asset is which polarisation, and in which unit."""

import pytest

from terramind_cube.modalities import MODALITIES
from terramind_cube.stac.backscatter import polarisation
from terramind_cube.stac.bands import locate_bands
from tests.stac.test_calibration import make

S1RTC, S1GRD = MODALITIES["S1RTC"], MODALITIES["S1GRD"]


def unit_of(collection, keys=("vv", "vh"), unit=None, item_id="item", modality=S1RTC, **properties):
    fields = {} if unit is None else {"raster:bands": [{"unit": unit}]}
    found = locate_bands(make(collection, keys, fields, properties, item_id), modality)
    return None if found is None else found.unit


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("vv", "VV"), ("VH", "VH"), ("vv-g-lin", "VV"), ("vh-s-log", "VH"), ("gamma0_vv", "VV"),
        ("VV_gamma0", "VV"), ("sigma0-vh-db", "VH"), ("vv_amplitude", "VV"), ("rtc_vh", "VH"),
        ("noise-power-vv", None), ("angle", None), ("vv_vh", None), ("hh", None), ("vv_mask", None),
        ("area", None), ("vvv", None),
    ],
)  # fmt: skip
def test_keys_name_a_polarisation(key, expected):
    found = polarisation(key)
    assert (None if found is None else found[0]) == expected


def test_gamma_nought_as_power_is_preferred():
    """Products of s1ard hold sigma nought and logarithms beside it."""
    keys = [f"{band}-{quantity}-{scale}" for scale in ("log", "lin") for quantity in "sg"
            for band in ("vv", "vh", "hh")]  # fmt: skip
    found = locate_bands(make("sentinel-1-nrb", [*keys, "noise-power-vv"]), S1RTC)
    assert [band.asset for band in found.bands] == ["vv-g-lin", "vh-g-lin"]
    assert found.unit == "linear"
    logarithms = locate_bands(make("nrb", ("vv-g-log", "vh-g-log")), S1RTC)
    assert logarithms.unit == "dB"


@pytest.mark.parametrize(
    ("unit", "expected"),
    [
        ("natural", "linear"), ("Natural", "linear"), ("linear_power", "linear"), ("1", "linear"),
        ("intensity", "linear"), ("dB", "dB"), ("decibel", "dB"), (" db ", "dB"),
        ("gamma0 [dB]", "dB"), ("gamma0", "linear"), ("linear power", "linear"), ("m^2/m^2", "linear"),
        ("amplitude", "amplitude"), ("furlongs", None),
    ],
)  # fmt: skip
def test_units_in_the_words_of_makers(unit, expected):
    assert unit_of("sentinel-1-rtc", unit=unit) == expected
    assert unit_of("my-nrb", ("vv-g-lin", "vh-g-lin"), unit=unit) == expected


@pytest.mark.parametrize("unit", ["unitless", "Dimensionless", "none", "", " "])
def test_words_for_no_unit_tell_nothing(unit):
    assert unit_of("my-s1rtc", unit=unit) is None
    assert unit_of("my-nrb", ("vv-g-log", "vh-g-log"), unit=unit) == "dB"
    assert unit_of("s1_rtc", unit=unit) == "linear"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("S1A_IW_20180119T024604_DVP_RTC30_G_gpuned_5685", "linear"),
        ("S1B_IW_20200527T233215_DVP_RTC30_G_saunem_5FC5", "amplitude"),
        ("S1A_IW_20240522T185928_DVR_RTC10_G_gdufed_4C88", "dB"),
        ("S1A_IW_GRDH_1SDV_20240419T045801_rtc", None),
    ],
)
def test_names_of_hyp3_tell_the_unit(name, expected):
    assert unit_of("hyp3", item_id=name) == expected
    item = make("hyp3", ("vv", "vh"))
    for asset in item.assets.values():
        asset.href = f"/data/{name}_VV.tif"
    assert locate_bands(item, S1RTC).unit == expected


@pytest.mark.parametrize(
    ("collection", "expected"),
    [
        ("s1_rtc", "linear"), ("OPERA_L2_RTC-S1_V1", "linear"), ("sentinel1-rtc-aws", "linear"),
        ("sentinel-1-rtc", "linear"), ("my-s1_rtc", None), ("SENTINEL-1-RTC-mine", None),
        ("s1rtc", None), (None, None),
    ],
)  # fmt: skip
def test_unit_that_nothing_tells_is_not_assumed(collection, expected):
    assert unit_of(collection) == expected


def test_amplitude_is_raw_only_where_nothing_calibrated_it():
    assert unit_of("hyp3-s1-rtc", unit="amplitude", **{"sar:product_type": "RTC"}) == "amplitude"
    assert unit_of("s1grd", ("sigma0_vv", "sigma0_vh"), "amplitude", modality=S1GRD) == "amplitude"
    with pytest.raises(ValueError, match="uncalibrated") as raised:
        unit_of("s1grd", unit="amplitude", modality=S1GRD)
    assert "ground range" not in str(raised.value)


def test_ground_range_is_said_where_it_is_true():
    for collection, properties in (
        ("sentinel-1-grd", {}), (None, {"sar:product_type": "GRD"}), ("s1grd", {"product:type": "SLC"}),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"uncalibrated numbers.*ground range"):
            unit_of(collection, modality=S1GRD, **properties)
    with pytest.raises(ValueError, match="in the unit 'DN'") as raised:
        unit_of("my-s1rtc", unit="DN")
    assert "ground range" not in str(raised.value)


def test_bands_of_other_units_are_refused():
    item = make("nrb", ("vv-g-lin", "vh-g-log"))
    with pytest.raises(ValueError, match=r"bands of item 'item' differ in unit: dB, linear"):
        locate_bands(item, S1RTC)
    alike = make("s1rtc", ("vv", "vh"), {"raster:unit": "dB"})
    alike.assets["vh"].extra_fields["raster:unit"] = "decibel"
    assert locate_bands(alike, S1RTC).unit == "dB"
