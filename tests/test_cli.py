"""The command line: what it writes, what it says, and its exit codes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import pystac
import pytest
import rioxarray  # noqa: F401  # registers `rio`
import xarray as xr
from matplotlib.image import imread
from typer.testing import CliRunner

from terramind_cube import cli
from terramind_cube.cube.load import load_cube
from terramind_cube.stac import open_catalog
from terramind_cube.stac.result import portable_dict
from terramind_cube.store import ledger
from terramind_cube.synthetic import write_catalog
from tests.stac.api_server import ApiServer


@pytest.fixture(scope="module")
def catalog(tmp_path_factory):
    return write_catalog(tmp_path_factory.mktemp("place") / "catalog", size_px=96, seed=900_005)


@pytest.fixture(autouse=True)
def plain_terminal(monkeypatch):
    monkeypatch.setenv("TERMINAL_WIDTH", "100")
    monkeypatch.setenv("_TYPER_FORCE_DISABLE_TERMINAL", "1")
    for name in ("FORCE_COLOR", "PY_COLORS", "GITHUB_ACTIONS"):
        monkeypatch.delenv(name, raising=False)


def call(*arguments):
    result = CliRunner().invoke(cli.app, [str(argument) for argument in arguments])
    assert "\x1b" not in result.output
    return result


def refused(*arguments):
    """Call, expect bad input, and return what was said."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    assert len(result.stderr.strip().splitlines()) <= 8
    return result.stderr


def contents(folder):
    return {
        path.relative_to(folder): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def store(catalog, tmp_path_factory):
    path = tmp_path_factory.mktemp("stores") / "lulc.zarr"
    result = call("generate", catalog, "--out", path, "--threads", 1)
    assert result.exit_code == 0, result.output
    return path, result.output


def test_help_names_every_command_and_option():
    text = call("--help").output
    for command in ("demo", "synthesize", "info", "generate", "index"):
        assert command in text
    options = call("generate", "--help").output
    for option in (
        "bbox", "datetime", "inputs", "radar-unit", "lulc-legend", "outputs", "model", "weights", "tokenizer-weights", "seed",
        "temperature", "top-p", "overlap", "chunks", "precision", "device", "compute-batch",
        "threads", "out", "resume",
    ):  # fmt: skip
        assert f"--{option} " in options
    for command in ("demo", "synthesize"):
        assert "--size" in call(command, "--help").output

    options = call("index", "--help").output
    for option in ("bbox", "datetime", "modalities", "cloud-cover", "orbit", "max-items"):
        assert f"--{option} " in options


def test_version():
    assert call("--version").output.startswith("terramind-cube 0.")


def test_synthesize_writes_a_catalog(tmp_path):
    result = call("synthesize", tmp_path / "place", "--size", 64, "--seed", 900_006)
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "place" / "catalog.json").read_text())["type"] == "Catalog"
    assert str(tmp_path / "place" / "catalog.json") in result.output
    assert "is not an empty directory" in refused("synthesize", tmp_path / "place", "--size", 64)


def test_generate_writes_a_store_and_says_how_to_open_it(store):
    path, said = store
    with xr.open_zarr(path) as content:
        assert content["LULC"].dtype == np.uint8
        assert content.sizes["time"] == 2
        assert content.rio.crs.to_epsg() == content.odc.geobox.crs.epsg
        assert content["LULC"].attrs["terramind_inputs"] == ["S2L2A"]
    for phrase in (
        "10 m, EPSG:", "2: 2024-05-14, 2024-08-22", "terramind_nano, seed 0. Untrained weights",
        "2 tiles of 224 px in 2 tile groups", "2 of 2 tile groups", f'xr.open_zarr("{path}")',
        f'ZARR:"{path}":/LULC',
    ):  # fmt: skip
        assert phrase in said


