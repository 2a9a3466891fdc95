"""`cube.terramind.normalize()`: what the model sees, lazily, with nodata at the mean."""

from __future__ import annotations

import dataclasses

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from device_array import Elsewhere
from small import make_cube

from terramind_cube.accessor import TerraMindAccessor
from terramind_cube.inference import standardize as room
from terramind_cube.modalities import MODALITIES, Statistics, standardize
from terramind_cube.model.variants import MODELS
from terramind_cube.testing import assert_lazy

STATISTICS = MODELS["terramind_nano"].statistics


@pytest.fixture(scope="module")
def cube():
    return make_cube(120, 90)


def normalize(cube, *modalities, **changes):
    return TerraMindAccessor(cube).normalize(list(modalities) or None, **changes)


def expected(cube, name):
    """What `standardize` gives, and 0 where any band is invalid."""
    row = MODALITIES[name]
    values = cube[name].values
    images = values if row.band_dim else values[..., None, :, :]
    is_known = np.isfinite(images).all(axis=-3, keepdims=True)
    if not np.isnan(row.fill_value):
        is_known &= (images != row.fill_value).all(axis=-3, keepdims=True)
    found = np.where(is_known, standardize(name, images, statistics=STATISTICS), 0)
    return found if row.band_dim else found[..., 0, :, :]


def test_pixels_are_standardised_and_nodata_is_the_mean(cube):
    found = normalize(cube)
    assert list(found.data_vars) == ["S2L2A", "S1RTC", "DEM"]
    for name in found.data_vars:
        assert found[name].dtype == np.float32
        np.testing.assert_allclose(found[name], expected(cube, name), rtol=1e-5, atol=1e-5)
    hole = (cube.S2L2A == 0).any("S2L2A_band").values
    assert hole.any()
    assert (found.S2L2A.transpose("time", "y", "x", ...).values[hole] == 0).all()
    assert np.isfinite(found.S1RTC.values).all()


def test_a_pixel_without_one_band_is_masked_in_all(cube):
    pixels = cube.S2L2A.copy(deep=True)
    y, x = np.argwhere((pixels[0] != 0).all("S2L2A_band").values)[17]
    pixels[0, 3, y, x] = 0
    found = normalize(cube.assign(S2L2A=pixels), "S2L2A").S2L2A
    assert (found[0, :, y, x] == 0).all()
    assert (found[1, :, y, x] != 0).all()


def test_infinities_are_masked(cube):
    pixels = cube.S1RTC.copy(deep=True)
    pixels[0, 1, 60, 60] = np.inf
    found = normalize(cube.assign(S1RTC=pixels), "S1RTC").S1RTC
    assert (found[0, :, 60, 60] == 0).all()
    assert np.isfinite(found).all()


@pytest.mark.parametrize("chunks", [{"time": 1, "y": 50, "x": 37}, {"S2L2A_band": 5}, {}])
def test_it_is_lazy_in_the_cube_s_chunks_with_all_bands_in_one(cube, chunks):
    chunked = cube.chunk(chunks)
    with assert_lazy():
        found = normalize(chunked)
    for name, data in found.data_vars.items():
        assert isinstance(data.data, da.Array)
        for dim in data.dims:
            sizes = dict(chunked[name].chunksizes)[dim]
            assert data.chunksizes[dim] == ((12,) if dim == "S2L2A_band" else sizes)
        assert isinstance(data.data._meta, np.ndarray)
        assert data.data._meta.dtype == np.float32
    xr.testing.assert_identical(found.compute(), normalize(cube))


def test_a_cube_in_memory_stays_in_memory(cube):
    found = normalize(cube)
    assert all(isinstance(data.data, np.ndarray) for data in found.data_vars.values())


def test_dimensions_and_coordinates_are_the_cube_s(cube):
    cube = cube.assign_coords(
        S2L2A_offset=("time", np.array([0, -1000], np.int16)), clear_fraction=("time", [0.5, 1.0])
    )
    found = normalize(cube)
    assert set(found.coords) == set(cube.coords)
    for name, coordinate in cube.coords.items():
        xr.testing.assert_identical(found.coords[name].variable, coordinate.variable)
    for name in found.data_vars:
        assert found[name].dims == cube[name].dims
    assert found.odc.geobox == cube.odc.geobox


def test_other_names_and_orders_of_dimensions_are_kept(cube):
    turned = cube[["S2L2A"]].rename(S2L2A_band="band").transpose("y", "x", "time", "band")
    found = normalize(turned)
    assert found.S2L2A.dims == ("y", "x", "time", "band")
    usual = normalize(cube[["S2L2A"]]).S2L2A
    np.testing.assert_array_equal(found.S2L2A.transpose("time", "band", "y", "x"), usual)
    for chunks in ({"y": 40, "band": 3}, {"time": 1}):
        xr.testing.assert_identical(normalize(turned.chunk(chunks)).compute(), found)


