"""stac-geoparquet: nothing lost on the way, and the same answers as from memory."""

import copy
import json
import socket
from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pystac
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shapely.geometry import box, mapping

from terramind_cube.stac import SearchResult, StaticCatalog, geoparquet, open_catalog
from terramind_cube.stac.geoparquet import GeoParquetCatalog, write_geoparquet
from terramind_cube.stac.search import Filters
from tests.stac.recordings import read_items

START = datetime(2024, 5, 1, 10, 20, 30, 123000, tzinfo=UTC)
PROVIDERS = (
    "earth-search", "earth-search dem", "pc s2 2024", "pc rtc", "pc grd", "pc dem", "pc lulc 2023",
    "pc lulc one", "pc worldcover", "cdse", "earth-search v0", "hls",
)  # fmt: skip
TIMES = ("datetime", "start_datetime", "end_datetime", "created", "updated", "published")


def make_item(item_id, collection="c", place=(9, 48, 10, 49), when=START, **properties):
    area = box(*place)
    return pystac.Item(
        item_id, mapping(area), list(area.bounds), when,
        {name.replace("__", ":"): value for name, value in properties.items()},
        collection=collection,
    )  # fmt: skip


def plain(item):
    """Return what an item means: no nulls, no links to files, times as times, tuples as lists."""
    document = item.to_dict(include_self_link=False, transform_hrefs=False)
    document = json.loads(json.dumps(document))

    def clean(value):
        if isinstance(value, dict):
            return {name: clean(part) for name, part in value.items() if part is not None}
        return [clean(part) for part in value] if isinstance(value, list) else value

    document = clean(document)
    for name in TIMES:
        if text := document["properties"].get(name):
            document["properties"][name] = datetime.fromisoformat(text)
    document["links"] = [k for k in document["links"] if k["href"].startswith("http")]
    return document


@pytest.mark.filterwarnings("ignore:Could not parse bucket:UserWarning")
def test_recorded_items_of_all_providers_in_one_file_come_back_as_they_were(tmp_path):
    raw = read_items(*PROVIDERS)
    items = [pystac.Item.from_dict(copy.deepcopy(document)) for document in raw]
    path = write_geoparquet(items, tmp_path / "all.parquet")
    assert list(map(plain, open_catalog(path).search_items())) == list(map(plain, items))


def test_file_is_geoparquet_that_others_read(tmp_path):
    path = write_geoparquet([make_item("a"), make_item("b")], tmp_path / "items.parquet")
    metadata = pq.read_schema(path).metadata
    assert json.loads(metadata[b"geo"])["primary_column"] == "geometry"
    assert json.loads(metadata[b"stac-geoparquet"])["version"] == "1.0.0"


def test_unlike_items_keep_their_own_fields(tmp_path):
    radar = make_item("radar", "s1", sar__polarizations=["VV", "VH"], sat__orbit_state="ascending")
    radar.add_asset("vv", pystac.Asset("/vv.tif", extra_fields={"raster:bands": [{"unit": "dB"}]}))
    optical = make_item("optical", "s2", eo__cloud_cover=3.5)
    optical.add_asset("B04", pystac.Asset("/b04.tif", roles=["data"]))
    year = make_item("year", "lulc", when=None, start_datetime=START,
                     end_datetime=START + timedelta(days=365))  # fmt: skip
    year.properties["datetime"] = None
    geometry = mapping(box(0, 0, 1, 1))
    placed = make_item("placed", None, proj__geometry=json.loads(json.dumps(geometry)))
    items = [radar, optical, year, placed]
    for item in items:
        item.set_self_href(f"https://x.test/{item.id}")
    path = write_geoparquet(items, tmp_path / "items.parquet")
    back = {item.id: item for item in open_catalog(path).search_items()}
    assert list(back["radar"].assets) == ["vv"]
    assert back["radar"].assets["vv"].extra_fields == {"raster:bands": [{"unit": "dB"}]}
    assert set(back["radar"].properties) == {"datetime", "sar:polarizations", "sat:orbit_state"}
    assert back["optical"].properties["eo:cloud_cover"] == 3.5
    assert back["optical"].datetime == START
    assert back["year"].datetime is None
    assert back["year"].common_metadata.start_datetime == START
    assert "datetime" in back["year"].properties
    assert back["placed"].properties["proj:geometry"]["type"] == "Polygon"
    assert back["placed"].collection_id is None
    assert not back["placed"].assets
    assert {item.get_self_href() for item in back.values()} == {
        f"https://x.test/{name}" for name in back
    }


def test_fill_values_that_are_no_numbers_in_json_stand_beside_numbers(tmp_path):
    items = []
    for n, value in enumerate([0, "nan", -32768.5, "-inf"]):
        item = make_item(f"{n}", nodata=value)
        fields = {"nodata": value, "raster:bands": [{"nodata": value}], "title": "nan"}
        item.add_asset("data", pystac.Asset("/data.tif", extra_fields=fields))
        items.append(item)
    path = write_geoparquet(items, tmp_path / "items.parquet")
    assert list(map(plain, open_catalog(path).search_items())) == list(map(plain, items))


