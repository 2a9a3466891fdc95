"""The race of kernels: a piece of work, its contestants, and how they are timed in turns.

Contestants write to buffers that are used again in every round, since fresh pages alone would cap
them all; the machine's copy of as many float32 numbers runs among them, in the same rounds.
"""

from __future__ import annotations

import json
import platform
import statistics
import time
import warnings
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import memory_roofline
import numpy as np
import torch

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = [
    "COPY", "OURS", "Case", "Contestant", "Place", "add_arrays", "add_torch", "close",
    "compiled_into", "keep", "race", "result_of", "summary", "versions",
]  # fmt: skip

HERE = Path(__file__).parent
COPY, OURS = "copy", "ours"
GPU_REPEATS = 10
SLEEP_CYCLES = 20_000_000  # some ten milliseconds: the GPU waits until its queue is full


@dataclass(frozen=True)
class Place:
    """Where a race takes place: on one thread of a CPU, or on a GPU."""

    device: str

    @property
    def is_gpu(self) -> bool:
        return self.device == "cuda"

    @property
    def xp(self) -> Any:
        """NumPy, or CuPy where there is one."""
        if not self.is_gpu:
            return np
        import cupy

        return cupy

    def put(self, array: np.ndarray) -> torch.Tensor:
        """Return the tensor of an array: on a CPU in the same memory."""
        return torch.from_numpy(array).to(self.device)

    def view(self, tensor: torch.Tensor) -> Any:
        """Return a tensor as NumPy's or CuPy's array in the same memory."""
        return self.xp.asarray(tensor) if self.is_gpu else tensor.numpy()

    def ours(self, tensor: torch.Tensor) -> Any:
        """Return what our kernels are called with: NumPy arrays, tensors on a GPU."""
        return tensor if self.is_gpu else tensor.numpy()


@dataclass(frozen=True)
class Contestant:
    """How one contestant does the work.

    Attributes
    ----------
    run : callable
        Does it once; returns the results if they are not those of the case.
    threads : int
        Of torch, on a CPU.
    """

    run: Callable[[], Any]
    threads: int = 1


@dataclass
class Case:
    """A piece of work and all who do it.

    Attributes
    ----------
    what : str
    unit : str
        What there are `units` of.
    units, bytes : int
        Each byte counted once that must be read or written.
    numbers : int
        Of the copy that runs beside: as many as the larger array has.
    outs : tuple of torch.Tensor
        Where contestants leave results.
    contestants : dict of str to Contestant
    agree : callable
        Called as ``agree(ours, theirs)`` with tuples of NumPy arrays; raises, or tells how well.
    prepare : callable, optional
        Runs before each contestant, untimed.
    goals : dict of str to float
    absent : dict of str to str
        Rivals that do not take part, and why.
    """

    what: str
    unit: str
    units: int
    bytes: int
    numbers: int
    outs: tuple[torch.Tensor, ...]
    contestants: dict[str, Contestant]
    agree: Callable[[tuple[np.ndarray, ...], tuple[np.ndarray, ...]], str]
    prepare: Callable[[], object] | None = None
    goals: dict[str, float] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)


def add_arrays(
    contestants: dict[str, Contestant], place: Place, written: Any, in_place: Any
) -> None:
    """Add what is written for NumPy and CuPy, and what uses NumPy's buffers again."""
    name = "CuPy" if place.is_gpu else "NumPy"
    contestants[name] = Contestant(lambda: written(place.xp))
    if not place.is_gpu:
        contestants["NumPy in place"] = Contestant(in_place)


def add_torch(contestants: dict[str, Contestant], place: Place, eager: Any, compiled: Any) -> None:
    """Add torch, on one thread and on as many as it takes by itself."""
    for count in sorted({1, 1 if place.is_gpu else torch.get_num_threads()}):
        suffix = f", {count} threads" if count > 1 else ""
        contestants[f"torch eager{suffix}"] = Contestant(eager, count)
        contestants[f"torch.compile{suffix}"] = Contestant(compiled, count)


def compiled_into(function: Callable[..., Any], *arguments: torch.Tensor) -> Callable[[], Any]:
    """Return a function, compiled at its first call, with the arguments that it will get."""
    # Compiled once more for another number of threads.
    return partial(torch.compile(function, dynamic=False, fullgraph=True), *arguments)


