"""``tree.terramind``: a tree of native resolutions becomes a cube, and the model works on it."""

import dask
import numpy as np
import pytest
import small
import xarray as xr
from odc.geo.xr import xr_coords

import terramind_cube as tc
from terramind_cube.accessor import TerraMindAccessor
from tests.cube.scenes import LEFT, TOP, day, grid, make_item, s2_item, warns_user, write_tiff
from tests.cube.test_native import AREA, elevation_item, radar, scene

# GDAL approximates a warp by up to an eighth of a pixel, depending on the pixels that it is given;
# neighbours differ by about 90 m. Backscatter goes through decibels in single precision.
ABSOLUTE = {"DEM": 4.0, "S1RTC": 2e-5}
MODALITIES = ("S2L2A", "S1RTC", "DEM", "LULC", "NDVI", "RGB")


@pytest.fixture(scope="module")
def items(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tree")
    years = {}
    for year, code in ((2023, 2), (2024, 11)):
        path = write_tiff(folder / f"lulc_{year}.tif", np.full((192, 192), code, "uint8"))
        span = (day(f"{year}-01-01"), day(f"{year}-12-31"))
        years[year] = make_item(f"lulc_{year}", span, {"data": path}, collection="io-lulc")
    return [
        scene(folder, "s2_a", day("2023-11-10"), seed=10),
        scene(folder, "s2_b", day("2024-05-20"), seed=11),
        scene(folder, "s2_c", day("2024-06-20"), seed=12),
        radar(folder, "s1_near", day("2023-11-10"), seed=20, orbit=139),
        radar(folder, "s1_a", day("2023-11-08"), seed=21, orbit=66),
        radar(folder, "s1_b", day("2024-05-22"), seed=22, orbit=66),
        elevation_item(folder),
        *years.values(),
    ]


def load(items, mode, modalities=MODALITIES, **options):
    arguments = {"geobox": AREA, "modalities": modalities, "mode": mode} | options
    if mode == "native" or "S1RTC" not in modalities:
        return tc.load_cube(items, **arguments)
    with warns_user("S1RTC has no scene for 2024-06-20"):
        return tc.load_cube(items, **arguments)


def to_cube(tree, match="S1RTC has no scene for 2024-06-20", **options):
    with warns_user(match):
        return tree.terramind.to_cube(**options)


def assert_same(cube, wanted):
    assert set(cube.variables) == set(wanted.variables)
    for name, variable in wanted.variables.items():
        assert cube[name].dims == variable.dims, name
        assert cube[name].dtype == variable.dtype, name
        if name == "cloud_mask":  # extended by whole pixels of 20 m, not of 10 m
            assert (cube[name].values == variable.values).mean() > 0.99
        elif name == "clear_fraction":
            np.testing.assert_allclose(cube[name].values, variable.values, atol=0.01)
        elif name in ABSOLUTE:
            np.testing.assert_allclose(cube[name].values, variable.values, atol=ABSOLUTE[name])
        else:
            np.testing.assert_array_equal(cube[name].values, variable.values, str(name))
    for name in wanted.data_vars:
        assert cube[name].attrs == wanted[name].attrs | {
            "stac_items": cube[name].attrs["stac_items"]
        }


@pytest.mark.parametrize("chunks", [None, {"y": 24, "x": 40}, {"time": -1}])
def test_tree_becomes_the_cube_of_the_analysis_view(items, chunks):
    wanted = load(items, "analysis")
    tree = load(items, "native", chunks=chunks)

    def refuse(*_, **__):
        raise AssertionError("computed while building")

    with dask.config.set(scheduler=refuse):
        cube = to_cube(tree)
    assert_same(cube, wanted)
    assert cube.odc.geobox == AREA
    assert cube["S1RTC_relative_orbit"].values.tolist() == [66, 66, 0]
    assert np.isnat(cube["S1RTC_time"].values[2])
    if chunks and "y" in chunks:
        assert all(cube[name].chunksizes["y"] == (24, 24, 16) for name in cube.data_vars)


def test_building_twice_gives_the_same_graph(items):
    tree = load(items, "native")
    first, second = to_cube(tree), to_cube(tree)
    for name in first.data_vars:
        assert first[name].data.name == second[name].data.name


@pytest.mark.parametrize("chunks", [{}, None])
def test_tree_from_a_store_needs_no_items(tmp_path, items, chunks):
    tree = load(items, "native", chunks={"y": 32, "x": 32})
    tree.to_zarr(tmp_path / "tree.zarr", consolidated=False)
    options = {"engine": "zarr", "consolidated": False, "chunks": chunks}
    with xr.open_datatree(tmp_path / "tree.zarr", **options) as opened:
        cube = to_cube(opened)
        assert all(cube[name].chunks is not None for name in cube.data_vars)
        assert cube["S2L2A"].chunksizes["x"] == (32, 32)
        assert_same(cube, load(items, "analysis"))


def test_elevation_is_interpolated_from_degrees_as_the_analysis_view_does(items):
    tree = load(items, "native", ["S2L2A", "DEM"])
    assert tree["DEM"].to_dataset().odc.geobox.crs.geographic
    wanted = tc.load_cube(items, geobox=AREA, modalities=["S2L2A", "DEM"])["DEM"].values
    cube = tree.terramind.to_cube()
    np.testing.assert_allclose(cube["DEM"].values, wanted, atol=ABSOLUTE["DEM"])
    for length in (17, 64):  # whatever the chunks of the tree
        other = load(items, "native", ["S2L2A", "DEM"], chunks={"y": length, "x": length})
        again = other.terramind.to_cube()["DEM"]
        assert again.chunksizes["y"][0] == length
        np.testing.assert_array_equal(again.values, cube["DEM"].values)


def test_radar_of_another_grid_is_interpolated_as_linear_power(tmp_path, items):
    other = radar(tmp_path, "s1_off", day("2023-11-09"), step=12.0, left=LEFT + 3, top=TOP - 5)
    own = [items[0], other]
    modalities = ["S2L2A", "S1RTC"]
    wanted = tc.load_cube(own, geobox=AREA, modalities=modalities)["S1RTC"].values
    got = load(own, "native", modalities).terramind.to_cube()["S1RTC"].values
    assert np.isfinite(got).all()
    np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_the_tolerance_is_that_of_the_call(items):
    tree = load(items, "native", ["S2L2A", "S1RTC"])
    cube = to_cube(tree, "2024-05-20, 2024-06-20", pair_within="1D")
    assert cube["S1RTC_relative_orbit"].values.tolist() == [139, 0, 0]
    with pytest.raises(ValueError, match="pair_within must be a duration"):
        tree.terramind.to_cube(pair_within="soon")
    alone = xr.DataTree.from_dict(
        {path: group.isel(time=slice(2, 3)) for path, group in groups_of(tree).items()}
    )
    with pytest.raises(ValueError, match="No S1RTC item pairs with 2024-06-20"):
        alone.terramind.to_cube()


def groups_of(tree):
    return {node.path: node.to_dataset(inherit=False) for node in tree.leaves}


def test_without_optical_data_another_grid_is_taken_at_ten_metres(tmp_path, items):
    radar_only = load(items, "native", ["S1RTC", "LULC"]).terramind.to_cube()
    assert radar_only.odc.geobox == AREA
    assert "S1RTC_time" not in radar_only
    bbox = (9.01, 48.06, 9.03, 48.08)
    tree = load(items, "native", ["DEM"], geobox=None, bbox=bbox)
    cube = tree.terramind.to_cube()
    assert "time" not in cube.dims
    assert (cube.odc.geobox.crs, cube.odc.geobox.resolution.x) == ("EPSG:32632", 10)
    assert np.isfinite(cube["DEM"].values[20:-20, 20:-20]).all()
    # Bands of 20 m alone are repeated.
    coarse = load(items, "native", ["S2L2A"], bands={"S2L2A": ["B05", "B11"]}, clouds=False)
    cube = coarse.terramind.to_cube()
    assert cube.odc.geobox == AREA
    native = coarse["S2L2A/r20m"]["S2L2A"].values
    repeated = native.repeat(2, axis=2).repeat(2, axis=3)
    np.testing.assert_array_equal(cube["S2L2A"].values, repeated)
    assert list(cube["S2L2A_band"].values) == ["B05", "B11"]


def test_part_of_a_tree_is_a_tree(items):
    tree = load(items, "native")
    cube = tree["S2L2A"].terramind.to_cube()
    assert set(cube.data_vars) == {"S2L2A", "SCL", "cloud_mask", "NDVI", "RGB"}
    assert cube.sizes["S2L2A_band"] == 12


def test_failures_go_along(tmp_path):
    item = scene(tmp_path, "broken", day("2024-05-01"))
    (tmp_path / "broken_B05.tif").unlink()
    tree = tc.load_cube([item], modalities=["S2L2A"], mode="native", on_error="nodata")
    cube = tree.terramind.to_cube()
    cube["S2L2A"].compute()
    assert len(cube.attrs["read_failures"]) == 1


def without_crs(tree):
    groups = groups_of(tree)
    data = groups["/S1RTC"].drop_vars("spatial_ref")
    for variable in data.variables.values():
        for name in ("grid_mapping", "crs"):
            variable.attrs.pop(name, None)
            variable.encoding.pop(name, None)
    return xr.DataTree.from_dict(groups | {"/S1RTC": data})


def other_dates(tree):
    groups = groups_of(tree)
    groups["/S2L2A/r20m"] = groups["/S2L2A/r20m"].isel(time=[0, 2])
    return xr.DataTree.from_dict(groups)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (without_crs, "Group /S1RTC has no coordinate reference system"),
        (other_dates, "Groups /S2L2A/r10m and /S2L2A/r20m have different dates"),
        (lambda _: xr.DataTree.from_dict({"/a": xr.Dataset({"b": 1})}), "has no modality.*/a"),
        (
            lambda tree: xr.DataTree.from_dict(
                {"/S1RTC": groups_of(tree)["/S1RTC"].drop_vars("time")}
            ),
            "Group /S1RTC has no coordinate time",
        ),
    ],
)
def test_what_is_no_such_tree_is_refused(items, change, message):
    tree = change(load(items, "native", ["S2L2A", "S1RTC"]))
    with pytest.raises(ValueError, match=message):
        tree.terramind.to_cube()


