"""What the numbers of items mean where their metadata do not say: the files, or the user, are asked.

That happens once, while a cube is built, for the items that are used, so that all chunks agree and
the answer stands in the attributes. Of many alike files three are looked at.
"""

from __future__ import annotations

import functools
import math
import warnings
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
from rasterio.windows import Window

from terramind_cube.cube.assets import Reading, is_remote, with_dataset
from terramind_cube.cube.failures import AssetError
from terramind_cube.cube.radiometry import LOWEST_DB, Radiometry
from terramind_cube.cube.reading import BandSource
from terramind_cube.stac.backscatter import RADAR_UNITS
from terramind_cube.stac.calibration import offset_in_dn, processing_baseline
from terramind_cube.stac.legends import LEGENDS

if TYPE_CHECKING:
    from collections.abc import Callable, Hashable, Iterable, Sequence

    import rasterio
    from numpy.typing import NDArray

    from terramind_cube.cube.pairing import TimeStep
    from terramind_cube.cube.request import CubeRequest
    from terramind_cube.stac.bands import BandLocation, ItemBands

__all__ = ["describe_units", "settle_units"]

_FEW_FILES = 3
_SAMPLE_PX = 256
_SMALL_FILE_PX = 2048**2
_ENOUGH_PX = 64
# No backscatter is as high: what lies beyond are raw numbers.
_LARGEST_POWER = 10.0
# Power is never negative (noise that was taken off leaves a few), dB of land mostly.
_POWER_SHARE, _DECIBEL_SHARE = 0.01, 0.5


def settle_units(
    steps: Sequence[TimeStep], request: CubeRequest, reading: Reading
) -> list[TimeStep]:
    """Return steps whose items all have a unit, an offset and a legend, as far as they need one.

    Parameters
    ----------
    steps : sequence of TimeStep
        Of one modality.
    request : CubeRequest
    reading : Reading
        How files are read.

    Returns
    -------
    list of TimeStep

    Raises
    ------
    ValueError
        If neither metadata nor pixels tell the unit of backscatter, or the legend of land cover:
        the message names the parameter that does.
    AssetError
        If a file must be looked at and cannot be read.

    Warns
    -----
    UserWarning
        If backscatter is converted because its pixels look like power.
    """
    sources = {id(source): source for step in steps for source in step.sources}
    if not sources:
        return list(steps)
    modality = next(iter(sources.values())).modality
    settled: dict[int, ItemBands] = {}
    if modality.units == "dB":
        settled = _with_unit(sources.values(), request, reading)
    elif modality.units == "1e-4":
        settled = _with_offset(sources.values(), reading)
    elif modality.kind == "classes":
        settled = {id(s): _with_legend(s, request) for s in sources.values() if s.legend is None}
    return [
        replace(step, sources=tuple(settled.get(id(source), source) for source in step.sources))
        for step in steps
    ]


def describe_units(sources: Iterable[ItemBands]) -> str:
    """Say in which units or legends files are, and who tells it: ``"linear (provider)"``."""
    told = []
    for source in sources:
        if source.unit is not None:
            told.append(f"{source.unit} ({source.told_by})")
        elif source.legend is not None:
            names = [name for name, legend in LEGENDS.items() if legend == source.legend]
            told.append(f"{names[0] if names else 'own codes'} ({source.told_by})")
    return "; ".join(sorted(set(told)))


def _with_legend(source: ItemBands, request: CubeRequest) -> ItemBands:
    if request.lulc_legend is None:
        why = f"has the class {source.unknown!r}" if source.unknown else "does not list its classes"
        raise ValueError(
            f"Item {source.item.id!r} of collection {source.item.collection_id!r} {why}: the codes "
            "of land cover differ between maps. Give lulc_legend: "
            f"{', '.join(map(repr, LEGENDS))}, or a mapping from its codes to TerraMind's classes; "
            "or list classes in classification:classes of its asset."
        )
    return replace(source, legend=request.lulc_legend, told_by="lulc_legend")


