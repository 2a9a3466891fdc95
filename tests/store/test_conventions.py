"""What readers of a prepared store find: grid, times, fill values, conventions."""

import json

import dask
import dask.array as da
import numpy as np
import odc.geo.xr  # noqa: F401  (registers the .odc accessor)
import pytest
import rasterio
import rioxarray  # noqa: F401  (registers the .rio accessor)
import xarray as xr
import zarr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from terramind_cube.store import conventions, write_result

# affine 3 under rioxarray 0.19.
pytestmark = pytest.mark.filterwarnings("ignore:.*:PendingDeprecationWarning:rioxarray.*")

ON_LATTICE = GeoBox.from_bbox((500000, 4999000, 500480, 4999640), crs="EPSG:32632", resolution=10)
OFF_LATTICE = GeoBox.from_bbox(
    (717729.835, 5700093.331, 718209.835, 5700733.331),
    crs="EPSG:32718", resolution=10, tight=True,
)  # fmt: skip
TIMES = np.array(["2023-06-10T10:10:31.123456789", "2023-07-10T00:00:00"], "M8[ns]")


def make_result(geobox=ON_LATTICE, *, timed=True, chunk=32):
    lead = (2,) if timed else ()
    dims = ("time", "y", "x") if timed else ("y", "x")
    rng = np.random.default_rng(7)
    classes = rng.integers(0, 10, (*lead, *geobox.shape.yx), dtype=np.uint8)
    certainty = rng.random(classes.shape, dtype=np.float32)
    certainty[..., :40, :5] = np.nan
    chunks = (*(1 for _ in lead), chunk, chunk)
    coords = dict(xr_coords(geobox))
    if timed:
        coords["time"] = ("time", TIMES)
    return xr.Dataset(
        {
            "LULC": (dims, da.from_array(classes, chunks=chunks), {"nodata": 0}),
            "LULC_confidence": (dims, da.from_array(certainty, chunks=chunks)),
        },
        coords=coords,
    )


def write(result, path):
    whole = {dim: slice(None) for dim in result.sizes}
    return write_result(result, path, regions=[whole], fingerprint={})


@pytest.mark.parametrize("timed", [True, False])
@pytest.mark.parametrize("geobox", [ON_LATTICE, OFF_LATTICE])
def test_plain_open_gives_values_and_grid(tmp_path, geobox, timed):
    result = make_result(geobox, timed=timed)
    stored = xr.open_zarr(write(result, tmp_path / "out.zarr"))
    xr.testing.assert_equal(stored.compute(), result.compute())
    assert stored.rio.crs == rasterio.CRS.from_user_input(str(geobox.crs))
    assert stored.odc.geobox == geobox
    for name in result:
        assert stored[name].dtype == result[name].dtype
        assert stored[name].odc.geobox == geobox
        assert stored[name].rio.crs == stored.rio.crs
        assert tuple(stored[name].rio.transform()) == tuple(geobox.transform)


@pytest.mark.parametrize("timed", [True, False])
def test_gdal_opens_every_variable_with_grid_and_values(tmp_path, timed):
    result = make_result(OFF_LATTICE, timed=timed)
    path = write(result, tmp_path / "out.zarr")
    for name in result:
        with rasterio.open(f'ZARR:"{path}":/{name}') as raster:
            assert raster.crs == rasterio.CRS.from_epsg(32718)
            assert tuple(raster.transform) == tuple(OFF_LATTICE.transform)
            expected = result[name].values
            bands = expected if timed else expected[None]
            np.testing.assert_array_equal(raster.read(), bands)
            assert raster.nodata == 0 if name == "LULC" else np.isnan(raster.nodata)


def test_a_cropped_result_has_its_own_corner(tmp_path):
    crop = make_result(chunk=16).isel(y=slice(16, None), x=slice(32, None))
    stored = xr.open_zarr(write(crop, tmp_path / "out.zarr"))
    expected = tuple(crop.odc.geobox.transform)
    assert tuple(stored.LULC.rio.transform()) == expected
    assert stored.attrs["spatial:transform"] == list(expected[:6])
    assert expected != tuple(ON_LATTICE.transform)


def test_instants_and_missing_instants_come_back_to_the_nanosecond(tmp_path):
    radar = np.array(["2023-06-12T05:44:01", "NaT"], "M8[ns]")
    result = make_result().assign_coords(S1RTC_time=("time", radar))
    stored = xr.open_zarr(write(result, tmp_path / "out.zarr"))
    np.testing.assert_array_equal(stored.time.values, TIMES)
    np.testing.assert_array_equal(stored.S1RTC_time.values, radar)
    assert stored.time.encoding["units"] == "nanoseconds since 1970-01-01"
    assert stored.S1RTC_time.encoding["units"] == "nanoseconds since 1970-01-01"
    assert stored.time.dtype == stored.S1RTC_time.dtype == "M8[ns]"


