"""The bulk loop: whole regions or none, refusals that touch nothing, kills that cost nothing."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import dask
import dask.array as da
import numpy as np
import pytest
import xarray as xr
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

from terramind_cube.store import (
    RegionError,
    completed,
    read_receipts,
    read_run,
    write_result,
    writer,
)

GEOBOX = GeoBox.from_bbox((500000, 4999000, 500400, 4999560), crs="EPSG:32632", resolution=10)
SETTINGS = {"model": {"name": "terramind_nano", "sha256": "ab"}, "seed": 1}
CHUNK = 16  # the area is 56 x 40 px, so the last chunks are short


def make_result(seed=0, *, each_block=None):
    """Two dates of classes and confidence and a static layer, with fill-only chunks."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(0, 10, (2, *GEOBOX.shape.yx), dtype=np.uint8)
    classes[0, :CHUNK, :CHUNK] = 0
    certainty = rng.random(classes.shape, dtype=np.float32)
    certainty[1, CHUNK : 2 * CHUNK] = np.nan
    lazy = da.from_array(classes, chunks=(1, CHUNK, CHUNK))
    if each_block is not None:
        lazy = lazy.map_blocks(each_block, dtype=np.uint8, meta=np.empty((0, 0, 0), np.uint8))
    certain = da.from_array(certainty, chunks=(1, CHUNK, CHUNK))
    height = da.from_array(certainty[0] * 100, chunks=(CHUNK, CHUNK))
    return xr.Dataset(
        {
            "LULC": (("time", "y", "x"), lazy, {"nodata": 0}),
            "LULC_confidence": (("time", "y", "x"), certain),
            "DEM": (("y", "x"), height),
        },
        coords={
            **xr_coords(GEOBOX),
            "time": ("time", np.array(["2023-06-10", "2023-07-10"], "M8[ns]")),
        },
    )


def make_regions(step=CHUNK):
    height, width = GEOBOX.shape.yx
    return [
        {
            "time": slice(t, t + 1),
            "y": slice(y, min(y + step, height)),
            "x": slice(x, min(x + step, width)),
        }
        for t in range(2)
        for y in range(0, height, step)
        for x in range(0, width, step)
    ]


def write(path, result=None, **options):
    options = {"regions": make_regions(), "fingerprint": SETTINGS, **options}
    return write_result(make_result() if result is None else result, path, **options)


def read_bytes(store):
    """Every file that must be the same from run to run."""
    return {
        str(file.relative_to(store)): file.read_bytes()
        for file in Path(store).rglob("*")
        if file.is_file() and file.name != "zarr.json" and "ledger" not in file.parts
    }


def take_snapshot(folder):
    return {
        str(file): (file.stat().st_mtime_ns, file.read_bytes() if file.is_file() else b"")
        for file in Path(folder).rglob("*")
    }


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return write(tmp_path_factory.mktemp("whole") / "out.zarr")


def test_a_store_holds_the_result_and_a_receipt_of_each_region(whole):
    xr.testing.assert_equal(xr.open_zarr(whole).compute(), make_result().compute())
    run = read_run(whole)
    assert run.status == "complete"
    assert run.regions == len(completed(whole)) == len(make_regions()) == 24
    assert run.fingerprint["seed"] == 1
    assert "time0-1_y48-56_x32-40" in completed(whole)


def test_receipts_digest_the_values_of_their_region(whole):
    receipts = {receipt.key: receipt for receipt in read_receipts(whole)}
    first, later = receipts["time0-1_y0-16_x0-16"], receipts["time1-2_y0-16_x0-16"]
    assert first.region == {"time": (0, 1), "y": (0, 16), "x": (0, 16)}
    # The static layer is written once, with the first region that meets it.
    assert set(first.sha256) == {"LULC", "LULC_confidence", "DEM"}
    assert set(later.sha256) == {"LULC", "LULC_confidence"}
    assert first.sha256["LULC"] == (
        "5341e6b2646979a70e57653007a1f310169421ec9bdd9f1a5648f75ade005af1"  # 256 zero bytes
    )
    assert later.sha256["LULC"] != first.sha256["LULC"]


