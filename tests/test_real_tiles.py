"""Real satellite data through the whole house: STAC items, cube, TerraMind, land cover."""

from __future__ import annotations

import json

import numpy as np
import pystac
import pytest
import rasterio
from odc.geo.geobox import GeoBox
from shapely.geometry import mapping

import terramind_cube as tc
from terramind_cube.testing import assert_lazy

TILES = ("282D_485L_3_3", "433D_629L_3_1", "609U_541L_3_0")
MODALITIES = ("S2L2A", "S1RTC", "DEM")


def write_items(folder, path):
    """Describe every tile as one STAC item with an asset per modality."""
    items = []
    for tile in TILES:
        with rasterio.open(folder / "S2L2A" / f"{tile}.tif") as raster:
            geobox = GeoBox.from_rio(raster)
        footprint = geobox.footprint("EPSG:4326")
        item = pystac.Item(
            tile,
            mapping(footprint.geom),
            list(footprint.boundingbox.bbox),
            pystac.utils.str_to_datetime("2021-07-23T13:20:00Z"),
            {"proj:code": f"EPSG:{geobox.crs.epsg}"},
        )
        for modality in MODALITIES:
            href = (folder / modality / f"{tile}.tif").as_uri()
            item.add_asset(modality, pystac.Asset(href, media_type=pystac.MediaType.GEOTIFF))
        items.append(item.to_dict(include_self_link=False, transform_hrefs=False))
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("inputs", [("S2L2A",), MODALITIES], ids="+".join)
def test_generated_land_cover_equals_the_reference(inputs, terramesh, seeded_checkpoint, tmp_path):
    goldens = np.load(terramesh.parents[1] / "parity" / "terramesh_lulc.npz")
    catalog = tc.open_catalog(write_items(terramesh, tmp_path / "items.json"))
    weights = seeded_checkpoint("tiny", 21)
    tokenizer = seeded_checkpoint("tokenizer_lulc", 21)
    for tile in TILES:
        with rasterio.open(terramesh / "S2L2A" / f"{tile}.tif") as raster:
            geobox = GeoBox.from_rio(raster)
        with assert_lazy():
            cube = tc.load_cube(catalog, modalities=list(inputs), geobox=geobox)
            result = cube.terramind.generate(
                ["LULC"],
                model="terramind_v1_tiny",
                weights=weights,
                tokenizer_weights={"LULC": tokenizer},
                temperature=0,
                overlap=0,
                compute_batch=1,
            )
        assert result.odc.geobox == geobox
        agreement = (result.LULC.values[0] == goldens[f"{tile}/{'+'.join(inputs)}/classes"]).mean()
        assert agreement >= 0.995, f"{tile}: {agreement:.4f}"
        assert result.LULC.attrs["terramind_stac_items"] == [tile]