def test_info_says_what_a_store_holds(store):
    text = call("info", store[0]).output
    for phrase in (
        "complete: 2 of 2 tile groups", "LULC_confidence (time 2, y ", "EPSG:", "2024-08-22",
        "terramind_nano", "untrained", "Seed       0", "S2L2A", "sentinel-2-l2a-synthetic-900005",
        "temperature=1, top_p=0.8",
    ):  # fmt: skip
        assert phrase in text
    assert "no ledger/run.json" in refused("info", store[0].parent)
    assert "There is no store" in refused("info", store[0].parent / "absent")


def test_units_that_cannot_be_meant_are_refused(catalog, tmp_path):
    out = ("--out", tmp_path / "a.zarr")
    assert "radar_unit is one of" in refused("generate", catalog, *out, "--radar-unit", "power")
    assert "lulc_legend" in refused("generate", catalog, *out, "--lulc-legend", "corine")
    assert not (tmp_path / "a.zarr").exists()


def test_options_reach_the_model_and_bbox_may_be_quoted(catalog, tmp_path):
    item = next(catalog.parent.glob("sentinel-2-l2a/*/*.json"))
    bbox = [str(value) for value in json.loads(item.read_text())["bbox"]]
    options = (
        "--datetime", "2024-08", "--inputs", "S1RTC", "--inputs", "DEM", "--seed", 7,
        "--temperature", 0, "--overlap", 64, "--chunks", 64, "--compute-batch", 1, "--threads", 1,
    )  # fmt: skip
    for name, area in (("plain", bbox), ("quoted", [" ".join(bbox)])):
        out = tmp_path / name
        result = call("generate", catalog, "--out", out, "--bbox", *area, *options)
        assert result.exit_code == 0, result.output
    with xr.open_zarr(tmp_path / "plain") as plain, xr.open_zarr(tmp_path / "quoted") as quoted:
        assert plain.sizes["time"] == 1
        assert plain["LULC"].attrs["terramind_seed"] == "7"
        assert plain["LULC"].attrs["terramind_inputs"] == ["S1RTC", "DEM"]
        assert "temperature=0" in plain["LULC"].attrs["terramind_sampler"]
        assert plain["LULC"].encoding["chunks"] == (1, 64, 64)
        xr.testing.assert_equal(plain, quoted)


@pytest.mark.parametrize("name", ["study.parquet", "study.json"])
def test_index_keeps_a_search_that_gives_the_same_cube(catalog, tmp_path, name):
    out = tmp_path / "kept" / name
    asked = ("--datetime", "2024-05", "--modalities", "S2L2A", "DEM", "S1GRD")
    result = call("index", catalog, out, *asked)
    assert result.exit_code == 0, result.output
    rows = {line.split()[0]: line.split()[1:] for line in result.output.splitlines() if line}
    assert rows["S2L2A"] == ["1", "2024-05-14"]
    assert rows["DEM"] == ["1", "at", "any", "time"]
    assert rows["Missing"] == ["S1GRD"]
    assert f"tc.load_cube(\"{out}\", modalities=['S2L2A', 'DEM'])" in result.output
    asked = {"datetime": "2024-05", "modalities": ["S2L2A", "DEM"]}
    kept, original = (load_cube(source, **asked) for source in (out, catalog))
    xr.testing.assert_identical(kept.compute(), original.compute())

    before = out.read_bytes()
    assert "pass --overwrite" in refused("index", catalog, out)
    assert out.read_bytes() == before
    assert call("index", catalog, out, "--overwrite").exit_code == 0
    assert out.read_bytes() != before


