"""How Numba compiles loops for `cpu`."""

from __future__ import annotations

import warnings
import zlib
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numba

from terramind_cube.kernels import reference, rules, scalars

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["kernel", "part"]

_SOURCES = (__file__, reference.__file__, rules.__file__, scalars.__file__)
"""Of functions and constants that become part of compiled functions, and how they do."""
_VERSION = zlib.crc32(b"".join(Path(source).read_bytes() for source in _SOURCES))


def kernel(function: Callable[..., Any]) -> Any:
    """Compile a function at its first call and keep it on disk.

    Numba keeps it under its name until the function's own file changes. The version of the other
    sources that go into it becomes part of that name, so that it is compiled again after they
    change, too.

    Never `parallel=True`: with some threading layers it aborts the process under Dask's threads,
    and one thread already saturates the memory. Never `fastmath`: it would round differently.
    """
    function.__qualname__ += f"_{_VERSION:08x}"
    try:
        return numba.njit(nogil=True, cache=True, error_model="numpy")(function)
    except RuntimeError:  # Numba finds no folder to keep it in
        _warn_without_cache()
        return numba.njit(nogil=True, error_model="numpy")(function)


def part(function: Callable[..., Any]) -> Any:
    """Compile a function as part of kernels."""
    return numba.njit(nogil=True)(function)


@lru_cache(maxsize=1)
def _warn_without_cache() -> None:
    """Say once what it costs, and what helps."""
    warnings.warn(
        "The kernels are compiled anew in every process: there is no writable folder for Numba's "
        "cache. Set NUMBA_CACHE_DIR to one.",
        stacklevel=2,
    )
