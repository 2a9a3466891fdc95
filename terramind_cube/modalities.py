"""The table of TerraMind's modalities: bands, units, statistics, keys, vocabularies, classes.

Everything that is a fact about the data rather than about a network stands here, once, as frozen
rows. Sources: arXiv 2504.11171 (the model), the register of the released v1 checkpoints (keys,
statistics, vocabularies) and the card of the released LULC tokenizer (classes).
"""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

__all__ = [
    "CAPTIONS",
    "IMPOSSIBLE_DN",
    "LOWEST_DN",
    "LULC_CLASSES",
    "MODALITIES",
    "V1_STATISTICS",
    "LandCoverClass",
    "Modality",
    "Statistics",
    "find_modality",
    "nearest_name",
    "standardize",
    "unstandardize",
]

IMPOSSIBLE_DN = 64000
"""Sentinel-2's digital numbers from here on are no reflectance.

65535 means "saturated" (Sentinel-2 Products Specification Document, special values), and where
an offset of 1000 was taken off in 16 bits without a floor, pixels darker than it wrapped from
65535 downwards, and saturated ones became 64535.
"""
LOWEST_DN = -2000
"""Signed digital numbers below are no reflectance but fill values, such as -9999 and -32768."""

_FSQ_IMAGE = (8, 8, 8, 6, 5)  # 15360 codes
_FSQ_LULC = (7, 5, 5, 5, 5)  # 4375 codes


