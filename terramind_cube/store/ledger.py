"""The ledger beside the arrays: which settings a store holds and which regions are finished.

``ledger/run.json`` says what is being written, ``ledger/receipts/<region>.json`` that one region
is whole on disk. Neither names a host or a folder. ``ledger/read_failures.json`` lists what could
not be read, where files may fail. A chunk file is no proof of completion: Zarr writes no file for a
chunk that holds only the fill value.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, Literal

from terramind_cube.store.places import store_path

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

__all__ = [
    "LEDGER",
    "PIXELS",
    "UNFINISHED",
    "Receipt",
    "Run",
    "check_run",
    "completed",
    "finish_run",
    "list_differences",
    "normalize_fingerprint",
    "note_failures",
    "noted_failures",
    "read_receipts",
    "read_run",
    "start_run",
    "stored_batch",
    "write_receipt",
]

LEDGER = "ledger"
UNFINISHED = "terramind_unfinished"
"""Attribute of a store whose chunks are not all written."""
PIXELS = "pixels"
"""Key of a fingerprint: what the pixels of each input are known by."""
_FORMAT = "terramind_cube.ledger/1"
_FAILURES = "read_failures.json"


@dataclass(frozen=True)
class Run:
    """What a store is: the content of ``ledger/run.json``.

    Attributes
    ----------
    fingerprint : mapping
        Everything that decides the bytes of the store (model, weights, seed, grid, ...).
    regions : int
        Number of regions the store consists of.
    package_version : str
        Version of terramind-cube that began the store.
    status : {"running", "complete"}
        ``"running"`` also after a kill.
    started_at, finished_at : str or None
        UTC, ISO 8601.
    """

    fingerprint: Mapping[str, Any]
    regions: int
    package_version: str
    status: Literal["running", "complete"]
    started_at: str
    finished_at: str | None = None


@dataclass(frozen=True)
class Receipt:
    """Proof that one region is whole on disk.

    Attributes
    ----------
    key : str
        Name of the region, such as ``"time0-1_y0-896_x896-1792"``.
    region : mapping of str to tuple of int
        Start and stop of each dimension, in pixels.
    seconds : float
        From submission until the last chunk was written.
    sha256 : mapping of str to str
        Digest of each variable's values in C order, little-endian, before compression.
    finished_at : str
        UTC, ISO 8601.
    remarks : sequence of str
        What looked wrong in the inputs, see `terramind_cube.cube.plausibility`.
    """

    key: str
    region: Mapping[str, tuple[int, int]]
    seconds: float
    sha256: Mapping[str, str]
    finished_at: str
    remarks: Sequence[str] = ()


def normalize_fingerprint(fingerprint: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fingerprint as JSON gives it back (tuples become lists).

    Raises
    ------
    ValueError
        If a value cannot be written as JSON; the message names its key.
    """
    normal = {}
    for key, value in fingerprint.items():
        try:
            normal[str(key)] = json.loads(json.dumps(value, allow_nan=False, sort_keys=True))
        except (TypeError, ValueError) as error:
            raise ValueError(f"fingerprint[{key!r}] cannot be written as JSON: {error}.") from error
    return normal


def start_run(path: Path, fingerprint: Mapping[str, Any], *, regions: int) -> None:
    """Write the first ``run.json`` of the store at `path`, with no region finished."""
    (path / LEDGER / "receipts").mkdir(parents=True)
    run = Run(
        fingerprint=normalize_fingerprint(fingerprint),
        regions=regions,
        package_version=version("terramind-cube"),
        status="running",
        started_at=_now(),
    )
    _write_run(path, run)


def finish_run(path: Path) -> None:
    """Mark the store at `path` complete."""
    _write_run(path, replace(read_run(path), status="complete", finished_at=_now()))


