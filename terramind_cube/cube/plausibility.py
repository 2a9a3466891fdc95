"""Whether the pixels of a cube can be what their metadata say; never asked while a lazy cube is built.

Providers' metadata are wrong at times, and arrays come from anywhere: reflectance in 0..1, flags of
an offset that was not taken off, backscatter in another unit, fill values that nobody declares. A
sample of each date tells. What cannot be at all is refused, what looks wrong is told, and single
pixels that can be nothing are nodata.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from terramind_cube.cube.layers import Layer, find_layers, noted_values
from terramind_cube.modalities import IMPOSSIBLE_DN, LOWEST_DN, LULC_CLASSES, MODALITIES
from terramind_cube.stac.calibration import FIRST_BASELINE_WITH_OFFSET

if TYPE_CHECKING:
    from collections.abc import Callable

    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["POSSIBLE", "Finding", "Scene", "find_implausible", "judge", "list_scenes"]

# Water and shade are nearly black in the short-wave infrared: a scene in which no pixel of any band
# is darker than this still has the offset of 1000, unless all of it is as bright as clouds.
_DARKEST_DN = (950, 2000)
# An offset that is taken off twice leaves most of the visible bands at the smallest valid number.
# Over water the others are there, too.
_CLAMPED_SHARE = 0.3
_VISIBLE = ("B02", "B03", "B04")
_NEGATIVE_SHARE = 0.2
_MANY_IMPOSSIBLE = 0.01
_BACKSCATTER_DB = (-40.0, 10.0)
_BRIGHTEST, _BRIGHTEST_PERCENT = 2.0, 130.0  # of reflectance, with room for glint
_ENOUGH_PX = 1000
_ENOUGH_NUMBERS = 100
_OPTICAL = ("S2L2A", "S2L1C")

POSSIBLE: dict[str, tuple[float, float]] = {
    **dict.fromkeys(_OPTICAL, (LOWEST_DN, IMPOSSIBLE_DN - 1)),
    "S1RTC": (-200, np.inf),
    "S1GRD": (-200, np.inf),
    "DEM": MODALITIES["DEM"].valid_range or (-np.inf, np.inf),
    "NDVI": (-1000, np.inf),
}
"""Least and greatest number that a pixel can have, whatever the scene, by modality.

