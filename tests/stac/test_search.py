"""The semantics of a STAC search, applied locally."""

from datetime import UTC, datetime

import pystac
import pytest
from shapely.geometry import Point, mapping

from terramind_cube.stac.search import area_geometry, parse_interval, select_items


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
    return pystac.Item(
        f"{lon}", mapping(Point(lon, lat)), [lon, lat, lon, lat], ITEMS[0].datetime, {}
    )


def test_area_matches_by_intersection():
    items = [located(9.5, 48.5), located(179.5, 0), located(-179.5, 0)]
    assert select_items(items, bbox=(9, 48, 10, 49)) == items[:1]
    assert select_items(items, bbox=(9, 48, 0, 10, 49, 100)) == items[:1]
    assert select_items(items, bbox=(179, -1, -179, 1)) == items[1:]
    assert select_items(items, intersects=Point(9.5, 48.5)) == items[:1]
    feature = {"type": "Feature", "geometry": mapping(Point(9.5, 48.5).buffer(0.1))}
    assert select_items(items, intersects=feature) == items[:1]


@pytest.mark.parametrize(
    "bbox",
    [(9, 48, 10), (9, 49, 10, 48), (9, 48, 200, 49), (9, 48, 9, 49), (500160, 5e6, 5e5, 6e6)],
)
def test_what_is_no_box_is_refused(bbox):
    with pytest.raises(ValueError, match="bbox must be"):
        area_geometry(bbox)


@pytest.mark.parametrize("shape", [3, {"type": "Blob"}, {}, Point().buffer(0)])
def test_what_is_no_geometry_is_refused(shape):
    with pytest.raises(ValueError, match="intersects"):
        area_geometry(intersects=shape)