def _with_unit(
    sources: Iterable[ItemBands], request: CubeRequest, reading: Reading
) -> dict[int, ItemBands]:
    silent = [source for source in sources if source.unit is None]
    if request.radar_unit is not None:
        unit = request.radar_unit
        return {id(s): replace(s, unit=unit, told_by="radar_unit") for s in silent}
    for source in silent:
        if source.unknown:
            raise ValueError(
                f"Item {source.item.id!r} of collection {source.item.collection_id!r} declares the "
                f"unit {source.unknown!r} for its backscatter, which is not understood: give "
                f"radar_unit, one of {', '.join(map(repr, RADAR_UNITS))}."
            )
    settled: dict[int, ItemBands] = {}
    for group in _groups(silent, lambda source: source.item.collection_id or ""):
        samples = _sample(group, lambda s: _ask_pixels(s, reading))
        units = {key: _unit_of(values) for key, values in samples.items()}
        known = sorted({unit for unit in units.values() if unit is not None})
        if len(known) > 1:  # a mixture: each tells for itself
            rest = [source for source in group if id(source) not in samples]
            samples |= {id(source): _ask_pixels(source, reading) for source in rest}
            units = {key: _unit_of(values) for key, values in samples.items()}
        shared = known[0] if len(known) == 1 else None
        for source in group:
            decided = units.get(id(source)) or shared
            if decided is None and samples.get(id(source)) is None:
                continue  # its pixels stay nodata, whoever reads it
            if decided is None:
                raise ValueError(_undecided(source, samples[id(source)]))
            settled[id(source)] = replace(source, unit=decided, told_by="pixels")
        if power := [s for s in group if units.get(id(s), shared) == "linear"]:
            _tell_decision(power, samples)
    return settled


def _with_offset(sources: Iterable[ItemBands], reading: Reading) -> dict[int, ItemBands]:
    """Let the tags of files tell the offset where items say nothing about their numbers.

    A known provider's files are not opened for that: what their tags say is compared when they are
    read, as it is with all files.
    """
    silent = [s for s in sources if s.offset.told_by in ("baseline", "") and not _is_known(s)]
    settled: dict[int, ItemBands] = {}
    for group in _groups(
        silent, lambda s: (s.item.collection_id or "", processing_baseline(s.item) or 0.0)
    ):
        near = [source for source in group if not is_remote(source.bands[0].href)]
        far = [source for source in group if is_remote(source.bands[0].href)]
        tags = {id(source): _ask_tags(source, reading) for source in near}
        sampled = _sample(far, lambda s: _ask_tags(s, reading))
        told = set(sampled.values())
        for source in far:
            alike = next(iter(told)) if len(told) == 1 else None
            tags[id(source)] = sampled.get(id(source), alike)
        for source in group:
            if (dn := tags[id(source)]) is not None:
                offset = source.offset._replace(dn=dn, told_by="tags", consistent_dn=(dn,))
                settled[id(source)] = replace(source, offset=offset)
    return settled


def _is_known(source: ItemBands) -> bool:
    """Whether files are those of a provider, remote and many, whose tags are known to be silent."""
    row = source.row
    is_providers = row is not None and row.collection == source.item.collection_id
    return is_providers and is_remote(source.bands[0].href)


def _groups(
    sources: Iterable[ItemBands], key: Callable[[ItemBands], Hashable]
) -> list[list[ItemBands]]:
    found: dict[Hashable, list[ItemBands]] = {}
    for source in sources:
        found.setdefault(key(source), []).append(source)
    return list(found.values())