def close(rtol: float, atol: float, decode: Any = None) -> Any:
    """Return a comparison of numbers that are `decode`d before."""

    def agree(ours: tuple[np.ndarray, ...], theirs: tuple[np.ndarray, ...]) -> str:
        largest = 0.0
        for mine, other in zip(ours, theirs, strict=True):
            a, b = (decode(array) if decode else array for array in (mine, other))
            a, b = a.astype(np.float32), b.astype(np.float32)
            np.testing.assert_allclose(a, b, rtol=rtol, atol=atol)
            largest = max(largest, float(np.nanmax(np.abs(a - b))))
        return f"within {largest:.2g}" if largest else "equal"

    return agree


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def result_of(case: Case, name: str) -> tuple[np.ndarray, ...]:
    """Run a contestant once, which compiles what must be compiled; return copies of its results."""
    contestant = case.contestants[name]
    if case.prepare:
        case.prepare()
    with _threads(contestant.threads), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those of compilers and of other people's libraries
        found = contestant.run()
    arrays = case.outs if found is None else found if isinstance(found, tuple) else (found,)
    return tuple(_fetched(array) for array in arrays)


def _fetched(array: Any) -> np.ndarray:
    if isinstance(array, torch.Tensor):
        return array.cpu().numpy().copy()
    return np.array(array.get() if hasattr(array, "get") else array)


def race(case: Case, place: Place, round_of: Callable[[Callable[[], None]], None]) -> dict:
    """Time contestants and the copy in turns; return seconds of each round by name.

    `round_of` is called with the function of one round and decides how many there are.
    """
    on_device = place.is_gpu
    copy = memory_roofline.copy_on_device if on_device else memory_roofline.copy_on_host
    all_of_them = {COPY: Contestant(copy(case.numbers)), **case.contestants}
    names, seconds = list(all_of_them), {name: [] for name in all_of_them}
    clock = _seconds_on_gpu if on_device else _seconds

    def one_round() -> None:
        for name in names:
            with _threads(all_of_them[name].threads):
                seconds[name].append(clock(all_of_them[name].run, case.prepare))
        names.append(names.pop(0))  # nobody always follows the same one

    round_of(one_round)
    return seconds


def _seconds(run: Callable[[], Any], prepare: Callable[[], Any] | None) -> float:
    if prepare:
        prepare()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _seconds_on_gpu(run: Callable[[], Any], prepare: Callable[[], Any] | None) -> float:
    """Return the time of the GPU itself, which queued work keeps busy from call to call."""
    repeats = 1 if prepare else GPU_REPEATS
    if prepare:
        prepare()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda._sleep(SLEEP_CYCLES)
    begin.record()
    for _ in range(repeats):
        run()
    end.record()
    end.synchronize()
    return 1e-3 * begin.elapsed_time(end) / repeats


def _ratio(seconds: dict[str, list[float]], name: str, other: str) -> float:
    """Return how often the time of one fits into that of another, the median of the rounds."""
    return statistics.median(b / a for a, b in zip(seconds[name], seconds[other], strict=True))


def summary(case: Case, place: Place, seconds: dict[str, list[float]], same: dict) -> dict:
    """Return the figures of a race."""
    copied = memory_roofline.BYTES * case.numbers

    # A shared machine disturbs: beside medians of rounds stands what the best rounds say.
    best = {name: min(found) for name, found in seconds.items()}

    def row(name: str) -> dict[str, Any]:
        milliseconds = 1e3 * statistics.median(seconds[name])
        found = {
            "ms": round(milliseconds, 3),
            "best_ms": round(1e3 * best[name], 3),
            "gb_per_s": round(1e-6 * (copied if name == COPY else case.bytes) / milliseconds, 2),
        }
        if name != COPY:
            fraction = _ratio(seconds, name, COPY) * case.bytes / copied
            found["fraction_of_copy"] = round(fraction, 3)
            at_best = best[COPY] / best[name] * case.bytes / copied
            found["fraction_of_copy_at_best"] = round(at_best, 3)
        if name not in (COPY, OURS):
            found["ours_is_faster"] = round(_ratio(seconds, OURS, name), 2)
            found["agrees"] = same[name]
        return found

    return {
        "what": case.what,
        "rounds": len(seconds[COPY]),
        f"bytes_per_{case.unit}": round(case.bytes / case.units, 2),
        "mb": round(1e-6 * case.bytes, 1),
        **{name: row(name) for name in seconds},
        "goals": case.goals,
        "absent": case.absent,
        "device": torch.cuda.get_device_name() if place.is_gpu else "one thread of a CPU",
        "versions": versions(),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for name in ("numpy", "numba", "torch", "numba-cuda", "cupy-cuda12x", "terramind-cube"):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def keep(name: str, case: str, info: dict) -> None:
    """Print a comparison, and write it among the figures that the READMEs quote."""
    print("\n" + json.dumps({case: info}, indent=1))
    path = HERE / "results" / f"{name}.json"
    known = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**known, case: info}, indent=1) + "\n")
