"""Stores of cubes with files that cannot be read."""

import json
from datetime import timedelta

import numpy as np
import pytest
import xarray as xr
from typer.testing import CliRunner

from terramind_cube.cli import app
from terramind_cube.cube import load_cube
from terramind_cube.store import ledger
from tests.cube.scenes import LEFT, day, s2_item

RUNNER = CliRunner()


@pytest.fixture
def cube(tmp_path):
    """Two scenes side by side, of which the eastern one breaks after the cube is built."""
    items = [
        s2_item(tmp_path, "good", day("2024-05-01")),
        s2_item(tmp_path, "bad", day("2024-05-01") + timedelta(minutes=1), left=LEFT + 480),
    ]
    cube = load_cube(items, modalities=["S2L2A"], on_error="nodata")
    path = tmp_path / "bad.tif"
    path.write_bytes(path.read_bytes()[:700])
    return cube


@pytest.fixture
def settings(small_weights):
    return {**small_weights, "overlap": 16, "threads": 1}


def test_result_lists_what_could_not_be_read(cube, settings):
    result = cube.terramind.generate(["LULC"], **settings)
    assert list(result.attrs["read_failures"]) == []
    computed = result.compute()
    assert [text.split(",")[0] for text in computed.attrs["read_failures"]] == ["bad"]
    assert np.isnan(computed["LULC_confidence"].values[0, :, 48:]).all()


def test_store_lists_it_too_and_the_command_line_shows_it(cube, settings, tmp_path):
    path = cube.terramind.write(tmp_path / "out.zarr", ["LULC"], **settings)
    assert len(ledger.noted_failures(path)) == 1
    with xr.open_zarr(path) as opened:
        assert len(opened.attrs["read_failures"]) == 1
    assert len(json.loads((path / "zarr.json").read_text())["attributes"]["read_failures"]) == 1
    legacy = json.loads((path / ".zmetadata").read_text())
    assert len(legacy["metadata"][".zattrs"]["read_failures"]) == 1
    told = RUNNER.invoke(app, ["info", str(path)]).output
    assert "1 assets, their pixels are nodata" in told
    assert "bad.tif" in told


def test_later_runs_add_to_the_list(tmp_path):
    root = tmp_path / "store"
    (root / ledger.LEDGER).mkdir(parents=True)
    assert ledger.noted_failures(root) == []
    ledger.note_failures(root, [])
    assert not (root / ledger.LEDGER / "read_failures.json").exists()
    ledger.note_failures(root, ["a"])
    ledger.note_failures(root, ["b", "a"])
    assert ledger.noted_failures(root) == ["a", "b"]
