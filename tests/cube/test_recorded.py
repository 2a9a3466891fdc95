"""Cubes built lazily from recorded responses of public providers, through the real pystac-client.

Every expectation is written out by hand from the metadata of the responses, never computed by our
code: times are the items' own (the first of a solar day or pass), offsets follow flag, raster
fields and baseline (see tests/stac/test_recorded.py), the CRS is the UTM zone of the area.
"""

from typing import NamedTuple

import dask.array
import numpy as np
import odc.geo.xr  # noqa: F401
import pytest
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.warp import transform_bounds

import terramind_cube as tc
from terramind_cube.testing import assert_lazy
from tests.stac.memory_api import open_client
from tests.stac.recordings import read_items

L2A = ["B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"]
L1C = [*L2A[:10], "B10", *L2A[10:]]


class Case(NamedTuple):
    """What a search finds and the cube that must follow from it."""

    recording: str
    bbox: tuple[float, float, float, float]
    epsg: int
    times: tuple[str, ...]
    offsets_dn: tuple[int, ...]
    items: tuple[str, ...]
    collection: str | None = None


def pc(*names):
    return tuple(f"{start}_{rest}" for start, rest in (name.split("|") for name in names))


S35 = "2020-{:02}-{:02}T08:06:{}.024"
SITE_DAYS = [(6, 1), (6, 6), (6, 11), (6, 16), (6, 21), (6, 26), (7, 1), (7, 6), (7, 11), (7, 16),
             (7, 21), (7, 26), (7, 31)]  # fmt: skip
# S2A at :11 and S2B at :09 take turns.
SITE_TIMES = tuple(
    S35.format(m, d, "11" if i % 2 == 0 else "09") for i, (m, d) in enumerate(SITE_DAYS)
)
STRIP = "S2B_MSIL2A_20200606T080609_R078_T35"
PAGE = "S2A_MSIL2A_20190101T000001_R116_T59V"
POLAR = "S2B_MSIL2A_20240419T095549_R122_T4"
CDSE = ("S2A_MSIL2A_20200703T103031_N0500_R108_T32T{}T_20230613T212700",
        "S2B_MSIL2A_20200705T101559_N0500_R065_T32T{}T_20230530T175912")  # fmt: skip