def read_run(path: str | os.PathLike[str]) -> Run:
    """Read what the store at `path` is.

    Raises
    ------
    FileNotFoundError
        If nothing exists at `path`.
    ValueError
        If it is not a store of this package.
    """
    root = store_path(path)
    if not root.exists():
        raise FileNotFoundError(f"There is no store at {root}.")
    try:
        content = json.loads((root / LEDGER / "run.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        content = None
    if not isinstance(content, dict) or content.pop("format", None) != _FORMAT:
        raise ValueError(
            f"{root} is not a store that terramind_cube wrote: it has no {LEDGER}/run.json of "
            f"format {_FORMAT}. Choose another path."
        )
    return Run(**content)


def stored_batch(path: str | os.PathLike[str]) -> int | None:
    """Return the compute batch with which the store at `path` was begun, None if there is none.

    A trial may find another one today; with the store's own a resumed run gives the same bytes.
    """
    if not store_path(path).exists():
        return None
    batch: int | None = read_run(path).fingerprint.get("compute_batch")
    return batch


def check_run(path: Path, fingerprint: Mapping[str, Any], *, same_pixels: bool = False) -> Run:
    """Return the run of the store at `path` if it has this fingerprint.

    Parameters
    ----------
    path : pathlib.Path
    fingerprint : mapping
        Under "pixels" what the pixels of each input are known by.
    same_pixels : bool, optional
        Whether the caller vouches for the pixels, so that they are not compared.

    Raises
    ------
    ValueError
        If it is no store of this package, or was written with other settings or from other pixels;
        the message lists every key that differs, with both values, shapes and places first.
    """
    run = read_run(path)
    stored, wanted = dict(run.fingerprint), normalize_fingerprint(fingerprint)
    known, seen = stored.pop(PIXELS, {}), wanted.pop(PIXELS, {})
    lines = list_differences(stored, wanted)
    if not same_pixels:
        told = [_tell_pixels(name, known, seen) for name in seen if known.get(name) != seen[name]]
        advice = (
            "\n  Where you know that they are the same, such as after other chunks: "
            "resume='same-pixels'."
        )
        lines += [*told[:-1], told[-1] + advice] if told else []
    if lines:
        listed = "\n".join(f"  {line}" for line in lines)
        raise ValueError(
            f"The store at {path} was begun with other settings, so it cannot be resumed:\n"
            f"{listed}\nRepeat the call with the store's settings, or choose another path."
        )
    return run


def _tell_pixels(name: str, known: Mapping[str, Any], seen: Mapping[str, Any]) -> str:
    if name not in known:
        return f"the pixels of {name}: the store does not tell which ones it was made of"
    for row in (seen[name], known[name]):
        if "random" in row:
            return (
                f"the pixels of {name} cannot be compared: its dask array has a random name "
                f"({row['random']}), as of from_array(..., name=False)"
            )
    return (
        f"the pixels of {name} differ: other data, or computed in another way (the store has "
        f"{known[name]['name']}, this run has {seen[name]['name']})"
    )


def list_differences(stored: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return one line for every key, dotted where nested, whose values differ."""
    left, right = dict(_flatten(stored)), dict(_flatten(wanted))
    absent = "nothing"
    return [
        f"{key}: the store has {left.get(key, absent)}, this run has {right.get(key, absent)}"
        for key in sorted(left.keys() | right.keys(), key=_rank)
        if left.get(key, absent) != right.get(key, absent)
    ]


def _rank(key: str) -> tuple[bool, bool, str]:
    """Order keys so that what people recognise comes first: the area, then what is no digest."""
    is_digest = "sha256" in key or key.startswith("layout.coordinates")
    return is_digest, not key.startswith("layout.grid"), key


def write_receipt(
    path: Path,
    key: str,
    *,
    region: Mapping[str, tuple[int, int]],
    seconds: float,
    sha256: Mapping[str, str],
    remarks: Sequence[str] = (),
) -> Receipt:
    """Write the receipt of a finished region, whole or not at all, and return it."""
    receipt = Receipt(key, dict(region), round(seconds, 3), dict(sha256), _now(), list(remarks))
    _write_json(path / LEDGER / "receipts" / f"{key}.json", asdict(receipt))
    return receipt


def completed(path: str | os.PathLike[str]) -> set[str]:
    """Return the keys of the finished regions of the store at `path`."""
    return {file.stem for file in (store_path(path) / LEDGER / "receipts").glob("*.json")}


def note_failures(path: Path, failures: Sequence[str]) -> None:
    """Add what could not be read to the list of the store at `path`, each failure once."""
    known = noted_failures(path)
    if new := [failure for failure in failures if failure not in known]:
        _write_json(path / LEDGER / _FAILURES, {"read_failures": [*known, *new]})


def noted_failures(path: str | os.PathLike[str]) -> list[str]:
    """Return what could not be read for the store at `path`, in this and earlier runs."""
    file = store_path(path) / LEDGER / _FAILURES
    if not file.exists():
        return []
    return list(json.loads(file.read_text(encoding="utf-8"))["read_failures"])


def read_receipts(path: str | os.PathLike[str]) -> list[Receipt]:
    """Return the receipts of the store at `path`, in order of completion."""
    contents = [
        json.loads(file.read_text(encoding="utf-8"))
        for file in (store_path(path) / LEDGER / "receipts").glob("*.json")
    ]
    receipts = [
        Receipt(**{**row, "region": {dim: tuple(span) for dim, span in row["region"].items()}})
        for row in contents
    ]
    return sorted(receipts, key=lambda receipt: (receipt.finished_at, receipt.key))


def _flatten(mapping: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in mapping.items():
        if isinstance(value, dict) and value:
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", json.dumps(value, sort_keys=True)


def _write_run(path: Path, run: Run) -> None:
    _write_json(path / LEDGER / "run.json", {"format": _FORMAT, **asdict(run)})


def _write_json(file: Path, content: Mapping[str, Any]) -> None:
    scratch = file.with_name(f"{file.name}.{os.getpid()}.partial")
    scratch.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    scratch.replace(file)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
