"""STAC APIs: what is sent to the server, what is checked here, and servers that fail in passing."""

import copy
from datetime import UTC, datetime

import pystac
import pystac_client
import pytest
import requests
from pystac_client.stac_api_io import StacApiIO
from shapely.geometry import box, mapping
from urllib3 import Retry

from terramind_cube.modalities import MODALITIES
from terramind_cube.stac import api, find_bands, open_catalog
from terramind_cube.stac.api import ApiCatalog
from terramind_cube.stac.search import Filters
from tests.stac.api_server import ApiServer
from tests.stac.memory_api import MemoryApi, connect

BANDS = MODALITIES["S2L2A"].bands


def scene(item_id, month=5, collection="sentinel-2-l2a", assets=BANDS, **properties):
    area = box(9, 48, 10, 49)
    item = pystac.Item(
        item_id, mapping(area), list(area.bounds), datetime(2024, month, 1, tzinfo=UTC),
        {name.replace("__", ":"): value for name, value in properties.items()},
        collection=collection,
    )  # fmt: skip
    for key in assets:
        item.add_asset(key, pystac.Asset(f"https://x.test/{key}.tif", media_type="image/tiff"))
    return item.to_dict(include_self_link=False)


def radar(item_id, **properties):
    return scene(item_id, collection="sentinel-1-rtc", assets=("vv", "vh"), **properties)


def ids(items):
    return [item.id for item in items]


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(api, "BACKOFF_S", 0.001)
    monkeypatch.setattr(api, "LONGEST_WAIT_S", 0.05)


def test_search_goes_through_all_pages_of_the_collection():
    items = [scene(f"{c}-{m}", m, c) for c in ("sentinel-2-l2a", "landsat-c2-l2")
             for m in range(1, 9)]  # fmt: skip
    server = MemoryApi(items, page_size=3)
    catalog = open_catalog(connect(server))
    found = find_bands(
        catalog, MODALITIES["S2L2A"], area=mapping(box(9.2, 48.2, 9.4, 48.4)), datetime="2024-02/.."
    )
    assert ids(bands.item for bands in found) == [f"sentinel-2-l2a-{m}" for m in range(2, 9)]
    assert [query["collections"] for query in server.searches] == [["sentinel-2-l2a"]] * 3
    assert ids(catalog.search(modalities=["S2L2A"], max_items=2)) == [
        "sentinel-2-l2a-1", "sentinel-2-l2a-2",
    ]  # fmt: skip
    assert len(server.searches) == 4


def test_search_without_an_answer_says_what_the_api_holds():
    catalog = open_catalog(connect(MemoryApi([scene("a"), scene("b", collection="landsat")])))
    with pytest.raises(ValueError, match=r"No S2L2A item for datetime '2019'.*sentinel-2-l2a in b"):
        find_bands(catalog, MODALITIES["S2L2A"], area=None, datetime="2019")
    with pytest.raises(ValueError, match=r"DEM.*holds the collections sentinel-2-l2a, landsat"):
        find_bands(catalog, MODALITIES["DEM"], area=None, datetime=None)


def test_page_size_and_ids_are_sent():
    server = MemoryApi([scene(name) for name in "abcd"], page_size=3)
    catalog = open_catalog(connect(server))
    assert ids(catalog.search(ids=["d", "b"], limit=1)) == ["b", "d"]
    assert server.searches[0]["ids"] == ["d", "b"]
    assert [query["limit"] for query in server.searches] == [1, 1]


def test_filters_are_sent_only_where_the_api_knows_queries():
    clear = scene("clear", eo__cloud_cover=3.5, platform="sentinel-2a")
    cloudy = scene("cloudy", eo__cloud_cover=60, platform="sentinel-2a")
    other = scene("other", eo__cloud_cover=1, platform="sentinel-2b")
    up = radar("up", sat__orbit_state="ascending", sat__relative_orbit=15)
    down = radar("down", sat__orbit_state="descending", sat__relative_orbit=22)
    asked = {
        "modalities": ["S2L2A", "S1RTC"], "cloud_cover": 20, "orbit": "descending",
        "query": {"platform": {"eq": "sentinel-2a"}, "eo:cloud_cover": {"gt": 2}},
    }  # fmt: skip
    for knows in (True, False):
        server = MemoryApi([clear, cloudy, other, up, down], has_query=knows)
        assert ids(open_catalog(connect(server)).search(**asked)) == ["clear", "down"]
        sent = [query.get("query") for query in server.searches]
        optical = {"platform": {"eq": "sentinel-2a"}, "eo:cloud_cover": {"lte": 20, "gt": 2}}
        orbit = {"sat:orbit_state": {"eq": "descending"}}
        assert sent == ([optical, orbit] if knows else [None, None])


