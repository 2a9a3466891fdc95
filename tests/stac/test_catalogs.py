"""Opening catalogs: files, and an API behind the real client without a socket."""

import io
import json
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlparse

import pystac
import pystac_client
import pytest
import requests
from pystac_client.stac_api_io import StacApiIO
from requests.adapters import BaseAdapter
from shapely.geometry import box, mapping

from terramind_cube.modalities import MODALITIES
from terramind_cube.stac import find_bands, open_catalog
from terramind_cube.stac.search import select_items

ROOT = "http://mem.local/"
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
        assert catalog.search(bbox=(0, 0, 1, 1)) == []
        assert catalog.search(collections=["other"]) == []
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
        ValueError, match="Unknown catalog 'earth-serch': give the path of a static"
    ):
        open_catalog("earth-serch")
    with pytest.raises(ValueError, match="Cannot open 3 as a catalog"):
        open_catalog(3)
    path = write_catalog(tmp_path)
    (tmp_path / "sentinel-2-l2a" / "may" / "may.json").unlink()
    with pytest.raises(ValueError, match=r"Cannot read .*catalog\.json as STAC .*may\.json"):
        open_catalog(path)


class MemoryApi(BaseAdapter):
    """A STAC API of two items a page, in memory."""

    def __init__(self, items):
        super().__init__()
        self.items = items
        self.searches = []

    def send(self, request, **_):
        url = urlparse(request.url)
        body = json.loads(request.body) if request.body else {}
        body |= {key: values[0] for key, values in parse_qs(url.query).items()}
        document = {
            "/": self.landing,
            "/collections": self.collections,
            "/search": lambda: self.search(body),
        }[url.path]()
        response = requests.Response()
        response.status_code, response.url, response.request = 200, request.url, request
        response.headers["content-type"] = "application/json"
        response.raw = io.BytesIO(json.dumps(document).encode())
        return response

    def close(self):
        pass

    def landing(self):
        links = [
            {"rel": "self", "href": ROOT},
            {"rel": "root", "href": ROOT},
            {"rel": "data", "href": f"{ROOT}collections"},
            *(
                {
                    "rel": "search",
                    "href": f"{ROOT}search",
                    "type": "application/geo+json",
                    "method": m,
                }
                for m in ("GET", "POST")
            ),
        ]
        classes = ["core", "item-search", "collections"]
        conforms = [f"https://api.stacspec.org/v1.0.0/{name}" for name in classes]
        return {
            "type": "Catalog", "id": "mem", "description": "-", "stac_version": "1.0.0",
            "links": links, "conformsTo": conforms,
        }  # fmt: skip

    def collections(self):
        extent = {"spatial": {"bbox": [[9, 48, 10, 49]]},
                  "temporal": {"interval": [["2024-01-01T00:00:00Z", None]]}}  # fmt: skip
        ids = dict.fromkeys(item.collection_id for item in self.items)
        made = [
            {"type": "Collection", "id": name, "description": "-", "stac_version": "1.0.0",
             "license": "other", "links": [], "extent": extent}
            for name in ids
        ]  # fmt: skip
        return {"collections": made, "links": []}

    def search(self, query):
        self.searches.append(query)
        found = select_items(
            self.items,
            collections=query.get("collections"),
            intersects=query.get("intersects"),
            datetime=query.get("datetime"),
        )
        first = int(query.get("token", 0))
        features = [item.to_dict(transform_hrefs=False) for item in found[first : first + 2]]
        links = []
        if first + 2 < len(found):
            token = {"token": str(first + 2)}
            links = [
                {
                    "rel": "next",
                    "href": f"{ROOT}search",
                    "method": "POST",
                    "merge": True,
                    "body": token,
                }
            ]
        return {"type": "FeatureCollection", "features": features, "links": links}


@pytest.fixture
def api():
    items = [
        make_item(f"{c}-{m}", m, c)
        for c in ("sentinel-2-l2a", "landsat-c2-l2")
        for m in range(1, 6)
    ]
    return MemoryApi(items)


@pytest.fixture
def client(api):
    stac_io = StacApiIO()
    stac_io.session.mount(ROOT, api)
    return pystac_client.Client.open(ROOT, stac_io=stac_io)


def test_api_is_searched_page_by_page(api, client):
    catalog = open_catalog(client)
    area = mapping(box(9.2, 48.2, 9.4, 48.4))
    found = find_bands(catalog, MODALITIES["S2L2A"], area=area, datetime="2024-02/2024-12")
    assert [bands.item.id for bands in found] == [f"sentinel-2-l2a-{m}" for m in (2, 3, 4, 5)]
    assert len(api.searches) == 2
    assert all(query["collections"] == ["sentinel-2-l2a"] for query in api.searches)


def test_api_without_an_answer_says_what_it_holds(api, client):
    catalog = open_catalog(client)
    with pytest.raises(
        ValueError, match=r"No S2L2A item for datetime '2019'.*sentinel-2-l2a in bbox"
    ):
        find_bands(catalog, MODALITIES["S2L2A"], area=None, datetime="2019")
    with pytest.raises(ValueError, match=r"No DEM item: .*sentinel-2-l2a, landsat-c2-l2"):
        find_bands(catalog, MODALITIES["DEM"], area=None, datetime=None)


def test_url_that_is_no_api_is_refused(monkeypatch):
    def refuse(*_, **__):
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(requests.Session, "send", refuse)
    with pytest.raises(ValueError, match=r"Cannot open http://mem\.local as a STAC API .*no route"):
        open_catalog("http://mem.local")