def _sample(group: Sequence[ItemBands], ask: Callable[[ItemBands], Any]) -> dict[int, Any]:
    """Ask the first, the middle and the last of a group."""
    places = list(range(len(group)))
    if len(group) > _FEW_FILES:
        places = [0, len(group) // 2, len(group) - 1]
    return {id(group[place]): ask(group[place]) for place in places}


def _ask(
    source: ItemBands,
    band: BandLocation,
    reading: Reading,
    action: Callable[[rasterio.DatasetReader], Any],
) -> Any:
    place = BandSource(source.item.id, band, Radiometry("plain", "float32", math.nan), "nearest")
    return with_dataset(place, reading, action)


def _ask_tags(source: ItemBands, reading: Reading) -> int | None:
    """Return the offset that the tags of a file name; None where they do not, or it is unreadable.

    Whatever is wrong with the file is said when it is read.
    """
    band = source.bands[-1]

    def read(dataset: rasterio.DatasetReader) -> int | None:
        index = band.index - 1
        return offset_in_dn(dataset.scales[index], dataset.offsets[index])

    hasty = replace(reading, options=replace(reading.options, retries=0))
    try:
        offset: int | None = _ask(source, band, hasty, read)
    except AssetError:
        return None
    return offset


def _ask_pixels(source: ItemBands, reading: Reading) -> NDArray[np.float64] | None:
    """Return some pixels of an item; None where no band can be read and they may be nodata."""
    for band in reversed(source.bands):  # cross-polarised backscatter is the lower one
        read = functools.partial(_backscatter, source=source, index=band.index)
        try:
            values: NDArray[np.float64] = _ask(source, band, reading, read)
        except AssetError:
            if reading.on_error == "raise":
                raise
        else:
            return values
    return None


def _backscatter(
    dataset: rasterio.DatasetReader, source: ItemBands, index: int
) -> NDArray[np.float64]:
    """Return some valid pixels of a radar band, scaled."""
    parts = [dataset.read(index, window=window, out_shape=shape, masked=True).compressed()
             for window, shape in _places(dataset, index)]  # fmt: skip
    scale, offset = source.scale or (dataset.scales[index - 1], dataset.offsets[index - 1])
    values = np.concatenate(parts).astype(np.float64)
    if source.nodata is not None:
        values = values[values != source.nodata]
    values = values * scale + offset
    return np.asarray(values[np.isfinite(values) & (values > LOWEST_DB) & (values != 0)])


def _places(dataset: rasterio.DatasetReader, index: int) -> list[tuple[Window, tuple[int, int]]]:
    """Return windows that are read, and to which shape: all of a file that has an overview."""
    height, width = dataset.shape
    if dataset.overviews(index) or height * width <= _SMALL_FILE_PX:
        return [(Window(0, 0, width, height), (min(height, _SAMPLE_PX), min(width, _SAMPLE_PX)))]
    size = _SAMPLE_PX // 4
    rows, columns = ([length * step // 8 for step in (1, 3, 4, 5, 7)] for length in dataset.shape)
    return [(Window(x - size // 2, y - size // 2, size, size), (size, size))
            for y in rows for x in columns]  # fmt: skip


def _unit_of(values: NDArray[np.float64] | None) -> str | None:
    """Return the unit that pixels can have alone, None where they tell nothing."""
    if values is None or values.size < _ENOUGH_PX:
        return None
    negative, middle = float((values < 0).mean()), float(np.median(values))
    if negative < _POWER_SHARE and middle < _LARGEST_POWER:
        return "linear"
    return "dB" if negative > _DECIBEL_SHARE else None


def _describe(values: NDArray[np.float64]) -> str:
    if values.size < _ENOUGH_PX:
        return "hardly any valid pixel in it"
    return f"median {np.median(values):.3g}, {(values < 0).mean():.0%} below zero"


def _undecided(source: ItemBands, values: NDArray[np.float64]) -> str:
    return (
        f"Item {source.item.id!r} of collection {source.item.collection_id!r} declares no unit of "
        f"its backscatter, and its pixels do not tell it ({_describe(values)}): give radar_unit, one "
        f"of {', '.join(map(repr, RADAR_UNITS))}, or declare unit in raster:bands. Uncalibrated "
        "digital numbers are no backscatter."
    )


def _tell_decision(group: Sequence[ItemBands], samples: dict[int, Any]) -> None:
    """Say that pixels will be converted because of what they look like; dB stay as they are."""
    first = next(source for source in group if samples.get(id(source)) is not None)
    others = f" and {len(group) - 1} more" if len(group) > 1 else ""
    warnings.warn(
        f"{first.modality.name} of item {first.item.id!r}{others} (collection "
        f"{first.item.collection_id!r}) declares no unit of its backscatter: by its pixels "
        f"({_describe(samples[id(first)])}) it is linear power, which becomes dB. Say so with "
        'radar_unit="linear" if that is right; amplitudes look alike and need '
        'radar_unit="amplitude".',
        UserWarning,
        stacklevel=4,
    )