def test_model_works_on_a_tree(tmp_path, items, small_weights):
    tree = load(items, "native", ["S2L2A", "DEM"])
    options = {"overlap": 0, "device": "cpu", **small_weights}
    wanted = tree.terramind.to_cube().terramind.generate(["LULC"], **options)
    result = tree.terramind.generate(["LULC"], **options)
    assert isinstance(result, xr.Dataset)
    assert result.odc.geobox == AREA
    np.testing.assert_array_equal(result["LULC"].values, wanted["LULC"].values)
    path = tree.terramind.write(tmp_path / "out.zarr", ["LULC"], **options)
    with xr.open_zarr(path) as stored:
        np.testing.assert_array_equal(stored["LULC"].values, wanted["LULC"].values)
    tokens = tree.terramind.tokenize(
        ["DEM"],
        weights=small_weights["weights"],
        tokenizer_weights=small.tokenizers(small_weights["weights"].parent, "DEM"),
    )
    assert tokens["DEM_tokens"].sizes["token_y"] == 4
    features = tree.terramind.embed(weights=small_weights["weights"], device="cpu")
    assert features.sizes["time"] == 3
    assert tree.terramind.plot(time=1) is not None


def clouded(fractions, *, lazy=False):
    geobox = grid(16)
    times = np.array([f"2024-0{month}-01" for month in range(1, len(fractions) + 1)], "M8[ns]")
    values = np.array(fractions, np.float32)
    if lazy:
        values = dask.array.from_array(values, chunks=1)
    pixels = dask.array.full((len(times), 16, 16), 1, dtype="uint8", chunks=(1, 16, 16))
    return xr.Dataset(
        {
            "SCL": (
                ("time", "y", "x"),
                pixels.map_blocks(never, dtype="uint8", meta=np.empty((0, 0, 0), "uint8")),
            )
        },
        coords={**xr_coords(geobox), "time": times, "clear_fraction": ("time", values)},
    )


