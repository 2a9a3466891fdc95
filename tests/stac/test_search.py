"""The semantics of a STAC search, applied locally."""

from datetime import UTC, datetime

import numpy as np
import pystac
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import Point, box, mapping

from terramind_cube.modalities import MODALITIES
from terramind_cube.stac.search import Filters, parse_interval, select_items

S2, S1, DEM = MODALITIES["S2L2A"], MODALITIES["S1RTC"], MODALITIES["DEM"]
MAY = datetime(2024, 5, 1, tzinfo=UTC)


def instant(text):
    return pystac.Item(text, None, None, datetime.fromisoformat(text).replace(tzinfo=UTC), {})


ITEMS = [
    instant(t) for t in ("2023-12-31T23:59:59", "2024-05-01", "2024-05-31T12:00", "2024-07-01")
]


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("2024", [1, 2, 3]),
        ("2024-05", [1, 2]),
        ("2024-05-01", [1]),
        ("2024-05-01T00:00:00Z", [1]),
        ("2024-05-01T00:00:01Z", []),
        ("2024-05/2024-07", [1, 2, 3]),
        ("2024-05-01/2024-05-31", [1, 2]),
        ("2024-05-02/..", [2, 3]),
        ("../2024-05-01", [0, 1]),
        ((None, datetime(2024, 1, 1, tzinfo=UTC)), [0]),
        ((datetime(2024, 6, 1, tzinfo=UTC), None), [3]),
        (datetime(2024, 5, 1, tzinfo=UTC), [1]),
    ],
)
def test_datetime_is_read_as_an_api_reads_it(query, found):
    assert select_items(ITEMS, datetime=query) == [ITEMS[i] for i in found]


def test_item_with_an_interval_matches_by_overlap():
    start, end = datetime(2023, 1, 1, tzinfo=UTC), datetime(2023, 12, 31, tzinfo=UTC)
    year = pystac.Item("2023", None, None, None, {}, start_datetime=start, end_datetime=end)
    for query in ("2023-06-01", "2023-12/2024-02", "../2023-01-01", "2022/2024"):
        assert select_items([year], datetime=query) == [year]
    assert select_items([year], datetime="2024") == []


@pytest.mark.parametrize("query", ["spring", "2024-05/2024-04", "2024/2025/2026", "2024-13", 7])
def test_what_is_no_datetime_is_refused(query):
    with pytest.raises(ValueError, match="datetime"):
        parse_interval(query)


def located(lon, lat):
    return pystac.Item(f"{lon}", mapping(Point(lon, lat)), [lon, lat, lon, lat], MAY, {})


def test_area_matches_by_intersection():
    items = [located(9.5, 48.5), located(179.5, 0), located(-179.5, 0)]
    nowhere = instant("2024-05-01")
    assert select_items([*items, nowhere], bbox=(9, 48, 10, 49)) == [items[0], nowhere]
    assert select_items(items, bbox=(9, 48, 0, 10, 49, 100)) == items[:1]
    for across in ((179, -1, -179, 1), None):
        polygon = None if across else box(179, -1, 181, 1)
        assert select_items(items, bbox=across, intersects=polygon) == items[1:]
    assert select_items(items, intersects=Point(9.5, 48.5)) == items[:1]
    feature = {"type": "Feature", "geometry": mapping(Point(9.5, 48.5).buffer(0.1))}
    assert select_items(items, intersects=feature) == items[:1]


def item(item_id="i", collection=None, lon=9.5, assets=(), **properties):
    made = pystac.Item(
        item_id, mapping(Point(lon, 48.5)), [lon, 48.5, lon, 48.5], MAY,
        {name.replace("__", ":"): value for name, value in properties.items()},
        collection=collection,
    )  # fmt: skip
    for key in assets:
        made.add_asset(key, pystac.Asset(f"/{key}.tif"))
    return made