def test_leading_dimensions_and_text_labels_come_back(tmp_path):
    result = make_result(timed=False)
    result["LULC_probability"] = result.LULC_confidence.expand_dims({"class": ["water", "trees"]})
    result["valid"] = result.LULC > 0
    stored = xr.open_zarr(write(result, tmp_path / "out.zarr"))
    assert list(stored["class"].values) == ["water", "trees"]
    xr.testing.assert_equal(
        stored.LULC_probability.sel({"class": "trees"}, drop=True).compute(),
        result.LULC_confidence.drop_vars("class", errors="ignore").compute(),
    )
    assert stored.valid.dtype == bool
    np.testing.assert_array_equal(stored.valid.values, result.valid.values)


def test_chunks_of_fill_value_have_no_file_and_read_back(tmp_path):
    result = make_result()
    result["LULC"] = result.LULC.where(result.x > float(result.x[31]), 0).astype("uint8")
    result["LULC_confidence"] = result.LULC_confidence.where(result.y < float(result.y[31]))
    path = write(result, tmp_path / "out.zarr")
    assert not (path / "LULC" / "0" / "0" / "0").exists()
    assert (path / "LULC" / "0" / "0" / "1").exists()
    assert not (path / "LULC_confidence" / "1" / "0" / "0").exists()
    stored = xr.open_zarr(path)
    assert stored.LULC.dtype == np.uint8
    assert stored.LULC.attrs["nodata"] == 0
    assert "_FillValue" not in stored.LULC.attrs | stored.LULC.encoding
    xr.testing.assert_equal(stored.compute(), result.compute())


def test_group_and_variables_declare_the_zarr_conventions(tmp_path):
    group = zarr.open_group(write(make_result(), tmp_path / "out.zarr"), mode="r")
    assert group.attrs["Conventions"] == "CF-1.11"
    for attrs in (group.attrs, group["LULC"].attrs, group["LULC_confidence"].attrs):
        uuids = {row["name"]: row["uuid"] for row in attrs["zarr_conventions"]}
        assert uuids == {
            "proj": "f17cb550-5864-4468-aeb7-f3180cfb622f",
            "spatial": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
        }
        assert attrs["proj:code"] == "EPSG:32632"
        assert rasterio.CRS.from_wkt(attrs["proj:wkt2"]) == rasterio.CRS.from_epsg(32632)
        assert attrs["spatial:dimensions"] == ["y", "x"]
        assert attrs["spatial:shape"] == [64, 48]
        assert attrs["spatial:transform"] == [10, 0, 500000, 0, -10, 4999640]
        assert attrs["spatial:bbox"] == [500000, 4999000, 500480, 4999640]
    assert group["LULC"].attrs["grid_mapping"] == "spatial_ref"


def test_arrays_are_zarr_3_unsharded_with_the_chunks_of_the_result(tmp_path):
    path = write(make_result(), tmp_path / "out.zarr")
    metadata = json.loads((path / "LULC" / "zarr.json").read_text())
    assert metadata["zarr_format"] == 3
    assert metadata["chunk_grid"]["configuration"]["chunk_shape"] == [1, 32, 32]
    assert [codec["name"] for codec in metadata["codecs"]] == ["bytes", "zstd"]


def test_listing_the_store_warns_of_nothing_but_the_gdal_sidecar(tmp_path):
    path = write(make_result(), tmp_path / "out.zarr")  # warnings are errors here
    assert "LULC" in dict(zarr.open_group(path, mode="r").members())
    assert "ledger" not in xr.open_zarr(path).variables
    with pytest.warns(UserWarning, match="zmetadata") as warned:
        xr.open_zarr(path, consolidated=False)
    assert len(warned) == 1


def test_preparing_computes_no_pixel():
    def refuse(*args, **kwargs):
        raise AssertionError("something was computed")

    with dask.config.set(scheduler=refuse):
        prepared = conventions.prepare(make_result())
    assert prepared.LULC.chunks == make_result().LULC.chunks


def test_uneven_chunks_are_refused():
    result = make_result().chunk(y=(16, 32, 16))
    with pytest.raises(ValueError, match=r"LULC has uneven chunks along y: \(16, 32, 16\)"):
        conventions.prepare(result)


def test_a_result_without_crs_is_refused():
    with pytest.raises(ValueError, match="no grid"):
        conventions.prepare(make_result().drop_vars("spatial_ref"))


def test_text_variables_are_refused():
    result = make_result(timed=False)
    result["Captions"] = result.LULC.astype(str)
    with pytest.raises(ValueError, match="Captions has dtype <U"):
        conventions.prepare(result)