@dataclass(frozen=True)
class Statistics:
    """Mean and standard deviation of each band, in the modality's unit."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std):
            raise ValueError(f"{len(self.mean)} means but {len(self.std)} standard deviations")
        if any(std <= 0 for std in self.std):
            raise ValueError(f"standard deviations must be positive, got {self.std}")


@dataclass(frozen=True)
class Modality:
    """One row of the table.

    Attributes
    ----------
    name : str
        Public name, which is also the name of the variable in a cube.
    kind : {"image", "classes", "sequence"}
        Continuous raster, raster of class codes, or text-like sequence.
    bands : tuple of str
        Band labels in the order of the model's channels; empty for a sequence.
    units : str
        Unit of the values in a cube (CF spelling).
    dtype : str
        NumPy dtype of the variable in a cube.
    fill_value : float
        Value of invalid pixels in a cube (NaN for floats).
    valid_range : tuple of float or None
        Physically possible values, inclusive.
    raw_key : str or None
        Key of the pixel embedding in the checkpoints; None where pixels are no input.
    token_key : str or None
        Key of the token embedding; None where the model knows no tokens of it.
    vocabulary : int or None
        Number of token ids.
    fsq_levels : tuple of int or None
        Levels of the finite scalar quantizer, least significant first.
    temporal : {"instant", "annual", "static"}
        How the variable relates to a cube's time axis.
    max_length : int or None
        Tokens of a sequence.
    """

    name: str
    kind: Literal["image", "classes", "sequence"]
    bands: tuple[str, ...]
    units: str
    dtype: str
    fill_value: float
    valid_range: tuple[float, float] | None
    raw_key: str | None
    token_key: str | None
    vocabulary: int | None
    fsq_levels: tuple[int, ...] | None
    temporal: Literal["instant", "annual", "static"] = "instant"
    max_length: int | None = None

    @property
    def band_dim(self) -> str | None:
        """Name of the band dimension in a cube, None for a single-band variable."""
        return f"{self.name}_band" if len(self.bands) > 1 else None

    @property
    def is_raw_input(self) -> bool:
        """Whether the model takes its pixels."""
        return self.raw_key is not None

    @property
    def is_output(self) -> bool:
        """Whether the model generates it."""
        return self.token_key is not None


_S2L2A_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
_S2L1C_BANDS = (*_S2L2A_BANDS[:10], "B10", *_S2L2A_BANDS[10:])
_NAN = float("nan")


def _optical(name: str, bands: tuple[str, ...], raw_key: str, token_key: str | None) -> Modality:
    return Modality(
        name, "image", bands, "1e-4", "uint16", 0, (1, 65535), raw_key, token_key,
        15360 if token_key else None, _FSQ_IMAGE if token_key else None,
    )  # fmt: skip


def _backscatter(name: str, key: str) -> Modality:
    return Modality(
        name, "image", ("VV", "VH"), "dB", "float32", _NAN, (-60.0, 35.0),
        f"untok_{key}@224", f"tok_{key}@224", 15360, _FSQ_IMAGE,
    )  # fmt: skip


_ROWS = (
    _optical("S2L1C", _S2L1C_BANDS, "untok_sen2l1c@224", None),
    _optical("S2L2A", _S2L2A_BANDS, "untok_sen2l2a@224", "tok_sen2l2a@224"),
    Modality(
        "RGB", "image", ("RED", "GREEN", "BLUE"), "1", "uint8", 0, (0, 255),
        "untok_sen2rgb@224", None, None, None,
    ),
    _backscatter("S1GRD", "sen1grd"),
    _backscatter("S1RTC", "sen1rtc"),
    Modality(
        "DEM", "image", ("DEM",), "m", "float32", _NAN, (-500.0, 9000.0),
        "untok_dem@224", "tok_dem@224", 15360, _FSQ_IMAGE, "static",
    ),
    Modality(
        "LULC", "classes", ("LULC",), "1", "uint8", 0, (0, 9),
        None, "tok_lulc@224", 4375, _FSQ_LULC, "annual",
    ),
    Modality(
        "NDVI", "image", ("NDVI",), "1", "float32", _NAN, (-1.0, 1.0),
        None, "tok_ndvi@224", 15360, _FSQ_IMAGE,
    ),
    Modality(
        "Coordinates", "sequence", (), "degrees", "float32", _NAN, (-180.0, 180.0),
        None, "coords", 30000, None, "static", 4,
    ),
)  # fmt: skip

CAPTIONS = Modality(
    "Captions", "sequence", (), "1", "object", _NAN, None,
    None, "caption", 30000, None, "instant", 256,
)  # fmt: skip
"""Captions: known to the unreleased v0.1 model only, never among the nine of v1."""

MODALITIES: Mapping[str, Modality] = MappingProxyType({row.name: row for row in _ROWS})
"""The nine modalities of the released v1 models, by public name."""

V1_STATISTICS: Mapping[str, Statistics] = MappingProxyType(
    {
        "S2L1C": Statistics(
            (2357.089, 2137.385, 2018.788, 2082.986, 2295.651, 2854.537, 3122.849, 3040.56,
             3306.481, 1473.847, 506.07, 2472.825, 1838.929),
            (1624.683, 1675.806, 1557.708, 1833.702, 1823.738, 1733.977, 1732.131, 1679.732,
             1727.26, 1024.687, 442.165, 1331.411, 1160.419),
        ),
        "S2L2A": Statistics(
            (1390.458, 1503.317, 1718.197, 1853.91, 2199.1, 2779.975, 2987.011, 3083.234,
             3132.22, 3162.988, 2424.884, 1857.648),
            (2106.761, 2141.107, 2038.973, 2134.138, 2085.321, 1889.926, 1820.257, 1871.918,
             1753.829, 1797.379, 1434.261, 1334.311),
        ),
        "RGB": Statistics((87.271, 80.931, 66.667), (58.767, 47.663, 42.631)),
        "S1GRD": Statistics((-12.599, -20.293), (5.195, 5.890)),
        "S1RTC": Statistics((-10.93, -17.329), (4.391, 4.459)),
        "DEM": Statistics((670.665,), (951.272,)),
        "LULC": Statistics((0.0,), (1.0,)),
        "NDVI": Statistics((0.327,), (0.322,)),
    }
)  # fmt: skip
"""Statistics with which the released v1 checkpoints were trained."""


@dataclass(frozen=True)
class LandCoverClass:
    """One class of TerraMind's land cover.

    Attributes
    ----------
    value : int
        Class code in a cube, 0 to 9.
    name : str
        Name in `flag_meanings` spelling.
    color : str
        Hexadecimal RGB of IBM's published palette.
    provider_value : int
        Code of the same class in the annual map of Impact Observatory and ESRI.
    """

    value: int
    name: str
    color: str
    provider_value: int


LULC_CLASSES: tuple[LandCoverClass, ...] = (
    LandCoverClass(0, "no_data", "#000000", 0),
    LandCoverClass(1, "water", "#3171AD", 1),
    LandCoverClass(2, "trees", "#469C76", 2),
    LandCoverClass(3, "flooded_vegetation", "#83CA70", 4),
    LandCoverClass(4, "crops", "#EAE159", 5),
    LandCoverClass(5, "built", "#C07CB8", 7),
    LandCoverClass(6, "bare", "#C19368", 8),
    LandCoverClass(7, "snow_ice", "#6FB2E4", 9),
    LandCoverClass(8, "clouds", "#F1F1F1", 10),
    LandCoverClass(9, "rangeland", "#C66526", 11),
)


def nearest_name(name: str, known: Iterable[str]) -> str:
    """Return a phrase that offers the closest of `known`, for error messages."""
    choices = list(known)
    by_lower = {choice.lower(): choice for choice in choices}
    close = difflib.get_close_matches(str(name).lower(), by_lower, n=1, cutoff=0.5)
    offer = f"did you mean {by_lower[close[0]]!r}? " if close else ""
    return f"{offer}Known: {', '.join(choices)}"


def find_modality(name: str) -> Modality:
    """Return the row of a public modality name.

    Raises
    ------
    ValueError
        If no modality has this name; the message offers the nearest one.
    """
    if name == CAPTIONS.name:
        return CAPTIONS
    try:
        return MODALITIES[name]
    except KeyError:
        raise ValueError(f"Unknown modality {name!r}: {nearest_name(name, MODALITIES)}.") from None


def standardize(
    modality: str, array: Any, *, statistics: Mapping[str, Statistics] = V1_STATISTICS
) -> Any:
    """Subtract the mean of each band and divide by its standard deviation.

    Parameters
    ----------
    modality : str
        Public name, such as ``"S2L2A"``. LULC is returned unchanged.
    array : numpy.ndarray or torch.Tensor, shape (..., C, H, W)
        Values in the modality's unit, of any dtype. Nodata is not handled here.
    statistics : mapping, optional
        Statistics by modality; those of the released v1 models by default.

    Returns
    -------
    numpy.ndarray or torch.Tensor, float32
        Standardised values, of the library of `array`.

    Raises
    ------
    ValueError
        If the modality is unknown, has no statistics, or the channel axis has another length.
    """
    if modality == "LULC":
        return array
    values, mean, std = _prepared(modality, array, statistics)
    return (values - mean) / std


def unstandardize(
    modality: str, array: Any, *, statistics: Mapping[str, Statistics] = V1_STATISTICS
) -> Any:
    """Inverse of `standardize`: multiply by the standard deviation and add the mean.

    See `standardize` for the parameters; the result is float32 in the modality's unit.
    """
    if modality == "LULC":
        return array
    values, mean, std = _prepared(modality, array, statistics)
    return values * std + mean


def _prepared(
    modality: str, array: Any, statistics: Mapping[str, Statistics]
) -> tuple[Any, Any, Any]:
    """Return values, mean and std as float32 of one array library, the latter (C, 1, 1)."""
    find_modality(modality)
    if modality not in statistics:
        raise ValueError(f"{modality} has no statistics: it is not standardised.")
    row = statistics[modality]
    if array.ndim < 3 or array.shape[-3] != len(row.mean):
        raise ValueError(
            f"{modality} has {len(row.mean)} channels on axis -3, "
            f"got an array of shape {tuple(array.shape)}."
        )
    mean = np.asarray(row.mean, np.float32)[:, None, None]
    std = np.asarray(row.std, np.float32)[:, None, None]
    if isinstance(array, np.ndarray):
        return array.astype(np.float32), mean, std
    # A torch tensor: the float32 copy builds the constants, so that they share its device.
    values = array.float()
    return values, values.new_tensor(mean.tolist()), values.new_tensor(std.tolist())
