"""A STAC API in memory: raw items behind the real pystac-client, without a socket.

It answers as a server would, independently of `terramind_cube.stac.search`, so that the two can be
held against each other.
"""

import copy
import io
import json
import operator
from datetime import UTC, datetime
from urllib.parse import parse_qs, unquote, urlparse

import pystac_client
import requests
import shapely
from pystac_client.stac_api_io import StacApiIO
from requests.adapters import BaseAdapter
from shapely.geometry import box, shape

ROOT = "http://mem.local/"
CORE = ("core", "collections", "item-search", "ogcapi-features")
QUERY = "item-search#query"
OPERATORS = {
    "eq": operator.eq,
    "neq": operator.ne,
    "lt": operator.lt,
    "lte": operator.le,
    "gt": operator.gt,
    "gte": operator.ge,
    "in": lambda value, options: value in options,
    "startsWith": lambda value, start: str(value).startswith(start),
    "endsWith": lambda value, end: str(value).endswith(end),
    "contains": lambda value, part: part in value,
}


class MemoryApi(BaseAdapter):
    """Serve raw items as a STAC API with landing page, collections and a paged search.

    Parameters
    ----------
    items : list of dict
        Items as a server would send them; they are never changed.
    page_size : int
        Most items of one page, whatever the client asks for.
    has_query : bool
        Whether the API conforms to the query extension; without, a query is refused.

    Attributes
    ----------
    searches : list of dict
        The parameters of every search request.
    """

    def __init__(self, items, *, page_size=5, has_query=False):
        super().__init__()
        self.items = [_served(item) for item in items]
        self.page_size = page_size
        self.has_query = has_query
        self.searches = []

    def close(self):
        """Nothing is open."""

    def send(self, request, **_):
        """Answer a request."""
        url = urlparse(request.url)
        parts = [unquote(part) for part in url.path.split("/") if part]
        if not parts:
            status, document = 200, self._landing()
        elif parts == ["collections"]:
            status, document = 200, {"collections": self._collections(), "links": []}
        elif len(parts) == 2 and parts[0] == "collections":
            named = [c for c in self._collections() if c["id"] == parts[1]]
            status, document = (200, named[0]) if named else (404, {"code": "NotFound"})
        elif parts == ["search"]:
            body = json.loads(request.body) if request.body else _parameters(url.query)
            self.searches.append(body)
            refused = "query" in body and not self.has_query
            status, document = (400, {"code": "NoQuery"}) if refused else (200, self._page(body))
        else:
            status, document = 404, {"code": "NotFound"}
        response = requests.Response()
        response.status_code, response.url, response.request = status, request.url, request
        response.headers["content-type"] = "application/json"
        response.raw = io.BytesIO(json.dumps(document).encode())
        return response

    def _landing(self):
        search = {"rel": "search", "href": f"{ROOT}search", "type": "application/geo+json"}
        links = [
            {"rel": "self", "href": ROOT},
            {"rel": "root", "href": ROOT},
            {"rel": "data", "href": f"{ROOT}collections"},
            *({**search, "method": method} for method in ("GET", "POST")),
        ]
        names = [*CORE, QUERY] if self.has_query else CORE
        return {
            "type": "Catalog", "id": "memory", "description": "-", "stac_version": "1.0.0",
            "links": links, "conformsTo": [f"https://api.stacspec.org/v1.0.0/{n}" for n in names],
        }  # fmt: skip

    def _collections(self):
        extent = {
            "spatial": {"bbox": [[-180, -90, 180, 90]]},
            "temporal": {"interval": [["2015-06-23T00:00:00Z", None]]},
        }
        ids = dict.fromkeys(item["collection"] for item in self.items if item.get("collection"))
        return [
            {"type": "Collection", "id": name, "description": "-", "stac_version": "1.0.0",
             "license": "other", "extent": extent,
             "links": [{"rel": "self", "href": f"{ROOT}collections/{name}"}]}
            for name in ids
        ]  # fmt: skip

    def _page(self, query):
        found = [item for item in self.items if _answers(item, query)]
        size = min(int(query.get("limit") or self.page_size), self.page_size)
        first = int(query.get("token", 0))
        links = []
        if first + size < len(found):
            body = {**query, "token": str(first + size)}
            links = [{"rel": "next", "href": f"{ROOT}search", "method": "POST", "body": body}]
        page = copy.deepcopy(found[first : first + size])
        return {"type": "FeatureCollection", "features": page, "links": links}


def open_client(items, **settings):
    """Return a pystac-client of an API that serves some raw items."""
    return connect(MemoryApi(items, **settings))


def connect(api):
    """Return a pystac-client that talks to an API in memory."""
    stac_io = StacApiIO()
    stac_io.session.mount(ROOT, api)
    return pystac_client.Client.open(ROOT, stac_io=stac_io)


def _served(item):
    """Return an item with the address of its own that every API gives."""
    made = copy.deepcopy(item)
    links = made.setdefault("links", [])
    if not any(link["rel"] == "self" for link in links):
        where = f"{ROOT}collections/{item.get('collection')}/items/{item['id']}"
        links.append({"rel": "self", "href": where, "type": "application/geo+json"})
    return made


def _parameters(text):
    """Return the parameters of a GET search in the form of a POST body."""
    values = {key: value[0] for key, value in parse_qs(text).items()}
    for key in ("collections", "ids"):
        if key in values:
            values[key] = values[key].split(",")
    if "bbox" in values:
        values["bbox"] = [float(v) for v in values["bbox"].split(",")]
    for key in ("intersects", "query"):
        if key in values:
            values[key] = json.loads(values[key])
    return values


def _answers(item, query):
    if query.get("ids") and item["id"] not in query["ids"]:
        return False
    if query.get("collections") and item.get("collection") not in query["collections"]:
        return False
    region = _region(query)
    if region is not None and not shape(item["geometry"]).intersects(region):
        return False
    if query.get("datetime") and not _overlaps(item["properties"], query["datetime"]):
        return False
    return all(
        name in item["properties"] and OPERATORS[word](item["properties"][name], value)
        for name, tests in (query.get("query") or {}).items()
        for word, value in tests.items()
    )


def _region(query):
    if query.get("intersects"):
        return shape(query["intersects"])
    if not query.get("bbox"):
        return None
    west, south, east, north = query["bbox"]
    if west <= east:
        return box(west, south, east, north)
    return shapely.union_all([box(west, south, 180, north), box(-180, south, east, north)])


def _overlaps(properties, text):
    ends = text.split("/")
    start, end = (None if end in ("", "..") else _moment(end) for end in (ends[0], ends[-1]))
    first = _moment(properties.get("start_datetime") or properties["datetime"])
    last = _moment(properties.get("end_datetime") or properties["datetime"])
    return (end is None or first <= end) and (start is None or last >= start)


def _moment(text):
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
