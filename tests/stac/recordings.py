"""Recorded responses of public STAC APIs beside the clone, by short names."""

import json
from pathlib import Path

import pytest

FIXTURES = Path(__file__).resolve().parents[3] / "shared" / "fixtures"
CLIENT = "stac-utils+pystac-client"
GEOPARQUET = "stac-utils+stac-geoparquet"
ODC = "opendatacube+odc-stac/tests/data"
XCUBE = "xcube-dev+xcube-stac/extracted"
TOOLS = "stactools-packages+sentinel2"

RECORDINGS = {
    "earth-search": f"{CLIENT}/extracted/*.test_filter_inprocess___0?.json",
    "earth-search dem": f"{CLIENT}/extracted/*.test_save_inprocess___01.json",
    "earth-search v0": f"{ODC}/S2A_28QCH_20200714_0_L2A.json",
    "earth-search 2020": "cogeotiff+rio-tiler-pds/**/S2A_29RKH_20200219_0_L2A.json",
    "pc s2 2019": f"{CLIENT}/extracted/*.test_datetime_results__00.json",
    "pc s2 06VVN": f"{ODC}/*_T06VVN_20201006T080531.json",
    "pc s2 06VVN raster": f"{ODC}/*_T06VVN_20201006T080531_raster_ext.json",
    "pc s2 strip": f"{ODC}/site1-20200606-tall-strip-africa.geojson",
    "pc s2 35MNM": f"{ODC}/site2-2020_jun_jul-35MNM.geojson",
    "pc s2 2022": f"{GEOPARQUET}/tests/sentinel-2-item.json",
    "pc s2 2024": f"{GEOPARQUET}/tests/data/sentinel-2-l2a-pc.json",
    "pc s2 2025": f"{GEOPARQUET}/extracted/*_smoke_sentinel-2-l2a___00.json",
    "pc rtc": f"{GEOPARQUET}/tests/data/sentinel-1-rtc-pc.json",
    "pc rtc 2025": f"{GEOPARQUET}/extracted/*_smoke_sentinel-1-rtc___00.json",
    "pc grd": f"{GEOPARQUET}/extracted/*_smoke_sentinel-1-grd___00.json",
    "pc dem": f"{GEOPARQUET}/tests/data/cop-dem-glo-30-pc.json",
    "pc dem one": f"{GEOPARQUET}/extracted/*_smoke_cop-dem-glo-30___00.json",
    "pc lulc 2023": f"{GEOPARQUET}/tests/data/io-lulc-annual-v02-pc.json",
    "pc lulc 2022": f"{GEOPARQUET}/extracted/*_smoke_io-lulc-9-class___00.json",
    "pc lulc 2020": f"{GEOPARQUET}/tests/data/io-lulc-pc.json",
    "pc lulc one": f"{GEOPARQUET}/extracted/*_smoke_io-lulc___00.json",
    "pc worldcover": f"{GEOPARQUET}/extracted/*_smoke_esa-worldcover___00.json",
    "pc naip": f"{CLIENT}/extracted/*.test_result_paging__0?.json",
    "hls": f"{CLIENT}/tests/data/sample-item-collection.json",
    "cdse 35UPU": f"{XCUBE}/*.test_open_data_cdse_sen2__01.json",
    "cdse": f"{XCUBE}/*.test_search_data_cdse_sentinel_2__02.json",
    "tools 01LAC": f"{TOOLS}/examples/**/S2A_T01LAC_20200717T221944_L1C.json",
    "tools 07HFE": f"{TOOLS}/examples/**/S2A_T07HFE_20190212T192646_L2A.json",
    "tools 01WCP": f"{TOOLS}/tests/data-files/*_T01WCP_*/expected_output.json",
    "tools 01VCG": f"{TOOLS}/tests/data-files/*_T01VCG_*/expected_output.json",
    "tools 33XWJ": f"{TOOLS}/tests/data-files/*_T33XWJ_*/expected_output.json",
    "tools grd": "stactools-packages+sentinel1/examples/grd/*/*.json",
    "tools rtc": "stactools-packages+sentinel1/examples/rtc/**/S1A_20200103_17RMJ_ASC.json",
    "tools dem": "stactools-packages+cop-dem/examples/cop-dem-glo-30/*/*.json",
}


def read_items(*names):
    """Return the raw items of some recordings, as they were sent."""
    if not FIXTURES.is_dir():
        pytest.skip("shared/ with the recorded STAC responses is not beside this clone")
    items = []
    for name in names:
        paths = sorted(FIXTURES.glob(RECORDINGS[name]))
        assert paths, f"no recording {RECORDINGS[name]}"
        for path in paths:
            document = json.loads(path.read_text())
            if isinstance(document, dict):
                document = document.get("response", document)
                document = document.get("features", [document])
            items += document
    return items
