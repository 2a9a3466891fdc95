"""STAC APIs behind pystac-client, searched patiently: requests that fail in passing are repeated."""

from __future__ import annotations

import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlparse

import pystac
import pystac_client
from pystac_client import ConformanceClasses, ItemSearch
from pystac_client.exceptions import APIError
from pystac_client.stac_api_io import StacApiIO
from pystac_client.warnings import PystacClientWarning
from requests import RequestException
from requests.exceptions import ChunkedEncodingError, SSLError, Timeout
from requests.exceptions import ConnectionError as DroppedConnection
from urllib3 import Retry

from terramind_cube.modalities import MODALITIES
from terramind_cube.stac.protocol import Catalog, without_remarks
from terramind_cube.stac.providers import PROVIDERS, find_row
from terramind_cube.stac.search import Filters, limit_items, parse_interval

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from terramind_cube.stac.providers import Provider
    from terramind_cube.stac.search import DatetimeQuery

__all__ = ["ApiCatalog", "open_api"]

MOST_ITEMS = 10_000
"""Items of a search without an area, ids or a limit of its own."""
PAGE_ITEMS = 100
"""Items of a page where the caller does not say; servers would send as few as ten."""
RETRIES = 5
BACKOFF_S = 0.5
"""Wait before the second retry; it doubles with every further one."""
LONGEST_WAIT_S = 60.0
TIMEOUT_S = (10.0, 60.0)
"""To connect, and between two bytes of an answer."""
PASSING_STATUSES = (429, 500, 502, 503, 504)

_SHOWN_OF_ERROR = 300
_UNREADABLE = (
    pystac.STACError, pystac.STACTypeError, OSError, ValueError, KeyError, TypeError, AttributeError,
)  # fmt: skip


_NO_STAC = (pystac.STACError, pystac.STACTypeError, KeyError, TypeError, AttributeError, ValueError)
"""What pystac raises of documents that it cannot read."""