S2L2A = {
    "collection 1 is preferred": Case(
        "earth-search", (-38.6, -4.9, -38.5, -4.8), 32724,
        ("2025-07-31T13:03:24.321",), (-1000,), ("S2B_T24MWV_20250731T130245_L2A",),
    ),
    "the same scene without its offset": Case(
        "earth-search", (-38.6, -4.9, -38.5, -4.8), 32724,
        ("2025-07-31T13:03:24.321",), (0,), ("S2B_24MWV_20250731_0_L2A",), "sentinel-2-l2a",
    ),
    "two tiles two seconds apart": Case(
        "earth-search", (-38.09, -4.85, -38.03, -4.8), 32724,
        ("2025-07-31T13:03:22.435",), (-1000,),
        ("S2B_T24MXV_20250731T130245_L2A", "S2B_T24MWV_20250731T130245_L2A"),
    ),
    "south of 60 S": Case(
        # The area is in zone 21, from 60 W on; the tile reaches into it from zone 20.
        "earth-search", (-59.7, -60.48, -59.3, -60.42), 32721,
        ("2025-07-31T13:19:22.930",), (-1000,), ("S2B_T20EPT_20250731T131905_L2A",),
    ),
    "flag false and offset 0": Case(
        "earth-search 2020", (-11.5, 24.7, -11.4, 24.8), 32629,
        ("2020-02-19T11:34:25.405",), (0,), ("S2A_29RKH_20200219_0_L2A",),
    ),
    "STAC 1.0.0-beta.1": Case(
        "earth-search v0", (-16.9, 20.5, -16.85, 20.55), 32628,
        ("2020-07-14T11:55:52",), (0,), ("S2A_28QCH_20200714_0_L2A",),
    ),
    "33 items in pages": Case(
        "pc s2 2019", (171.5, 57.7, 171.6, 57.8), 32659, ("2019-01-01T00:00:01.024",), (0,),
        (f"{PAGE}ND_20201007T214702", f"{PAGE}NE_20201007T214705"),
    ),
    "no raster fields": Case(
        "pc s2 06VVN", (-148, 60.8, -147.9, 60.85), 32606, ("2019-06-29T21:25:29.024",), (0,),
        ("S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531",),
    ),
    "raster fields without an offset": Case(
        "pc s2 06VVN raster", (-148, 60.8, -147.9, 60.85), 32606, ("2019-06-29T21:25:29.024",),
        (0,), ("S2B_MSIL2A_20190629T212529_R043_T06VVN_20201006T080531",),
    ),
    "three tiles of a strip": Case(
        "pc s2 strip", (27.4, -9.08, 27.45, -8.2), 32735, ("2020-06-06T08:06:09.024",), (0,),
        (f"{STRIP}LNK_20201027T072717", f"{STRIP}LNL_20201027T072719",
         f"{STRIP}MNM_20200826T094900"),
    ),
    "thirteen dates": Case(
        "pc s2 35MNM", (27.4, -7.8, 27.45, -7.75), 32735, SITE_TIMES, (0,) * 13, (),
    ),
    "baseline 04.00 at 81 N": Case(
        "pc s2 2022", (-38, 81.3, -37.8, 81.35), 32624, ("2022-06-12T18:29:19.024",), (-1000,),
        ("S2B_MSIL2A_20220612T182919_R027_T24XWR_20220613T123251",),
    ),
    "two zones, west of their border": Case(
        "pc s2 2024", (95.5, 81.86, 95.7, 81.9), 32646, ("2024-04-19T09:55:49.024",), (-1000,),
        (f"{POLAR}6XER_20240419T124342", f"{POLAR}6XES_20240419T123824",
         f"{POLAR}7XML_20240419T123458"),
    ),
    "two zones, east of their border": Case(
        "pc s2 2024", (96.3, 81.86, 96.5, 81.9), 32647, ("2024-04-19T09:55:49.024",), (-1000,),
        (f"{POLAR}6XER_20240419T124342", f"{POLAR}6XES_20240419T123824",
         f"{POLAR}7XML_20240419T123458"),
    ),
    "baseline 05.11": Case(
        "pc s2 2025", (132.8, 5.4, 132.9, 5.45), 32653, ("2025-03-12T01:45:49.024",), (-1000,),
        ("S2B_MSIL2A_20250312T014549_R074_T53NKG_20250312T041213",),
    ),
    "STAC 1.1, two tiles on two dates": Case(
        "cdse", (9.03, 47.2, 9.1, 47.25), 32632,
        ("2020-07-03T10:30:31.024", "2020-07-05T10:15:59.024"), (-1000, -1000),
        tuple(name.format(tile) for name in CDSE for tile in "MN"),
    ),
    "STAC 1.1, a single item": Case(
        "cdse 35UPU", (29, 52.6, 29.1, 52.65), 32635, ("2020-03-01T09:09:01.024",), (-1000,),
        ("S2A_MSIL2A_20200301T090901_N0500_R050_T35UPU_20230630T033416",),
    ),
    "stactools, baseline 02.12": Case(
        "tools 07HFE", (-139.65, -31.7, -139.6, -31.68), 32707, ("2019-02-12T19:26:51.024",),
        (0,), ("S2A_T07HFE_20190212T192646_L2A",),
    ),
    # The tile is of zone 1, this side of the antimeridian of zone 60.
    "antimeridian, west of it": Case(
        "tools 01WCP", (178.9, 66, 179, 66.05), 32660, ("2023-06-25T23:46:21.024",), (-1000,),
        ("S2A_T01WCP_20230625T234624_L2A",),
    ),
    "antimeridian, east of it": Case(
        "tools 01WCP", (-179.6, 66, -179.5, 66.05), 32601, ("2023-06-25T23:46:21.024",), (-1000,),
        ("S2A_T01WCP_20230625T234624_L2A",),
    ),
    "antimeridian, a scene of 2020 of baseline 05.00": Case(
        "tools 01VCG", (-179, 60.1, -178.9, 60.15), 32601, ("2020-09-14T23:19:31.559",), (-1000,),
        ("S2B_OPER_MSI_L2A_TL_S2RP_20230315T224658_A018417_T01VCG",),
    ),
    "80 N": Case(
        "tools 33XWJ", (17, 80.13, 17.1, 80.15), 32633, ("2022-04-13T15:07:59.024",), (-1000,),
        ("S2B_T33XWJ_20220413T150756_L2A",),
    ),
}  # fmt: skip

