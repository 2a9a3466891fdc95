"""What a cube is: found in any Dataset of the right shape, refused where it cannot be right."""

from __future__ import annotations

import warnings

import numpy as np
import odc.stac
import pytest
import xarray as xr
from small import make_cube

from terramind_cube.cube.layout import read_layout
from terramind_cube.modalities import MODALITIES, Statistics
from terramind_cube.testing import assert_lazy
from tests.cube.scenes import CRS, LEFT, TOP, day, grid, make_item, warns_user, write_tiff


def test_layers_come_with_time_and_bands_in_the_models_order():
    layout = read_layout(make_cube())
    assert [layer.modality.name for layer in layout.layers] == ["S2L2A", "S1RTC", "DEM"]
    s2, _, dem = layout.layers
    assert s2.data.dims == ("time", "band", "y", "x")
    assert dem.is_static
    assert dem.data.dims == ("band", "y", "x")
    assert layout.times.dtype == np.dtype("M8[ns]")


def test_bands_in_another_order_are_sorted_by_label():
    cube = make_cube(modalities=("S2L2A",))
    turned = cube.isel(S2L2A_band=slice(None, None, -1))
    data = read_layout(turned).layers[0].data
    np.testing.assert_array_equal(data.values, cube.S2L2A.values)
    assert list(data.band.values) == list(MODALITIES["S2L2A"].bands)


def test_extra_bands_are_left_out_and_missing_ones_named():
    cube = make_cube(modalities=("S2L2A",))
    layout = read_layout(cube.isel(S2L2A_band=[0, *range(12)]).drop_duplicates("S2L2A_band"))
    assert layout.layers[0].data.sizes["band"] == 12
    with pytest.raises(ValueError, match="S2L2A lacks the bands B8A, B11"):
        read_layout(cube.drop_sel(S2L2A_band=["B8A", "B11"]))
    unlabelled = cube.drop_vars("S2L2A_band")
    assert read_layout(unlabelled).layers[0].data.sizes["band"] == 12
    with pytest.raises(ValueError, match="11 bands without labels"):
        read_layout(unlabelled.isel(S2L2A_band=slice(11)))


def test_one_variable_per_band_is_a_cube_as_odc_stac_gives_it():
    cube = make_cube(modalities=("S2L2A",))
    bands = {
        str(band): cube.S2L2A.sel(S2L2A_band=band, drop=True) for band in cube.S2L2A_band.values
    }
    split = xr.Dataset(bands, coords={"spatial_ref": cube.spatial_ref}).chunk(y=64)
    split["SCL"] = split.B01.astype("uint8")
    (layer,) = read_layout(split).layers
    assert layer.modality.name == "S2L2A"
    np.testing.assert_array_equal(layer.data.values, cube.S2L2A.values)


def test_chosen_inputs_keep_their_order():
    layout = read_layout(make_cube(), ["DEM", "S2L2A", "DEM"])
    assert [layer.modality.name for layer in layout.layers] == ["DEM", "S2L2A"]


def test_what_is_no_pixel_input_is_not_taken_by_itself():
    cube = make_cube(modalities=("S2L2A",))
    cube["LULC"] = cube.S2L2A.isel(S2L2A_band=0, drop=True).astype("uint8")
    assert [layer.modality.name for layer in read_layout(cube).layers] == ["S2L2A"]
    with pytest.raises(ValueError, match="no usable input"):
        read_layout(cube[["LULC"]])


def uneven(cube):
    return cube.isel(x=[*range(50), *range(51, 100)])


def merged():
    first, second = make_cube(modalities=("S2L2A",)), make_cube(modalities=("DEM",))
    second = second.assign_coords(x=second.x + 3.7, y=second.y - 1.2)
    return xr.merge([first, second], join="outer", compat="no_conflicts")


def without_crs(cube):
    cube = cube.drop_vars("spatial_ref")
    for variable in cube.variables.values():
        variable.encoding.pop("grid_mapping", None)
        variable.attrs.pop("crs", None)
    return cube


def geographic():
    cube = make_cube(64, 64, modalities=("DEM",))
    x, y = 7 + np.arange(64) * 1e-4, 46 - np.arange(64) * 1e-4
    return without_crs(cube).assign_coords(x=x, y=y).odc.assign_crs("EPSG:4326")


def dated(*dates):
    cube = make_cube(64, 64, modalities=("S2L2A",), times=len(dates))
    return cube.assign_coords(time=np.array(dates, "M8[ns]"))


