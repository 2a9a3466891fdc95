"""Where stores lie, one writer at a time, and the pixels that they were made of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import dask.array as da
import pytest
import xarray as xr
from small import make_cube

from terramind_cube.accessor import TerraMindAccessor
from terramind_cube.store import ledger, read_run
from terramind_cube.store.ledger import UNFINISHED
from terramind_cube.store.places import only_writer, store_path

HOLD = """
import sys
from pathlib import Path
from terramind_cube.store.places import only_writer
with only_writer(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


# affine 3 under rioxarray 0.19; `pytest.warns` passes it on from another module.
pytestmark = pytest.mark.filterwarnings("ignore:Use `@` matmul:PendingDeprecationWarning")


class Interruption(Exception):
    pass


def stop(done, total, receipt):
    raise Interruption


@pytest.fixture
def cube():
    return make_cube(96, 64, modalities=("S2L2A",))


@pytest.fixture
def settings(small_weights):
    return {**small_weights, "overlap": 16, "threads": 1, "chunks": 64, "compute_batch": 2}


@pytest.mark.parametrize(
    "url",
    ["s3://bucket/map.zarr", "gs://b/m", "memory://m", "https://host/m.zarr", Path("s3://b/m"),
     "simplecache::s3://b/m", "file://elsewhere/m.zarr"],
)  # fmt: skip
def test_a_url_is_refused_by_name_everywhere(url, cube, settings, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for take in (
        lambda: TerraMindAccessor(cube).write(url, ["LULC"], **settings),
        lambda: read_run(url),
        lambda: ledger.completed(url),
        lambda: ledger.stored_batch(url),
    ):
        with pytest.raises(ValueError, match=r"are not written or read|lies on the host"):
            take()
    assert list(tmp_path.iterdir()) == []


def test_local_paths_in_all_spellings(tmp_path):
    place = tmp_path / "a map.zarr"
    spaced = f"file://{tmp_path}/a%20map.zarr"
    for path in (place, str(place), spaced, spaced.replace("file://", "file://localhost")):
        assert store_path(path) == place
    assert store_path("C:/map.zarr").name == "map.zarr"
    for wrong in (None, "", 3):
        with pytest.raises(ValueError, match="is no path"):
            store_path(wrong)


def test_a_second_writer_is_refused_until_the_first_is_killed(tmp_path):
    target = tmp_path / "map.zarr"
    child = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(target)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        assert child.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError, match=f"process {child.pid} on"), only_writer(target):
            pass
        with only_writer(tmp_path / "other.zarr"):
            pass
    finally:
        child.kill()
        child.communicate()
    with (
        only_writer(target),
        pytest.raises(BlockingIOError, match="Another run is writing"),
        only_writer(target),
    ):
        pass
    assert list(tmp_path.iterdir()) == []


def test_other_pixels_are_refused_by_name(cube, settings, tmp_path):
    path = tmp_path / "out.zarr"
    with pytest.raises(Interruption):
        TerraMindAccessor(cube).write(path, ["LULC"], progress=stop, **settings)
    other = cube.copy(deep=True)
    other.S2L2A[0, 0, 0, 0] += 1
    for status in ("running", "complete"):
        assert read_run(path).status == status
        with pytest.raises(ValueError, match="the pixels of S2L2A differ"):
            TerraMindAccessor(other).write(path, ["LULC"], resume=True, **settings)
        TerraMindAccessor(cube.copy(deep=True)).write(path, ["LULC"], resume=True, **settings)


def test_pixels_in_other_chunks_can_be_vouched_for(cube, settings, tmp_path):
    path = TerraMindAccessor(cube).write(tmp_path / "out.zarr", ["LULC"], **settings)
    chunked = TerraMindAccessor(cube.chunk(y=50))
    with pytest.raises(ValueError, match="resume='same-pixels'"):
        chunked.write(path, ["LULC"], resume=True, **settings)
    assert chunked.write(path, ["LULC"], resume="same-pixels", **settings) == path
    with pytest.raises(ValueError, match="give True, False, or 'same-pixels'"):
        chunked.write(path, ["LULC"], resume="yes", **settings)


def test_random_names_are_told_at_once_and_at_resuming(cube, settings, tmp_path):
    def anonymous():
        lazy = da.from_array(cube.S2L2A.values, name=False)
        return TerraMindAccessor(cube.assign(S2L2A=cube.S2L2A.copy(data=lazy + 0)))

    with pytest.warns(UserWarning, match="S2L2A has a random dask name"):
        path = anonymous().write(tmp_path / "out.zarr", ["LULC"], **settings)
    with pytest.raises(ValueError, match="pixels of S2L2A cannot be compared"):
        anonymous().write(path, ["LULC"], resume=True, **settings)
    assert anonymous().write(path, ["LULC"], resume="same-pixels", **settings) == path


def test_an_unfinished_store_says_so_until_it_is_complete(cube, settings, tmp_path):
    path = tmp_path / "out.zarr"
    with pytest.raises(Interruption):
        TerraMindAccessor(cube).write(path, ["LULC"], progress=stop, **settings)
    with xr.open_zarr(path) as opened:
        assert "not finished" in opened.attrs[UNFINISHED]
        with pytest.warns(UserWarning, match="not finished"):
            TerraMindAccessor(cube).plot(opened)
    TerraMindAccessor(cube).write(path, ["LULC"], resume=True, **settings)
    with xr.open_zarr(path) as opened:
        assert UNFINISHED not in opened.attrs
    assert UNFINISHED not in (path / ".zmetadata").read_text()


def test_another_area_is_told_before_digests(cube, settings, tmp_path):
    path = TerraMindAccessor(cube).write(tmp_path / "out.zarr", ["LULC"], **settings)
    with pytest.raises(ValueError, match="cannot be resumed") as refusal:
        TerraMindAccessor(cube.isel(y=slice(64))).write(path, ["LULC"], resume=True, **settings)
    lines = str(refusal.value).splitlines()[1:]
    assert lines[0].startswith("  layout.grid.shape: ")
    digests = [i for i, line in enumerate(lines) if "sha256" in line]
    assert min(digests) > max(i for i, line in enumerate(lines) if ".shape: " in line)


@pytest.mark.parametrize("progress", [True, False, None, "auto"])
def test_progress_is_shown_where_it_is_asked_for(progress, cube, settings, tmp_path, capsys):
    TerraMindAccessor(cube).write(tmp_path / "out.zarr", ["LULC"], progress=progress, **settings)
    told = capsys.readouterr()
    assert ("tile groups" in told.err) is (progress is True)
    assert not told.out


def test_progress_of_another_kind_is_refused_before_any_work(cube, settings, tmp_path):
    for wrong in (3, "yes", []):
        with pytest.raises(ValueError, match="progress="):
            TerraMindAccessor(cube).write(tmp_path / "o.zarr", ["LULC"], progress=wrong, **settings)
    assert list(tmp_path.iterdir()) == []


def test_groups_follow_small_chunks():
    from terramind_cube.grid import regions
    from terramind_cube.inference.plan import Cut, TilePlan

    class Plan(TilePlan):
        def variables(self):
            return ()

        collectors = run = None

    sides = {}
    for chunk in (100, 224, 448, 512, 896, 1792, 2000):
        plan = Plan.__new__(Plan)
        grid = type("Grid", (), {"y": type("Axis", (), {"patch_px": 16, "tile_px": 224})})
        object.__setattr__(plan, "cut", Cut(grid, chunk, "", (10.0, 0.0, -10.0, 0.0)))
        sides[chunk] = plan.group_px
    assert sides == {
        100: 900, 224: 896, 448: 896, 512: 1024, 896: 1792, 1792: 1792, 2000: 2000
    }  # fmt: skip
    assert len(list(regions((1344, 1344), sides[224]))) == 4


@pytest.mark.parametrize("name", ["a.tif", "maps/A.TIFF", "b.nc", "file:///tmp/c.png"])
def test_names_of_raster_files_are_refused(name):
    with pytest.raises(ValueError, match=r"is named like a file.*\.zarr.*03_export_cog"):
        store_path(name)