def test_two_runs_and_other_regions_give_the_same_bytes(whole, tmp_path):
    again = write(tmp_path / "again.zarr")
    coarse = write(tmp_path / "coarse.zarr", regions=make_regions(2 * CHUNK)[::-1])
    assert read_bytes(again) == read_bytes(whole)
    assert read_bytes(coarse) == read_bytes(whole)


def test_each_region_is_one_computation(tmp_path):
    computations = []

    def count(graph, keys, **options):
        computations.append(keys)
        return dask.get(graph, keys, **options)

    with dask.config.set(scheduler=count):
        write(tmp_path / "out.zarr")
    assert len(computations) == len(make_regions())


def test_progress_is_told_after_each_region(tmp_path):
    seen = []
    write(tmp_path / "out.zarr", progress=lambda *told: seen.append(told))
    assert [done for done, _, _ in seen] == list(range(1, 25))
    assert {total for _, total, _ in seen} == {24}
    assert {receipt.key for _, _, receipt in seen} == completed(tmp_path / "out.zarr")


def test_an_existing_path_is_refused(tmp_path):
    for path in (tmp_path / "file", tmp_path / "folder"):
        path.mkdir() if path.name == "folder" else path.write_text("mine")
        before = take_snapshot(tmp_path)
        with pytest.raises(FileExistsError, match="resume=True"):
            write(path)
        with pytest.raises(ValueError, match="is not a store"):
            write(path, resume=True)
        assert take_snapshot(tmp_path) == before


def moved(result):
    return result.assign_coords(x=result.x + 10)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"fingerprint": SETTINGS | {"seed": 2}}, "seed: the store has 1, this run has 2"),
        ({"result": moved(make_result())}, "layout.grid.transform: the store has "),
        ({"result": make_result().isel(time=[1, 0])}, "layout.coordinates.time: "),
        ({"result": make_result()[["LULC"]]}, "layout.variables.DEM.dtype: "),
        ({"regions": make_regions(2 * CHUNK)}, "layout.regions.count: the store has 24, "),
    ],
)
def test_a_store_of_other_settings_is_refused_untouched(whole, options, told):
    before = take_snapshot(whole.parent)
    with pytest.raises(ValueError, match="cannot be resumed") as refusal:
        write(whole, resume=True, **options)
    assert told in str(refusal.value)
    assert take_snapshot(whole.parent) == before


def test_resume_begins_anew_where_nothing_exists(whole, tmp_path):
    assert read_bytes(write(tmp_path / "new.zarr", resume=True)) == read_bytes(whole)


def test_resume_of_a_complete_store_computes_nothing(whole):
    def refuse(*args, **kwargs):
        raise AssertionError("something was computed")

    before = take_snapshot(whole)
    with dask.config.set(scheduler=refuse):
        write(whole, resume=True)
    assert take_snapshot(whole) == before


def without_last(regions):
    return regions[:-1]


def cut_a_chunk(regions):
    return [{"y": slice(0, 8)}, {"y": slice(8, None)}]


def overlap(regions):
    return [{"x": slice(0, 32)}, {"x": slice(16, None)}]


def twice(regions):
    return [*regions, regions[0]]


def unknown_dim(regions):
    return [{"band": slice(0, 1)}]


def beyond(regions):
    return [{"y": slice(0, 64)}]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (without_last, r"no region covers time 1\.\.2, y 48\.\.56, x 32\.\.40"),
        (cut_a_chunk, r"Region y0-8 cuts a chunk of LULC: y 0\.\.8"),
        (overlap, r"regions overlap at time 0\.\.1, y 0\.\.16, x 16\.\.32"),
        (twice, "time0-1_y0-16_x0-16 is given twice"),
        (unknown_dim, "dimension 'band'; the result has time, y, x"),
        (beyond, r"must be a slice of step 1 in 0\.\.56"),
    ],
)
def test_regions_that_do_not_tile_the_chunks_are_refused(tmp_path, change, told):
    with pytest.raises(ValueError, match=told):
        write(tmp_path / "out.zarr", regions=change(make_regions()))
    assert list(tmp_path.iterdir()) == []


