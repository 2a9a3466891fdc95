"""`normalize` of uint16 images in CUDA C++, which moves 16 bytes at a time; compiled by CuPy.

Numba moves an element at a time. Here a block of threads takes groups of eight pixels: it loads
them with 16 bytes per thread, channel by channel, into shared memory, finds out which pixels are
masked, and writes them as the output is laid out, again 16 bytes per thread and without gaps
between threads, whatever the layout and the size of the numbers.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from terramind_cube.kernels.rules import Standardization

__all__ = ["GROUPS", "SOURCE", "THREADS", "Work", "arguments", "fits", "normalize", "options"]

THREADS = 256
GROUPS = 64
"""Groups of eight pixels that a block takes at a time."""
MOST_CHANNELS = 16
_MOST_BLOCKS = 1 << 20

SOURCE = r"""
// Macros: CHANNELS; PATCH, the side of a patch in pixels, or 0 for the image layout; BFLOAT16, 0 or
// 1; GROUPS; THREADS. A group is eight pixels of a row, which never leave a tile or a patch.
typedef long long Index;
#define ROW (GROUPS + 1)                         // of shared memory: one more, against conflicts
#define EACH (BFLOAT16 ? 8 : 4)                  // numbers in the 16 bytes of a store
#define STORES (CHANNELS * 8 / EACH)             // of a group
#define LOADS ((CHANNELS * GROUPS + THREADS - 1) / THREADS)  // of a thread

__device__ unsigned int bits_of(float value) {
    unsigned int bits = __float_as_uint(value);
#if BFLOAT16
    if (value != value) return 0x7FC0u;
    bits = (bits + 0x7FFFu + ((bits >> 16) & 1u)) >> 16;
#endif
    return bits;
}

__device__ unsigned int equal_pair(unsigned int pair, int nodata) {
    return ((int)(pair & 0xFFFFu) == nodata ? 1u : 0u) | ((int)(pair >> 16) == nodata ? 2u : 0u);
}

// Places in units of 16 bytes: of a group's first channel in x, of its first number in out.
__device__ void find(Index group, const Index* corners, const int* sizes, Index* from, Index* to) {
    const int rows = sizes[0], columns = sizes[1], height = sizes[2], width = sizes[3];
    const Index line = group / (width / 8);
    const int x = (int)(group - line * (width / 8)) * 8;
    const Index tile = line / height;
    const int y = (int)(line - tile * height);
    const Index* corner = corners + 3 * tile;
    *from = ((corner[0] * CHANNELS * rows + corner[1] + y) * columns + corner[2] + x) / 8;
#if PATCH
    const Index patch = line / PATCH * (width / PATCH) + x / PATCH;
    *to = ((patch * PATCH + y % PATCH) * PATCH + x % PATCH) * CHANNELS / EACH;
#else
    *to = ((tile * CHANNELS * height + y) * width + x) / EACH;
#endif
}

