"""stac-geoparquet: a catalog in one file, searched without a server and without reading it all."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pystac
import shapely
from shapely.geometry import mapping, shape

from terramind_cube.stac.protocol import Catalog, without_remarks
from terramind_cube.stac.result import portable_dict
from terramind_cube.stac.search import parse_interval, select_items

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    import pyarrow as pa
    from pyarrow.dataset import Dataset, Expression

    from terramind_cube.stac.search import DatetimeQuery, Filters

__all__ = ["GeoParquetCatalog", "write_geoparquet"]

# All other columns are properties (stac-geoparquet 1.0).
_ITEM_COLUMNS = {
    "type", "stac_version", "stac_extensions", "id", "geometry", "bbox", "links", "assets",
    "collection",
}  # fmt: skip
_BOX = ("xmin", "ymin", "xmax", "ymax")
_TIMES = ("datetime", "start_datetime", "end_datetime")
_PARTS_SENT = 16
_FILL_VALUES = {"nodata", "raster:nodata"}
_NOT_IN_JSON = ("nan", "inf", "-inf")


@dataclass(frozen=True)
class GeoParquetCatalog(Catalog):
    """Items in a stac-geoparquet file, of which only what may match is read.

    Attributes
    ----------
    path : Path
        The file, or a folder of such files.
    name : str
        The path, for messages.

    Raises
    ------
    ValueError
        If it is not stac-geoparquet: only the head of the file is read for that.
    """

    path: Path
    name: str = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))
        object.__setattr__(self, "name", str(self.path))
        self._open()

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
        """Return the matching items in the order of the file; see `search.select_items`."""
        dataset = self._open()
        tests = [
            *_column_tests(dataset, collections, filters),
            *_area_test(dataset, area),
            *_time_test(dataset, datetime),
        ]
        wanted = None
        for test in tests:
            wanted = test if wanted is None else wanted & test
        return select_items(
            _read_items(dataset.to_table(filter=wanted), self.path),
            collections=collections,
            intersects=area,
            datetime=datetime,
            filters=filters,
        )

    def describe(self, collections: Sequence[str] | None = None) -> str:
        """Say how many items there are, where, when, and of which collections."""
        from terramind_cube.stac.catalogs import StaticCatalog

        dataset = self._open()
        known = [c for c in ("id", "collection", "geometry", "bbox", *_TIMES)
                 if c in dataset.schema.names]  # fmt: skip
        items = tuple(_read_items(dataset.to_table(columns=known), self.path))
        return StaticCatalog(self.name, items).describe(collections)

    def _open(self) -> Dataset:
        import pyarrow as pa
        from pyarrow.dataset import dataset

        try:
            found = dataset(self.path, format="parquet")
        except (pa.ArrowException, OSError) as error:
            raise ValueError(f"Cannot read {self.path} as stac-geoparquet ({error}).") from error
        if missing := {"id", "geometry"} - set(found.schema.names):
            raise ValueError(
                f"Cannot read {self.path} as stac-geoparquet: it has no column "
                f"{' and no column '.join(sorted(missing))}."
            )
        return found


def write_geoparquet(items: Iterable[pystac.Item], path: str | Path) -> Path:
    """Write items as stac-geoparquet, with absolute addresses.

    What an item says with null is left out, except a null datetime.

    Parameters
    ----------
    items : iterable of pystac.Item
        At least one, each with a geometry.
    path : str or Path
        File to write; an existing one is replaced.

    Returns
    -------
    Path
        The file.

    Raises
    ------
    ValueError
        If an item has no geometry, or a property has not the same type in all items.
    """
    import pyarrow as pa
    from stac_geoparquet.arrow import parse_stac_items_to_arrow, to_parquet

    documents = [_with_numbers(portable_dict(item)) for item in items]
    if not documents:
        raise ValueError("There is no item to write as stac-geoparquet.")
    for document in documents:
        if document["geometry"] is None:
            raise ValueError(
                f"Item {document['id']!r} has no geometry, which stac-geoparquet asks for: save "
                "the items as .json."
            )
        document.setdefault("bbox", list(shape(document["geometry"]).bounds))
    try:
        to_parquet(parse_stac_items_to_arrow(documents), path)
    except (pa.ArrowException, ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"Cannot write {len(documents)} items as stac-geoparquet ({error}): a column has one "
            "type for all items. Save them as .json."
        ) from error
    return Path(path)


def _with_numbers(value: Any, name: str = "") -> Any:
    """Write a fill value that JSON has no number for as one, since others are numbers."""
    if isinstance(value, dict):
        return {key: _with_numbers(part, key) for key, part in value.items()}
    if isinstance(value, list):
        return [_with_numbers(part, name) for part in value]
    return float(value) if name in _FILL_VALUES and value in _NOT_IN_JSON else value


def _column_tests(
    dataset: Dataset, collections: Sequence[str] | None, filters: Filters | None
) -> Iterator[Expression]:
    import pyarrow.compute as pc

    names = dataset.schema.names
    if collections is not None and "collection" in names:
        yield pc.field("collection").isin(list(collections))
    if filters is None:
        return
    if filters.ids is not None:
        yield pc.field("id").isin(list(filters.ids))
    if filters.cloud_cover is not None and _is_number(dataset.schema, "eo:cloud_cover"):
        cover = pc.field("eo:cloud_cover")
        yield (cover <= filters.cloud_cover) | cover.is_null()


def _area_test(dataset: Dataset, area: Mapping[str, Any] | None) -> Iterator[Expression]:
    """Yield a test that every item passes that may touch an area."""
    import pyarrow.compute as pc

    if area is None or not _has_box(dataset.schema):
        return
    region = shape(area)
    parts = shapely.get_parts(region)
    west, south, east, north = (pc.field("bbox", name) for name in _BOX)
    # An item across the antimeridian may say so in several ways.
    test = pc.field("bbox").is_null() | (west > east) | (west < -180) | (east > 180)
    for part in parts if len(parts) <= _PARTS_SENT else [region]:
        left, lower, right, upper = part.bounds
        beside = (west <= right) & (east >= left)
        test = test | (beside & (south <= upper) & (north >= lower))
    yield test


def _time_test(dataset: Dataset, query: DatetimeQuery | None) -> Iterator[Expression]:
    """Yield a test that every item passes that may overlap a time."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if query is None:
        return
    interval, schema = parse_interval(query), dataset.schema
    known = [c for c in _TIMES if c in schema.names]
    if not known or not all(pa.types.is_timestamp(schema.field(c).type) for c in known):
        return

    def literal(when: datetime) -> Any:
        return pa.scalar(when, pa.timestamp("us", tz="UTC"))

    # An end that is missing is an open one, as in `item_interval`.
    starts = [pc.field(name) for name in ("start_datetime", "datetime") if name in known]
    ends = [pc.field(name) for name in ("end_datetime", "datetime") if name in known]
    if interval.start is not None and ends:
        end = pc.coalesce(*ends)
        yield (end >= literal(interval.start)) | end.is_null()
    if interval.end is not None and starts:
        start = pc.coalesce(*starts)
        yield (start <= literal(interval.end)) | start.is_null()


