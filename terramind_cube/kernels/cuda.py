"""Twins of `reference` for GPUs, on torch tensors, CuPy arrays and Numba's device arrays.

Nothing is copied: arrays are taken where they are, and must be contiguous. Kernels are queued on
the stream that the library of the output works on (torch's current stream, CuPy's current stream)
and run after what is there; no function waits for them. No device memory is allocated for a call,
except what stays: the constants of a rule, and for each stream a little room for corners or cells.

Results equal those of `reference` bit for bit, see `cuda_kernels`. Images of uint16 in the usual
alignment go to the wider kernels of `cuda_vector`, where CuPy is there to compile them.
"""

# mypy: allow-untyped-calls
from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, TypeAlias

import numba_cuda  # noqa: F401  # without it, Numba falls back to an older CUDA target of its own
import numpy as np
from numba import cuda

from terramind_cube.kernels import cuda_kernels as kernels
from terramind_cube.kernels import cuda_vector as vector
from terramind_cube.kernels.cuda_kernels import IS_SIMULATED
from terramind_cube.kernels.reference import bounds

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from terramind_cube.kernels.rules import Restoration, Standardization

__all__ = [
    "blend_accumulate",
    "blend_finish",
    "class_map",
    "denormalize",
    "fsq_dequantize",
    "fsq_quantize",
    "normalize",
    "philox_normal",
    "philox_uniform",
    "valid_pixels",
]

DeviceArray: TypeAlias = Any
"""Anything with a ``__cuda_array_interface__``; a NumPy array in the simulator."""

_THREADS, _WARP = (16, 8) if IS_SIMULATED else (256, 32)
_LEAST_BLOCKS, _MOST_BLOCKS = (2, 2) if IS_SIMULATED else (128, 8192)
"""Of fewer blocks Numba warns; idle ones cost next to nothing."""
_LEAST_ROOM = 4096

_lock = threading.Lock()
_rooms: dict[tuple[int, int], Any] = {}


def normalize(
    x: DeviceArray, corners: NDArray[np.int64], rule: Standardization, out: DeviceArray
) -> None:
    """Twin of `reference.normalize`; `corners` is a NumPy array."""
    if 0 in out.shape:
        return
    patch_px = out.shape[3] if len(out.shape) == 6 else 0
    sides = slice(1, 3) if patch_px else slice(2, 4)
    height, width = (int(side) * (patch_px or 1) for side in out.shape[sides])
    with _queue(out) as queue, _lent(corners, queue) as places:
        pixels, target = _view(x), _view(out)
        constants = _resident(np.stack([rule.shift, rule.scale]), queue)
        work = vector.Work(pixels, places, constants, target, (height, width), patch_px)
        if vector.fits(work, corners, rule) and vector.normalize(work, rule, queue.pointer):
            return
        is_bits = target.dtype == np.uint16
        kernel = kernels.normalize_to_bfloat16 if is_bits else kernels.normalize_to_float32
        nodata = np.float32(np.nan if rule.nodata is None else rule.nodata)
        is_masking = rule.nodata is not None or rule.from_power
        kernel[_rows(len(corners) * height, width, queue)](
            pixels,
            places,
            constants,
            (nodata, is_masking, rule.from_power),
            patch_px,
            (height, width),
            target.reshape(target.size),
        )


def valid_pixels(x: DeviceArray, nodata: float, out: DeviceArray) -> None:
    """Twin of `reference.valid_pixels`."""
    if 0 in out.shape:
        return
    with _queue(out) as queue:
        grid = _rows(out.shape[0] * out.shape[1], out.shape[2], queue)
        kernels.valid_pixels[grid](_view(x), np.float32(nodata), _view(out))


