"""Reading a band of an item wherever it lies: signatures, time-outs, attempts, and what failed."""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import rasterio
import requests

from terramind_cube.cube.failures import AssetError
from terramind_cube.cube.reading import BandSource, ContradictionError, read_pixels
from terramind_cube.stac.access import find_access, hide_secrets_in_logs, without_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from numpy.typing import NDArray
    from odc.geo.geobox import GeoBox

    from terramind_cube.stac.access import Signer

__all__ = ["OnError", "ReadOptions", "Reading", "fetch", "is_remote", "with_dataset"]

OnError = Literal["raise", "nodata"]

_LONGEST_DELAY_S = 30.0
_PATIENCE_S = 60.0
# Neither waiting nor a new signature helps against these.
_HOPELESS = (404, 410)
_REFUSED = (401, 403)
_FIRST_ERROR = 400

_FAILURES: dict[str, int] = {}
"""How often an address failed in this process."""
_GIVEN_UP: dict[str, float] = {}
"""When all attempts at an address had failed."""
_LOCK = threading.Lock()


@dataclass(frozen=True)
class ReadOptions:
    """How patiently remote files are read.

    Parameters
    ----------
    timeout_s : float
        Longest time of one request, in seconds. A file that does not answer is given up after
        ``(retries + 1) * timeout_s`` and the waits, or three times that in the middle of a read.
    retries : int
        Further attempts at reading a window of a file after one that failed.
    delay_s : float
        Wait before the first of them; it is doubled for each further one.
    gdal : mapping of str to str
        GDAL's configuration options, over those that a provider needs.

    Raises
    ------
    ValueError
        If a number is negative, or the time-out not positive.
    """

    timeout_s: float = 30.0
    retries: int = 4
    delay_s: float = 0.5
    gdal: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not (self.timeout_s > 0 and self.retries >= 0 and self.delay_s >= 0):
            raise ValueError(
                f"ReadOptions need timeout_s > 0, retries >= 0 and delay_s >= 0, got {self}."
            )

    def environment(self) -> dict[str, str]:
        """Return GDAL's options."""
        return {
            "GDAL_HTTP_TIMEOUT": str(self.timeout_s),
            "GDAL_HTTP_CONNECTTIMEOUT": str(self.timeout_s),
            **{str(key): str(value) for key, value in self.gdal.items()},
        }


@dataclass(frozen=True)
class Reading:
    """What all tasks of a cube know about reading.

    Attributes
    ----------
    options : ReadOptions
    sign : callable, optional
        Turns an address into one that may be read now; called before each attempt.
    on_error : {"raise", "nodata"}
        Whether a file that cannot be read stops the computation, or its pixels are nodata.
    failures : str
        Identity of the list of what failed; empty where nothing may fail.
    """

    options: ReadOptions = field(default_factory=ReadOptions)
    sign: Signer | None = None
    on_error: OnError = "raise"
    failures: str = ""


def fetch(source: BandSource, geobox: GeoBox, reading: Reading) -> NDArray[Any]:
    """Return the pixels of a band on a grid, in the unit of a cube.

    Raises
    ------
    AssetError
        Whatever goes wrong, naming item and file.
    """

    def read(dataset: rasterio.DatasetReader) -> NDArray[Any]:
        return read_pixels(dataset, source, geobox)

    pixels: NDArray[Any] = with_dataset(source, reading, read)
    return pixels


def with_dataset(
    source: BandSource, reading: Reading, action: Callable[[rasterio.DatasetReader], Any]
) -> Any:
    """Open the file of a band and do something with it, as often as it takes.

    Raises
    ------
    AssetError
        If all attempts fail, or one in a way that no other would mend.
    """
    place = source.band
    attempts = reading.options.retries + 1 if is_remote(place.href) else 1
    if time.monotonic() - _GIVEN_UP.get(place.href, -math.inf) < _PATIENCE_S:
        attempts = 1  # the other chunks of a file that is gone for now need not wait as long
    reason, wait_s = "", 0.0
    for attempt in range(attempts):
        if attempt:
            own_s = reading.options.delay_s * 2 ** (attempt - 1)
            time.sleep(min(max(own_s, wait_s), _LONGEST_DELAY_S))
        try:
            result = _attempt(source, reading, action)
        except MemoryError:
            raise
        except Exception as error:  # noqa: BLE001  # whatever it is, it concerns this file
            reason, wait_s = _reason(error), getattr(error, "wait_s", 0.0)
            if isinstance(error, ContradictionError | PermissionError | _HopelessError):
                break
        else:
            _GIVEN_UP.pop(place.href, None)
            return result
    else:
        if attempts > 1:
            _GIVEN_UP[place.href] = time.monotonic()
    # Outside the handler: rasterio's errors do not pickle, and would travel as the context.
    href = without_secrets(place.href)
    raise AssetError(href, without_secrets(reason), source.item_id, place.asset)