def test_index_of_an_api_opens_without_the_server(catalog, tmp_path):
    out = tmp_path / "study.parquet"
    items = [pystac.Item.from_dict(item) for item in absolute_items(catalog)]
    west, south, east, north = items[0].bbox
    with ApiServer(tmp_path, items=items) as server:
        assert "give --bbox" in refused("index", server.url, out)
        area = ("--bbox", west, south, east, north)
        result = call("index", server.url, out, *area, "--orbit", "ascending", "--max-items", 1)
        assert result.exit_code == 0, result.output
        assert len(server.requests("/search")) == 4  # one for each modality
    assert [item.id for item in open_catalog(out).search(modalities=["S2L2A"])] == [items[0].id]
    cube = load_cube(out, modalities=["S2L2A", "DEM"])
    assert float(cube["S2L2A"].compute().max()) > 0


def absolute_items(catalog):
    found = open_catalog(catalog).search(modalities=["S2L2A", "S1RTC", "DEM", "LULC"])
    return [portable_dict(item) for item in found]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--modalities", "S2L2B"], "did you mean 'S2L2A'"),
        (["--cloud-cover", "200"], "percentage from 0 to 100"),
        (["--orbit", "up"], "orbit is 'ascending'"),
        (["--max-items", "0"], "--max-items"),
        (["--datetime", "2024-05/2024-04"], "ends before it starts"),
        (["--bbox", "-33.9", "151", "-33.8", "152"], "looks like lat/lon order"),
        (["--bbox", "-74", "40", "-73", "41"], "Nothing is found"),
    ],
)
def test_index_refuses_bad_input_and_writes_nothing(catalog, tmp_path, options, said):
    asked = options if "--bbox" not in options else [*options, "--modalities", "S2L2A"]
    assert said in refused("index", catalog, tmp_path / "study.json", *asked)
    assert "the suffix is" in refused("index", catalog, tmp_path / "study.csv")
    assert "did you mean 'earth-search'" in refused("index", "earth-serch", tmp_path / "a.json")
    assert not list(tmp_path.iterdir())


def test_an_interrupted_run_goes_on_with_resume(catalog, store, tmp_path, monkeypatch):
    out, calls = tmp_path / "lulc.zarr", []
    write_receipt = ledger.write_receipt

    def interrupt(*args, **kwargs):
        calls.append(args)
        if len(calls) > 1:
            raise KeyboardInterrupt
        return write_receipt(*args, **kwargs)

    request = ("generate", catalog, "--out", out, "--threads", 1, "--resume")
    monkeypatch.setattr(ledger, "write_receipt", interrupt)
    stopped = call(*request)
    assert stopped.exit_code == 130
    assert "--resume" in stopped.stderr
    assert "unfinished" in call("info", out).output
    monkeypatch.undo()
    assert call(*request).exit_code == 0
    assert len(ledger.completed(out)) == 2
    with xr.open_zarr(out) as resumed, xr.open_zarr(store[0]) as whole:
        xr.testing.assert_identical(resumed, whole)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--inputs", "S2L2B"], "did you mean 'S2L2A'"),
        (["--outputs", "LULK"], "did you mean 'LULC'"),
        (["--model", "terramind_nono"], "did you mean 'terramind_nano'"),
        (["--bbox", "10", "50", "10.1", "50.1"], "holds 6 items in bbox"),
        (["--bbox", "10,50,10.1"], "four numbers, W S E N"),
        (["--datetime", "2020"], "from 2021-04-22 to 2024-12-31"),
        (["--datetime", "May"], "Cannot read datetime 'May'"),
        (["--weights", "absent.pt"], "absent.pt"),
        (["--tokenizer-weights", "LULC=absent.pt"], "absent.pt"),
        (["--tokenizer-weights", "absent.pt"], "takes M=PATH"),
        (["--overlap", "5"], "multiple of the model's patch"),
        (["--temperature", "-1"], "temperature"),
        (["--precision", "float8"], "bfloat16"),
        (["--seed", "x"], "Invalid value for '--seed'"),
    ],
)
def test_bad_input_is_refused_and_nothing_is_written(catalog, tmp_path, options, said):
    message = refused("generate", catalog, "--out", tmp_path / "lulc.zarr", *options)
    assert said in message
    assert not list(tmp_path.iterdir())


