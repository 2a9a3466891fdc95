"""Opening catalogs, and searching them: files here, APIs in test_api.py."""

import json
from datetime import UTC, datetime

import pystac
import pytest
from shapely.geometry import box, mapping

from terramind_cube.modalities import MODALITIES
from terramind_cube.stac import StaticCatalog, find_bands, open_catalog
from terramind_cube.stac.protocol import Catalog

BANDS = MODALITIES["S2L2A"].bands


def make_item(item_id, month, collection="sentinel-2-l2a", lon=9.0):
    area = box(lon, 48, lon + 1, 49)
    item = pystac.Item(
        item_id, mapping(area), list(area.bounds), datetime(2024, month, 1, tzinfo=UTC), {},
        collection=collection,
    )  # fmt: skip
    for band in BANDS:
        item.add_asset(band, pystac.Asset(f"./{band}.tif", media_type="image/tiff"))
    return item


def write_catalog(folder):
    catalog = pystac.Catalog("c", "a catalog")
    child = pystac.Collection(
        "sentinel-2-l2a",
        "scenes",
        pystac.Extent(
            pystac.SpatialExtent([[9, 48, 10, 49]]), pystac.TemporalExtent([[None, None]])
        ),
    )
    catalog.add_child(child)
    child.add_items([make_item("may", 5), make_item("june", 6)])
    catalog.normalize_and_save(str(folder), pystac.CatalogType.SELF_CONTAINED)
    return folder / "catalog.json"


def test_static_catalog_is_walked_and_its_hrefs_resolved(tmp_path):
    path = write_catalog(tmp_path)
    for source in (path, str(path), tmp_path, tmp_path / "sentinel-2-l2a" / "collection.json"):
        catalog = open_catalog(source)
        assert {item.id for item in catalog.search()} == {"may", "june"}
        assert [item.id for item in catalog.search(datetime="2024-06")] == ["june"]
        assert not catalog.search(bbox=(0, 0, 1, 1))
        assert not catalog.search(collections=["other"])
    found = find_bands(catalog, MODALITIES["S2L2A"], area=None, datetime="2024-05")
    assert found[0].bands[0].href == str(tmp_path / "sentinel-2-l2a" / "may" / "B01.tif")
    described = open_catalog(path).describe()
    for part in (
        "2 items",
        "(9.0, 48.0, 10.0, 49.0)",
        "2024-05-01",
        "2024-06-01",
        "sentinel-2-l2a (2)",
    ):
        assert part in described


def test_item_collection_file_resolves_hrefs_beside_itself(tmp_path):
    path = tmp_path / "items.geojson"
    features = [make_item("may", 5).to_dict(), make_item("june", 6).to_dict()]
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    catalog = open_catalog(path)
    found = find_bands(catalog, MODALITIES["S2L2A"], area=None, datetime=None)
    assert [bands.item.id for bands in found] == ["may", "june"]
    assert found[0].bands[1].href == str(tmp_path / "B02.tif")
    path.write_text(json.dumps(features[0]))
    assert [item.id for item in open_catalog(path).search()] == ["may"]


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"type": "Topology"}', '{"type": "FeatureCollection"}']
)
def test_file_that_is_no_stac_is_refused(tmp_path, text):
    path = tmp_path / "items.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"Cannot read .*items\.json as STAC"):
        open_catalog(path)


def test_source_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no catalog at .*nowhere"):
        open_catalog(tmp_path / "nowhere.json")
    with pytest.raises(
        ValueError, match="Unknown catalog 'earth-serch': did you mean 'earth-search"
    ):
        open_catalog("earth-serch")
    with pytest.raises(FileNotFoundError, match="earth-search, planetary-computer, cdse"):
        open_catalog(tmp_path / "items.parquet")
    with pytest.raises(ValueError, match="Cannot open 3 as a catalog"):
        open_catalog(3)
    path = write_catalog(tmp_path)
    (tmp_path / "sentinel-2-l2a" / "may" / "may.json").unlink()
    with pytest.raises(ValueError, match=r"Cannot read .*catalog\.json as STAC .*may\.json"):
        open_catalog(path)


def test_lines_of_items_are_a_catalog(tmp_path):
    path = tmp_path / "items.ndjson"
    lines = [json.dumps(make_item(name, month).to_dict()) for name, month in (("a", 5), ("b", 6))]
    path.write_text("\n\n".join(lines) + "\n")
    assert [item.id for item in open_catalog(path).search(datetime="2024-06")] == ["b"]
    found = find_bands(open_catalog(path), MODALITIES["S2L2A"], area=None, datetime=None)
    assert found[0].bands[1].href == str(tmp_path / "B02.tif")
    path.write_text(lines[0] + "\n{\n")
    with pytest.raises(ValueError, match=r"items\.ndjson as STAC \(line 2: "):
        open_catalog(path)


def test_file_url_is_a_path(tmp_path):
    folder = tmp_path / "with space"
    folder.mkdir()
    path = write_catalog(folder)
    assert len(open_catalog(path.as_uri()).search()) == 2


def radar(item_id, collection="sentinel-1-rtc", **properties):
    item = make_item(item_id, 5, collection)
    item.assets = {
        key: pystac.Asset(f"/{key}.tif", media_type="image/tiff") for key in ("vv", "vh")
    }
    item.properties.update({name.replace("__", ":"): v for name, v in properties.items()})
    return item


