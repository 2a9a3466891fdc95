"""Catalogs: one small protocol over static catalogs, item collections and STAC APIs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlparse

import pystac
import pystac_client
from pystac_client.exceptions import APIError
from requests import RequestException

from terramind_cube.stac.search import DatetimeQuery, area_geometry, item_interval, select_items

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import datetime as Moment

__all__ = ["ApiCatalog", "Catalog", "StaticCatalog", "open_catalog"]

_ACCEPTED = (
    "the path of a static catalog (catalog.json, collection.json) or of an item collection "
    "(GeoJSON), the URL of a STAC API, or an opened pystac_client.Client"
)

_UNREADABLE = (
    pystac.STACError, pystac.STACTypeError, OSError, ValueError, KeyError, TypeError, AttributeError,
)  # fmt: skip


class Catalog(Protocol):
    """What a cube needs of a catalog."""

    @property
    def collection_ids(self) -> tuple[str, ...] | None:
        """Collections to choose from; None where items are at hand and speak for themselves."""

    def search(
        self,
        *,
        collections: Sequence[str] | None = None,
        bbox: Sequence[float] | None = None,
        intersects: Any = None,
        datetime: DatetimeQuery | None = None,
    ) -> list[pystac.Item]:
        """Return the items of some collections that touch an area and a time."""

    def describe(self, collections: Sequence[str] | None = None) -> str:
        """Say in one line what the catalog holds, for error messages."""


@dataclass(frozen=True)
class StaticCatalog:
    """Items at hand, searched in memory with the semantics of a STAC API.

    Attributes
    ----------
    name : str
        Path or phrase that names the catalog in messages.
    items : tuple of pystac.Item
        Everything it holds.
    """

    name: str
    items: tuple[pystac.Item, ...]

    @property
    def collection_ids(self) -> tuple[str, ...] | None:
        """None: the items themselves say what they hold."""
        return None

    def search(
        self,
        *,
        collections: Sequence[str] | None = None,
        bbox: Sequence[float] | None = None,
        intersects: Any = None,
        datetime: DatetimeQuery | None = None,
    ) -> list[pystac.Item]:
        """Return the matching items in the catalog's order; see `search.select_items`."""
        return select_items(
            self.items,
            collections=collections,
            bbox=bbox,
            intersects=intersects,
            datetime=datetime,
        )

    def describe(self, collections: Sequence[str] | None = None) -> str:
        """Say how many items there are, where, when, and of which collections."""
        held = [i for i in self.items if collections is None or i.collection_id in collections]
        if not held:
            return f"{self.name} holds no items"
        counts: dict[str, int] = {}
        for item in held:
            name = item.collection_id or "no collection"
            counts[name] = counts.get(name, 0) + 1
        moments = [item_interval(item) for item in held]
        starts = [moment.start for moment in moments if moment.start]
        ends = [moment.end for moment in moments if moment.end] or starts
        boxes = [item.bbox for item in held if item.bbox]
        where = f" in bbox {_union(boxes)}" if boxes else ""
        listing = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
        return (
            f"{self.name} holds {len(held)} items{where} "
            f"from {_day(min(starts))} to {_day(max(ends))}: {listing}"
        )