def test_an_existing_output_is_refused_and_unchanged(catalog, store, tmp_path):
    before = contents(store[0])
    assert "pass --resume" in refused("generate", catalog, "--out", store[0])
    other = refused("generate", catalog, "--out", store[0], "--resume", "--seed", 3, "--threads", 1)
    assert "terramind_seed" in other
    assert contents(store[0]) == before
    foreign = tmp_path / "lulc.zarr"
    foreign.mkdir()
    assert "not a store" in refused("generate", catalog, "--out", foreign, "--resume")


def test_a_truncated_file_is_named(catalog, tmp_path):
    broken = shutil.copytree(catalog.parent, tmp_path / "catalog")
    band = min(broken.glob("sentinel-2-l2a/*/B04.tif"))
    os.truncate(band, band.stat().st_size // 2)
    message = refused("generate", broken / "catalog.json", "--out", tmp_path / "lulc.zarr")
    assert str(band) in message
    assert "truncated" in message
    assert not (tmp_path / "lulc.zarr").exists()


def test_a_file_that_breaks_while_it_is_read_is_named(catalog, tmp_path):
    broken = shutil.copytree(catalog.parent, tmp_path / "catalog")
    band = max(broken.glob("sentinel-2-l2a/*/B04.tif"))
    pixels = bytearray(band.read_bytes())
    pixels[-3000:-200] = bytes(2800)
    band.write_bytes(pixels)
    message = refused("generate", broken / "catalog.json", "--out", tmp_path / "lulc.zarr")
    assert str(band) in message
    assert "--resume" in message


def test_an_unexpected_error_keeps_its_traceback(catalog, tmp_path, monkeypatch):
    def fail(*_args, **_kwargs):
        raise RuntimeError("the roof leaks")

    monkeypatch.setattr("terramind_cube.store.writer.write_result", fail)
    result = call("generate", catalog, "--out", tmp_path / "lulc.zarr")
    assert result.exit_code == 1
    assert isinstance(result.exception, RuntimeError)


def test_main_leaves_at_once_when_interrupted(monkeypatch):
    def stop(**_kwargs):
        raise SystemExit(130)

    left = []
    monkeypatch.setattr(cli, "app", stop)
    monkeypatch.setattr(os, "_exit", left.append)
    cli.main()
    assert left == [130]


def test_the_program_exits_with_2_and_prints_no_control_characters(tmp_path):
    command = "from terramind_cube.cli import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", command, "info", str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("Error: ")
    assert "\x1b" not in done.stdout + done.stderr


def test_the_demo_writes_store_and_picture_and_replaces_only_itself(tmp_path):
    directory = tmp_path / "demo"
    result = call("demo", directory, "--size", 240)
    assert result.exit_code == 0, result.output
    assert "Untrained weights" in result.output
    assert f'xr.open_zarr("{directory / "lulc.zarr"}")' in result.output
    with xr.open_zarr(directory / "lulc.zarr") as content:
        assert content.rio.crs.is_projected
        assert content["LULC"].attrs["terramind_inputs"] == ["S2L2A", "S1RTC", "DEM"]
    picture = (directory / "lulc.png").read_bytes()
    height, width, _ = imread(directory / "lulc.png").shape
    assert 1.1 < height / width < 1.3  # two by two square panels, legend and note below

    (directory / "mine.txt").write_text("keep")
    assert call("demo", directory, "--size", 240).exit_code == 0
    assert (directory / "lulc.png").read_bytes() == picture
    assert (directory / "mine.txt").read_text() == "keep"


def test_the_demo_refuses_a_directory_that_is_not_its_own(tmp_path):
    (tmp_path / "thesis.txt").write_text("final version")
    assert "is no demo of terramind-cube" in refused("demo", tmp_path, "--size", 240)
    assert "--size" in refused("demo", tmp_path / "new", "--size", 1)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]