S2L1C = {
    "offset -0.1": Case(
        "earth-search", (-38.6, -4.9, -38.5, -4.8), 32724,
        ("2025-07-31T13:03:24.321",), (-1000,), ("S2B_24MWV_20250731_0_L1C",),
    ),
    "antimeridian, baseline 02.09": Case(
        "tools 01LAC", (179.5, -15.9, 179.6, -15.85), 32760, ("2020-07-17T22:19:41.024",), (0,),
        ("S2A_T01LAC_20200717T221944_L1C",),
    ),
    "antimeridian, east of it": Case(
        "tools 01LAC", (-179.9, -15.9, -179.8, -15.85), 32701, ("2020-07-17T22:19:41.024",), (0,),
        ("S2A_T01LAC_20200717T221944_L1C",),
    ),
}  # fmt: skip

SLICES = ("045749_20240419T045814", "045814_20240419T045839", "045839_20240419T045904",
          "045904_20240419T045916")  # fmt: skip
# One pass is one step, at the time of its first slice.
S1RTC = {
    "four slices of one pass": Case(
        "pc rtc", (15.2, 30.2, 15.3, 34.5), 32633, ("2024-04-19T04:58:01.720055",), (51,),
        tuple(f"S1A_IW_GRDH_1SDV_20240419T{part}_053498_067DF2_rtc" for part in SLICES),
    ),
    "one slice": Case(
        "pc rtc 2025", (19, 30, 19.1, 30.1), 32634, ("2025-03-11T04:42:40.696652",), (80,),
        ("S1A_IW_GRDH_1SDV_20250311T044231_20250311T044249_058252_073302_rtc",),
    ),
    "keys named gamma0": Case(
        "tools rtc", (-81.9, 25.5, -81.8, 25.6), 32617, ("2020-01-03T23:36:21",), (121,),
        ("S1A_20200103_17RMJ_ASC",),
    ),
}  # fmt: skip

TILE = "Copernicus_DSM_COG_10_{}_00_DEM"
DEM = {
    "a tile of 0.67 degrees": Case(
        "tools dem", (-114.6, 53.4, -114.5, 53.45), 32611, (), (), (TILE.format("N53_00_W115"),)
    ),
    # In polar stereographic the area's rectangle reaches into further tiles.
    "at the pole, of Earth Search": Case(
        "earth-search dem", (-178.2, -89.6, -177.5, -89.5), 32761, (), (),
        (TILE.format("S90_00_W178"), TILE.format("S90_00_W179")),
    ),
    "at the pole, of the Planetary Computer": Case(
        "pc dem", (-178.2, -89.6, -177.5, -89.5), 32761, (), (),
        (TILE.format("S90_00_W178"), TILE.format("S90_00_W179")),
    ),
}  # fmt: skip

# A year each, whatever instant of it the provider gives.
LULC = {
    "annual": Case("pc lulc 2023", (175, 66, 175.1, 66.05), 32660, ("2023",), (), ("60W-2023",)),
    "nine classes": Case("pc lulc 2022", (175, 66, 175.1, 66.05), 32660, ("2022",), (),
                         ("60W-2022",)),
    "first edition": Case("pc lulc 2020", (174, 63.5, 174.1, 63.55), 32660, ("2020",), (),
                          ("60V-2020", "60W-2020")),
}  # fmt: skip


@pytest.fixture(autouse=True)
def remote(request, monkeypatch):
    """Fail where a file is opened: all hrefs are remote, and building a cube reads nothing."""
    if "tmp_path" in request.fixturenames:
        return

    def refuse(href, *_, **__):
        raise AssertionError(f"{href} was opened")

    monkeypatch.setattr(rasterio, "open", refuse)


def build(case, modalities, **settings):
    """Load a cube from a client; items without a collection come as the client found them."""
    raw = read_items(case.recording)
    client = open_client(raw, page_size=4)
    source = client
    if case.collection or not all(item.get("collection") for item in raw):
        source = client.search(collections=case.collection and [case.collection]).item_collection()
    with assert_lazy():
        return tc.load_cube(source, bbox=case.bbox, modalities=modalities, **settings)