extern "C" __global__ void __launch_bounds__(THREADS, 4) normalize(
    const uint4* __restrict__ x, const Index* __restrict__ corners,
    const float* __restrict__ constants, uint4* __restrict__ out,
    Index groups, int rows, int columns, int height, int width, int nodata
) {
    __shared__ uint4 pixels[CHANNELS * ROW];
    __shared__ Index from[GROUPS];
    __shared__ Index to[GROUPS];
    __shared__ unsigned int masked[GROUPS];
    __shared__ float shift[CHANNELS];
    __shared__ float scale[CHANNELS];
    const unsigned short* numbers = (const unsigned short*)pixels;
    const Index plane = (Index)rows * columns / 8;
    const int sizes[4] = {rows, columns, height, width};
    const int thread = threadIdx.x;

    if (thread < CHANNELS) {
        shift[thread] = constants[thread];
        scale[thread] = constants[CHANNELS + thread];
    }
    for (Index first = (Index)blockIdx.x * GROUPS; first < groups;
         first += (Index)gridDim.x * GROUPS) {
        const int count = groups - first < GROUPS ? (int)(groups - first) : GROUPS;
        if (thread < count) {
            find(first + thread, corners, sizes, &from[thread], &to[thread]);
            masked[thread] = 0;
        }
        __syncthreads();

        // All loads of a thread are under way before the first one is needed.
        uint4 loaded[LOADS];
#pragma unroll
        for (int k = 0; k < LOADS; ++k) {
            const int channel = (thread + k * THREADS) / GROUPS;
            const int group = (thread + k * THREADS) % GROUPS;
            if (channel < CHANNELS && group < count)
                loaded[k] = x[from[group] + channel * plane];
        }
#pragma unroll
        for (int k = 0; k < LOADS; ++k) {
            const int channel = (thread + k * THREADS) / GROUPS;
            const int group = (thread + k * THREADS) % GROUPS;
            if (channel < CHANNELS && group < count) {
                const uint4 eight = loaded[k];
                pixels[channel * ROW + group] = eight;
                const unsigned int equal =
                    equal_pair(eight.x, nodata) | equal_pair(eight.y, nodata) << 2 |
                    equal_pair(eight.z, nodata) << 4 | equal_pair(eight.w, nodata) << 6;
                if (equal) atomicOr(&masked[group], equal);
            }
        }
        __syncthreads();

        for (int store = thread; store < GROUPS * STORES; store += THREADS) {
#if PATCH
            const int group = store / STORES;
            const int start = store % STORES * EACH;
            const Index target = start / EACH;
#else
            const int part = store % (8 / EACH);
            const int group = store / (8 / EACH) % GROUPS;
            const int plane_of_out = store / (8 / EACH) / GROUPS;
            const Index target = (Index)plane_of_out * height * width / EACH + part;
#endif
            if (group >= count) continue;
            unsigned int words[4] = {0, 0, 0, 0};
#pragma unroll
            for (int k = 0; k < EACH; ++k) {
#if PATCH
                const int channel = (start + k) % CHANNELS, pixel = (start + k) / CHANNELS;
#else
                const int channel = plane_of_out, pixel = part * EACH + k;
#endif
                const float number = (float)numbers[(channel * ROW + group) * 8 + pixel];
                const float value =
                    __fmul_rn(__fsub_rn(number, shift[channel]), scale[channel]);
                const unsigned int bits =
                    masked[group] >> pixel & 1u ? 0u : bits_of(value);
                words[k * 4 / EACH] |= BFLOAT16 ? bits << (k % 2 * 16) : bits;
            }
            out[to[group] + target] = make_uint4(words[0], words[1], words[2], words[3]);
        }
        __syncthreads();
    }
}
"""


@dataclass(frozen=True)
class Work:
    """Arrays of a call, as Numba's device arrays, and the sides of a tile and a patch.

    Attributes
    ----------
    pixels : array, shape (B, C, H, W)
    corners : array of int64
        Image, first row and first column of each tile, flat.
    constants : array of float32, shape (2, C)
        Shift and scale.
    out : array
    tile : (int, int)
        Height and width.
    patch_px : int
        0 for the image layout.
    """

    pixels: Any
    corners: Any
    constants: Any
    out: Any
    tile: tuple[int, int]
    patch_px: int


def fits(work: Work, corners: NDArray[np.int64], rule: Standardization) -> bool:
    """Return whether the kernel can do a piece of work; it could not tell itself."""
    return (
        work.pixels.dtype == np.uint16
        and work.pixels.shape[1] <= MOST_CHANNELS
        and work.pixels.shape[3] % 8 == 0
        and work.tile[1] % 8 == 0
        and work.patch_px % 8 == 0
        and not (corners[:, 2] % 8).any()
        and not rule.from_power
        and all(_address(array) % 16 == 0 for array in (work.pixels, work.out))
        and _cupy() is not None
    )


def normalize(work: Work, rule: Standardization, stream: int) -> bool:
    """Queue the kernel on a stream of the current device; return whether it could be compiled."""
    is_bits = bool(work.out.dtype == np.uint16)
    kernel = _compiled(options(work.pixels.shape[1], work.patch_px, is_bits))
    if kernel is None:
        return False
    values = arguments(work, rule)
    blocks = min(-(-int(values[4]) // GROUPS), _MOST_BLOCKS)
    with _cupy().cuda.ExternalStream(stream):
        kernel((blocks,), (THREADS,), values)
    return True


def options(channels: int, patch_px: int, is_bits: bool) -> tuple[str, ...]:
    """Return what the source is compiled with for a number of channels, a layout and a dtype."""
    macros = {
        "CHANNELS": channels,
        "PATCH": patch_px,
        "BFLOAT16": int(is_bits),
        "GROUPS": GROUPS,
        "THREADS": THREADS,
    }
    return tuple(f"-D{name}={value}" for name, value in macros.items())


def arguments(work: Work, rule: Standardization) -> tuple[np.generic, ...]:
    """Return the kernel's arguments, of the sizes that its source declares."""
    height, width = work.tile
    groups = math.prod(work.out.shape) // work.pixels.shape[1] // 8
    nodata = -1  # no pixel is
    if rule.nodata is not None:
        value = float(np.float32(rule.nodata))
        if value.is_integer() and 0 <= value <= np.iinfo(np.uint16).max:
            nodata = int(value)
    return (
        *(np.uint64(_address(a)) for a in (work.pixels, work.corners, work.constants, work.out)),
        np.int64(groups),
        *map(np.int32, (*work.pixels.shape[2:], height, width, nodata)),
    )


def _address(array: Any) -> int:
    interface = getattr(array, "__cuda_array_interface__", None) or array.__array_interface__
    address: int = interface["data"][0]
    return address


@lru_cache(maxsize=1)
def _cupy() -> Any:
    """Return CuPy, or None where it is not installed."""
    try:
        import cupy
    except ImportError:
        return None
    return cupy


@lru_cache(maxsize=64)
def _compiled(flags: tuple[str, ...]) -> Any:
    """Return the compiled kernel, or None, with a warning, where CuPy cannot compile."""
    try:
        kernel = _cupy().RawKernel(SOURCE, "normalize", flags)
        kernel.compile()
    except Exception as error:  # noqa: BLE001  # of NVRTC, the driver, the search for them
        warnings.warn(
            f"normalize runs in its slower form, since CuPy cannot compile here: {error}",
            RuntimeWarning,
            stacklevel=4,
        )
        return None
    return kernel