def test_variables_per_band_become_one_of_the_modality(cube):
    bands = {str(b): cube.S2L2A.sel(S2L2A_band=b, drop=True) for b in MODALITIES["S2L2A"].bands}
    found = normalize(cube.drop_dims("S2L2A_band").assign(bands), "S2L2A")
    assert found.S2L2A.dims == ("time", "S2L2A_band", "y", "x")
    np.testing.assert_array_equal(found.S2L2A, normalize(cube).S2L2A)


def test_attributes_say_what_was_done(cube):
    cube = cube.assign(S2L2A=cube.S2L2A.assign_attrs(stac_items=["a", "b"], units="1e-4", x=1))
    found = normalize(cube, "S2L2A", bands={"S2L2A": ["B04", "B03"]}).S2L2A
    places = [MODALITIES["S2L2A"].bands.index(band) for band in ("B03", "B04")]
    statistics = STATISTICS["S2L2A"]
    assert found.attrs["units"] == "1"
    assert found.attrs["terramind_mean"] == [statistics.mean[place] for place in places]
    assert found.attrs["terramind_std"] == [statistics.std[place] for place in places]
    assert found.attrs["terramind_model"] == "terramind_nano"
    assert found.attrs["terramind_stac_items"] == ["a", "b"]
    assert "0 or not finite" in found.attrs["terramind_nodata"]
    assert "x" not in found.attrs
    assert found.S2L2A_band.values.tolist() == ["B03", "B04"]
    assert cube.S2L2A.attrs["units"] == "1e-4"


def test_the_result_is_written_and_read_again(cube, tmp_path):
    cube = cube.chunk({"y": 64, "x": 64})
    cube.S2L2A.encoding |= {"dtype": "uint16", "_FillValue": 0}
    found = normalize(cube)
    found.to_zarr(tmp_path / "found.zarr", zarr_format=2)
    again = xr.open_zarr(tmp_path / "found.zarr")
    for name in found.data_vars:
        np.testing.assert_array_equal(again[name], found[name])
    assert "spatial_ref" in again.coords


def crs_renamed(cube):
    cube = cube.rename(spatial_ref="crs")
    for data in cube.data_vars.values():
        data.encoding["grid_mapping"] = "crs"
    return cube


@pytest.mark.parametrize("chunks", [None, {"y": 64, "x": 64}])
@pytest.mark.parametrize("change", [crs_renamed, lambda cube: cube.reset_coords("spatial_ref")])
def test_the_crs_is_kept_whatever_it_is_called(cube, tmp_path, change, chunks):
    pytest.importorskip("rioxarray")
    given = change(cube.copy())
    found = normalize(given.chunk(chunks) if chunks else given)
    assert set(found.coords) == set(cube.coords)
    found.to_zarr(tmp_path / "found.zarr", zarr_format=2)
    again = xr.open_zarr(tmp_path / "found.zarr")
    assert "crs" not in again.variables
    for result in (found, again):
        assert result.rio.crs == result.S2L2A.rio.crs == cube.odc.geobox.crs
        assert result.odc.geobox == cube.odc.geobox
    for name in found.data_vars:
        assert found[name].encoding == {"grid_mapping": "spatial_ref"}
        assert again[name].attrs["grid_mapping"] == "spatial_ref"


@pytest.mark.parametrize("chunks", [None, {"y": 64}])
@pytest.mark.parametrize(("name", "value"), [("DEM", -9999), ("S2L2A", 65535)])
def test_a_variable_s_own_nodata_is_the_mean(cube, name, value, chunks):
    pixels = cube[name].copy(deep=True).assign_attrs(nodata=value)
    pixels[..., 40:60, 20:] = value
    given = cube.assign({name: pixels.chunk(chunks) if chunks else pixels})
    found = normalize(given, name)[name]
    assert (found[..., 40:60, 20:] == 0).all()
    np.testing.assert_array_equal(found[..., 60:, :], normalize(cube, name)[name][..., 60:, :])


@pytest.mark.parametrize("chunks", [None, {"y": 64}])
def test_kernels_get_contiguous_pixels(cube, monkeypatch, chunks):
    """Those on a GPU take no others; here bands come last."""
    seen = []

    def engine(pixels, **options):
        seen.append(pixels.flags.c_contiguous)
        return kernels_normalize(pixels, **options)

    kernels_normalize = room.kernels.normalize
    monkeypatch.setattr(room.kernels, "normalize", engine)
    turned = cube[["S2L2A"]].transpose("time", "y", "x", "S2L2A_band").copy(deep=True)
    turned["S2L2A"] = turned.S2L2A.copy(data=np.ascontiguousarray(turned.S2L2A.values))
    normalize(turned.chunk(chunks) if chunks else turned).compute()
    assert seen
    assert all(seen)