@dataclass(frozen=True)
class ApiCatalog(Catalog):
    """A STAC API behind pystac-client.

    Attributes
    ----------
    client : pystac_client.Client
        Its own settings hold: headers, modifiers, retries and time-outs.
    name : str
        With its address, for messages.
    """

    client: pystac_client.Client
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", f"STAC API {self.client.get_self_href()}")

    @cached_property
    def collection_ids(self) -> tuple[str, ...] | None:
        """Collections of a known provider that this package knows; of another API all it lists."""
        if (provider := _provider_at(self.client.get_self_href())) is not None:
            return tuple(row.collection for row in provider.collections)
        return tuple(collection.id for collection in self._collections)

    def search_items(
        self,
        *,
        collections: Sequence[str] | None = None,
        area: Mapping[str, Any] | None = None,
        datetime: DatetimeQuery | None = None,
        filters: Filters | None = None,
    ) -> list[pystac.Item]:
        """Return all matching items, page after page, in the order of the server.

        Filters are sent where the API conforms to the query extension, since others return nothing
        without a word, and are checked again here. For cloud cover and orbit this holds for
        collections that are known to be optical or radar; where nothing is found then, an item is
        looked at, and a collection that lacks the property is searched without it.
        """
        if datetime is not None:
            parse_interval(datetime)
        asked = filters or Filters()
        request = _Request(
            None if collections is None else tuple(collections), area, datetime, asked
        )
        if not self.client.conforms_to(ConformanceClasses.QUERY):
            return self._items(request, None)
        derived = request.derived_query()
        found = self._items(request, _merged(asked.query, derived))
        if found or not derived:
            return found
        example = replace(request, filters=Filters(ids=asked.ids, limit=1, max_items=1))
        first = self._items(example, None)
        if not first or all(_is_searchable(first[0], name) for name in derived):
            return []
        return self._items(request, asked.query)

    def _items(self, request: _Request, query: Mapping[str, Any] | None) -> list[pystac.Item]:
        address, method = self._search_endpoint
        asked = request.filters
        search = ItemSearch(
            address,
            method=method,
            client=self.client,
            modifier=self.client.modifier,
            stac_io=_PatientIO(_stac_io(self.client)),
            collections=None if request.collections is None else list(request.collections),
            intersects=None if request.area is None else dict(request.area),
            datetime=request.datetime,
            ids=asked.ids,
            limit=asked.limit or PAGE_ITEMS,
            query=None if not query else {name: dict(tests) for name, tests in query.items()},
        )
        with self._answering(), without_remarks():
            found, is_whole = request.first_of(search.items())
        if not is_whole:
            raise ValueError(
                f"More than {MOST_ITEMS:,} items of {self.name} answer a search without an area: "
                "give bbox, intersects, geobox, ids or max_items."
            )
        return found

    @property
    def _search_endpoint(self) -> tuple[str, str]:
        """Address and method of the search."""
        links = [link for link in self.client.links if link.rel == "search"]
        if not links:
            raise ValueError(
                f"{self.name} offers no search: give the address of a STAC API's landing page, or "
                "download the catalog and open its path."
            )
        by_method = {link.extra_fields.get("method", "POST"): link for link in links}
        method = "POST" if "POST" in by_method else "GET"
        return str(by_method.get(method, links[0]).get_absolute_href()), method

    @cached_property
    def _collections(self) -> tuple[pystac.Collection, ...]:
        with self._answering():
            return _patiently(lambda: tuple(self.client.get_collections()), _stac_io(self.client))

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Say which catalog it was that did not answer, or refused to."""
        try:
            yield
        except APIError as error:
            status = getattr(error, "status_code", None)
            said = " ".join(f"{status or ''} {error}".split())[:_SHOWN_OF_ERROR]
            if status is not None and status < 500 and status not in PASSING_STATUSES:
                raise ValueError(f"{self.name} refuses what is asked ({said}).") from error
            raise ConnectionError(
                f"{self.name} does not answer ({said}): try again later, or ask for a smaller "
                "area or time."
            ) from error
        except _NO_STAC as error:
            raise ValueError(
                f"{self.name} returns what is no valid STAC ({type(error).__name__}: {error})."
            ) from error

    def describe(self, collections: Sequence[str] | None = None) -> str:
        """Say which collections the API has, with the extents of the named ones."""
        if collections is None:
            listed = ", ".join(self.collection_ids or ()) or "(none)"
            return f"{self.name} holds the collections {listed}"
        lines = []
        for collection in (c for c in self._collections if c.id in collections):
            first, last = collection.extent.temporal.intervals[0]
            span = f"{first:%Y-%m-%d} to " if first else ".. to "
            span += f"{last:%Y-%m-%d}" if last else "now"
            lines.append(f"{collection.id} in bbox {collection.extent.spatial.bboxes[0]}, {span}")
        return f"{self.name} holds {'; '.join(lines) or 'none of ' + ', '.join(collections)}"


def open_api(url: str) -> ApiCatalog:
    """Open a STAC API by the address of its landing page.

    Its requests wait and are repeated where the server is busy or the connection drops.

    Raises
    ------
    ValueError
        If there is no STAC API at the address, or it offers no search.
    """
    waiting = _Waiting(
        total=RETRIES,
        backoff_factor=BACKOFF_S,
        backoff_max=LONGEST_WAIT_S,
        status_forcelist=PASSING_STATUSES,
        allowed_methods=None,  # a search is a POST, and changes nothing
        raise_on_status=False,  # the server's last answer says more
    )
    try:
        with warnings.catch_warnings():
            # An API may be one without saying so; whether it can be searched is looked at below.
            warnings.simplefilter("ignore", PystacClientWarning)
            client = pystac_client.Client.open(
                url, stac_io=StacApiIO(max_retries=waiting), timeout=TIMEOUT_S
            )
    except (APIError, RequestException, *_UNREADABLE) as error:
        said = " ".join(str(error).split())[:_SHOWN_OF_ERROR]
        raise ValueError(
            f"Cannot open {url} as a STAC API ({said}): check the URL and the network."
        ) from error
    catalog = ApiCatalog(client)
    _ = catalog._search_endpoint  # raises where there is none
    return catalog


@dataclass(frozen=True)
class _Request:
    """What is asked of the server, and checked of its answer."""

    collections: tuple[str, ...] | None
    area: Mapping[str, Any] | None
    datetime: DatetimeQuery | None
    filters: Filters

    def derived_query(self) -> dict[str, dict[str, Any]]:
        """Return the query that says cloud cover and orbit, for collections that have them."""
        rows = [find_row(name) for name in self.collections or ()]
        units = {None if row is None else MODALITIES[row.modality].units for row in rows}
        cover, orbit = self.filters.cloud_cover, self.filters.orbit
        if cover is not None and cover < 100 and units == {"1e-4"}:
            return {"eo:cloud_cover": {"lte": cover}}
        if orbit is not None and units == {"dB"}:
            name = "sat:relative_orbit" if isinstance(orbit, int) else "sat:orbit_state"
            return {name: {"eq": orbit}}
        return {}

    def first_of(self, items: Iterable[pystac.Item]) -> tuple[list[pystac.Item], bool]:
        """Return the items that pass the filters, and whether that may be all that is meant.

        No page more than needed is asked for; nobody wants a provider's whole archive.
        """
        kept: list[pystac.Item] = []
        is_open = self.area is None and self.filters.ids is None and self.filters.max_items is None
        for count, item in enumerate(items):
            if is_open and count >= MOST_ITEMS:
                return [], False
            if self.filters.accepts(item):
                kept.append(item)
            is_one = self.collections is not None and len(self.collections) == 1
            if is_one and len(kept) == self.filters.max_items:
                break
        return limit_items(kept, self.filters.max_items), True


class _Waiting(Retry):
    """Waits as long as the server asks for, within reason."""

    def get_retry_after(self, response: Any) -> float | None:
        asked = super().get_retry_after(response)
        return None if asked is None else min(asked, LONGEST_WAIT_S)


class _PatientIO(StacApiIO):
    """Reads through a client's own connection, and repeats what fails in passing."""

    def __init__(self, own: StacApiIO) -> None:
        super().__init__(max_retries=None)
        self._own = own

    def read_text(self, source: Any, *args: Any, **kwargs: Any) -> str:
        return _patiently(lambda: str(self._own.read_text(source, *args, **kwargs)), self._own)


