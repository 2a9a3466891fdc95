"""Random numbers that depend on where and what, never on how the work was cut.

The numbers of a token cell are a function of (seed, sample, modality, step, time, world cell), so
that chunks, batches, workers and retries draw the same ones.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from terramind_cube import kernels
from terramind_cube.kernels.dispatch import hold, output_array
from terramind_cube.kernels.reference import philox

if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import TypeAlias

    from numpy.typing import NDArray

    from terramind_cube.kernels.dispatch import Array

    Cells: TypeAlias = Sequence[tuple[NDArray[np.int64], NDArray[np.int64]]]

__all__ = ["NoiseStream", "normal_batch", "uniform_batch"]

_WORD = 0xFFFFFFFF


@dataclass(frozen=True)
class NoiseStream:
    """What random numbers are for.

    Attributes
    ----------
    seed : int
        The user's seed, 0 to 2^64 - 1.
    modality : str
        Public name of what is generated, with what for behind it where it is not its tokens.
    time : int
        Nanoseconds since 1970 of the time step; 0 for a static cube.
    sample : int
        Member of an ensemble.
    step : int
        Step of iterative decoding.
    """

    seed: int
    modality: str
    time: int = 0
    sample: int = 0
    step: int = 0

    def key(self) -> tuple[int, int]:
        """Return the two key words of the stream."""
        if not 0 <= self.seed < 2**64:
            raise ValueError(f"The seed must lie in 0 .. 2^64 - 1, got {self.seed}.")
        words = (
            zlib.crc32(self.modality.encode()),
            (self.sample << 16 | self.step) & _WORD,
            self.time & _WORD,
            (self.time >> 32) & _WORD,
        )
        counter = tuple(np.array([word], np.uint64) for word in words)
        mixed = philox(counter, (self.seed & _WORD, self.seed >> 32))
        return int(mixed[0][0]), int(mixed[1][0])


def uniform_batch(
    stream: NoiseStream, cells: Cells, out: Array, places: NDArray[np.int64] | None = None
) -> None:
    """Fill `out` with uniform numbers in (0, 1) for the world cells of a batch of grids.

    Parameters
    ----------
    stream : NoiseStream
    cells : sequence of (rows, cols)
        For each grid the world cells of its rows (h) and columns (w), int64; all of one shape.
    out : numpy.ndarray, torch.Tensor or cupy.ndarray, float32, shape (B, h * w, count)
        Row-major over each grid.
    places : numpy.ndarray, int64, shape (B, n), optional
        Row-major places of some cells of each grid, in place of all of them; `out` is then
        (B, n, count).

    Raises
    ------
    ValueError
        If shapes do not fit.
    """
    rows, cols = _grids(cells)
    if places is not None:
        if places.ndim != 2 or len(places) != len(rows):
            raise ValueError(f"places: expected shape ({len(rows)}, n), got {places.shape}.")
        rows, cols = (np.take_along_axis(axis, places, axis=1) for axis in (rows, cols))
    if tuple(out.shape[:-1]) != rows.shape:
        raise ValueError(f"out: expected shape {(*rows.shape, 'count')}, got {tuple(out.shape)}.")
    kernels.philox_uniform(stream.key(), rows.ravel(), cols.ravel(), out)


def normal_batch(stream: NoiseStream, cells: Cells, out: Array) -> None:
    """Fill images with standard normal numbers that depend on the world cell of each pixel.

    Parameters
    ----------
    stream : NoiseStream
    cells : sequence of (rows, cols)
        For each image the world cells of its rows (h) and columns (w) of patches, int64; all of one
        shape.
    out : numpy.ndarray, torch.Tensor or cupy.ndarray, float32, shape (B, C, h * patch, w * patch)

    Raises
    ------
    ValueError
        If shapes do not fit.
    """
    rows, cols = _grids(cells)
    (batch, count), (height, width) = rows.shape, (len(axis) for axis in cells[0])
    channels, patch = out.shape[1], out.shape[2] // height
    images = hold(out, "out")
    output_array(out, "out", (batch, channels, height * patch, width * patch), ("float32",), images)
    # A cell's numbers lie together: band by band, row by row.
    numbers = hold(images.empty((batch, count, channels * patch * patch), "float32"), "numbers")
    kernels.philox_normal(stream.key(), rows.ravel(), cols.ravel(), numbers.array)
    patches = numbers.merged(batch, height, width, channels, patch, patch)
    target = images.merged_out(batch, channels, height, patch, width, patch)
    # NumPy and torch have no other way to permute axes in common.
    target[...] = patches.swapaxes(1, 3).swapaxes(2, 3).swapaxes(3, 4)


def _grids(cells: Cells) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the world rows and columns of every cell, (B, h * w) each."""
    shapes = {(len(rows), len(cols)) for rows, cols in cells}
    if len(shapes) != 1:
        raise ValueError(f"cells: expected grids of one shape, got {sorted(shapes)}.")
    rows = np.stack([np.repeat(rows, len(cols)) for rows, cols in cells])
    cols = np.stack([np.tile(cols, len(rows)) for rows, cols in cells])
    return rows.astype(np.int64, copy=False), cols.astype(np.int64, copy=False)
