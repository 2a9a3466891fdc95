"""Generated results in a store: every kind of variable, groups without a tile, resumed runs."""

from __future__ import annotations

import numpy as np
import pytest
import rioxarray  # noqa: F401  # registers `Dataset.rio`
import xarray as xr
import zarr
from small import make_cube, tokenizers, write_captioned

from terramind_cube.accessor import TerraMindAccessor
from terramind_cube.inference import plan as plan_module
from terramind_cube.inference.mapping import generated_regions
from terramind_cube.store import completed, read_receipts, read_run

# affine 3 under rioxarray 0.19.
pytestmark = pytest.mark.filterwarnings("ignore:.*:PendingDeprecationWarning:rioxarray.*")

OUTPUTS = ["LULC", "S1RTC", "DEM", "Coordinates"]


class Interruption(Exception):
    pass


@pytest.fixture(scope="module")
def settings(small_weights):
    folder = small_weights["weights"].parent
    return {
        "inputs": ["S2L2A"], "weights": small_weights["weights"],
        "tokenizer_weights": tokenizers(folder, *OUTPUTS[:-1]), "overlap": 16, "threads": 1,
        "steps": 2, "n_samples": 2, "keep_samples": True, "chunks": 32,
    }  # fmt: skip


@pytest.fixture(scope="module")
def cube():
    """Tiles at 0, 32 southwards and 0, 48, 64 eastwards: of groups of 32 px some start none."""
    cube = make_cube(96, 128, modalities=("S2L2A",))
    cube.S2L2A[:, :, :, 96:] = 0  # some chunks of fill values alone
    return cube


@pytest.fixture(scope="module", autouse=True)
def small_groups():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan_module, "GROUP_PX", 32)
        yield


@pytest.fixture(scope="module")
def expected(cube, settings):
    return TerraMindAccessor(cube).generate(OUTPUTS, **settings).compute()


@pytest.fixture(scope="module")
def whole(cube, settings, tmp_path_factory):
    path = tmp_path_factory.mktemp("generated") / "out.zarr"
    return TerraMindAccessor(cube.chunk(y=50, x=50)).write(path, OUTPUTS, **settings)


def read_bytes(store):
    """Every file that must be the same from run to run."""
    return {
        str(file.relative_to(store)): file.read_bytes()
        for file in store.rglob("*")
        if file.is_file() and file.name != "zarr.json" and "ledger" not in file.parts
    }


def assert_same(found, expected):
    assert set(found.data_vars) == set(expected.data_vars)
    for name in expected.data_vars:
        assert found[name].dims == expected[name].dims, name
        assert found[name].dtype == expected[name].dtype, name
        assert found[name].values.tobytes() == expected[name].values.tobytes(), name


def test_a_store_holds_what_generate_returns(whole, expected):
    assert {"LULC_probability", "S1RTC_std", "DEM_samples", "Coordinates_latitude"} < set(expected)
    stored = xr.open_zarr(whole)
    assert_same(stored.compute(), expected)
    for name in expected.coords:
        np.testing.assert_array_equal(stored[name], expected[name])
    for name in expected.data_vars:
        attrs = {**expected[name].attrs}
        for key, value in attrs.items():
            np.testing.assert_array_equal(stored[name].attrs[key], value)


def test_labels_survive(whole, cube):
    stored = xr.open_zarr(whole)
    assert stored["class"].values.tolist()[:3] == ["no_data", "water", "trees"]
    assert stored.S1RTC_band.values.tolist() == ["VV", "VH"]
    assert stored.sample.values.tolist() == [0, 1]
    assert stored.candidate.values.tolist() == [0, 1, 2, 3, 4]
    trees = stored.LULC_probability.sel({"class": "trees"})
    np.testing.assert_array_equal(trees, stored.LULC_probability[2])
    assert stored.S1RTC.sel(S1RTC_band="VH").shape == (2, 96, 128)
    np.testing.assert_array_equal(stored.time, cube.time)


