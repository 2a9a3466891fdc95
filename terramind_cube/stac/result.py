"""What a search found: items by modality and date, where they lie, and what is missing."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, overload
from urllib.parse import urlparse

import shapely
from pystac.utils import make_absolute_href
from shapely.geometry import mapping

from terramind_cube.stac.areas import item_shape
from terramind_cube.stac.summary import describe_items, draw_items

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import pystac

    from terramind_cube.stac.search import DatetimeQuery

__all__ = ["SearchResult", "check_target", "portable_dict"]

_JSON_SUFFIXES = (".json", ".geojson")
_PARQUET_SUFFIXES = (".parquet", ".geoparquet")


@dataclass(frozen=True, eq=False, repr=False)
class SearchResult(Sequence["pystac.Item"]):
    """Items that a search found: a sequence that never changes.

    Attributes
    ----------
    items : tuple of pystac.Item
        Each once, in the order of the catalog.
    by_modality : mapping of str to tuple of pystac.Item
        What holds each modality: all that were asked for, or else those that are there.
    modalities : tuple of str
        Modalities asked for; empty where the search was not for modalities.
    collections : tuple of str
        Collections asked for; empty where the search was not for collections.
    area : GeoJSON geometry or None
        Where it searched, in longitude and latitude.
    datetime : str, datetime, pair or None
        When it searched.
    source : str
        Name of the catalog.
    """

    items: tuple[pystac.Item, ...]
    by_modality: Mapping[str, tuple[pystac.Item, ...]] = field(default_factory=dict)
    modalities: tuple[str, ...] = ()
    collections: tuple[str, ...] = ()
    area: Mapping[str, Any] | None = None
    datetime: DatetimeQuery | None = None
    source: str = "items"

    def __post_init__(self) -> None:
        object.__setattr__(self, "by_modality", MappingProxyType(dict(self.by_modality)))

    @overload
    def __getitem__(self, index: int) -> pystac.Item: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[pystac.Item, ...]: ...
    def __getitem__(self, index: int | slice) -> pystac.Item | tuple[pystac.Item, ...]:
        return self.items[index]

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[pystac.Item]:
        return iter(self.items)

    @property
    def missing(self) -> tuple[str, ...]:
        """Modalities or collections that were asked for and have no item."""
        held = {item.collection_id for item in self.items}
        lacking = [name for name in self.modalities if not self.by_modality.get(name)]
        return (*lacking, *(name for name in self.collections if name not in held))

    @property
    def footprint(self) -> dict[str, Any] | None:
        """Where the items lie together, as a GeoJSON geometry; None if no item says."""
        places = [place for item in self.items if (place := item_shape(item)) is not None]
        return dict(mapping(shapely.union_all(places))) if places else None

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Save the items as a catalog that `open_catalog` opens without the server.

        Relative addresses are written as absolute ones. Pixels stay where they are.

        Parameters
        ----------
        path : str or Path
            An item collection (``.json``, ``.geojson``) or stac-geoparquet (``.parquet``,
            ``.geoparquet``).
        overwrite : bool, default False
            Whether an existing file is replaced.

        Returns
        -------
        Path
            The file.

        Raises
        ------
        FileExistsError
            If the file exists and `overwrite` is False.
        ValueError
            If there is no item, or the suffix is none of these.
        """
        target, suffix = check_target(path, overwrite=overwrite)
        if not self.items:
            raise ValueError(f"There is no item to save as {target}: search again.")
        target.parent.mkdir(parents=True, exist_ok=True)
        # A name of its own until it is whole, so that what is there is complete.
        part = target.with_name(f".{target.name}.part")
        try:
            if suffix in _PARQUET_SUFFIXES:
                from terramind_cube.stac.geoparquet import write_geoparquet

                write_geoparquet(self.items, part)
            else:
                features = [portable_dict(item) for item in self.items]
                document = {"type": "FeatureCollection", "features": features}
                part.write_text(json.dumps(document), encoding="utf-8")
            part.replace(target)
        finally:
            part.unlink(missing_ok=True)
        return target

    def groups(self) -> dict[str, tuple[pystac.Item, ...]]:
        """Return the items by modality, and under their collection those of no modality."""
        known = {id(item) for items in self.by_modality.values() for item in items}
        others: dict[str, list[pystac.Item]] = {}
        for item in self.items:
            if id(item) not in known:
                others.setdefault(item.collection_id or "no collection", []).append(item)
        return {**self.by_modality, **{name: tuple(items) for name, items in others.items()}}

    def __repr__(self) -> str:
        return describe_items(self)

    def _repr_html_(self) -> str:
        return draw_items(self)


def check_target(path: str | Path, *, overwrite: bool) -> tuple[Path, str]:
    """Return where items are to be saved, with the suffix in lower case.

    Raises
    ------
    FileExistsError
        If the file exists and may not be replaced.
    ValueError
        If the suffix is none that items are saved under.
    """
    target = Path(path)
    suffix = target.suffix.lower()
    if suffix not in (*_JSON_SUFFIXES, *_PARQUET_SUFFIXES):
        raise ValueError(
            f"Cannot save items as {target.name!r}: the suffix is "
            f"{' or '.join((*_JSON_SUFFIXES, *_PARQUET_SUFFIXES))}."
        )
    if target.is_dir():
        raise IsADirectoryError(f"{target} is a directory: name a file.")
    if target.exists() and not overwrite:
        raise FileExistsError(f"{target} exists already: pass overwrite=True to replace it.")
    return target, suffix


def portable_dict(item: pystac.Item) -> dict[str, Any]:
    """Return an item as a dictionary that means the same wherever it is stored.

    Addresses are absolute, and links to the files of a catalog are left out, which would have to be
    read to be written anew.
    """
    # transform_hrefs would read the catalog that an item comes from, maybe over the network.
    document = item.to_dict(include_self_link=True, transform_hrefs=False)
    own = item.get_self_href()
    for asset in document.get("assets", {}).values():
        asset["href"] = _absolute(asset["href"], own)
    links = document.get("links", [])
    document["links"] = [
        link for link in links if urlparse(str(link["href"])).scheme in {"http", "https"}
    ]
    return document


def _absolute(href: str, own: str | None) -> str:
    if urlparse(href).scheme or href.startswith("/vsi") or Path(href).is_absolute():
        return href
    return make_absolute_href(href, own) if own else str(Path(href).resolve())