def never(block):
    if block.size:
        raise AssertionError("pixels were computed")
    return block


@pytest.mark.parametrize("lazy", [False, True])
def test_best_dates_are_the_clearest_first(lazy):
    cube = clouded([0.2, 0.9, 0.5, 0.9, np.nan], lazy=lazy)
    best = cube.terramind.best_dates(3)
    assert best.dims == ("time",)
    assert best.values.astype("M8[M]").astype(str).tolist() == ["2024-02", "2024-04", "2024-03"]
    np.testing.assert_allclose(best["clear_fraction"].values, [0.9, 0.9, 0.5])
    chosen = cube.sel(time=best)
    assert chosen.sizes["time"] == 3
    np.testing.assert_array_equal(chosen["time"].values, best.values)
    ordered = cube.sel(time=best.sortby("time"))
    assert (np.diff(ordered["time"].values) > np.timedelta64(0)).all()
    assert cube.terramind.best_dates(9).sizes["time"] == 4
    assert cube.terramind.best_dates(9, least_clear=0.6).sizes["time"] == 2


def test_best_dates_say_what_is_missing(tmp_path):
    cube = clouded([0.2, 0.4])
    with pytest.raises(ValueError, match=r"No date is seen clearly by 0.5 of the area.*0.4"):
        cube.terramind.best_dates(1, least_clear=0.5)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        cube.terramind.best_dates(0)
    plain = tc.load_cube([s2_item(tmp_path, "a", day("2024-05-01"))], modalities=["S2L2A"])
    with pytest.raises(ValueError, match=r"no coordinate clear_fraction.*clouds=True"):
        plain.terramind.best_dates(1)


def test_best_dates_of_loaded_scenes(items):
    tree = load(items, "native", ["S2L2A"])
    cube = tree.terramind.to_cube()
    fractions = cube["clear_fraction"].values
    best = tree.terramind.best_dates(1)
    assert best.values[0] == cube["time"].values[fractions.argmax()]


def test_one_accessor_serves_both():
    assert xr.Dataset.terramind is TerraMindAccessor
    assert issubclass(xr.DataTree.terramind, TerraMindAccessor)