def test_failures_to_read_are_those_of_the_cube(cube):
    failures = []
    found = normalize(cube.assign_attrs(read_failures=failures), "DEM")
    assert found.attrs["read_failures"] is failures
    assert "read_failures" not in normalize(cube, "DEM").attrs


def test_the_statistics_are_the_model_s(cube, small_weights, monkeypatch):
    found = normalize(cube, "DEM", weights=small_weights["weights"])
    np.testing.assert_array_equal(found.DEM, normalize(cube, "DEM").DEM)
    assert len(found.DEM.attrs["terramind_weights_sha256"]) == 64
    chosen = room.choose_model

    def other(*arguments):
        spec, description = chosen(*arguments)
        statistics = {**STATISTICS, "DEM": Statistics((0.0,), (100.0,))}
        return spec, dataclasses.replace(description, statistics=statistics)

    monkeypatch.setattr(room, "choose_model", other)
    metres = normalize(cube, "DEM").DEM
    np.testing.assert_allclose(metres, cube.DEM / 100, rtol=1e-6)


@pytest.mark.parametrize("dtype", ["int64", "float64", ">u2", ">f4"])
def test_any_number_is_read(cube, dtype):
    other = cube[["S2L2A"]].assign(S2L2A=cube.S2L2A.astype(dtype))
    for given in (other, other.chunk({"y": 50})):
        np.testing.assert_array_equal(normalize(given).S2L2A, normalize(cube).S2L2A)


@pytest.mark.parametrize(
    ("modalities", "changes", "message"),
    [
        (["LULC"], {}, "LULC cannot be standardised: its numbers are codes"),
        ("S2L2A", {}, "modalities is a list"),
        (["DEM"], {"dtype": "bfloat16"}, "NumPy and CuPy have no bfloat16"),
        (["DEM"], {"dtype": "float16"}, "expected 'float32', got 'float16'"),
        (["NDVI"], {}, "The cube has no NDVI"),
        (["DEM"], {"bands": {"S2L2A": ["B04"]}}, "bands names S2L2A"),
        (["DEM"], {"model": "terramind_v9"}, "terramind_v9"),
        (["S2L2A"], {"bands": ["B02"]}, r"bands=\['B02'\]: give the bands of each modality"),
        (5, {}, "modalities=5: give a list of names"),
        ([5], {}, r"modalities=\[5\]: give a list of names"),
        ([], {}, "No modalities: give at least one"),
    ],
)
def test_what_does_not_fit_is_refused(cube, modalities, changes, message):
    lulc = ("time", "y", "x"), np.zeros((2, 120, 90), np.uint8)
    with pytest.raises(ValueError, match=message):
        TerraMindAccessor(cube.assign(LULC=lulc)).normalize(modalities, **changes)


def test_classes_are_left_out_by_default(cube):
    lulc = ("time", "y", "x"), np.zeros((2, 120, 90), np.uint8)
    assert "LULC" not in normalize(cube.assign(LULC=lulc)).data_vars


def test_chunks_on_a_device_stay_there(cube, monkeypatch):
    seen = []

    def engine(pixels, **options):
        assert isinstance(pixels, Elsewhere)
        assert pixels.held.flags.c_contiguous
        seen.append(pixels.shape)
        return Elsewhere(kernels_normalize(pixels.held, **options))

    kernels_normalize = room.kernels.normalize
    monkeypatch.setattr(room.kernels, "normalize", engine)
    pixels = cube.S2L2A.chunk({"y": 50, "S2L2A_band": 7}).copy()
    meta = Elsewhere(np.empty((0,) * 4, np.uint16))
    pixels.data = pixels.data.map_blocks(Elsewhere, dtype=np.uint16, meta=meta)
    with assert_lazy():
        found = normalize(cube[["S2L2A"]].assign(S2L2A=pixels)).S2L2A
    assert isinstance(found.data._meta, Elsewhere)
    assert found.data._meta.dtype == np.float32
    assert not seen
    chunk = found.data.blocks[0, 0, 2, 0].compute(scheduler="sync")
    assert isinstance(chunk, Elsewhere)
    assert seen == [(2, 12, 20, 90)]
    monkeypatch.undo()
    np.testing.assert_array_equal(chunk.held, normalize(cube).S2L2A[..., 100:, :])