def test_a_variable_with_an_empty_part_in_a_region_is_not_written_there(tmp_path):
    """Of three tile rows, two start in the first region, one in the last, none between."""
    result = make_result()[["LULC"]].chunk(x=-1)
    places = da.from_array(np.arange(6, dtype=np.float32).reshape(2, 3), chunks=(1, 1))
    result["place"] = (("time", "tile_y"), places)
    rows = [(slice(0, 16), slice(0, 2)), (slice(16, 32), slice(2, 2)), (slice(32, 56), slice(2, 3))]
    regions = [
        {"time": slice(t, t + 1), "y": y, "tile_y": tile} for t in range(2) for y, tile in rows
    ]
    path = write(tmp_path / "out.zarr", result, regions=regions)
    xr.testing.assert_equal(xr.open_zarr(path).compute(), result.compute())
    written = {row.key: set(row.sha256) for row in read_receipts(path)}
    assert written["time0-1_y0-16_tile_y0-2"] == {"LULC", "place"}
    assert written["time1-2_y16-32_tile_y2-2"] == {"LULC"}
    gap = [row if row["tile_y"].start == 0 else {**row, "tile_y": slice(2, 2)} for row in regions]
    with pytest.raises(ValueError, match=r"no region covers time 0\.\.1, tile_y 2\.\.3"):
        write(tmp_path / "gap.zarr", result, regions=gap)
    backwards = [{"time": slice(0, 1), "tile_y": slice(2, 1)}]
    with pytest.raises(ValueError, match=r"must be a slice of step 1 in 0\.\.3"):
        write(tmp_path / "back.zarr", result, regions=backwards)