@pytest.mark.parametrize(
    ("test", "answer"),
    [
        ({"eq": 20}, True),
        ({"eq": 21}, False),
        ({"eq": "20"}, False),
        ({"neq": 21}, True),
        ({"neq": 20}, False),
        ({"lt": 20.5, "gte": 20}, True),
        ({"lt": 20}, False),
        ({"lte": 20, "gt": 20}, False),
        ({"lt": "high"}, False),
        ({"in": [10, 20]}, True),
        ({"in": (10,)}, False),
        ({"startsWith": "2"}, False),
    ],
)
def test_query_has_the_operators_of_the_extension(test, answer):
    assert Filters(query={"n": test}).accepts(item(n=20)) is answer


def test_query_compares_words_and_knows_what_is_missing():
    scene = item("S2_a", "c", grid__code="MGRS-32UMV", platform="sentinel-2a")
    for test in ({"startsWith": "MGRS"}, {"endsWith": "UMV"}, {"contains": "32U"}):
        assert Filters(query={"grid:code": test}).accepts(scene)
    assert not Filters(query={"grid:code": {"endsWith": "MGRS"}}).accepts(scene)
    for test in ({"neq": 3}, {"eq": None}, {"lt": 3}, {"in": [None]}):
        assert not Filters(query={"absent": test}).accepts(scene)
    assert Filters(query={"id": {"startsWith": "S2"}, "collection": {"eq": "c"}}).accepts(scene)


def test_query_for_an_epsg_code_survives_that_pystac_rewrites_it():
    document = item().to_dict() | {
        "stac_version": "1.0.0",
        "stac_extensions": ["https://stac-extensions.github.io/projection/v1.1.0/schema.json"],
    }
    document["properties"]["proj:epsg"] = 32632
    read = pystac.Item.from_dict(document)
    assert Filters(query={"proj:epsg": {"eq": 32632}}).accepts(read)
    assert not Filters(query={"proj:epsg": {"eq": 32633}}).accepts(read)


def test_cloud_cover_keeps_what_says_nothing():
    clear, cloudy = item(eo__cloud_cover=9.9), item(eo__cloud_cover=10.1)
    radar = item()
    found = select_items([clear, cloudy, radar], filters=Filters(cloud_cover=10))
    assert found == [clear, radar]


def test_orbit_is_for_radar_items():
    up = item("up", "sentinel-1-rtc", sat__orbit_state="ascending", sat__relative_orbit=66)
    down = item("down", None, assets=["VV", "VH"], sat__orbit_state="DESCENDING")
    silent = item("silent", None, sar__instrument_mode="IW")
    optical = item("s2", "sentinel-2-l2a", sat__orbit_state="descending", sat__relative_orbit=108)
    every = [up, down, silent, optical]
    assert select_items(every, filters=Filters(orbit="ascending")) == [up, optical]
    assert select_items(every, filters=Filters(orbit="Descending")) == [down, optical]
    assert select_items(every, filters=Filters(orbit=np.int64(66))) == [up, optical]


def test_ids_and_counts():
    items = [item("a", "x"), item("b", "x"), item("c", "y"), item("d", "x")]
    assert select_items(items, filters=Filters(ids=["d", "a", "z"])) == [items[0], items[3]]
    # Counted for each collection, and after everything else.
    assert select_items(items, filters=Filters(max_items=1)) == [items[0], items[2]]
    found = select_items(items, filters=Filters(max_items=1, ids=("b", "d")))
    assert found == [items[1]]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"cloud_cover": 101}, "percentage from 0 to 100, got 101"),
        ({"cloud_cover": -1}, "percentage"),
        ({"cloud_cover": "20"}, "percentage"),
        ({"cloud_cover": float("nan")}, "percentage"),
        ({"orbit": "up"}, "'ascending', 'descending' or the number"),
        ({"orbit": 0}, "relative orbit"),
        ({"orbit": True}, "relative orbit"),
        ({"query": {"eo:cloud_cover": {"less": 20}}}, "Unknown operator 'less' .*Known: eq"),
        ({"query": {"eo:cloud_cover": 20}}, "query maps properties to operators"),
        ({"query": "eo:cloud_cover<20"}, "query maps properties to operators"),
        ({"query": {"platform": {"in": "sentinel-2a"}}}, "'in' for 'platform' takes a list"),
        ({"query": {"S2L2a": {"p": {"eq": 1}}}}, "did you mean 'S2L2A'"),
        ({"query": {"S2L2A": {"p": {"eq": 1}}}, "modalities": ("DEM",)}, "S2L2A, which is not"),
        ({"query": {"S2L2A": {"p": {"is": 1}}}, "modalities": ("S2L2A",)}, "operator 'is'"),
        ({"ids": "S2A_1"}, r"give \['S2A_1'\]"),
        ({"ids": []}, "at least one"),
        ({"ids": [3]}, "list of item ids"),
        ({"limit": 0}, "from 1 to 10000, got 0"),
        ({"limit": 10_001}, "from 1 to 10000"),
        ({"max_items": 0}, "at least 1, got 0"),
        ({"max_items": 2.5}, "number of items"),
    ],
)
def test_what_cannot_be_meant_is_refused(wrong, said):
    with pytest.raises(ValueError, match=said):
        Filters(**wrong)