def test_answers_are_checked_here_too():
    """Some servers accept a query and do not heed it."""

    class Heedless(MemoryApi):
        def _page(self, query):
            return super()._page({k: v for k, v in query.items() if k not in ("query", "ids")})

    items = [scene(f"{n}", eo__cloud_cover=n) for n in (80, 10, 90, 20, 5)]
    server = Heedless(items, has_query=True, page_size=2)
    catalog = open_catalog(connect(server))
    assert ids(catalog.search(modalities=["S2L2A"], cloud_cover=30)) == ["10", "20", "5"]
    server.searches.clear()
    # The largest number is one of what is wanted, and no page more than needed is asked for.
    assert ids(catalog.search(modalities=["S2L2A"], cloud_cover=30, max_items=2)) == ["10", "20"]
    assert len(server.searches) == 2
    assert ids(catalog.search(modalities=["S2L2A"], ids=["5"])) == ["5"]


def test_collection_without_cloud_cover_is_not_lost():
    items = [scene("a"), scene("b")]
    server = MemoryApi(items, has_query=True)
    catalog = open_catalog(connect(server))
    assert ids(catalog.search(modalities=["S2L2A"], cloud_cover=20)) == ["a", "b"]
    shouting = [radar("up", sat__orbit_state="ASCENDING"), radar("down", sat__orbit_state="X")]
    catalog = open_catalog(connect(MemoryApi(shouting, has_query=True)))
    assert ids(catalog.search(modalities=["S1RTC"], orbit="ascending")) == ["up"]
    # Where the property is there, nothing means nothing, after one look.
    server = MemoryApi([scene("a", eo__cloud_cover=90)] * 9, has_query=True, page_size=3)
    assert not open_catalog(connect(server)).search(modalities=["S2L2A"], cloud_cover=20)
    assert [query["limit"] for query in server.searches] == [api.PAGE_ITEMS, 1]


def test_collection_that_is_not_known_is_filtered_here_alone():
    items = [scene("a", collection="mine", assets=(), eo__cloud_cover=50)]
    server = MemoryApi(items, has_query=True)
    catalog = open_catalog(connect(server))
    assert not catalog.search(collections=["mine"], cloud_cover=20)
    assert ids(catalog.search(collections=["mine"], orbit="ascending", cloud_cover=60)) == ["a"]
    assert all("query" not in query for query in server.searches)


def test_static_layers_are_searched_at_any_time():
    dem = scene("dem", 1, "cop-dem-glo-30", ("data",))
    server = MemoryApi([scene("s2", 5), dem])
    found = open_catalog(connect(server)).search(
        modalities=["S2L2A", "DEM", "LULC"], datetime="2024-05", bbox=(9, 48, 10, 49)
    )
    assert ids(found) == ["s2", "dem"]
    assert found.missing == ("LULC",)
    assert [query.get("datetime") is None for query in server.searches] == [False, True]
    assert all(query["intersects"]["type"] == "Polygon" for query in server.searches)


def test_names_of_providers_open_their_apis(monkeypatch):
    opened = []

    def landing(_session, request, **_):
        opened.append(request.url)
        raise requests.ConnectionError("no route")

    monkeypatch.setattr(requests.Session, "send", landing)
    for name in ("earth-search", "Planetary-Computer", "CDSE"):
        with pytest.raises(ValueError, match=r"Cannot open https://.* as a STAC API .*no route"):
            open_catalog(name)
    assert [requests.compat.urlparse(url).hostname for url in opened] == [
        "earth-search.aws.element84.com",
        "planetarycomputer.microsoft.com",
        "stac.dataspace.copernicus.eu",
    ]


def test_collections_of_a_known_provider_need_no_listing():
    url = "https://earth-search.aws.element84.com/v1"
    client = pystac_client.Client("earth-search", "-", href=url)
    known = ApiCatalog(client).collection_ids
    assert known[:2] == ("sentinel-2-c1-l2a", "sentinel-2-l2a")


@pytest.fixture(scope="module")
def loopback(tmp_path_factory):
    with ApiServer(tmp_path_factory.mktemp("served")) as server:
        yield server


@pytest.fixture
def server(loopback):
    """A server of twelve scenes in pages of five, without a fault yet."""
    items = [pystac.Item.from_dict(scene(f"{n:02}", eo__cloud_cover=n)) for n in range(12)]
    loopback.configure(items=items, page_limit=5, has_query=True)
    loopback.heal()
    loopback.forget()
    return loopback


