"""Where a store lies: a folder of this machine, and one writer at a time in it."""

from __future__ import annotations

import os
import re
import socket
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

if TYPE_CHECKING:
    from collections.abc import Iterator

fcntl: Any = None  # Windows has none
with suppress(ImportError):
    import fcntl

__all__ = ["only_writer", "store_path"]

# One slash as well: pathlib makes s3:/bucket of s3://bucket. One letter is a drive of Windows.
_URL = re.compile(r"(?P<scheme>[A-Za-z][\w+.-]+):(?P<rest>/.*)", re.DOTALL)
_RASTER_NAMES = (".tif", ".tiff", ".nc", ".vrt", ".jp2", ".png")


def store_path(path: str | os.PathLike[str]) -> Path:
    """Return the absolute local path of a store.

    Parameters
    ----------
    path : str or path-like
        Local path, or ``file://`` URL of one.

    Raises
    ------
    ValueError
        If it is the URL of anything but a local file, no path, or the name of a raster file.
    """
    if not isinstance(path, str | os.PathLike):
        raise ValueError(  # noqa: TRY004  # bad input, as of any other kind
            f"The store {path!r} is no path: give a local folder, such as 'map.zarr'."
        )
    text: Any = os.fspath(path)
    if not isinstance(text, str) or not text:
        raise ValueError(f"The store {text!r} is no path: give a local folder, such as 'map.zarr'.")
    if text.lower().endswith(_RASTER_NAMES):
        raise ValueError(
            f"{text} is named like a file, and a store is a folder: give a name such as "
            f"{os.path.splitext(text)[0]}.zarr. notebooks/03_export_cog.py makes a GeoTIFF of it."  # noqa: PTH122
        )
    url = _URL.fullmatch(text)
    if url is None:
        if "://" in text:  # chained, as in simplecache::s3://
            raise _no_store(text, text.partition("://")[0])
        return Path(text).absolute()
    scheme, rest = url["scheme"].lower(), url["rest"]
    if scheme != "file":
        raise _no_store(text, url["scheme"])
    host, has_host = "", rest.startswith("//") and isinstance(path, str)
    if has_host:
        host, slash, rest = rest[2:].partition("/")
        rest = slash + rest
    if host not in ("", "localhost") or not rest:
        raise ValueError(
            f"The store {text} lies on the host {host!r}: give a local path, such as "
            f"file:///{host}{rest}."
        )
    return Path(unquote(rest)).absolute()


def _no_store(text: str, scheme: str) -> ValueError:
    return ValueError(
        f"Stores on {scheme}:// are not written or read: {text!r} is no local folder. Write to a "
        "local path and copy the finished folder, or give the lazy result of generate to xarray: "
        "result.to_zarr(url)."
    )


@contextmanager
def only_writer(target: Path) -> Iterator[None]:
    """Hold the store at `target` against other writers.

    The system releases the lock of a file when its process ends, however that ends, so that a
    killed writer blocks nobody. It holds between machines where the file system passes such locks
    on (NFS 4, Lustre with ``flock``); where it has none, or nothing can be written beside the
    store, there is no protection.

    Raises
    ------
    BlockingIOError
        If another process, or another thread, writes there.
    """
    file = target.with_name(f".{target.name}.lock")
    held = _lock(file, target)
    try:
        yield
    finally:
        if held is not None:
            # Before it is released: who opened it meanwhile sees that it is gone.
            with suppress(OSError):
                file.unlink()
            os.close(held)


def _lock(file: Path, target: Path) -> int | None:
    if fcntl is None:
        return None
    while True:
        try:
            held = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError:
            return None
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = os.read(held, 200).decode(errors="replace") or "another process"
            os.close(held)
            raise BlockingIOError(
                f"Another run is writing {target} ({owner}). Wait until it ends, or choose another "
                "path; a run that was killed holds nothing."
            ) from None
        except OSError:  # a file system without locks
            os.close(held)
            with suppress(OSError):
                file.unlink()
            return None
        with suppress(OSError):
            if os.path.samestat(os.fstat(held), file.stat()):
                os.truncate(held, 0)
                os.write(held, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return held
        os.close(held)  # its owner has just removed it
