"""The notebooks run from top to bottom and show pictures."""

from __future__ import annotations

from pathlib import Path

import jupytext
import pytest
import xarray as xr
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[1] / "notebooks"


@pytest.mark.slow
def test_quickstart_runs_and_shows_pictures(tmp_path):
    notebook = jupytext.read(NOTEBOOKS / "01_quickstart.py")
    # ipykernel brings the specification "python3", which starts this very interpreter.
    client = NotebookClient(
        notebook,
        timeout=240,
        kernel_name="python3",
        resources={"metadata": {"path": str(tmp_path)}},
    )

    client.execute()

    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    pictures = [out for out in outputs if "image/png" in out.get("data", {})]
    assert len(pictures) == 3
    assert not [out for out in outputs if out.output_type == "error"]
    # rasterio warns of the target that GDAL keeps in memory, wherever it warps.
    noise = [out["text"] for out in outputs if out.get("name") == "stderr"]
    assert not [text for text in noise if "NotGeoreferencedWarning" not in text]
    with xr.open_zarr(tmp_path / "quickstart" / "lulc.zarr") as land_cover:
        assert land_cover["LULC"].dtype == "uint8"
        assert land_cover.sizes["time"] == 2