def typed(name, dtype):
    cube = make_cube(64, 64)
    return cube.assign({name: cube[name].fillna(0).astype(dtype)})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uneven(make_cube()), "x is not evenly spaced"),
        (merged, "evenly spaced: layers of different grids"),
        (lambda: without_crs(make_cube()), "no coordinate reference system"),
        (geographic, "in degrees"),
        (lambda: make_cube().sortby("y"), "Rows run northwards"),
        (lambda: make_cube().rename(y="lat"), "dimensions y and x, in metres; this one has S2L2A "),
        (lambda: make_cube().rename(y="lat", x="lon"), "degrees: load it in metres.*crs='utm'"),
        (lambda: make_cube().rename(y="Latitude", x="lon"), "degrees: load it in metres"),
        (lambda: dated("2024-05-14", "NaT"), r"time is NaT at \[1\].*cube.time.notnull"),
        (lambda: dated("2024-05-14", "2024-05-14"), "time repeats 2024-05-14T00.*solar_day"),
        (lambda: dated("NaT").isel(time=0), "time is NaT"),
        (lambda: make_cube().isel(time=0).assign_coords(time=5), "coordinate of dates"),
        (lambda: typed("S1RTC", "complex64"), r"S1RTC is complex64, not dB.*np.log10\(abs"),
        (lambda: typed("S2L2A", "bool"), "S2L2A is bool"),
        (lambda: typed("DEM", "bool").chunk(), "DEM is bool, not m: give integers or"),
        (lambda: typed("DEM", "M8[s]"), "DEM is datetime64"),
        (lambda: make_cube().drop_vars("y"), "no coordinate y"),
        (lambda: make_cube().isel(x=slice(None, None, 2)), "Pixels must be square"),
        (lambda: make_cube().drop_vars("time"), "coordinate of dates"),
        (lambda: make_cube().isel(S2L2A_band=0, drop=True), "S2L2A has no band dimension"),
        (lambda: make_cube().expand_dims(sample=2), "expected .*on the cube's grid"),
    ],
)
def test_what_cannot_be_right_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        read_layout(make())


@pytest.mark.parametrize(("resolution", "warns"), [(10, False), (9, False), (20, True), (5, True)])
def test_a_resolution_far_from_ten_metres_warns(resolution, warns):
    cube = make_cube(64, 64, modalities=("DEM",), resolution=resolution)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        read_layout(cube)
    assert any("trained at 10 m" in str(w.message) for w in caught) == warns


COMMON_NAMES = {
    "B01": "coastal", "B02": "blue", "B03": "green", "B04": "red", "B05": "rededge1",
    "B06": "rededge2", "B07": "rededge3", "B08": "nir", "B8A": "nir08", "B09": "nir09",
    "B11": "swir16", "B12": "swir22",
}  # fmt: skip


def split(**names):
    """The cube of one variable per band, and what it was made of."""
    cube = make_cube(modalities=("S2L2A",))
    bands = {
        names.get(str(band), str(band)): cube.S2L2A.sel(S2L2A_band=band, drop=True)
        for band in cube.S2L2A_band.values
    }
    return xr.Dataset(bands, coords={"spatial_ref": cube.spatial_ref}), cube


@pytest.mark.parametrize(
    "names", [COMMON_NAMES, {"B04": "red", "B8A": "nir08"}, {"B02": "b02", "B12": "SWIR22"}]
)
def test_bands_may_have_their_common_names(names):
    bands, cube = split(**names)
    (layer,) = read_layout(bands).layers
    assert list(layer.data.band.values) == list(MODALITIES["S2L2A"].bands)
    np.testing.assert_array_equal(layer.data.values, cube.S2L2A.values)


def test_a_label_goes_before_a_common_name_of_the_same_band():
    bands, cube = split()
    bands = xr.Dataset({"red": bands.B04 * 0, **bands.data_vars, "green": bands.B03 * 0})
    np.testing.assert_array_equal(read_layout(bands).layers[0].data.values, cube.S2L2A.values)


def test_some_bands_are_enough_where_some_are_asked_for():
    bands, cube = split(**COMMON_NAMES)
    visible = bands[["red", "green", "blue"]]
    (layer,) = read_layout(visible, bands={"S2L2A": ["B02", "B03", "B04"]}).layers
    np.testing.assert_array_equal(layer.data.values, cube.S2L2A.values[:, 1:4])
    with pytest.raises(ValueError, match=r"no S2L2A;.*S2L2A lacks B01, B05.*bands=\{'S2L2A'"):
        read_layout(visible, ["S2L2A"])
    with pytest.raises(ValueError, match=r"no usable input.*S2L2A lacks B01, B05"):
        read_layout(visible)


