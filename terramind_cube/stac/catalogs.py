"""Catalogs: one small protocol over static catalogs, item collections and STAC APIs."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlparse

import pystac
import pystac_client

from terramind_cube.modalities import nearest_name
from terramind_cube.stac.api import ApiCatalog, open_api
from terramind_cube.stac.geoparquet import GeoParquetCatalog
from terramind_cube.stac.protocol import Catalog, without_remarks
from terramind_cube.stac.providers import PROVIDERS
from terramind_cube.stac.search import item_interval, select_items

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from datetime import datetime as Moment

    from terramind_cube.stac.search import DatetimeQuery, Filters

__all__ = ["ApiCatalog", "Catalog", "GeoParquetCatalog", "StaticCatalog", "open_catalog"]

_PROVIDER_URLS = {provider.name: provider.url for provider in PROVIDERS if provider.url}
_ACCEPTED = (
    f"the name of a provider ({', '.join(_PROVIDER_URLS)}), the path of a static catalog "
    "(catalog.json, collection.json), of an item collection (.json, .geojson, .ndjson) or of "
    "stac-geoparquet (.parquet), the URL of a STAC API, or an opened pystac_client.Client"
)
_LINE_SUFFIXES = (".ndjson", ".jsonl")
_PARQUET_SUFFIXES = (".parquet", ".geoparquet")
_UNREADABLE = (
    pystac.STACError, pystac.STACTypeError, OSError, ValueError, KeyError, TypeError, AttributeError,
)  # fmt: skip


@dataclass(frozen=True)
class StaticCatalog(Catalog):
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

    def __repr__(self) -> str:
        return f"StaticCatalog({self.name!r}, {len(self.items)} items)"

    @property
    def collection_ids(self) -> tuple[str, ...] | None:
        """None: the items themselves say what they hold."""
        return None

    def search_items(
        self,
        *,
        collections: Sequence[str] | None = None,
        area: Mapping[str, Any] | None = None,
        datetime: DatetimeQuery | None = None,
        filters: Filters | None = None,
    ) -> list[pystac.Item]:
        """Return the matching items in the catalog's order; see `search.select_items`."""
        return select_items(
            self.items,
            collections=collections,
            intersects=area,
            datetime=datetime,
            filters=filters,
        )

    def describe(self, collections: Sequence[str] | None = None) -> str:
        """Say how many items there are, where, when, and of which collections."""
        held = [i for i in self.items if collections is None or i.collection_id in collections]
        return f"{self.name} holds {_describe_items(held)}"


def open_catalog(source: str | Path | pystac_client.Client) -> Catalog:
    """Open a catalog to search.

    Parameters
    ----------
    source : str, path or pystac_client.Client
        ``"earth-search"``, ``"planetary-computer"`` or ``"cdse"``; the http(s) URL of a STAC API;
        the path of a static STAC catalog (``catalog.json`` or ``collection.json``), of an item or
        an item collection (GeoJSON, or an item a line in ``.ndjson``), or of stac-geoparquet; or
        an opened client, which keeps its own settings.

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
    if (url := _PROVIDER_URLS.get(str(source).strip().lower())) is not None:
        return open_api(url)
    address = urlparse(str(source))
    if address.scheme in {"http", "https"}:
        return open_api(str(source))
    path = Path(unquote(address.path) if address.scheme == "file" else source)
    if path.suffix.lower() in _PARQUET_SUFFIXES and path.exists():
        return GeoParquetCatalog(path)
    if path.is_dir():
        path = path / "catalog.json"
    if path.is_file():
        with without_remarks():
            return StaticCatalog(str(path), tuple(_read_items(path)))
    if path.suffix or len(path.parts) > 1:
        raise FileNotFoundError(f"There is no catalog at {path}: give {_ACCEPTED}.")
    raise ValueError(
        f"Unknown catalog {str(source)!r}: {nearest_name(str(source), _PROVIDER_URLS)}. "
        f"Give {_ACCEPTED}."
    )


def _read_items(path: Path) -> Iterable[pystac.Item]:
    try:
        if path.suffix.lower() in _LINE_SUFFIXES:
            return [_placed(item, path) for item in _read_lines(path)]
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


def _read_lines(path: Path) -> Iterable[pystac.Item]:
    """Read an item from every line that is not empty."""
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                yield pystac.Item.from_dict(json.loads(line))
            except _UNREADABLE as error:
                raise ValueError(f"line {number}: {error}") from error


def _placed(item: pystac.Item, path: Path) -> pystac.Item:
    """Give an item the address that its relative asset references start from."""
    own = item.get_self_href() or path.name
    item.set_self_href(pystac.utils.make_absolute_href(own, str(path.resolve())))
    return item


def _describe_items(items: Sequence[pystac.Item]) -> str:
    if not items:
        return "no items"
    counts = Counter(item.collection_id or "no collection" for item in items)
    moments = [item_interval(item) for item in items]
    starts = [moment.start for moment in moments if moment.start]
    ends = [moment.end for moment in moments if moment.end] or starts
    boxes = [item.bbox for item in items if item.bbox]
    where = f" in bbox {_union(boxes)}" if boxes else ""
    listing = ", ".join(f"{name} ({count})" for name, count in sorted(counts.items()))
    return f"{len(items)} items{where} from {_day(min(starts))} to {_day(max(ends))}: {listing}"


def _union(boxes: Sequence[Sequence[float]]) -> tuple[float, ...]:
    flat = [(b[0], b[1], b[len(b) // 2], b[len(b) // 2 + 1]) for b in boxes]
    west, south, east, north = zip(*flat, strict=True)
    return tuple(round(v, 4) for v in (min(west), min(south), max(east), max(north)))


def _day(moment: Moment) -> str:
    return moment.date().isoformat()
