"""What a cube is: found in any Dataset of the right shape, refused where it cannot be right."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import xarray as xr
from small import make_cube

from terramind_cube.cube.layout import read_layout
from terramind_cube.modalities import MODALITIES


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


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: uneven(make_cube()), "x is not evenly spaced"),
        (merged, "evenly spaced: layers of different grids"),
        (lambda: without_crs(make_cube()), "no coordinate reference system"),
        (geographic, "in degrees"),
        (lambda: make_cube().sortby("y"), "Rows run northwards"),
        (lambda: make_cube().rename(y="lat"), "dimensions y and x"),
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
    assert any("trained on 10 m" in str(w.message) for w in caught) == warns
