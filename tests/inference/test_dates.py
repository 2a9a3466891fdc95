"""A date that was selected is that date: its values, its coordinate, its items."""

from __future__ import annotations

import numpy as np
import pytest
import xarray as xr
from small import make_cube, tokenizers

from terramind_cube.accessor import TerraMindAccessor
from terramind_cube.inference import read_fingerprint
from terramind_cube.testing import assert_lazy

OUTPUTS = ["LULC", "S1RTC", "DEM", "Coordinates"]


@pytest.fixture(scope="module")
def cube():
    """80 x 64 px, two dates, with annual maps and with the items of each date."""
    cube = make_cube(80, 64, modalities=("S2L2A", "DEM"))
    rng = np.random.default_rng(5)
    classes = rng.integers(0, 10, (2, 10, 8), dtype=np.uint8).repeat(8, 1).repeat(8, 2)
    cube = cube.assign(LULC=(("time", "y", "x"), classes))
    cube.S2L2A.attrs["stac_items"] = ["may", "may twin", "august"]
    cube.LULC.attrs["stac_items"] = ["map of 2024", "map of 2025"]
    cube.DEM.attrs["stac_items"] = ["relief"]
    return cube.assign_coords(
        S2L2A_items=("time", np.array(["may may twin", "august"], object)),
        LULC_items=("time", np.array(["map of 2024", "map of 2025"], object)),
        clear_fraction=("time", [0.4, 0.9]),
        caption=("time", np.array(["spring", "summer"], object)),
    )


@pytest.fixture(scope="module")
def weights(small_weights):
    """Return a function that gives the arguments of weights, with those of some tokenizers."""

    def of(*names):
        folder = small_weights["weights"].parent
        found = {"weights": small_weights["weights"], "threads": 1}
        return {**found, "tokenizer_weights": tokenizers(folder, *names)} if names else found

    return of


CALLS = {
    "generate": lambda t, w: t.generate(
        OUTPUTS, overlap=16, steps=2, inputs={"S2L2A": "pixels", "LULC": "tokens"},
        **w("LULC", "S1RTC", "DEM"),
    ),
    "maps alone": lambda t, w: t.generate(
        ["DEM"], overlap=16, inputs=["LULC"], **w("LULC", "DEM")
    ),
    "static alone": lambda t, w: t.generate(["LULC"], overlap=16, inputs=["DEM"], **w("LULC")),
    "embed": lambda t, w: t.embed(inputs=["S2L2A", "DEM"], **w()).to_dataset(name="embedding"),
    "tokenize": lambda t, w: t.tokenize(["LULC", "S2L2A"], **w("LULC", "S2L2A")),
    "reconstruct": lambda t, w: t.reconstruct(["LULC", "DEM"], overlap=16, **w("LULC", "DEM")),
    "normalize": lambda t, w: t.normalize(["S2L2A"], weights=w()["weights"]),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CALLS))
@pytest.mark.parametrize("chunks", [None, {"y": 32}])
def test_a_scalar_time_gives_the_values_of_that_date(cube, weights, name, chunks):
    call = CALLS[name]
    whole = call(TerraMindAccessor(cube), weights).compute()
    for place in (0, 1):
        date = cube.isel(time=place)
        with assert_lazy():
            lazy = call(TerraMindAccessor(date.chunk(chunks) if chunks else date), weights)
        result = lazy.compute()
        assert "time" not in result.dims
        expected = whole.isel(time=place) if "time" in whole.dims else whole
        for variable in expected.data_vars:
            xr.testing.assert_equal(result[variable], expected[variable])
            assert result[variable].dtype == expected[variable].dtype
        if "time" in expected.coords:
            assert result["time"].values == cube["time"].values[place]
            assert result["time"].dims == ()


def test_the_dates_differ_by_their_noise(cube, weights):
    """Else the test above would show nothing."""
    same = cube.copy()
    same["S2L2A"] = same.S2L2A.isel(time=[0, 0]).assign_coords(time=same.time)
    call = {"overlap": 16, "inputs": ["S2L2A"], **weights("LULC")}
    result = TerraMindAccessor(same).generate(["LULC"], **call).LULC
    assert (result[0] != result[1]).any()


def test_a_store_of_one_date_keeps_it(cube, weights, tmp_path):
    date = cube.isel(time=1)
    call = {"overlap": 16, "inputs": ["S2L2A"], **weights("LULC")}
    path = TerraMindAccessor(date).write(tmp_path / "one.zarr", ["LULC"], **call)
    with xr.open_zarr(path) as opened:
        assert opened["time"].dims == ()
        assert opened["time"].values == date["time"].values
        xr.testing.assert_equal(
            opened.LULC, TerraMindAccessor(date).generate(["LULC"], **call).LULC.compute()
        )
    # It is resumed as that date, and as no other one.
    TerraMindAccessor(date).write(path, ["LULC"], resume=True, **call)
    with pytest.raises(ValueError, match="time"):
        TerraMindAccessor(cube.isel(time=0)).write(path, ["LULC"], resume=True, **call)


@pytest.mark.parametrize(
    ("select", "items"),
    [
        (lambda cube: cube, ["august", "map of 2024", "map of 2025", "may", "may twin", "relief"]),
        (lambda cube: cube.isel(time=[1]), ["august", "map of 2025", "relief"]),
        (lambda cube: cube.isel(time=1), ["august", "map of 2025", "relief"]),
        (lambda cube: cube.isel(time=[0]), ["map of 2024", "may", "may twin", "relief"]),
        (
            lambda cube: cube.sel(time=cube.terramind.best_dates(1)),
            ["august", "map of 2025", "relief"],
        ),
        (
            lambda cube: cube.drop_vars(["S2L2A_items", "LULC_items"]).isel(time=[1]),
            ["august", "map of 2024", "map of 2025", "may", "may twin", "relief"],
        ),
    ],
)
def test_provenance_follows_the_selection(cube, weights, select, items):
    chosen = select(cube)
    inputs = {"S2L2A": "pixels", "DEM": "pixels", "LULC": "tokens"}
    result = TerraMindAccessor(chosen).generate(
        ["LULC"], overlap=16, inputs=inputs, **weights("LULC")
    )
    assert result.LULC.attrs["terramind_stac_items"] == items
    assert read_fingerprint(result)["terramind_stac_items"] == items


def test_items_are_known_where_arithmetic_has_dropped_the_attribute(cube, weights):
    cube["S2L2A"] = cube.S2L2A.copy().drop_attrs()
    result = TerraMindAccessor(cube.isel(time=[1])).embed(inputs=["S2L2A"], **weights())
    assert result.attrs["terramind_stac_items"] == ["august"]


def test_what_is_computed_from_reflectance_comes_of_its_items(cube, weights):
    greenness = xr.zeros_like(cube.LULC, np.float32).assign_attrs(stac_items=["may", "august"])
    cube = cube.assign(NDVI=greenness).drop_vars(["S2L2A", "LULC"])
    result = TerraMindAccessor(cube.isel(time=1)).tokenize(["NDVI"], **weights("NDVI"))
    assert result.NDVI_tokens.attrs["terramind_stac_items"] == ["august"]
