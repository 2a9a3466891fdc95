"""The way of pixels to the device that computes, and of results back.

On a GPU the raw window travels, as it came (uint16 is half of float32), through pinned memory and on
a stream of the thread's own, so that it moves while another task computes. On a CPU nothing moves:
tensors share the arrays' memory.
"""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch.utils.dlpack import from_dlpack

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from numpy.typing import NDArray
    from torch import Tensor

__all__ = ["copying", "download", "keep_alive", "record", "room_on", "upload"]

_threads = threading.local()
_rooms: dict[torch.device, threading.BoundedSemaphore] = {}
_rooms_lock = threading.Lock()
GROUPS_ON_DEVICE = 2
"""Groups whose pixels or results lie on a GPU at a time: one is computed, another one copied."""


@contextmanager
def room_on(device: torch.device) -> Iterator[None]:
    """Wait until a group's pixels and results have room on a device."""
    if device.type == "cpu":
        yield
        return
    with _rooms_lock:
        room = _rooms.setdefault(device, threading.BoundedSemaphore(GROUPS_ON_DEVICE))
    with room:
        yield


@contextmanager
def copying(device: torch.device, after: Any = None) -> Iterator[None]:
    """Let what follows run beside the device's computing; return when it is done.

    Parameters
    ----------
    device : torch.device
    after : torch.cuda.Event, optional
        What has to happen on the device before.
    """
    if device.type == "cpu":
        yield
        return
    stream = _own_stream(device)
    with torch.cuda.stream(stream):
        if after is not None:
            stream.wait_event(after)
        yield
        stream.synchronize()


def _own_stream(device: torch.device) -> Any:
    streams = _threads.__dict__.setdefault("streams", {})
    if device not in streams:
        streams[device] = torch.cuda.Stream(device)
    return streams[device]


def upload(pixels: NDArray[np.generic], device: torch.device) -> Tensor:
    """Return an array as a tensor on a device.

    Parameters
    ----------
    pixels : numpy.ndarray or cupy.ndarray
        Of a dtype that torch knows, in native byte order.
    device : torch.device

    Returns
    -------
    torch.Tensor
        It shares the array's memory where that is the device's own.
    """
    given: Any = pixels
    if not isinstance(given, np.ndarray):
        return from_dlpack(given).to(device).contiguous()  # CuPy: no copy on its own device
    if device.type == "cpu":
        if not pixels.flags.writeable or min(pixels.strides, default=0) < 0:
            pixels = pixels.copy()  # torch knows neither
        return torch.from_numpy(pixels)
    dtype = getattr(torch, pixels.dtype.name)
    pinned = torch.empty(pixels.shape, dtype=dtype, pin_memory=True)
    np.copyto(pinned.numpy(), pixels)
    return pinned.to(device, non_blocking=True)


def record(device: torch.device) -> Any:
    """Return an event that happens when the device has done what it was told so far; None on CPUs."""
    if device.type == "cpu":
        return None
    event = torch.cuda.Event()
    event.record(torch.cuda.current_stream(device))
    return event


def keep_alive(*tensors: Tensor) -> None:
    """Tell the allocator that the current stream uses tensors that were made on another one."""
    for tensor in tensors:
        if tensor.device.type != "cpu":
            tensor.record_stream(torch.cuda.current_stream(tensor.device))


def download(arrays: Mapping[str, Tensor | NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return arrays in the memory of the host; what is there already is not copied."""
    return {name: _download(array) for name, array in arrays.items()}


def _download(array: Tensor | NDArray[Any]) -> NDArray[Any]:
    if not isinstance(array, torch.Tensor) or array.device.type == "cpu":
        return np.asarray(array)
    keep_alive(array)
    pinned = torch.empty(array.shape, dtype=array.dtype, pin_memory=True)
    pinned.copy_(array, non_blocking=True)
    torch.cuda.current_stream(array.device).synchronize()
    # Pinned memory is scarce: results must not live in it.
    return np.array(pinned.numpy())