def elevation(item_id="dem"):
    item = make_item(item_id, 1, "cop-dem-glo-30")
    item.assets = {"data": pystac.Asset("/data.tif", media_type="image/tiff")}
    return item


def mixed():
    cloudy = make_item("cloudy", 5)
    cloudy.properties["eo:cloud_cover"] = 80
    up = radar("up", sat__orbit_state="ascending")
    down = radar("down", sat__orbit_state="descending")
    return StaticCatalog("mixed", (make_item("clear", 6), cloudy, up, down, elevation()))


def ids(items):
    return [item.id for item in items]


def test_modalities_are_searched_each_in_its_own_way():
    found = mixed().search(
        modalities=["S2L2A", "NDVI", "S1RTC", "DEM", "LULC"],
        datetime="2024-05/2024-06",
        cloud_cover=20,
        orbit="ascending",
    )
    assert {name: ids(items) for name, items in found.by_modality.items()} == {
        "S2L2A": ["clear"], "NDVI": ["clear"], "S1RTC": ["up"], "DEM": ["dem"], "LULC": [],
    }  # fmt: skip
    assert ids(found) == ["clear", "up", "dem"]
    assert found.missing == ("LULC",)
    assert (found.source, found.datetime) == ("mixed", "2024-05/2024-06")


def test_a_plain_query_is_for_optical_items_and_another_for_its_modality():
    low = {"eo:cloud_cover": {"lt": 90}}
    every = ["S2L2A", "S1RTC"]
    assert ids(mixed().search(modalities=every, query=low)) == ["cloudy", "up", "down"]
    by_modality = {"S1RTC": {"sat:orbit_state": {"eq": "descending"}}}
    found = mixed().search(modalities=every, query=by_modality)
    assert ids(found) == ["clear", "cloudy", "down"]
    assert ids(mixed().search(collections=["sentinel-2-l2a", "sentinel-1-rtc"], query=low)) == [
        "cloudy", "up", "down",
    ]  # fmt: skip


def test_collections_are_taken_as_they_are():
    found = mixed().search(collections=["cop-dem-glo-30", "absent"], datetime="2024-06")
    assert ids(found) == ["dem"]
    assert (found.modalities, found.missing) == ((), ("absent",))
    assert {name: ids(items) for name, items in found.by_modality.items()} == {"DEM": ["dem"]}
    assert len(mixed().search()) == 5
    assert ids(mixed().search(max_items=1)) == ["clear", "up", "dem"]
    assert ids(mixed().search(ids=["up", "dem"])) == ["up", "dem"]


def test_preferred_collection_is_the_one_that_has_something():
    items = (make_item("old", 5), make_item("new", 6, "sentinel-2-c1-l2a"))
    catalog = StaticCatalog("two", items)
    assert ids(catalog.search(modalities=["S2L2A"])) == ["new"]
    assert ids(catalog.search(modalities=["S2L2A"], datetime="2024-05")) == ["old"]


def test_largest_number_of_items_does_not_count_other_modalities():
    items = [make_item("s2", 5, None), radar("s1", None), elevation("dem")]
    items[2].collection_id = None
    items[2].assets = {"DEM": items[2].assets["data"]}
    found = StaticCatalog("tiles", tuple(items)).search(modalities=["S1RTC", "DEM"], max_items=1)
    assert ids(found) == ["s1", "dem"]


def test_item_that_is_repeated_is_found_once():
    twice = make_item("may", 5)
    moved = make_item("may", 5)
    moved.assets["B04"].href = "/elsewhere.tif"
    catalog = StaticCatalog("twice", (twice, twice.clone(), moved))
    assert list(catalog.search()) == [twice, moved]
    assert list(catalog.search(modalities=["S2L2A"]).by_modality["S2L2A"]) == [twice, moved]


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"modalities": []}, "modalities is empty"),
        ({"modalities": ["S2L2B"]}, "did you mean 'S2L2A'"),
        ({"modalities": ["Coordinates"]}, "Coordinates is not found in catalogs"),
        ({"modalities": ["DEM"], "collections": ["a"]}, "not both"),
        ({"bbox": (48, 9, 49, 200)}, "bbox must be"),
        ({"datetime": "2024/2023"}, "ends before it starts"),
        ({"cloud_cover": 120}, "percentage"),
        ({"orbit": "north"}, "orbit is"),
        ({"ids": "may"}, "ids is a list"),
        ({"query": {"p": {"has": 1}}}, "operator 'has'"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_searching(wrong, said):
    class Closed(StaticCatalog):
        def search_items(self, **_):
            raise AssertionError("searched")

    with pytest.raises(ValueError, match=said):
        Closed("closed", ()).search(**wrong)


def test_a_catalog_of_ones_own_says_only_how_collections_are_searched():
    class Own(Catalog):
        name = "my cupboard"
        collection_ids = ("my-sentinel-2-l2a", "my-notes")

        def search_items(self, *, collections=None, **_):
            return [make_item("drawer", 5, *collections)]

        def describe(self, collections=None):
            return "a cupboard"

    found = Own().search(modalities=["S2L2A", "DEM"])
    assert ids(found) == ["drawer"]
    assert (found[0].collection_id, found.source) == ("my-sentinel-2-l2a", "my cupboard")
    assert found.missing == ("DEM",)
