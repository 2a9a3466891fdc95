"""The main job on the synthetic catalog: search, cube, land cover, store."""

from __future__ import annotations

import numpy as np
import pytest
import rioxarray  # noqa: F401  # registers `Dataset.rio`
import xarray as xr

import terramind_cube as tc

SIZE_PX = 176  # 60 m pixels do not fit it
SEED = 900_001
DATES = ("2024-05-14", "2024-08-22")


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    path = tmp_path_factory.mktemp("catalog") / "stac"
    return tc.synthetic.write_catalog(path, size_px=SIZE_PX, seed=SEED, dates=DATES)


@pytest.fixture(scope="module")
def cube(catalog):
    return tc.load_cube(tc.open_catalog(str(catalog)), modalities=["S2L2A", "S1RTC", "DEM", "LULC"])


def test_a_scene_comes_back_from_its_catalog_on_its_own_grid(cube):
    scene = tc.synthetic.make_scene(SEED, (SIZE_PX, SIZE_PX), date=DATES[0])
    assert cube.odc.geobox == scene.odc.geobox
    found = cube.isel(time=0)
    for name in ("S2L2A", "S1RTC", "DEM", "LULC"):
        expected = scene[name].squeeze("time") if "time" in scene[name].dims else scene[name]
        if name == "S2L2A":  # bands of 20 m and 60 m were averaged on the way
            fine = ["B02", "B03", "B04", "B08"]
            np.testing.assert_array_equal(
                found[name].sel(S2L2A_band=fine), expected.sel(S2L2A_band=fine)
            )
        else:
            np.testing.assert_allclose(found[name], expected, rtol=0, atol=1e-4)


def test_land_cover_is_written_opened_and_resumed(cube, tmp_path):
    store = cube.terramind.write(
        tmp_path / "lulc.zarr", ["LULC"], inputs=["S2L2A", "S1RTC", "DEM"], chunks=96
    )
    lazy = cube.terramind.generate(["LULC"], inputs=["S2L2A", "S1RTC", "DEM"], chunks=96)
    with xr.open_zarr(store) as opened:
        assert opened.rio.crs == cube.rio.crs
        assert opened.odc.geobox == cube.odc.geobox
        assert opened.LULC.dtype == np.uint8
        xr.testing.assert_equal(opened.drop_vars("spatial_ref").compute(),
                                lazy.drop_vars("spatial_ref").compute())  # fmt: skip
        assert opened.LULC.attrs["terramind_generated"] == "true"
        assert len(opened.LULC.attrs["terramind_stac_items"]) == 5
    with pytest.raises(FileExistsError, match="resume"):
        cube.terramind.write(store, ["LULC"])
    again = cube.terramind.write(
        store, ["LULC"], inputs=["S2L2A", "S1RTC", "DEM"], chunks=96, resume=True
    )
    assert again == store
    for other in ({"seed": 1}, {"inputs": ["S2L2A"]}, {"overlap": 64}, {"compute_batch": 1}):
        request = {"inputs": ["S2L2A", "S1RTC", "DEM"], "chunks": 96, **other}
        with pytest.raises(ValueError, match="cannot be resumed"):
            cube.terramind.write(store, ["LULC"], resume=True, **request)


def test_nothing_is_written_where_a_request_is_bad(cube, tmp_path):
    for bad in (
        {"outputs": ["LUCL"]},
        {"inputs": ["S1GRD"]},
        {"weights": tmp_path / "absent.pt"},
        {"overlap": 5},
    ):
        with pytest.raises((ValueError, FileNotFoundError)):
            cube.terramind.write(tmp_path / "bad.zarr", **{"outputs": ["LULC"], **bad})
    assert not list(tmp_path.iterdir())