def check_grid(cube, case):
    """Assert that the grid is in the zone, on the lattice of 160 m, and covers the area closely."""
    grid = cube.odc.geobox
    assert grid.crs.epsg == case.epsg
    assert (grid.affine.a, grid.affine.e) == (10, -10)
    assert (grid.affine.c % 160, grid.affine.f % 160) == (0, 0)
    assert all(side % 16 == 0 for side in grid.shape)
    area = transform_bounds("EPSG:4326", f"EPSG:{case.epsg}", *case.bbox, densify_pts=51)
    gaps = np.subtract(area, grid.extent.boundingbox.bbox) * (1, 1, -1, -1)
    assert (gaps > -1).all()
    # At most a cell on each side, or what the corners of a turned area need.
    assert (gaps < 1000).all()


def check_variable(cube, name, dims, dtype, case):
    data = cube[name]
    assert data.dims == dims
    assert data.dtype == dtype
    assert isinstance(data.data, dask.array.Array)
    if case.items:
        assert sorted(data.attrs["stac_items"]) == sorted(case.items)
    if case.recording.split()[0] != "tools" and name not in ("SCL", "cloud_mask"):
        assert data.attrs["license"]
        assert data.attrs["attribution"]


def moments(*texts):
    return np.array(texts, "datetime64[ns]")


@pytest.mark.parametrize("title", S2L2A)
def test_surface_reflectance(title):
    case = S2L2A[title]
    cube = build(case, ["S2L2A"])
    check_variable(cube, "S2L2A", ("time", "S2L2A_band", "y", "x"), np.uint16, case)
    assert cube["S2L2A_band"].values.tolist() == L2A
    assert cube["S2L2A"].attrs["units"] == "1e-4"
    assert cube["S2L2A"].attrs["nodata"] == 0
    assert "dn_offsets" not in cube["S2L2A"].attrs
    np.testing.assert_array_equal(cube["time"].values, moments(*case.times))
    assert cube["S2L2A_offset"].dtype == np.int16
    assert cube["S2L2A_offset"].values.tolist() == list(case.offsets_dn)
    # All providers give the scene classification.
    check_variable(cube, "SCL", ("time", "y", "x"), np.uint8, case)
    check_variable(cube, "cloud_mask", ("time", "y", "x"), np.bool_, case)
    assert cube["clear_fraction"].dims == ("time",)
    assert isinstance(cube["clear_fraction"].data, dask.array.Array)
    check_grid(cube, case)


@pytest.mark.parametrize("title", S2L1C)
def test_top_of_atmosphere_reflectance(title):
    case = S2L1C[title]
    cube = build(case, ["S2L1C"])
    check_variable(cube, "S2L1C", ("time", "S2L1C_band", "y", "x"), np.uint16, case)
    assert cube["S2L1C_band"].values.tolist() == L1C
    np.testing.assert_array_equal(cube["time"].values, moments(*case.times))
    assert cube["S2L1C_offset"].values.tolist() == list(case.offsets_dn)
    assert "SCL" not in cube
    check_grid(cube, case)


@pytest.mark.parametrize("title", S1RTC)
def test_backscatter(title):
    case = S1RTC[title]
    cube = build(case, ["S1RTC"])
    check_variable(cube, "S1RTC", ("time", "S1RTC_band", "y", "x"), np.float32, case)
    assert cube["S1RTC_band"].values.tolist() == ["VV", "VH"]
    assert cube["S1RTC"].attrs["units"] == "dB"
    np.testing.assert_array_equal(cube["time"].values, moments(*case.times))
    # The column of the offsets holds the relative orbit here.
    assert cube["S1RTC_relative_orbit"].values.tolist() == list(case.offsets_dn)
    check_grid(cube, case)


@pytest.mark.parametrize("title", DEM)
def test_elevation_has_no_time(title):
    case = DEM[title]
    cube = build(case, ["DEM"])
    check_variable(cube, "DEM", ("y", "x"), np.float32, case._replace(items=()))
    found = set(cube["DEM"].attrs["stac_items"])
    assert found > set(case.items) if "pole" in title else found == set(case.items)
    assert "time" not in cube.coords
    check_grid(cube, case)


@pytest.mark.parametrize("title", LULC)
def test_land_cover_is_annual(title):
    case = LULC[title]
    cube = build(case, ["LULC"])
    check_variable(cube, "LULC", ("time", "y", "x"), np.uint8, case)
    assert cube["time"].values.astype("datetime64[Y]").astype(str).tolist() == list(case.times)
    check_grid(cube, case)