Others are saturated or wrapped, heights below the lowest land and above the highest, and fill values
such as -9999 that nobody declares.
"""


@dataclass(frozen=True)
class Scene:
    """What is known of one date of a layer before its pixels are seen.

    Attributes
    ----------
    modality : str
    date : str
        Day, ISO 8601; empty for a static layer.
    may_have_offset : bool
        Whether Sentinel-2's offset of 1000 can be left in the pixels unknown: not in products before
        baseline 04.00, and not where reading took it off, or noted that it is still there.
    visible : tuple of int
        Places of the bands of visible light.
    """

    modality: str
    date: str = ""
    may_have_offset: bool = True
    visible: tuple[int, ...] = ()

    def __str__(self) -> str:
        return f"{self.modality} of {self.date}" if self.date else self.modality


@dataclass(frozen=True)
class Finding:
    """What looks wrong in a scene.

    Attributes
    ----------
    scene : Scene
    kind : str
        Equal for findings of the same kind.
    text : str
        A sentence that names the scene.
    is_certain : bool
        Whether it cannot be right, so that generating from it is refused.
    """

    scene: Scene
    kind: str
    text: str
    is_certain: bool = False


def find_implausible(cube: xr.Dataset, *, window_px: int = 512) -> list[str]:
    """Return what looks wrong in a window in the middle of each date.

    Parameters
    ----------
    cube : xarray.Dataset
        See `load_cube`; only what lies in the windows is computed.
    window_px : int
        Side of the window.

    Returns
    -------
    list of str
        One sentence for each thing that looks wrong in a variable and date; empty where all is
        plausible. Pixels under a ``cloud_mask`` do not count.

    Raises
    ------
    ValueError
        If the window is not positive.
    """
    if window_px < 1:
        raise ValueError(f"window_px is a number of pixels, at least 1, got {window_px}.")
    middle = {dim: _middle(cube.sizes[dim], window_px) for dim in ("y", "x")}
    found = []
    for name, data in find_layers(cube).items():
        if data.dtype.kind not in "iuf":
            found.append(f"{name}: its pixels are {data.dtype}, no real numbers.")
            continue
        window = data.isel(middle)
        if "cloud_mask" in cube.data_vars and name in _OPTICAL:
            # Clouds are bright in all bands, as an offset is.
            is_seen = ~cube["cloud_mask"].isel(middle)
            window = window.where(is_seen, np.zeros((), data.dtype))
        for place, scene in enumerate(list_scenes(Layer(MODALITIES[name], data, ()))):
            one = window.isel(time=place) if "time" in window.dims else window
            found += [finding.text for finding in judge(scene, one.values)]
    return found


def _middle(size: int, length: int) -> slice:
    start = max((size - length) // 2, 0)
    return slice(start, min(start + length, size))


def list_scenes(layer: Layer) -> list[Scene]:
    """Return what is known of each date of a layer, of a static one once; no pixel is computed."""
    name, coords = layer.modality.name, layer.data.coords
    if layer.modality.temporal == "static" and layer.is_static:
        return [Scene(name)]
    count = 1 if layer.is_static else layer.data.sizes["time"]

    def known(what: str, default: float) -> NDArray[np.float64]:
        coordinate = coords.get(f"{name}_{what}")
        if coordinate is None or not set(coordinate.dims) <= {"time"}:
            return np.full(count, default)
        return np.broadcast_to(noted_values(coordinate).astype(np.float64), (count,))

    dates = [""] * count
    if "time" in coords and coords["time"].dtype.kind == "M":
        days = np.atleast_1d(noted_values(coords["time"])).astype("datetime64[D]")
        dates = days.astype(str).tolist()
    is_old = known("baseline", np.nan) < FIRST_BASELINE_WITH_OFFSET
    is_noted = (known("offset", 0) != 0) | (known("offset_left", 0) != 0)
    names = layer.modality.bands
    bands = [names[band] for band in layer.bands or range(len(names))]
    visible = tuple(bands.index(band) for band in _VISIBLE if band in bands)
    return [
        Scene(name, date, bool(may_have), visible)
        for date, may_have in zip(dates, ~(is_old | is_noted), strict=True)
    ]


def judge(scene: Scene, pixels: NDArray[Any]) -> list[Finding]:
    """Return what looks wrong in the pixels of a scene, (band, y, x) or (y, x)."""
    if scene.modality not in MODALITIES:
        return []  # nobody knows what is possible
    values = _valid(scene.modality, pixels)
    if values.size < max(1, min(_ENOUGH_NUMBERS, pixels.size)):
        return []
    if text := _wrong_unit(scene.modality, values):
        return [Finding(scene, "unit", f"{scene}: {text}", is_certain=True)]
    found = []
    low, high = POSSIBLE.get(scene.modality, (-np.inf, np.inf))
    is_possible = ((low <= values) & (values <= high)).all(axis=0)
    if (share := 1 - float(is_possible.mean())) > 0 and (
        text := _impossible(scene.modality, values, share)
    ):
        found.append(Finding(scene, "impossible", f"{scene}: {text}"))
    values = values[:, is_possible]
    test = _TESTS.get(scene.modality)
    if test is not None and values.size >= min(_ENOUGH_PX, pixels.size) > 0:
        text = test(values, scene)
        found += [Finding(scene, "value", f"{scene}: {text}")] if text else []
    return found


def _valid(name: str, pixels: NDArray[Any]) -> NDArray[Any]:
    """Return the values of pixels that are valid in all bands: (band, pixel)."""
    planes = pixels.reshape(-1, *pixels.shape[-2:])
    fill = MODALITIES[name].fill_value
    is_valid = np.isfinite(planes)
    if not np.isnan(fill):
        is_valid &= planes != fill
    return np.asarray(planes[:, is_valid.all(axis=0)])


def _wrong_unit(name: str, values: NDArray[Any]) -> str:
    """Say in which unit values seem to be, if they cannot be in that of a cube."""
    if name not in (*_OPTICAL, "RGB", "NDVI") or values.min() == values.max():
        return ""  # a constant may be an undeclared fill value
    usable = values[values >= LOWEST_DN]
    usable = usable if usable.size else values
    bright, middle = (float(number) for number in np.quantile(usable, (0.99, 0.5)))
    if name in _OPTICAL and bright < 0:
        return (
            f"its values are negative (median {middle:.4g}), which no reflectance is: give "
            "reflectance x 10000, without any offset."
        )
    multiply = f"multiply it, as in cube['{name}'] = cube['{name}']"
    said = f"its values (median {middle:.3g}, 99 % of them up to {bright:.3g}) are"
    if name == "NDVI":
        text = f"{said} an index x 10000, where -1 to 1 is expected: {multiply} * 0.0001."
        return text if bright > _BRIGHTEST_PERCENT else ""
    # Digital numbers are whole; means of some are not, but never as small as this.
    if usable.dtype.kind != "f" or float((usable != np.rint(usable)).mean()) < 0.5:
        return ""
    if name == "RGB":
        text = f"{said} colours in 0 to 1, where 0 to 255 are expected: {multiply} * 255."
        return text if bright <= 1 else ""
    if bright <= _BRIGHTEST_PERCENT and float((usable < 0).mean()) > _NEGATIVE_SHARE:
        return (
            f"{said} standardised already, where reflectance x 10000 is expected: give the pixels as "
            "they were before."
        )
    if bright <= _BRIGHTEST:
        return (
            f"{said} reflectance in 0 to 1, where reflectance x 10000 is expected: "
            f"{multiply} * 10000."
        )
    if bright <= _BRIGHTEST_PERCENT:
        return (
            f"{said} reflectance in percent, where reflectance x 10000 is expected: {multiply} * 100. "
            "(Means of a very dark scene are taken as they are after .round().astype('uint16').)"
        )
    return ""


def _impossible(name: str, values: NDArray[Any], share: float) -> str:
    """Say what pixels that can be nothing seem to be; they count as nodata."""
    low, high = POSSIBLE[name]
    smallest, largest = float(values.min()), float(values.max())
    if name == "DEM":
        return (
            f"values from {smallest:g} to {largest:g}, where {low:g} to {high:g} are possible: "
            f"{_percent(share)} of the pixels are void, and count as nodata."
        )
    if smallest < low:
        return (
            f"values down to {smallest:g}: fill values that nobody declares, in {_percent(share)} of the "
            "pixels; they count as nodata."
        )
    if share < _MANY_IMPOSSIBLE:
        return ""
    return (
        f"{_percent(share)} of the pixels have digital numbers of {IMPOSSIBLE_DN} or more, up to "
        f"{largest:g}, which no reflectance is: 65535 is saturated, and dark pixels wrap around where "
        "an offset of 1000 was taken off below zero. They count as nodata."
    )


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "less than 1%"


def _reflectance(values: NDArray[Any], scene: Scene) -> str:
    if (values == values[:, :1]).all():
        return ""  # bands of one number each are no scene, so that nothing of it is expected
    darkest = float(np.quantile(values, 0.001))
    low, high = _DARKEST_DN
    if scene.may_have_offset and low <= darkest <= high:
        return (
            f"no band has pixels darker than {darkest / 1e4:.3f}: the offset of 1000 DN seems to be "
            'still there. Its metadata may be wrong; see s2_offset="keep" and "remove".'
        )
    negative = float((values < 0).mean())
    if negative > _NEGATIVE_SHARE:
        return (
            f"{negative:.0%} of the values are negative: the offset of 1000 DN seems to be taken off "
            'twice. Its metadata may be wrong; see s2_offset="keep".'
        )
    shares = (values == 1).mean(axis=1)[list(scene.visible) or slice(None)]
    clamped = float(shares.min())
    if clamped > _CLAMPED_SHARE:
        return (
            f"{clamped:.0%} of the pixels of all visible bands are at the smallest valid number: the "
            'offset of 1000 DN seems to be taken off twice. Its metadata may be wrong; see s2_offset="keep".'
        )
    return ""


def _backscatter(values: NDArray[Any], scene: Scene) -> str:
    low, high = _BACKSCATTER_DB
    middle = float(np.median(values))
    if not low <= middle <= high or not (values < 0).any():
        return (
            f"the median is {middle:.3g} dB: it seems to be linear power or digital numbers. Of linear "
            'power take 10 * np.log10(power); of items say radar_unit="linear" to load_cube.'
        )
    return ""


def _range(values: NDArray[Any], scene: Scene) -> str:
    low, high = MODALITIES[scene.modality].valid_range or (-np.inf, np.inf)
    smallest, largest = float(values.min()), float(values.max())
    if low <= smallest <= largest <= high:
        return ""
    return f"values from {smallest:g} to {largest:g}, where {low:g} to {high:g} are possible."


def _classes(values: NDArray[Any], scene: Scene) -> str:
    top = len(LULC_CLASSES) - 1
    largest = int(values.max(initial=0))
    if largest <= top:
        return ""
    return f"class {largest}, where TerraMind has 0 to {top}: another provider's legend?"


_TESTS: dict[str, Callable[[NDArray[Any], Scene], str]] = {
    "S2L2A": _reflectance,
    "S2L1C": _reflectance,
    "RGB": _range,
    "S1RTC": _backscatter,
    "S1GRD": _backscatter,
    "DEM": _range,
    "NDVI": _range,
    "LULC": _classes,
}