def test_each_modality_gets_its_part():
    plain = {"platform": {"eq": "sentinel-2a"}}
    asked = Filters(20, "ascending", plain, ("a",), 50, 3, ("S2L2A", "S1RTC", "DEM"))
    for_s2, for_s1, for_dem = (asked.for_modality(m) for m in (S2, S1, DEM))
    assert (for_s2.cloud_cover, for_s2.orbit, for_s2.query) == (20, None, plain)
    assert (for_s1.cloud_cover, for_s1.orbit, for_s1.query) == (None, "ascending", None)
    assert (for_dem.cloud_cover, for_dem.orbit, for_dem.query) == (None, None, None)
    for part in (for_s2, for_s1, for_dem):
        assert (part.ids, part.limit, part.max_items) == (("a",), 50, 3)
        assert part.for_modality(MODALITIES[part.modalities[0]]) == part
    # Without an optical modality a plain query is for all.
    radar = Filters(query=plain, modalities=("S1RTC", "DEM"))
    assert radar.for_modality(S1).query == plain
    assert radar.for_modality(DEM).query == plain
    assert Filters(query=plain).for_modality(S1).query == plain


def test_query_by_modality_reaches_what_others_are_computed_from():
    clear, mode = {"eo:cloud_cover": {"lt": 5}}, {"sar:instrument_mode": {"eq": "IW"}}
    asked = Filters(query={"NDVI": clear, "S1RTC": mode}, modalities=("NDVI", "S1RTC", "DEM"))
    assert asked.for_modality(S2).query == clear
    assert asked.for_modality(S1).query == mode
    assert asked.for_modality(S1).for_modality(S1).query == mode
    assert asked.for_modality(DEM).query is None


def test_filters_say_what_they_are():
    assert Filters(limit=10).describe() == ""
    said = Filters(20, 66, {"p": {"eq": 1}}, ("a", "b")).describe()
    assert said == (
        " with cloud cover up to 20 %, orbit 66, query {'p': {'eq': 1}}, ids ['a', 'b']"
    )


@given(
    places=st.lists(st.tuples(st.integers(-180, 180), st.integers(-90, 90)), max_size=12),
    days=st.lists(st.integers(1, 28), min_size=12, max_size=12),
    west=st.integers(-180, 179), width=st.integers(1, 90), south=st.integers(-90, 80),
    first=st.integers(1, 28), length=st.integers(0, 20), cover=st.integers(0, 100),
)  # fmt: skip
def test_selection_equals_looking_at_every_item(
    places, days, west, width, south, first, length, cover
):
    items = [
        pystac.Item(
            str(n), mapping(Point(place)), [*place, *place], datetime(2024, 2, day, tzinfo=UTC),
            {"eo:cloud_cover": day * 3},
        )
        for n, (place, day) in enumerate(zip(places, days, strict=False))
    ]  # fmt: skip
    east, last = min(west + width, 180), min(first + length, 29)
    found = select_items(
        items,
        bbox=(west, south, east, south + 10),
        datetime=f"2024-02-{first:02}/2024-02-{last:02}",
        filters=Filters(cloud_cover=cover),
    )
    expected = [
        scene
        for scene, (lon, lat), day in zip(items, places, days, strict=False)
        if west <= lon <= east
        and south <= lat <= south + 10
        and first <= day <= last
        and day * 3 <= cover
    ]
    assert found == expected