@pytest.mark.parametrize(
    ("recording", "bbox", "names"),
    [
        ("tools 01WCP", (179.9, 66.0, -179.9, 66.05), "S2L2A"),
        ("tools 01LAC", (179.9, -15.9, -179.9, -15.85), "S2L1C"),
    ],
)
def test_area_across_the_antimeridian_is_small(recording, bbox, names):
    cube = build(Case(recording, bbox, 0, (), (), ()), [names])
    grid = cube.odc.geobox
    assert grid.crs.epsg in {32601, 32660, 32701, 32760}
    # 0.2 degrees of longitude: 9 km at 66 N, 21 km at 16 S.
    assert max(grid.shape) * 10 < 25_000
    assert cube.sizes["time"] == 1


def test_area_of_the_items_themselves():
    """Tile 06VVN: x 399960 to 509760, y 6690240 to 6800040, snapped outwards to 160 m."""
    raw = read_items("pc s2 06VVN")
    with assert_lazy():
        cube = tc.load_cube(open_client(raw), modalities=["S2L2A"])
    expected = GeoBox((10992, 10992), Affine(10, 0, 399840, 0, -10, 6800160), "EPSG:32606")
    assert cube.odc.geobox == expected


@pytest.mark.parametrize(
    ("settings", "count"),
    [
        ({"datetime": "2020-07"}, 7),
        ({"datetime": "2020-06-05/2020-06-12"}, 2),
        # 0.97, 0.02, 0.70, 0.007, 0.02, 0.004 and 0.005 percent; the next is 1.04.
        ({"cloud_cover": 1}, 7),
        ({"query": {"eo:cloud_cover": {"gt": 20}}}, 2),
        ({"ids": ["S2B_MSIL2A_20200706T080609_R078_T35MNM_20201027T081700"]}, 1),
        ({"query": {"platform": {"eq": "Sentinel-2A"}}}, 7),
    ],
    ids=str,
)
@pytest.mark.parametrize("has_query", [False, True])
def test_search_is_narrowed_whether_the_server_can_or_not(settings, count, has_query):
    client = open_client(read_items("pc s2 35MNM"), page_size=4, has_query=has_query)
    bbox = (27.4, -7.8, 27.45, -7.75)
    with assert_lazy():
        cube = tc.load_cube(client, bbox=bbox, modalities=["S2L2A"], **settings)
    assert cube.sizes["time"] == count
    assert set(cube["time"].values) <= set(moments(*SITE_TIMES))


def test_land_cover_and_elevation_of_other_providers_join_a_scene():
    """A scene of June 2023 takes the map of 2023, not those of 2020 and 2022."""
    names = ("tools 01WCP", "pc lulc 2020", "pc lulc 2022", "pc lulc 2023")
    items = open_client(read_items(*names)).search().item_collection()
    bbox = (178.9, 66, 179, 66.05)
    with assert_lazy():
        cube = tc.load_cube(items, bbox=bbox, modalities=["LULC", "S2L2A", "NDVI", "RGB"])
    np.testing.assert_array_equal(cube["time"].values, moments("2023-06-25T23:46:21.024"))
    assert cube["LULC"].attrs["stac_items"] == ["60W-2023"]
    assert cube["NDVI"].dims == ("time", "y", "x")
    assert cube["NDVI"].dtype == np.float32
    assert cube["RGB"].dims == ("time", "RGB_band", "y", "x")
    assert cube["RGB"].dtype == np.uint8


@pytest.mark.parametrize("recording", ["earth-search", "pc grd", "tools grd"])
def test_raw_ground_range_products_are_refused(recording):
    client = open_client(read_items(recording))
    with pytest.raises(ValueError, match=r"(uncalibrated|not calibrated|without calibration)"):
        tc.load_cube(client, modalities=["S1GRD"])
    with pytest.raises(ValueError, match="S1RTC"):
        tc.load_cube(client, modalities=["S1RTC"])


def test_land_cover_of_another_legend_is_refused():
    client = open_client(read_items("pc worldcover"))
    with pytest.raises(ValueError, match="LULC"):
        tc.load_cube(client, modalities=["LULC"])