def test_links_are_never_followed(tmp_path, monkeypatch):
    item = make_item("a")
    for rel in ("root", "parent", "collection", "self", "license"):
        item.add_link(pystac.Link(rel, f"https://nowhere.test/{rel}"))

    def refuse(*_):
        raise AssertionError("network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    path = write_geoparquet([item], tmp_path / "items.parquet")
    again = open_catalog(path).search()
    again.save(tmp_path / "again.json")
    assert {link.rel for link in again[0].links} >= {"root", "license"}
    assert open_catalog(tmp_path / "again.json").search()[0].id == "a"


def test_only_what_may_match_is_read(tmp_path, monkeypatch):
    items = [
        make_item("in", eo__cloud_cover=5), make_item("cloudy", eo__cloud_cover=50),
        make_item("far", place=(20, 48, 21, 49)), make_item("late", when=START.replace(year=2025)),
        make_item("other", "d"), make_item("silent"),
    ]  # fmt: skip
    catalog = open_catalog(write_geoparquet(items, tmp_path / "items.parquet"))
    seen, select = [], geoparquet.select_items

    def spy(read, **asked):
        seen.extend(found := list(read))
        return select(found, **asked)

    monkeypatch.setattr(geoparquet, "select_items", spy)
    found = catalog.search(
        collections=["c"], bbox=(9.2, 48.2, 9.4, 48.4), datetime="2024", cloud_cover=20,
        ids=["in", "cloudy", "far", "late", "silent"],
    )  # fmt: skip
    assert [item.id for item in found] == ["in", "silent"]
    assert [item.id for item in seen] == ["in", "silent"]


def test_description_and_folders(tmp_path):
    folder = tmp_path / "many.parquet"
    folder.mkdir()
    write_geoparquet([make_item("a")], folder / "1.parquet")
    write_geoparquet([make_item("b", place=(11, 48, 12, 49))], folder / "2.parquet")
    catalog = open_catalog(folder)
    assert isinstance(catalog, GeoParquetCatalog)
    assert catalog.describe() == (
        f"{folder} holds 2 items in bbox (9.0, 48.0, 12.0, 49.0) from 2024-05-01 to 2024-05-01: "
        "c (2)"
    )
    assert catalog.describe(["z"]).endswith("holds no items")
    assert catalog.search().source == str(folder)


def test_file_that_is_something_else_is_refused(tmp_path):
    path = tmp_path / "items.parquet"
    path.write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"Cannot read .*items\.parquet as stac-geoparquet"):
        open_catalog(path)
    pq.write_table(pa.table({"id": ["a"]}), path)
    with pytest.raises(ValueError, match="no column geometry"):
        open_catalog(path)


def test_files_of_other_writers_are_searched_without_their_columns(tmp_path):
    """A bbox that is a list, and times that are text, cannot be looked at beforehand."""
    path = tmp_path / "items.parquet"
    table = pa.table(
        {
            "id": ["a", "b"],
            "geometry": [box(9, 48, 10, 49).wkb, box(20, 48, 21, 49).wkb],
            "bbox": [[9.0, 48, 10, 49], [20.0, 48, 21, 49]],
            "datetime": ["2024-05-01T00:00:00Z", "2024-05-02T00:00:00Z"],
        }
    )
    pq.write_table(table, path)
    found = open_catalog(path).search(bbox=(9, 48, 9.5, 48.5), datetime="2024-05-01")
    assert [item.id for item in found] == ["a"]


def test_what_cannot_be_written_is_refused(tmp_path):
    path = tmp_path / "items.parquet"
    nowhere = make_item("nowhere")
    nowhere.geometry = None
    with pytest.raises(ValueError, match=r"'nowhere' has no geometry.*json"):
        write_geoparquet([nowhere], path)
    with pytest.raises(ValueError, match="no item"):
        write_geoparquet([], path)
    unlike = [make_item("a", version="1"), make_item("b", version=1)]
    with pytest.raises(ValueError, match=r"one type for all items.*\.json"):
        SearchResult(tuple(unlike)).save(path)
    assert not list(tmp_path.iterdir())


lon = st.integers(-180, 180)
corners = st.tuples(lon, st.integers(-90, 85), st.integers(1, 30), st.integers(1, 5))


@settings(max_examples=40)
@given(
    places=st.lists(corners, min_size=1, max_size=8),
    days=st.lists(st.integers(0, 60), min_size=8, max_size=8),
    area=st.none() | corners,
    span=st.none() | st.tuples(st.integers(0, 60), st.integers(0, 30)),
    cover=st.none() | st.integers(0, 100),
)
def test_file_answers_as_the_items_in_memory_do(tmp_path_factory, places, days, area, span, cover):
    """Also across the antimeridian, whichever way a place is written."""
    items = []
    for n, ((west, south, width, height), day) in enumerate(zip(places, days, strict=False)):
        east = west + width
        item = make_item(f"{n}", place=(west, south, east, south + height))
        if east > 180 and n % 2:
            item.geometry = {
                "type": "Polygon",
                "coordinates": [[[west, south], [east - 360, south], [east - 360, south + height],
                                 [west, south + height], [west, south]]],
            }  # fmt: skip
            item.bbox = [west, south, east - 360, south + height]
        item.datetime = START + timedelta(days=day)
        if n % 3 == 0:
            item.common_metadata.start_datetime = item.datetime
            item.common_metadata.end_datetime = item.datetime + timedelta(days=5)
        if n % 4:
            item.properties["eo:cloud_cover"] = day
        items.append(item)
    asked = {"area": None, "datetime": None, "filters": Filters(cloud_cover=cover)}
    if area is not None:
        west, south, width, height = area
        asked["area"] = mapping(box(west, south, west + width, south + height))
    if span is not None:
        first = START + timedelta(days=span[0])
        asked["datetime"] = (first, first + timedelta(days=span[1]))
    path = write_geoparquet(items, tmp_path_factory.mktemp("files") / "items.parquet")
    in_memory = StaticCatalog("memory", tuple(items)).search_items(**asked)
    in_file = open_catalog(path).search_items(**asked)
    assert [item.id for item in in_file] == [item.id for item in in_memory]