def denormalize(
    x: DeviceArray,
    first_row: int,
    rule: Restoration,
    valid: DeviceArray | None,
    out: DeviceArray,
) -> None:
    """Twin of `reference.denormalize`."""
    if 0 in x.shape:
        return
    with _queue(out) as queue:
        constants = _resident(np.stack([rule.std, rule.mean]), queue)
        known = _resident(np.ones((1, 1), np.bool_), queue) if valid is None else _view(valid)
        target = _view(out)
        is_whole = target.dtype.kind in "iu"
        low, high = bounds(rule, target.dtype)
        limits = (low, high, np.float32(rule.nodata), is_whole, valid is not None)
        images, channels, rows, width = x.shape
        kernels.denormalize[_rows(images * channels * rows, width, queue)](
            _view(x), first_row, constants, limits, known, target
        )


def fsq_quantize(latent: DeviceArray, levels: tuple[int, ...], out: DeviceArray) -> None:
    """Twin of `reference.fsq_quantize`."""
    if 0 in out.shape:
        return
    with _queue(out) as queue:
        grid = _cells(out.shape[0] * out.shape[1], queue)
        kernels.fsq_quantize[grid](_view(latent), _digits(levels, queue), _view(out))


def fsq_dequantize(ids: DeviceArray, levels: tuple[int, ...], out: DeviceArray) -> None:
    """Twin of `reference.fsq_dequantize`."""
    if 0 in out.shape:
        return
    with _queue(out) as queue:
        grid = _cells(ids.shape[0] * ids.shape[1], queue)
        kernels.fsq_dequantize[grid](_view(ids), _digits(levels, queue), _view(out))


def blend_accumulate(
    values: DeviceArray,
    weights: DeviceArray,
    place: tuple[int, int, int, int, int, int],
    total: DeviceArray,
    weight: DeviceArray,
) -> None:
    """Twin of `reference.blend_accumulate`; `weights` are on the device, too."""
    if 0 in place[4:]:
        return
    with _queue(total) as queue:
        kernels.blend_accumulate[_rows(place[4], place[5], queue)](
            _view(values), _view(weights), tuple(map(int, place)), _view(total), _view(weight)
        )


def blend_finish(total: DeviceArray, weight: DeviceArray, first_row: int, out: DeviceArray) -> None:
    """Twin of `reference.blend_finish`."""
    if 0 in out.shape:
        return
    with _queue(out) as queue:
        kernels.blend_finish[_rows(out.shape[1], out.shape[2], queue)](
            _view(total), _view(weight), first_row, _view(out)
        )


def class_map(probability: DeviceArray, classes: DeviceArray, confidence: DeviceArray) -> None:
    """Twin of `reference.class_map`."""
    if 0 in classes.shape:
        return
    with _queue(classes) as queue:
        kernels.class_map[_cells(classes.shape[0], queue)](
            _view(probability), _view(classes), _view(confidence)
        )


def philox_uniform(
    key: tuple[int, int], rows: NDArray[np.int64], cols: NDArray[np.int64], out: DeviceArray
) -> None:
    """Twin of `reference.philox_uniform`; `rows` and `cols` are NumPy arrays."""
    _fill(kernels.philox_uniform, key, np.stack([rows, cols]), out)


def philox_normal(
    key: tuple[int, int], rows: NDArray[np.int64], cols: NDArray[np.int64], out: DeviceArray
) -> None:
    """Twin of `reference.philox_normal`; `rows` and `cols` are NumPy arrays."""
    _fill(kernels.philox_normal, key, np.stack([rows, cols]), out)