def is_remote(href: str) -> bool:
    """Whether an address is not a path of this machine."""
    return "://" in href or href.startswith("/vsi")


def _attempt(
    source: BandSource,
    reading: Reading,
    action: Callable[[rasterio.DatasetReader], Any],
) -> Any:
    place = source.band
    if not is_remote(place.href):
        return _open(place.href, action)
    access = find_access(place.href)
    href, options = access.choose(place.href, place.alternate)
    signer = reading.sign or access.signer
    signed = href if signer is None else signer(href)
    with _LOCK:
        failures = _FAILURES.get(signed, 0)
    path, further = _path(signed, failures)
    options = options | reading.options.environment() | further
    hide_secrets_in_logs()
    with rasterio.Env(**options):
        try:
            return _open(path, action)
        except (ContradictionError, MemoryError):
            raise
        except Exception as error:
            with _LOCK:
                _FAILURES[signed] = max(_FAILURES.get(signed, 0), failures + 1)
            status, said, wait_s = _ask(signed, options)
            renew = getattr(signer, "renew", None)
            if status in _REFUSED and renew is not None:
                renew(signed)
            if said:
                is_refused = status in _REFUSED and signer is None
                if is_refused or status in _HOPELESS:
                    raise _HopelessError(said) from error
                raise _ServerError(said, wait_s) from error
            raise


class _HopelessError(OSError):
    """No further attempt would help."""


class _ServerError(OSError):
    """A server that may answer later, after so many seconds at least."""

    def __init__(self, said: str, wait_s: float) -> None:
        super().__init__(said)
        self.wait_s = wait_s


def _ask(href: str, options: Mapping[str, str]) -> tuple[int | None, str, float]:
    """Return the status that a server gives for a file now, what to say of it, and how long to wait.

    GDAL tells it only of some requests: not of one in the middle of a file, for instance.
    """
    if not href.startswith(("http://", "https://")):
        return None, "", 0.0
    headers = {"Range": "bytes=0-0"}
    if header := options.get("GDAL_HTTP_HEADERS"):
        name, _, value = header.partition(":")
        headers[name.strip()] = value.strip()
    limit_s = float(options["GDAL_HTTP_TIMEOUT"])
    try:
        with requests.get(href, headers=headers, timeout=limit_s, stream=True) as answer:
            status, asked = int(answer.status_code), answer.headers.get("Retry-After", "")
    except requests.RequestException as error:
        return None, f"the server does not answer ({type(error).__name__})", 0.0
    if status < _FIRST_ERROR:
        return status, "", 0.0
    wait_s = float(asked) if asked.isdigit() else 0.0
    return status, f"the server answers {status} {answer.reason}", wait_s


def _open(path: str, action: Callable[[rasterio.DatasetReader], Any]) -> Any:
    with rasterio.open(path, sharing=False) as dataset:
        return action(dataset)


def _path(href: str, failures: int) -> tuple[str, dict[str, str]]:
    """Return what GDAL opens, an address passed on unaltered, and options.

    GDAL remembers an address that failed, and would not ask the server again: a fragment, which no
    server sees, makes it a new one; a file on S3 is read past what is remembered.
    """
    if href.startswith("s3://"):
        path = f"/vsis3/{href.removeprefix('s3://')}"
        return path, {"CPL_VSIL_CURL_NON_CACHED": path} if failures else {}
    if href.startswith(("http://", "https://")):
        return f"/vsicurl/{href}" + (f"#{failures}" if failures else ""), {}
    return href, {}


def _reason(error: BaseException) -> str:
    """Return what an error and the errors behind it say."""
    said: list[str] = []
    current: BaseException | None = error
    while current is not None:
        text = str(current) or type(current).__name__
        if text not in said:
            said.append(text)
        current = current.__cause__
    return "; ".join(said)