def test_other_bad_input_is_refused_before_anything_is_written(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("something was computed")

    (tmp_path / "file").write_text("mine")
    before = take_snapshot(tmp_path)
    with dask.config.set(scheduler=refuse):
        with pytest.raises(FileNotFoundError, match="nowhere for the store does not exist"):
            write(tmp_path / "nowhere" / "out.zarr")
        with pytest.raises(NotADirectoryError, match="is a file"):
            write(tmp_path / "file" / "out.zarr")
        with pytest.raises(ValueError, match="no grid"):
            write(tmp_path / "out.zarr", make_result().drop_vars("spatial_ref"))
        with pytest.raises(ValueError, match="uneven chunks"):
            write(tmp_path / "out.zarr", make_result().chunk(y=(8, 48)), regions=[{}])
        with pytest.raises(ValueError, match="cannot be written as JSON"):
            write(tmp_path / "out.zarr", fingerprint={"weights": object()})
        with pytest.raises(ValueError, match="'layout'"):
            write(tmp_path / "out.zarr", fingerprint={"layout": 1})
        monkeypatch.setattr(os, "access", lambda *_: False)
        with pytest.raises(PermissionError, match="not writable"):
            write(tmp_path / "out.zarr")
    assert take_snapshot(tmp_path) == before


def test_a_failing_region_is_named_and_costs_only_itself(whole, tmp_path):
    computed = []

    def break_seventh(block):
        computed.append(block)
        if len(computed) == 7:
            raise OSError("scene_07.tif is truncated")
        return block

    path = tmp_path / "out.zarr"
    with (
        dask.config.set(scheduler="synchronous"),
        pytest.raises(RegionError, match=r"scene_07\.tif is truncated") as failure,
    ):
        write(path, make_result(each_block=break_seventh))
    assert failure.value.region == "time0-1_y32-48_x0-16"
    assert "Region time0-1_y32-48_x0-16 of " in str(failure.value)
    assert "6 of 24 regions are finished" in str(failure.value)
    assert isinstance(failure.value.__cause__, OSError)
    assert len(completed(path)) == 6
    assert read_run(path).status == "running"

    computed.clear()
    computed.extend([None] * 7)  # past the seventh: nothing breaks now
    write(path, make_result(each_block=break_seventh), resume=True)
    assert len(computed) - 7 == 24 - 6
    assert read_bytes(path) == read_bytes(whole)
    assert read_run(path).status == "complete"


def test_values_of_another_dtype_than_promised_are_refused(tmp_path):
    result = make_result(each_block=lambda block: block.astype(np.float64))
    with pytest.raises(RegionError, match="LULC came as float64"):
        write(tmp_path / "out.zarr", result)


def test_leftovers_of_killed_writers_are_swept(whole, tmp_path):
    stale = tmp_path / ".out.zarr.partial-0123"
    stale.mkdir()
    (stale / "zarr.json").write_text("{")
    other = tmp_path / ".other.zarr.partial-0123"
    other.mkdir()

    def litter(done, total, receipt):
        if done == 1:
            (tmp_path / "out.zarr" / "LULC" / "0.abc.partial").write_bytes(b"torn")

    path = write(tmp_path / "out.zarr", progress=litter)
    assert read_bytes(path) == read_bytes(whole)
    assert sorted(file.name for file in tmp_path.iterdir()) == [other.name, "out.zarr"]


def test_a_run_killed_again_and_again_ends_in_the_same_bytes(whole, tmp_path):
    path = tmp_path / "out.zarr"
    survived = set()
    # Files that each process may still finish: it dies in the template, then twice among regions.
    for files, exists in ((5, False), (60, True), (20, True)):
        child = subprocess.run([sys.executable, __file__, str(path), str(files)], check=False)
        assert child.returncode == -signal.SIGKILL
        assert path.exists() == exists
        assert survived < completed(path) or not exists
        survived = completed(path)
        for receipt in read_receipts(path):
            part = {dim: slice(*span) for dim, span in receipt.region.items()}
            stored, expected = xr.open_zarr(path).isel(part), make_result().isel(part)
            xr.testing.assert_equal(stored.LULC.compute(), expected.LULC.compute())
    assert len(survived) < 24
    assert list(path.rglob("*.partial"))
    told = []
    write(path, resume=True, progress=lambda done, total, receipt: told.append(receipt.key))
    assert set(told) == completed(path) - survived
    assert len(completed(path)) == 24
    assert read_bytes(path) == read_bytes(whole)
    assert [file.name for file in tmp_path.iterdir()] == ["out.zarr"]


def test_a_distributed_cluster_writes_the_same_bytes(whole, tmp_path, monkeypatch):
    from distributed import Client, LocalCluster

    def refuse(*args):
        raise AssertionError("the cluster was passed over")

    with (
        LocalCluster(
            n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None
        ) as cluster,
        Client(cluster),
    ):
        with monkeypatch.context() as patched:
            patched.setattr(writer, "_compute_locally", refuse)
            path = write(tmp_path / "out.zarr")
            with pytest.raises(RegionError, match="LULC came as float64"):
                write(tmp_path / "broken.zarr", make_result(each_block=np.float64))
        with monkeypatch.context() as patched, dask.config.set(scheduler="synchronous"):
            patched.setattr(writer, "_compute_on", refuse)
            local = write(tmp_path / "local.zarr")  # an explicit choice beats the client
    assert read_bytes(path) == read_bytes(local) == read_bytes(whole)
    assert len(completed(path)) == 24
    assert read_run(tmp_path / "broken.zarr").status == "running"


def write_and_die(path, files):
    """Write with resume=True until `files` files are in place, then die before the next one."""
    left = int(files)
    replace = Path.replace

    def replace_or_die(self, target):
        nonlocal left
        left -= 1
        if left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return replace(self, target)

    Path.replace = replace_or_die
    write(path, resume=True)


if __name__ == "__main__":
    write_and_die(*sys.argv[1:])