def test_groups_without_a_tile_of_their_own_write_none(whole, cube, settings):
    lazy = TerraMindAccessor(cube).generate(OUTPUTS, **settings)
    regions = generated_regions(lazy)
    own = [r["tile_y"].stop - r["tile_y"].start for r in regions[:12:4]]
    across = [r["tile_x"].stop - r["tile_x"].start for r in regions[:4]]
    assert (own, across) == ([1, 1, 0], [1, 1, 1, 0])
    receipts = read_receipts(whole)
    assert len(receipts) == len(regions) == 24
    with_tiles = [row for row in receipts if "Coordinates" in row.sha256]
    assert len(with_tiles) == 2 * 2 * 3
    assert all("S1RTC_samples" in row.sha256 for row in receipts)
    assert all("DEM_token_confidence" in row.sha256 for row in receipts)
    for row in with_tiles:
        assert row.region["tile_x"][1] > row.region["tile_x"][0]
    assert read_run(whole).status == "complete"


def test_other_readers_find_the_grid(whole, cube):
    stored = xr.open_zarr(whole)
    assert stored.odc.geobox == cube.odc.geobox
    assert stored.rio.crs.to_epsg() == 32632
    for name in ("LULC", "LULC_probability", "S1RTC", "S1RTC_samples", "DEM_std"):
        assert stored[name].odc.geobox == cube.odc.geobox, name
        assert stored[name].rio.crs.to_epsg() == 32632, name
        assert stored[name].attrs["grid_mapping"] == "spatial_ref"
    assert "grid_mapping" not in stored.DEM_token_confidence.attrs
    assert "grid_mapping" not in stored.Coordinates.attrs


def test_gdal_opens_rasters_beside_the_others(whole, expected):
    import rasterio

    with rasterio.open(f'ZARR:"{whole}":/DEM') as raster:
        assert raster.crs.to_epsg() == 32632
        np.testing.assert_array_equal(raster.read(), expected.DEM)


def test_chunks_of_the_store_are_those_of_the_result(whole):
    group = zarr.open_group(whole, mode="r")
    chunks = {
        "LULC": (1, 32, 32),
        "S1RTC_samples": (2, 1, 2, 32, 32),
        "LULC_probability": (10, 1, 32, 32),
        "DEM_token_confidence": (1, 2, 2),
        "Coordinates": (1, 1, 1, 5),
    }
    for name, sizes in chunks.items():
        assert group[name].chunks == sizes, name
    assert not (whole / "LULC" / "0" / "0" / "3").exists()  # nothing but nodata
    assert (whole / "LULC" / "0" / "0" / "2").exists()


def test_an_interrupted_run_resumes_to_the_same_bytes(whole, cube, settings, tmp_path):
    def stop_after(regions):
        def progress(done, total, receipt):
            if done == regions:
                raise Interruption

        return progress

    path = tmp_path / "out.zarr"
    cube = TerraMindAccessor(cube)
    for regions in (5, 14):
        with pytest.raises(Interruption):
            cube.write(path, OUTPUTS, resume=True, progress=stop_after(regions), **settings)
        assert len(completed(path)) == regions
        assert read_run(path).status == "running"
    told = []
    cube.write(path, OUTPUTS, resume=True, progress=lambda *row: told.append(row), **settings)
    assert [done for done, _, _ in told] == list(range(15, 25))
    assert read_bytes(path) == read_bytes(whole)


def test_a_store_of_another_request_is_refused(whole, cube, settings):
    before = read_bytes(whole)
    cube = TerraMindAccessor(cube)
    for changes, told in (
        ({"seed": 1}, 'terramind_seed: the store has "0", this run has "1"'),
        ({"chain": True}, "terramind_run_chain: the store has nothing, this run has"),
        ({"n_samples": 3}, "terramind_samples: the store has 2, this run has 3"),
        ({"candidates": 4}, "layout.variables.Coordinates.shape"),
        ({"token_confidence": False}, "layout.variables.DEM_token_confidence"),
        ({"soft": True}, "terramind_sampler"),
        ({"guidance": 2}, "terramind_guidance"),
        ({"steps": 3}, "terramind_decoder"),
        ({"bands": {"S2L2A": ["B02"]}}, "terramind_inputs"),
    ):
        with pytest.raises(ValueError, match="cannot be resumed") as refusal:
            cube.write(whole, OUTPUTS, resume=True, **{**settings, **changes})
        assert told in str(refusal.value)
    with pytest.raises(FileExistsError, match="resume=True"):
        cube.write(whole, OUTPUTS, **settings)
    assert read_bytes(whole) == before


