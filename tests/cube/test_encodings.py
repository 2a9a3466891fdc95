"""What xarray alone writes of a cube or a result: times that others fit, nodata, NetCDF."""

from __future__ import annotations

import json

import numpy as np
import pytest
import xarray as xr
from small import make_cube, tokenizers

from terramind_cube.accessor import TerraMindAccessor
from terramind_cube.cube.encodings import encode_times

# affine 3 under rioxarray 0.19.
pytestmark = pytest.mark.filterwarnings("ignore:.*:PendingDeprecationWarning:rioxarray.*")

LATER = np.array(["2024-09-01T11:22:33.123456789", "2031-01-01T00:00:00.001"], "M8[ns]")


@pytest.fixture(scope="module")
def settings(small_weights):
    return {**small_weights, "overlap": 16, "threads": 1, "chunks": 64}


def make_timed(times, radar):
    pixels = ("time", np.arange(len(times)))
    coords = {"time": np.array(times, "M8[ns]"), "S1RTC_time": ("time", np.array(radar, "M8[ns]"))}
    return encode_times(xr.Dataset({"value": pixels}, coords))


@pytest.mark.parametrize(
    ("radar", "later"),
    [
        (["2024-05-15T05:30:11.123456"], "2024-09-02T17:00"),
        (["2024-05-15"], "NaT"),
        (["NaT"], "2024-09-02T17:00:00.000000001"),
    ],
)
def test_any_date_is_appended(tmp_path, radar, later):
    first = make_timed(["2024-05-14T10:30"], radar)
    second = make_timed(LATER[:1], [later])
    first.to_zarr(tmp_path / "a.zarr", consolidated=False)
    second.to_zarr(tmp_path / "a.zarr", append_dim="time", consolidated=False)
    opened = xr.open_zarr(tmp_path / "a.zarr", consolidated=False)
    for name in ("time", "S1RTC_time"):
        wanted = np.concatenate([first[name], second[name]])
        np.testing.assert_array_equal(opened[name].values, wanted)
        assert opened[name].dtype == "M8[ns]"


def test_a_selected_date_keeps_the_encoding(tmp_path):
    data = make_timed(LATER, ["2024-05-15", "NaT"])
    for place, part in enumerate((data.isel(time=0), data.isel(time=1), data.sel(time=LATER[1]))):
        path = tmp_path / f"{place}.zarr"
        part.to_zarr(path, consolidated=False)
        opened = xr.open_zarr(path, consolidated=False)
        assert opened.time.encoding["units"] == "nanoseconds since 1970-01-01"
        np.testing.assert_array_equal(opened.time, part.time)
        np.testing.assert_array_equal(opened.S1RTC_time, part.S1RTC_time)


def test_a_result_of_a_later_date_is_appended(tmp_path, settings):
    cube = make_cube(64, 64, modalities=("S2L2A",))
    first, second = (TerraMindAccessor(cube.isel(time=[i])) for i in (0, 1))
    first.generate(["LULC"], **settings).to_zarr(tmp_path / "a.zarr", consolidated=False)
    later = second.generate(["LULC"], **settings)
    later.to_zarr(tmp_path / "a.zarr", append_dim="time", consolidated=False)
    opened = xr.open_zarr(tmp_path / "a.zarr", consolidated=False)
    np.testing.assert_array_equal(opened.time, cube.time)
    np.testing.assert_array_equal(opened.LULC[1:], later.LULC)


def test_nodata_is_the_fill_value_of_zarr(tmp_path, settings):
    cube = make_cube(64, 64, modalities=("S2L2A",))
    folder = settings["weights"].parent
    tokens = TerraMindAccessor(cube).tokenize(
        ["S2L2A"], weights=settings["weights"], tokenizer_weights=tokenizers(folder, "S2L2A")
    )
    tokens.to_zarr(tmp_path / "t.zarr", consolidated=False)
    land = TerraMindAccessor(cube).generate(["LULC"], **settings)
    land.to_zarr(tmp_path / "l.zarr", consolidated=False)
    for path, wanted in (("t.zarr/S2L2A_tokens", -1), ("l.zarr/LULC", 0)):
        metadata = json.loads((tmp_path / path / "zarr.json").read_text())
        assert metadata["fill_value"] == wanted
    assert xr.open_zarr(tmp_path / "t.zarr", consolidated=False).S2L2A_tokens.dtype == "int32"


def test_netcdf_is_written_of_a_cube_and_of_a_result(tmp_path, settings):
    cube = make_cube(64, 64, modalities=("S2L2A",))
    result = TerraMindAccessor(cube).generate(["LULC"], **settings)
    for data, name in ((cube, "S2L2A"), (result, "LULC"), (result.isel(time=0), "LULC")):
        data.to_netcdf(tmp_path / "out.nc", engine="h5netcdf")
        with xr.open_dataset(tmp_path / "out.nc", engine="h5netcdf", decode_coords="all") as opened:
            np.testing.assert_array_equal(opened[name], data[name])
            np.testing.assert_array_equal(opened.time, data.time)
            assert opened.odc.geobox == cube.odc.geobox