def test_rededge_may_be_any_of_four_bands():
    bands, _ = split()
    ambiguous = bands.rename(B05="rededge")
    with pytest.raises(ValueError, match=r"rededge may be any of B05, B06, B07, B8A.*load B05 by"):
        read_layout(ambiguous)
    # Beside all four it is nobody's only name.
    assert read_layout(bands.assign(rededge=bands.B05)).layers[0].data.sizes["band"] == 12


@pytest.mark.parametrize("nodata", [0, None, np.nan, -9999.0])
def test_floating_point_bands_are_invalid_where_they_say(nodata):
    bands, cube = split()
    bands = bands.astype("float32")
    if nodata is not None:
        for name, band in bands.items():
            bands[name] = band.where(band != 0, nodata).assign_attrs(nodata=nodata)
    (layer,) = read_layout(bands.chunk(y=64)).layers
    assert layer.data.chunks is not None
    np.testing.assert_array_equal(np.nan_to_num(layer.data.values), cube.S2L2A.values)


def test_radar_bands_are_not_taken_by_their_names():
    bands, _ = split()
    radar = make_cube(modalities=("S1RTC",))
    names = {band.lower(): radar.S1RTC.sel(S1RTC_band=band, drop=True) for band in ("VV", "VH")}
    both = bands.assign(names)
    with warns_user("Whether vv, vh is linear or in dB"):
        layout = read_layout(both)
    assert [layer.modality.name for layer in layout.layers] == ["S2L2A"]
    with pytest.raises(ValueError, match=r"no S1RTC.*cube\['S1RTC'\] = xr.concat"):
        read_layout(both, ["S2L2A", "S1RTC"])
    with pytest.raises(ValueError, match=r"no usable input.*cube\['S1RTC'\] = xr.concat"):
        read_layout(both[["vv", "vh"]])
    # As the message says it:
    both["S1RTC"] = xr.concat([both.vv, both.vh], "S1RTC_band").assign_coords(
        S1RTC_band=["VV", "VH"]
    )
    layers = read_layout(both).layers
    assert [layer.modality.name for layer in layers] == ["S2L2A", "S1RTC"]
    np.testing.assert_array_equal(layers[1].data.values, radar.S1RTC.values)


def stac_item(folder, names):
    pixels = np.random.default_rng(0).integers(1, 9000, (12, 48, 48)).astype("uint16")
    pixels[:, :4] = 0
    assets = {
        names.get(band, band): write_tiff(folder / f"{band}.tif", plane, nodata=0)
        for band, plane in zip(MODALITIES["S2L2A"].bands, pixels, strict=True)
    }
    item = make_item("scene", day("2024-05-01"), assets, collection="sentinel-2-l2a")
    item.properties |= {"proj:code": CRS, "proj:shape": [48, 48],
                        "proj:transform": [10, 0, LEFT, 0, -10, TOP]}  # fmt: skip
    item.stac_extensions.append("https://stac-extensions.github.io/projection/v2.0.0/schema.json")
    return item, pixels


@pytest.mark.parametrize("names", [{}, COMMON_NAMES])
@pytest.mark.parametrize("dtype", ["uint16", None])
def test_what_odc_stac_loads_is_a_cube(tmp_path, names, dtype):
    item, pixels = stac_item(tmp_path, names)
    # Without metadata, as Planetary Computer's, odc loads floating point.
    assets = {"*": {"data_type": dtype, "nodata": 0}} if dtype else {}
    loaded = odc.stac.load(
        [item], geobox=grid(), chunks={"x": 32, "y": 32}, groupby="solar_day",
        stac_cfg={"sentinel-2-l2a": {"assets": assets}}, bands=list(item.assets),
    )  # fmt: skip
    assert {str(band.dtype) for band in loaded.values()} == {dtype or "float32"}
    (layer,) = read_layout(loaded).layers
    assert layer.modality.name == "S2L2A"
    np.testing.assert_array_equal(np.nan_to_num(layer.data.values[0]), pixels)


def test_degrees_of_odc_stac_are_refused(tmp_path):
    item, _ = stac_item(tmp_path, {})
    loaded = odc.stac.load([item], crs="EPSG:4326", resolution=1e-4, chunks={}, bands=["B02"])
    with pytest.raises(ValueError, match=r"dimensions y and x.*crs='utm', resolution=10"):
        read_layout(loaded)


def say(where, value):
    """Return a function that names a variable's value of invalid pixels, as one library does."""

    def name(data):
        if where == "rio":
            return data.rio.write_nodata(value)
        data = data.copy()
        getattr(data, "encoding" if where == "encoding" else "attrs")[
            "nodata" if where == "nodata" else "_FillValue"
        ] = value
        return data

    return name