def test_resuming_takes_the_compute_batch_of_the_store(cube, small_weights, tmp_path, monkeypatch):
    settings = {**small_weights, "overlap": 16, "threads": 1, "chunks": 64}
    path = tmp_path / "out.zarr"

    def stop(done, total, receipt):
        raise Interruption

    cube = TerraMindAccessor(cube)
    with pytest.raises(Interruption):
        cube.write(path, ["LULC"], compute_batch=3, progress=stop, **settings)
    assert read_run(path).fingerprint["compute_batch"] == 3
    # A batch that is asked for is not overruled.
    with pytest.raises(ValueError, match="compute_batch: the store has 3, this run has 2"):
        cube.write(path, ["LULC"], compute_batch=2, resume=True, **settings)
    cube.write(path, ["LULC"], resume=True, **settings)
    assert read_run(path).status == "complete"
    straight = cube.write(tmp_path / "straight.zarr", ["LULC"], compute_batch=3, **settings)
    assert read_bytes(path) == read_bytes(straight)


def test_a_static_cube_is_written_without_time(small_weights, tmp_path):
    cube = make_cube(70, 64, modalities=("DEM",), times=0)
    settings = {**small_weights, "overlap": 16, "threads": 1, "chunks": 32}
    outputs = ["LULC", "Coordinates"]
    path = TerraMindAccessor(cube).write(tmp_path / "out.zarr", outputs, **settings)
    stored = xr.open_zarr(path).compute()
    assert "time" not in stored.dims
    assert_same(stored, TerraMindAccessor(cube).generate(outputs, **settings).compute())


def test_xarray_alone_writes_every_variable(cube, settings, expected, tmp_path):
    lazy = TerraMindAccessor(cube.chunk(y=77, x=50)).generate(OUTPUTS, **settings)
    lazy.to_zarr(tmp_path / "plain.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "plain.zarr", consolidated=False) as opened:
        assert_same(opened.compute(), expected)
        assert opened["class"].values.tolist() == expected["class"].values.tolist()
        assert opened.S1RTC_band.values.tolist() == ["VV", "VH"]
        assert opened.odc.geobox == cube.odc.geobox
        assert opened.S1RTC.odc.geobox == cube.odc.geobox
        assert opened.rio.crs.to_epsg() == 32632


def test_embeddings_are_written_by_xarray(cube, small_weights, tmp_path):
    result = TerraMindAccessor(cube).embed(
        weights=small_weights["weights"], threads=1, chunks=64, think=["NDVI"], merge=None
    )
    result.to_dataset(name="embedding").to_zarr(tmp_path / "embedding.zarr", consolidated=False)
    with xr.open_zarr(tmp_path / "embedding.zarr", consolidated=False) as opened:
        assert opened.embedding.values.tobytes() == result.values.tobytes()
        assert opened.modality.values.tolist() == ["S2L2A", "NDVI"]
        assert opened.embedding.attrs["terramind_think"] == ["NDVI"]


def test_captions_are_written_as_texts(cube, tmp_path):
    settings = {**write_captioned(tmp_path), "overlap": 16, "threads": 1, "chunks": 32}
    expected = TerraMindAccessor(cube).generate(["Captions"], **settings)
    texts = expected.Captions.values.tolist()
    assert texts[0][0][0] != texts[0][1][0]
    path = TerraMindAccessor(cube).write(tmp_path / "out.zarr", ["Captions"], **settings)
    expected.to_zarr(tmp_path / "plain.zarr", consolidated=False)
    for opened in (xr.open_zarr(path), xr.open_zarr(tmp_path / "plain.zarr", consolidated=False)):
        assert opened.Captions.dtype == expected.Captions.dtype
        assert opened.Captions.values.tolist() == texts
    # Every tile's digest stands in the receipt of its group.
    receipts = read_receipts(path)
    assert sum("Captions" in row.sha256 for row in receipts) == 2 * 2 * 3
    again = TerraMindAccessor(cube).write(path, ["Captions"], resume=True, **settings)
    assert again == path