def test_busy_server_and_dropped_connections_are_sat_out(server, quick):
    server.fail("^/?$", status=503)
    catalog = open_catalog(server.url)
    server.fail("/collections", status=502)
    server.fail("/search", times=2, status=429, retry_after="0")
    server.fail("/search", status=503, after=1)
    server.fail("/search", drop="early")
    server.fail("/search", drop="body")
    found = catalog.search(modalities=["S2L2A"])
    assert len(found) == 12
    statuses = [request.status for request in server.requests("/search")]
    assert sorted(statuses, key=str).count(429) == 2
    # A page that failed is asked for again, and not those before it.
    assert len(statuses) == 3 + 5


def test_client_of_the_caller_keeps_its_settings_and_is_repeated_all_the_same(server, quick):
    stac_io = StacApiIO(max_retries=None)
    headers = {"x-key": "mine"}
    client = pystac_client.Client.open(server.url, headers, stac_io=stac_io, timeout=3)
    before = copy.deepcopy((client.extra_fields, client.modifier))
    server.fail("/collections", status=500)
    for fault in ({"status": 429}, {"status": 504}, {"drop": "early"}, {"drop": "body"}):
        server.fail("/search", **fault)
    assert len(open_catalog(client).search(modalities=["S2L2A"])) == 12
    assert (client.extra_fields, client.modifier) == before
    assert client._stac_io is stac_io
    assert stac_io.timeout == 3
    assert {request.headers["x-key"] for request in server.requests("/search")} == {"mine"}


def test_repeats_of_the_callers_own_are_not_repeated(server, quick):
    retries = Retry(1, status_forcelist=[503], allowed_methods=None, raise_on_status=False)
    client = pystac_client.Client.open(server.url, stac_io=StacApiIO(max_retries=retries))
    server.fail("/search", times=None, status=503)
    with pytest.raises(ConnectionError, match="does not answer"):
        open_catalog(client).search_items(collections=["sentinel-2-l2a"])
    assert len(server.requests("/search")) == 2


@pytest.mark.parametrize("status", [429, 503])
def test_server_that_stays_busy_is_given_up(server, quick, status):
    catalogs = open_catalog(server.url), open_catalog(pystac_client.Client.open(server.url))
    server.fail("/search", times=None, status=status)
    for catalog in catalogs:
        server.forget()
        with pytest.raises(ConnectionError, match=rf"{server.url}.* does not answer \({status}"):
            catalog.search(collections=["sentinel-2-l2a"])
        assert len(server.requests("/search")) == 1 + api.RETRIES


def test_waiting_longer_than_a_minute_is_not_asked_of_anyone(server, quick):
    catalog = open_catalog(server.url)
    server.fail("/search", status=429, retry_after="3600")
    assert len(catalog.search(collections=["sentinel-2-l2a"])) == 12


def test_what_the_server_refuses_is_not_repeated(server, quick):
    catalog = open_catalog(server.url)
    server.fail("/search", times=None, status=403)
    with pytest.raises(ValueError, match=r"refuses what is asked \(403"):
        catalog.search(collections=["sentinel-2-l2a"])
    assert len(server.requests("/search")) == 1


def test_queries_over_the_wire(server):
    for knows in (True, False):
        server.configure(has_query=knows)
        server.forget()
        found = open_catalog(server.url).search(modalities=["S2L2A"], cloud_cover=6.5)
        assert ids(found) == [f"{n:02}" for n in range(7)]
        assert len(server.requests("/search")) == (2 if knows else 3)


def test_items_of_a_modifier_are_modified(server):
    def sign(things):
        for thing in things if isinstance(things, pystac.ItemCollection) else things["features"]:
            thing["properties"]["signed"] = True

    client = pystac_client.Client.open(server.url, modifier=sign)
    found = open_catalog(client).search(collections=["sentinel-2-l2a"])
    assert all(item.properties["signed"] for item in found)


def test_what_offers_no_search_is_refused():
    catalog = ApiCatalog(pystac_client.Client("static", "-", href="https://x.test/catalog.json"))
    with pytest.raises(ValueError, match=r"https://x\.test/catalog\.json offers no search"):
        catalog.search_items(filters=Filters())


def test_whole_archive_is_not_searched(monkeypatch):
    monkeypatch.setattr(api, "MOST_ITEMS", 3)
    catalog = open_catalog(connect(MemoryApi([scene(f"item-{n}") for n in range(5)], page_size=2)))
    asked = {"collections": ["sentinel-2-l2a"]}
    with pytest.raises(ValueError, match=r"More than 3 items of .* give bbox"):
        catalog.search(**asked)
    assert len(catalog.search(**asked, max_items=4)) == 4
    assert len(catalog.search(**asked, bbox=(8, 47, 10, 49))) == 5
    assert len(catalog.search(**asked, ids=["item-1"])) == 1