def _fill(kernel: Any, key: tuple[int, int], cells: NDArray[np.int64], out: DeviceArray) -> None:
    if 0 in out.shape:
        return
    with _queue(out) as queue, _lent(cells & 0xFFFFFFFF, queue) as places:
        grid = _cells(out.shape[0] * -(-out.shape[1] // 4), queue)
        kernel[grid]((int(key[0]), int(key[1])), places, _view(out))


@dataclass(frozen=True)
class _Queue:
    """Where kernels are queued: a device, and a stream as a pointer and as Numba's object."""

    device: int
    pointer: int
    stream: Any


@contextmanager
def _queue(array: DeviceArray) -> Iterator[_Queue]:
    """Make an array's device the current one; give the stream that its library works on."""
    if IS_SIMULATED:
        yield _Queue(0, 0, 0)
        return
    device, pointer = _place(array)
    with cuda.gpus[device]:
        yield _Queue(device, pointer, _stream(device, pointer))


@lru_cache(maxsize=64)
def _stream(device: int, pointer: int) -> Any:
    """Return a stream of the current device as Numba's object; it knows kernels by the object."""
    del device  # part of the key
    return cuda.external_stream(pointer) if pointer else cuda.default_stream()


def _place(array: DeviceArray) -> tuple[int, int]:
    """Return an array's device and a pointer to the stream that its library works on."""
    # An array of a library cannot exist before the library is imported.
    torch, cupy = (sys.modules.get(name) for name in ("torch", "cupy"))
    if torch is not None and isinstance(array, torch.Tensor):
        return array.device.index, torch.cuda.current_stream(array.device).cuda_stream
    if cupy is not None and isinstance(array, cupy.ndarray):
        return array.device.id, cupy.cuda.get_current_stream(array.device.id).ptr
    # The interface tells no device, and a stream only if there is another than the default one.
    return cuda.current_context().device.id, array.__cuda_array_interface__.get("stream") or 0


def _view(array: DeviceArray) -> Any:
    """Return an array as Numba's, in the same memory; streams are ours to look after."""
    return array if IS_SIMULATED else cuda.as_cuda_array(array, sync=False)


def _resident(numbers: NDArray[Any], queue: _Queue) -> Any:
    """Return constants in device memory, where they stay."""
    if IS_SIMULATED:
        return numbers
    return _upload(queue.device, numbers.dtype.str, numbers.shape, numbers.tobytes())


@lru_cache(maxsize=256)
def _upload(device: int, dtype: str, shape: tuple[int, ...], data: bytes) -> Any:
    """Copy constants to the current device, which is part of the key."""
    array = cuda.to_device(np.frombuffer(data, dtype).reshape(shape).copy())
    cuda.default_stream().synchronize()  # once: from now on every stream may read them
    return array


def _digits(levels: tuple[int, ...], queue: _Queue) -> Any:
    """Return the levels, and below them the ids that one step of each is worth."""
    worth = np.cumprod((1, *levels[:-1]), dtype=np.int64)
    return _resident(np.stack([np.array(levels, np.int64), worth]), queue)


@contextmanager
def _lent(numbers: NDArray[np.int64], queue: _Queue) -> Iterator[Any]:
    """Lend a flat copy of numbers in device memory to the kernels that are queued meanwhile.

    The copy is made in the stream's order, into room that belongs to the stream: it is overwritten
    only after earlier kernels have read it. The lock keeps threads that share a stream apart.
    """
    flat = np.ascontiguousarray(numbers, np.int64).reshape(-1)
    if IS_SIMULATED:
        yield flat
        return
    with _lock:
        key = queue.device, queue.pointer
        room = _rooms.get(key)
        if room is None or room.size < flat.size:
            # The driver frees the smaller room only after all kernels that read it (cuMemFree).
            size = max(_LEAST_ROOM, 1 << (flat.size - 1).bit_length())
            room = _rooms[key] = cuda.device_array(size, np.int64)
        room[: flat.size].copy_to_device(flat, stream=queue.stream)
        yield room


def _rows(count: int, width: int, queue: _Queue) -> tuple[Any, ...]:
    """Return the grid and the stream of a kernel whose blocks take whole rows of pixels."""
    across = min(_THREADS, -(-width // _WARP) * _WARP)
    down = _THREADS // across
    return _blocks(count, down), (across, down), queue.stream


def _cells(count: int, queue: _Queue) -> tuple[Any, ...]:
    """Return the grid and the stream of a kernel over `count` things."""
    return _blocks(count, _THREADS), _THREADS, queue.stream


def _blocks(count: int, each: int) -> int:
    return min(max(-(-count // each), _LEAST_BLOCKS), _MOST_BLOCKS)
