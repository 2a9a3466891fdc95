"""The notebooks run from top to bottom and show pictures."""

from __future__ import annotations

from pathlib import Path

import jupytext
import pytest
import rasterio
import xarray as xr
from nbclient import NotebookClient

import terramind_cube as tc

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


def run(name: str, folder: Path) -> list:
    """Execute a notebook in a folder and return what its cells put out."""
    notebook = jupytext.read(NOTEBOOKS / f"{name}.py")
    # ipykernel brings the specification "python3", which starts this very interpreter.
    client = NotebookClient(
        notebook,
        timeout=240,
        kernel_name="python3",
        resources={"metadata": {"path": str(folder)}},
    )

    client.execute()

    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert not [out for out in outputs if out.output_type == "error"]
    # rasterio warns of the target that GDAL keeps in memory, wherever it warps.
    noise = [out["text"] for out in outputs if out.get("name") == "stderr"]
    assert not [text for text in noise if "NotGeoreferencedWarning" not in text]
    return outputs


def pictures(outputs: list) -> list:
    return [out for out in outputs if "image/png" in out.get("data", {})]


@pytest.mark.slow
def test_quickstart_runs_and_shows_pictures(tmp_path):
    outputs = run("01_quickstart", tmp_path)

    assert len(pictures(outputs)) == 3
    with xr.open_zarr(tmp_path / "quickstart" / "lulc.zarr") as land_cover:
        assert land_cover["LULC"].dtype == "uint8"
        assert land_cover.sizes["time"] == 2


@pytest.mark.slow
def test_the_cube_notebook_runs_and_shows_pictures(tmp_path, monkeypatch):
    outputs = run("02_cube", tmp_path)

    assert len(pictures(outputs)) == 3
    pages = [out["data"]["text/html"] for out in outputs if "text/html" in out.get("data", {})]
    assert "SearchResult" in pages[0]
    with xr.open_zarr(tmp_path / "season" / "ndvi.zarr", consolidated=False) as ndvi:
        assert ndvi["NDVI"].sizes["time"] == 9
        clear = ndvi["clear_fraction"].values
    # The saved search is enough to load the cube again.
    monkeypatch.chdir(tmp_path)
    again = tc.load_cube("season/scenes.json", modalities=["NDVI"])
    assert again["clear_fraction"].values.tolist() == clear.tolist()
    assert (clear == 1).sum() == 4
    assert 0 < clear.min() < 0.25


@pytest.mark.slow
def test_the_notebook_of_geotiffs_runs_and_writes_them(tmp_path):
    outputs = run("03_export_cog", tmp_path)

    assert len(pictures(outputs)) == 1
    files = sorted((tmp_path / "export").glob("*.tif"))
    assert len(files) == 9
    for path in files:
        with rasterio.open(path) as file:
            assert file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
            assert file.nodata is not None
            assert file.overviews(1) == [2]
            has_colours = file.colorinterp[0] == rasterio.enums.ColorInterp.palette
            assert has_colours is (file.descriptions == ("LULC",))
            if path.name.startswith("s2l2a"):
                assert file.descriptions == ("B04", "B03", "B02", "B08")
                assert set(file.scales) == {1e-4}
