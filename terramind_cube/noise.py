"""Random numbers that depend on where and what, never on how the work was cut.

The numbers of a token cell are a function of (seed, sample, modality, step, time, world cell), so
that chunks, batches, workers and retries draw the same ones.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from terramind_cube.kernels import cpu
from terramind_cube.kernels.reference import philox

if TYPE_CHECKING:
    from numpy.typing import NDArray

__all__ = ["NoiseStream", "normal_image", "uniform_cells"]

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


def uniform_cells(
    stream: NoiseStream,
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    out: NDArray[np.float32],
    places: NDArray[np.int64] | None = None,
) -> None:
    """Fill `out` with uniform numbers in (0, 1) for a grid of world cells.

    Parameters
    ----------
    stream : NoiseStream
    rows, cols : numpy.ndarray, int64
        World cells of the grid's rows (h) and columns (w).
    out : numpy.ndarray, float32, shape (h * w, count)
        Row-major over the grid.
    places : numpy.ndarray, int64, shape (n,), optional
        Row-major places of some cells, in place of all of them; `out` is then (n, count).
    """
    grid_rows, grid_cols = np.repeat(rows, len(cols)), np.tile(cols, len(rows))
    if places is not None:
        grid_rows, grid_cols = grid_rows[places], grid_cols[places]
    cpu.philox_uniform(stream.key(), grid_rows, grid_cols, out)


def normal_image(
    stream: NoiseStream,
    rows: NDArray[np.int64],
    cols: NDArray[np.int64],
    out: NDArray[np.float32],
) -> None:
    """Fill an image with standard normal numbers that depend on the world cell of each pixel.

    Parameters
    ----------
    stream : NoiseStream
    rows, cols : numpy.ndarray, int64
        World cells of the image's rows (h) and columns (w) of patches.
    out : numpy.ndarray, float32, shape (C, h * patch, w * patch)
    """
    shape = (len(rows), len(cols))
    channels, patch = out.shape[0], out.shape[1] // len(rows)
    grid_rows, grid_cols = np.repeat(rows, len(cols)), np.tile(cols, len(rows))
    numbers = np.empty((shape[0] * shape[1], channels * patch * patch), np.float32)
    cpu.philox_normal(stream.key(), grid_rows, grid_cols, numbers)
    cells = numbers.reshape(*shape, channels, patch, patch)
    out[:] = cells.transpose(2, 0, 3, 1, 4).reshape(out.shape)
