"""What is asked for when a cube is loaded, checked before anything is searched."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, timedelta
from datetime import datetime as Moment
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import pystac
import pystac_client
from rasterio.enums import Resampling

from terramind_cube.cube.radiometry import S2_OFFSETS
from terramind_cube.modalities import MODALITIES, Modality, find_modality, nearest_name
from terramind_cube.stac.backscatter import RADAR_UNITS
from terramind_cube.stac.catalogs import StaticCatalog, open_catalog
from terramind_cube.stac.finding import find_bands
from terramind_cube.stac.providers import DERIVED, LOADABLE
from terramind_cube.stac.search import Filters, parse_interval

if TYPE_CHECKING:
    from terramind_cube.stac.bands import ItemBands
    from terramind_cube.stac.catalogs import Catalog
    from terramind_cube.stac.legends import Legend
    from terramind_cube.stac.search import DatetimeQuery

__all__ = [
    "DEFAULT_CHUNKS_PX",
    "CubeRequest",
    "as_catalog",
    "band_label",
    "check_chunks",
    "check_modalities",
]

DEFAULT_CHUNKS_PX: Mapping[str, int] = {"y": 896, "x": 896}

_MOST_YEARS_APART = 30
_FIRST_YEAR, _LAST_YEAR = 1900, 2200
_SAME_PASS = timedelta(hours=12)
_FOR_CLASSES = ("nearest", "mode")
_DERIVED_BANDS: Mapping[str, tuple[str, ...]] = {
    "NDVI": ("B04", "B08"),
    "RGB": ("B04", "B03", "B02"),
}
_COMMON_NAMES: Mapping[str, str] = {
    "coastal": "B01", "blue": "B02", "green": "B03", "red": "B04", "rededge1": "B05",
    "rededge2": "B06", "rededge3": "B07", "nir": "B08", "nir08": "B8A", "nir09": "B09",
    "cirrus": "B10", "swir16": "B11", "swir22": "B12", "vv": "VV", "vh": "VH",
}  # fmt: skip


@dataclass(frozen=True)
class CubeRequest:
    """What to load from where.

    Attributes
    ----------
    catalog : Catalog
    asked : tuple of Modality
        In the order in which they lead the time axis; derived ones last.
    area : GeoJSON geometry or None
    datetime : DatetimeQuery or None
    pair_within : timedelta
    filters : Filters
    bands : mapping of str to tuple of str
        Bands of the modalities that are not read whole.
    s2_offset : str
    resampling : mapping of str to str
        GDAL's method by modality, over the providers' rows.
    clouds : bool
        Whether scene classifications become masks.
    skips_bad_items : bool
        Whether an item that lacks something is left out with a warning.
    radar_unit : str or None
        Unit of backscatter of items that do not tell it.
    lulc_legend : tuple of pairs, or None
        Legend of land cover of items that do not tell it.
    lulc_year : int, "nearest" or None
        Year of the land-cover map, in place of each date's own.
    """

    catalog: Catalog
    asked: tuple[Modality, ...]
    area: dict[str, Any] | None = None
    datetime: DatetimeQuery | None = None
    pair_within: timedelta = timedelta(days=7)
    filters: Filters = field(default_factory=Filters)
    bands: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    s2_offset: str = "remove"
    resampling: Mapping[str, str] = field(default_factory=dict)
    clouds: bool = True
    skips_bad_items: bool = False
    radar_unit: str | None = None
    lulc_legend: Legend | None = None
    lulc_year: int | str | None = None

    def __post_init__(self) -> None:
        if self.datetime is not None:
            parse_interval(self.datetime)
        if self.s2_offset not in S2_OFFSETS:
            raise ValueError(
                f"s2_offset is one of {', '.join(map(repr, S2_OFFSETS))}, got {self.s2_offset!r}."
            )
        if self.radar_unit not in (None, *RADAR_UNITS):
            raise ValueError(
                f"radar_unit is one of {', '.join(map(repr, RADAR_UNITS))}, got "
                f"{self.radar_unit!r}."
            )
        year: Any = self.lulc_year
        is_year = type(year) is int and _FIRST_YEAR <= year <= _LAST_YEAR
        if year is not None and year != "nearest" and not is_year:
            raise ValueError(f"lulc_year is a year such as 2023, or 'nearest', got {year!r}.")
        names = [modality.name for modality in self.asked]
        object.__setattr__(self, "bands", _check_bands(self.bands, names))
        for name, method in self.resampling.items():
            _check_asked("resampling", name, list(dict.fromkeys([*names, "S2L2A"])))
            is_classes = name in MODALITIES and MODALITIES[name].kind == "classes"
            if is_classes and method not in _FOR_CLASSES:
                raise ValueError(
                    f"resampling of {name}: {method!r} would mix class codes; give "
                    f"{' or '.join(map(repr, _FOR_CLASSES))}."
                )
            if method not in Resampling.__members__:
                near = nearest_name(str(method), Resampling.__members__)
                raise ValueError(f"resampling of {name}: unknown method {method!r}: {near}.")

    @property
    def read(self) -> tuple[Modality, ...]:
        """Modalities that are read from items, the one that leads the time axis first."""
        names = {"S2L2A" if row.name in DERIVED else row.name for row in self.asked}
        return tuple(sorted((MODALITIES[name] for name in names), key=_lead))

    def has(self, name: str) -> bool:
        """Whether a modality was asked for."""
        return any(row.name == name for row in self.asked)

    def labels(self, modality: Modality) -> tuple[str, ...]:
        """Return the bands of a modality that are read, in its order."""
        wanted = set(self.bands.get(modality.name, modality.bands))
        if not self.has(modality.name):
            wanted = set()
        if modality.name == "S2L2A":
            wanted.update(*(_DERIVED_BANDS[row.name] for row in self.asked if row.name in DERIVED))
        return tuple(band for band in modality.bands if band in wanted)

    def find(
        self, modality: Modality, area: Any, window: DatetimeQuery | None = None
    ) -> list[ItemBands]:
        """Search for one modality; a static layer at any time."""
        filters = self.filters
        if modality is not self.read[0] and filters.ids is not None:
            # Ids of scenes name no radar pass and no map, unless they do.
            try:
                return self._find(modality, area, window, filters)
            except ValueError:
                filters = replace(filters, ids=None)
        return self._find(modality, area, window, filters)

    def _find(
        self, modality: Modality, area: Any, window: DatetimeQuery | None, filters: Filters
    ) -> list[ItemBands]:
        return find_bands(
            self.catalog,
            modality,
            area=area,
            datetime=None if modality.temporal == "static" else window or self.datetime,
            filters=filters,
            bands=self.labels(modality),
            skips_bad_items=self.skips_bad_items,
        )

    def tolerance(self, modality: Modality) -> timedelta:
        """Return how far a scene may be from the date that it is paired to."""
        # Both optical levels show one acquisition; another day's would be another scene.
        return self.pair_within if modality.units == "dB" else _SAME_PASS

    def window(self, modality: Modality, times: Sequence[Moment]) -> DatetimeQuery:
        """Return when to search for what is paired to a time axis."""
        if modality.temporal == "annual":
            first, last = min(times).year, max(times).year
            if self.lulc_year == "nearest":
                first, last = first - _MOST_YEARS_APART, last + _MOST_YEARS_APART
            elif self.lulc_year is not None:
                first = last = int(self.lulc_year)
            return Moment(first, 1, 1, tzinfo=UTC), Moment(last, 12, 31, 23, 59, 59, tzinfo=UTC)
        reach = self.tolerance(modality)
        return min(times) - reach, max(times) + reach

    def method(self, source: ItemBands) -> str:
        """Return how an item is resampled: as asked, as its row says, or by its unit."""
        modality = source.modality
        if (asked := self.resampling.get(modality.name)) is not None:
            return asked
        if source.row is not None and source.row.modality == modality.name:
            return source.row.resampling
        return "bilinear" if modality.dtype == "float32" else "nearest"


def check_modalities(names: Sequence[str]) -> tuple[Modality, ...]:
    """Return the rows of the modalities, those that lead the time axis first, derived ones last.

    Raises
    ------
    ValueError
        If there is none, or one that is unknown or not in catalogs.
    """
    rows = [find_modality(name) for name in ([names] if isinstance(names, str) else names)]
    known = (*LOADABLE, *DERIVED)
    if not rows:
        raise ValueError(f"modalities is empty: name some of {', '.join(known)}.")
    for row in rows:
        if row.name not in known:
            raise ValueError(
                f"{row.name} is not read from items: load_cube reads {', '.join(known)}."
            )
    return tuple(sorted(dict.fromkeys(rows), key=_lead))


def as_catalog(source: Any) -> Catalog:
    """Return a catalog of what a user may hand over: a catalog, its address, a client, or items.

    Raises
    ------
    ValueError
        If it is something else.
    """
    if isinstance(source, str | Path | pystac_client.Client):
        return open_catalog(source)
    if isinstance(source, pystac.Catalog):
        return StaticCatalog(f"Catalog {source.id!r}", tuple(source.get_items(recursive=True)))
    if hasattr(source, "search_items"):
        return cast("Catalog", source)
    if isinstance(source, pystac_client.ItemSearch):
        source = source.items()
    if isinstance(source, Mapping):
        try:
            source = tuple(pystac.ItemCollection.from_dict(dict(source)))
        except (pystac.STACError, pystac.STACTypeError, KeyError, TypeError) as error:
            raise ValueError(
                f"The given mapping is no STAC item collection ({error!r})."
            ) from error
    items = tuple(source) if isinstance(source, Iterable) else (source,)
    for item in items:
        if not isinstance(item, pystac.Item):
            raise ValueError(  # noqa: TRY004
                f"Expected a catalog, its path or URL, or pystac items, got {type(item).__name__}."
            )
    return StaticCatalog("The given list", items)


def band_label(name: str) -> str:
    """Return the label of a band, such as "B04", that is given by it or by a common name."""
    return _COMMON_NAMES.get(name.lower(), name.upper())


def check_chunks(chunks: Any) -> dict[str, int]:
    """Return the chunk lengths of time, y and x, with their defaults.

    Raises
    ------
    ValueError
        If another dimension is named, or a length is none.
    """
    known = {"time": 1, **DEFAULT_CHUNKS_PX}
    given = {} if chunks is None else chunks
    if not isinstance(given, Mapping) or not all(
        name in known and isinstance(n, Integral) and (n == -1 or int(n) > 0)
        for name, n in given.items()
    ):
        raise ValueError(
            f"chunks maps time, y and x to lengths in pixels (-1 for all), such as "
            f"{{'y': 896, 'x': 896}}, got {chunks!r}."
        )
    return known | {name: int(n) for name, n in given.items()}


def _lead(modality: Modality) -> tuple[bool, int, int]:
    order = ("instant", "annual", "static")
    places = (*LOADABLE, *DERIVED)
    is_derived = modality.name in DERIVED
    return is_derived, order.index(modality.temporal), places.index(modality.name)


def _check_asked(what: str, name: str, names: Sequence[str]) -> None:
    if name not in names:
        raise ValueError(f"{what} names {name}; the modalities are {', '.join(names)}.")


def _check_bands(
    bands: Mapping[str, Sequence[str]], names: Sequence[str]
) -> dict[str, tuple[str, ...]]:
    """Return labels of bands, also for those given by their common names."""
    checked = {}
    for name, wanted in bands.items():
        _check_asked("bands", name, names)
        if isinstance(wanted, str):
            raise ValueError(f"bands of {name} is a list: give [{wanted!r}].")  # noqa: TRY004
        known = MODALITIES[name].bands
        labels = [band_label(str(band)) for band in wanted]
        unknown = [str(b) for b, label in zip(wanted, labels, strict=True) if label not in known]
        if unknown or not labels:
            raise ValueError(
                f"bands of {name}: {', '.join(unknown) or 'none'} given; it has {', '.join(known)}."
            )
        checked[name] = tuple(label for label in known if label in labels)
    return checked