_T = TypeVar("_T")


def _patiently(ask: Callable[[], _T], stac_io: StacApiIO) -> _T:
    """Ask again, after a while, as long as it fails in passing."""
    for attempt in range(RETRIES):
        try:
            return ask()
        except APIError as error:
            if not _is_passing(error, stac_io):
                raise
        time.sleep(min(BACKOFF_S * 2**attempt, LONGEST_WAIT_S))
    return ask()


def _is_passing(error: APIError, stac_io: StacApiIO) -> bool:
    """Whether a request may succeed later, and has not been repeated by the connection itself."""
    own = _own_retries(stac_io)
    status = getattr(error, "status_code", None)
    if status is not None:
        return status in PASSING_STATUSES and status not in (own.status_forcelist if own else ())
    cause = error.__context__
    if isinstance(cause, ChunkedEncodingError):  # in the middle of an answer: none repeats that
        return True
    is_dropped = isinstance(cause, DroppedConnection | Timeout) and not isinstance(cause, SSLError)
    return is_dropped and not (own and own.backoff_factor)


def _own_retries(stac_io: StacApiIO) -> Retry | None:
    """Return how the session of a client repeats requests, where it says so."""
    session = getattr(stac_io, "session", None)
    adapters = getattr(session, "adapters", {})
    found = getattr(adapters.get("https://"), "max_retries", None)
    return found if isinstance(found, Retry) else None


def _stac_io(client: pystac_client.Client) -> StacApiIO:
    return client._stac_io or StacApiIO()  # pystac-client has no public name for it


def _merged(
    query: Mapping[str, Mapping[str, Any]] | None, derived: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    """Join two queries; where they contradict each other the items are checked again anyway."""
    joined = {name: dict(tests) for name, tests in derived.items()}
    for name, tests in (query or {}).items():
        joined[name] = {**joined.get(name, {}), **tests}
    return joined


def _is_searchable(item: pystac.Item, name: str) -> bool:
    """Whether an item has a property in the form that a derived query takes for granted."""
    value = item.properties.get(name)
    if name == "sat:orbit_state":
        return value in {"ascending", "descending"}
    return isinstance(value, int | float)


def _provider_at(url: str | None) -> Provider | None:
    """Return the known provider at an address."""
    host = urlparse(url or "").hostname
    return next((p for p in PROVIDERS if p.url and urlparse(p.url).hostname == host), None)