@pytest.mark.parametrize("where", ["nodata", "_FillValue", "encoding", "rio"])
@pytest.mark.parametrize("chunks", [None, {"y": 64}])
@pytest.mark.parametrize(
    ("name", "dtype", "value", "found"),
    [
        ("DEM", "float32", -9999, "float32"), ("DEM", "float32", -3.4028234663852886e38, "float32"),
        ("DEM", "int16", -32768, "float32"), ("S2L2A", "uint16", 65535, "uint16"),
        ("S2L2A", "float32", -9999.0, "float32"), ("S1RTC", "float32", 0, "float32"),
    ],
)  # fmt: skip
def test_a_modality_s_own_fill_value_is_honoured(where, chunks, name, dtype, value, found):
    pytest.importorskip("rioxarray")
    cube = make_cube(modalities=(name,))
    pixels = cube[name].copy(deep=True)
    pixels[..., 40:90, 70:] = value
    pixels = say(where, value)(pixels.fillna(value).astype(dtype).assign_attrs(stac_items=["a"]))
    before = pixels.copy(deep=True)
    if chunks:
        pixels = pixels.chunk(chunks)
    with assert_lazy():
        (layer,) = read_layout(cube.assign({name: pixels})).layers
    assert (layer.data.chunks is not None) == (chunks is not None)
    assert layer.data.dtype == found
    assert layer.items == ("a",)
    fill = MODALITIES[name].fill_value
    expected = before.astype(found).where(before != value, np.dtype(found).type(fill)).values
    np.testing.assert_array_equal(layer.data.values.reshape(expected.shape), expected)
    np.testing.assert_array_equal(pixels, before)


@pytest.mark.parametrize(
    ("attrs", "encoding"),
    [
        ({}, {}), ({"nodata": 0}, {}), ({"nodata": np.nan}, {}), ({"nodata": None}, {}),
        ({"nodata": "none"}, {}), ({"nodata": -9999}, {}), ({"_FillValue": 1.5}, {}),
        ({}, {"_FillValue": 0}), ({}, {"_FillValue": 65535, "scale_factor": 1e-4}),
    ],
)  # fmt: skip
def test_pixels_are_not_copied_without_another_fill_value(attrs, encoding):
    cube = make_cube(modalities=("S2L2A",))
    cube.S2L2A.attrs |= attrs
    cube.S2L2A.encoding |= encoding
    (layer,) = read_layout(cube).layers
    assert np.shares_memory(layer.data.values, cube.S2L2A.values)


def test_what_xarray_has_masked_is_left_as_it_is(tmp_path):
    cube = make_cube(modalities=("DEM",))
    holes = cube.DEM.where(cube.DEM > 400)
    cube.assign(DEM=holes).to_zarr(
        tmp_path / "dem.zarr", encoding={"DEM": {"_FillValue": -9999}}, zarr_format=2
    )
    with xr.open_zarr(tmp_path / "dem.zarr", decode_coords="all") as opened:
        assert opened.DEM.encoding["_FillValue"] == -9999
        (layer,) = read_layout(opened).layers
        assert len(layer.data.__dask_graph__().layers) == len(
            opened.DEM.expand_dims("band").transpose("band", "y", "x").__dask_graph__().layers
        )
        np.testing.assert_array_equal(layer.data.values[0], holes)


def test_each_of_several_attributes_counts():
    cube = make_cube(modalities=("S2L2A",))
    pixels = cube.S2L2A.copy(deep=True).assign_attrs(nodata=65535, _FillValue=[9, 65535])
    pixels[..., :5, :5], pixels[..., 5:9, :5] = 65535, 9
    (layer,) = read_layout(cube.assign(S2L2A=pixels)).layers
    assert (layer.data[..., :9, :5] == 0).all()
    assert not {"nodata", "_FillValue"} & set(layer.data.attrs)


@pytest.mark.parametrize("attribute", ["nodata", "_FillValue"])
def test_a_variable_of_one_s_own_has_its_fill_value(attribute):
    cube = make_cube(modalities=("DEM",))
    cube["HEAT"] = cube.DEM.astype("int16").assign_attrs({attribute: -5})
    layers = read_layout(cube, ["DEM"], further={"HEAT": Statistics((0.0,), (1.0,))}).layers
    assert layers[1].modality.fill_value == -5
    assert layers[1].data.dtype == "int16"


def test_bands_are_given_by_modality():
    with pytest.raises(ValueError, match=r"bands=\['B02'\]: give the bands of each modality"):
        read_layout(make_cube(), bands=["B02"])
