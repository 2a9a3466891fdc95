"""Areas: reading them, the antimeridian, and mistakes of order and unit."""

from datetime import UTC, datetime

import pystac
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import LineString, MultiPolygon, Point, Polygon, box, mapping, shape

from terramind_cube.stac.areas import area_geometry, item_shape, swapped_area

WHEN = datetime(2024, 5, 1, tzinfo=UTC)


def item_of(geometry, bbox=None):
    document = None if geometry is None else mapping(geometry)
    return pystac.Item("place", document, bbox, WHEN, {})


def area(bbox=None, **options):
    return shape(area_geometry(bbox, **options))


@pytest.mark.parametrize(
    ("bbox", "said"),
    [
        ((9, 48, 10), "Give four numbers"),
        ("9,48,10,49", "Give four numbers"),
        (5, "Give four numbers"),
        ((9, 48, 10, float("nan")), "Give four numbers"),
        ((9, 49, 10, 48), "south lies north of its north"),
        ((9, 48, 9, 49), "no width or no height"),
        ((9, 48, 10, 48), "no width or no height"),
        ((9, 48, 200, 49), "west > east crosses the antimeridian"),
        ((-33.9, 151.0, -33.8, 151.3), r"lat/lon order: give lon, lat, \(151.0, -33.9, 151.3"),
        ((100, 95, 120, 96), "Latitudes run from -90 to 90"),
        ((500160, 5e6, 600160, 6e6), "metres of a projection"),
    ],
)
def test_what_is_no_box_is_refused_with_the_reason(bbox, said):
    with pytest.raises(ValueError, match=f"bbox must be .west, south.*{said}"):
        area_geometry(bbox)


@pytest.mark.parametrize(
    ("geometry", "said"),
    [
        (box(-33.9, 151, -33.8, 152), "lat/lon order: GeoJSON is lon, lat"),
        (box(500160, 5e6, 600160, 6e6), "metres of a projection"),
        (box(100, 95, 120, 96), "Latitudes run"),
        (Point().buffer(0), "empty geometry"),
        (3, "Cannot read intersects"),
        ({"type": "Blob"}, "Cannot read intersects"),
        ({}, "Cannot read intersects"),
        ("POINT (9 48)", "Cannot read intersects"),
    ],
)
def test_what_is_no_geometry_is_refused_with_the_reason(geometry, said):
    with pytest.raises(ValueError, match=f"intersects.*{said}|{said}.*"):
        area_geometry(intersects=geometry)


def test_one_area_is_given_in_one_way():
    assert area_geometry() is None
    with pytest.raises(ValueError, match="not both"):
        area_geometry((9, 48, 10, 49), Point(9, 48))


def test_area_is_read_in_every_form():
    plain = mapping(box(9, 48, 10, 49))
    feature = {"type": "Feature", "properties": {}, "geometry": plain}
    collection = {"type": "FeatureCollection", "features": [feature, feature]}
    for form in (plain, feature, collection, box(9, 48, 10, 49)):
        assert area(intersects=form).equals(box(9, 48, 10, 49))
    assert area((9, 48, 0, 10, 49, 100)).equals(box(9, 48, 10, 49))
    bow_tie = Polygon([(0, 0), (1, 1), (1, 0), (0, 1)])
    assert area(intersects=bow_tie).is_valid


def test_area_beyond_180_degrees_continues_on_the_other_side():
    halves = MultiPolygon([box(179, -1, 180, 1), box(-180, -1, -179, 1)])
    assert area((179, -1, -179, 1)).equals(halves)
    assert area(intersects=box(179, -1, 181, 1)).equals(halves)
    assert area(intersects=box(-181, -1, -179, 1)).equals(halves)
    assert area(intersects=box(190, 0, 200, 1)).equals(box(-170, 0, -160, 1))
    assert area(intersects=Point(185, 3)).equals(Point(-175, 3))
    assert area(intersects=LineString([(179, 0), (181, 0)])).length == pytest.approx(2)
    assert area(intersects=box(-180, -90, 180, 90)).area == 360 * 180


def test_item_across_the_antimeridian_lies_on_both_sides():
    halves = MultiPolygon([box(179, -1, 180, 1), box(-180, -1, -179, 1)])
    long_way_round = Polygon([(179, -1), (-179, -1), (-179, 1), (179, 1)])
    for geometry in (long_way_round, box(179, -1, 181, 1), box(-181, -1, -179, 1), halves):
        assert item_shape(item_of(geometry)).equals(halves)
    assert item_shape(item_of(None, [179, -1, -179, 1])).equals(halves)
    assert item_shape(item_of(None, [179, -1, 0, -179, 1, 9])).equals(halves)
    # What does go round the globe stays so.
    for geometry in (box(-180, -60, 180, 60), box(-120, -10, 170, 10)):
        assert item_shape(item_of(geometry)).equals(geometry)


def test_item_says_where_it_lies_or_not_at_all():
    assert item_shape(item_of(None)) is None
    assert item_shape(item_of(None, [9, 48, 9, 48])).equals(Point(9, 48))
    broken = pystac.Item("broken", {"type": "Polygon", "coordinates": [[1]]}, None, WHEN, {})
    with pytest.raises(ValueError, match="geometry of item 'broken'"):
        item_shape(broken)


def test_swapped_area_is_what_lat_lon_order_would_have_meant():
    swapped = swapped_area(area_geometry((9, 48, 10, 49)))
    assert shape(swapped).equals(box(48, 9, 49, 10))
    assert swapped_area(area_geometry((151, -34, 152, -33))) is None
    assert swapped_area(None) is None


@given(
    west=st.integers(-179, 178), width=st.integers(1, 60),
    south=st.integers(-80, 79), lon=st.integers(-180, 180), lat=st.integers(-90, 90),
)  # fmt: skip
def test_a_place_is_in_an_area_whichever_way_it_was_given(west, width, south, lon, lat):
    """A bbox with west > east, and a polygon beyond 180 degrees, mean the same area."""
    east = west + width
    bbox = (west, south, east if east <= 180 else east - 360, south + 1)
    as_polygon = area(intersects=box(west, south, east, south + 1))
    assert area(bbox).equals(as_polygon)
    inside = (
        any(west <= lon + turn <= east for turn in (0, 360, -360)) and south <= lat <= south + 1
    )
    assert as_polygon.intersects(Point(lon, lat)) or not inside or abs(lon) == 180
    assert inside or not as_polygon.intersects(Point(lon, lat))