@dataclass(frozen=True)
class ApiCatalog:
    """A STAC API behind pystac-client."""

    client: pystac_client.Client

    @property
    def collection_ids(self) -> tuple[str, ...] | None:
        """Collections that the API lists."""
        return tuple(collection.id for collection in self.client.get_collections())

    def search(
        self,
        *,
        collections: Sequence[str] | None = None,
        bbox: Sequence[float] | None = None,
        intersects: Any = None,
        datetime: DatetimeQuery | None = None,
    ) -> list[pystac.Item]:
        """Return all matching items, page after page."""
        found = self.client.search(
            collections=None if collections is None else list(collections),
            bbox=None if bbox is None else list(bbox),
            intersects=area_geometry(intersects=intersects),
            datetime=datetime,
        )
        return list(found.items())

    def describe(self, collections: Sequence[str] | None = None) -> str:
        """Say which collections the API has, with the extents of the named ones."""
        known = list(self.client.get_collections())
        name = f"STAC API {self.client.get_self_href()}"
        if collections is None:
            return f"{name} holds the collections {', '.join(c.id for c in known) or '(none)'}"
        lines = []
        for collection in (c for c in known if c.id in collections):
            first, last = collection.extent.temporal.intervals[0]
            span = f"{_day(first) if first else '..'} to {_day(last) if last else 'now'}"
            lines.append(f"{collection.id} in bbox {collection.extent.spatial.bboxes[0]}, {span}")
        return f"{name} holds {'; '.join(lines) or 'none of ' + ', '.join(collections)}"


def open_catalog(source: str | Path | pystac_client.Client) -> Catalog:
    """Open a catalog to search.

    Parameters
    ----------
    source : path, str or pystac_client.Client
        Path of a static STAC catalog (``catalog.json`` or ``collection.json``), of an item or an
        item collection (GeoJSON), the http(s) URL of a STAC API, or an opened client.

    Raises
    ------
    FileNotFoundError
        If a path does not exist.
    ValueError
        If the source is none of these, or cannot be read: the message names the file, also one
        that the catalog links to.
    """
    if isinstance(source, pystac_client.Client):
        return ApiCatalog(source)
    if not isinstance(source, str | Path):
        raise ValueError(f"Cannot open {source!r} as a catalog: give {_ACCEPTED}.")  # noqa: TRY004
    if urlparse(str(source)).scheme in {"http", "https"}:
        return _open_api(str(source))
    path = Path(str(source).removeprefix("file://"))
    if path.is_dir():
        path = path / "catalog.json"
    if path.is_file():
        return StaticCatalog(str(path), tuple(_read_items(path)))
    if path.suffix or len(path.parts) > 1:
        raise FileNotFoundError(f"There is no catalog at {path}: give {_ACCEPTED}.")
    raise ValueError(f"Unknown catalog {str(source)!r}: give {_ACCEPTED}.")


def _open_api(url: str) -> ApiCatalog:
    try:
        client = pystac_client.Client.open(url)
    except (APIError, RequestException, *_UNREADABLE) as error:
        raise ValueError(
            f"Cannot open {url} as a STAC API ({error}): check the URL and the network."
        ) from error
    return ApiCatalog(client)


def _read_items(path: Path) -> Iterable[pystac.Item]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        kind = document.get("type", "Catalog")  # STAC before 1.0 did not write it
        if kind in {"Catalog", "Collection"}:
            form = pystac.Collection if kind == "Collection" else pystac.Catalog
            catalog = form.from_file(str(path))
            return [_placed(item, path) for item in catalog.get_items(recursive=True)]
        features = document["features"] if kind == "FeatureCollection" else [document]
        return [_placed(pystac.Item.from_dict(feature), path) for feature in features]
    except _UNREADABLE as error:
        raise ValueError(
            f"Cannot read {path} as STAC ({error}): expected a catalog, a collection, an item, "
            "or a FeatureCollection of items."
        ) from error


def _placed(item: pystac.Item, path: Path) -> pystac.Item:
    """Give an item the address that its relative asset references start from."""
    own = item.get_self_href() or path.name
    item.set_self_href(pystac.utils.make_absolute_href(own, str(path.resolve())))
    return item


def _union(boxes: Sequence[Sequence[float]]) -> tuple[float, ...]:
    flat = [(b[0], b[1], b[len(b) // 2], b[len(b) // 2 + 1]) for b in boxes]
    west, south, east, north = zip(*flat, strict=True)
    return tuple(round(v, 4) for v in (min(west), min(south), max(east), max(north)))


def _day(moment: Moment) -> str:
    return moment.date().isoformat()