def _has_box(schema: pa.Schema) -> bool:
    import pyarrow as pa

    if "bbox" not in schema.names or not pa.types.is_struct(schema.field("bbox").type):
        return False
    return set(_BOX) <= {part.name for part in schema.field("bbox").type}


def _is_number(schema: pa.Schema, column: str) -> bool:
    import pyarrow as pa

    if column not in schema.names:
        return False
    kind = schema.field(column).type
    return bool(pa.types.is_floating(kind) or pa.types.is_integer(kind))


def _read_items(table: pa.Table, path: Path) -> list[pystac.Item]:
    """Turn rows into items: a column for each property of any item, null where one lacks it."""
    with without_remarks():
        items = [
            pystac.Item.from_dict(_item_dict(row), preserve_dict=False) for row in table.to_pylist()
        ]
    for item in items:
        if item.get_self_href() is None:
            item.set_self_href(str(path.resolve()))
    return items


def _item_dict(row: Mapping[str, Any]) -> dict[str, Any]:
    properties = {
        name: _json_value(value, name)
        for name, value in row.items()
        if name not in _ITEM_COLUMNS and value is not None
    }
    properties.setdefault("datetime", None)
    box = row.get("bbox")
    document = {
        "type": "Feature",
        "stac_version": row.get("stac_version") or pystac.get_stac_version(),
        "stac_extensions": row.get("stac_extensions") or [],
        "id": row["id"],
        "geometry": None if row["geometry"] is None else _geojson(row["geometry"]),
        "properties": properties,
        "links": _json_value(row.get("links") or []),
        "assets": {
            key: _json_value(asset) for key, asset in (row.get("assets") or {}).items() if asset
        },
    }
    if box is not None:
        document["bbox"] = _flat_box(box)
    if row.get("collection") is not None:
        document["collection"] = row["collection"]
    return document


def _json_value(value: Any, name: str = "") -> Any:
    """Return a value of a column as JSON has it, without the nulls of what other items have."""
    if isinstance(value, dict):
        return {key: _json_value(part, key) for key, part in value.items() if part is not None}
    if isinstance(value, list):
        return [_json_value(part, name) for part in value]
    if isinstance(value, bytes):
        return _geojson(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat().replace("+00:00", "Z")
    if name in _FILL_VALUES and isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def _geojson(wkb: bytes) -> dict[str, Any]:
    found = mapping(shapely.from_wkb(wkb))
    return {"type": found["type"], "coordinates": _as_lists(found["coordinates"])}


def _as_lists(coordinates: Any) -> Any:
    return [_as_lists(c) for c in coordinates] if isinstance(coordinates, tuple) else coordinates


def _flat_box(box: Any) -> list[float]:
    if not isinstance(box, dict):
        return list(box)
    names = ("xmin", "ymin", "zmin", "xmax", "ymax", "zmax")
    return [box[name] for name in names if box.get(name) is not None]
