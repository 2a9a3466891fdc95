"""Random numbers depend on what and where, never on how the work is cut."""

from __future__ import annotations

import numpy as np
import pytest

from terramind_cube.noise import NoiseStream, uniform_cells

STREAM = NoiseStream(seed=7, modality="LULC", time=1_700_000_000_000_000_000)


def field(stream, rows, cols, count=8):
    out = np.empty((len(rows) * len(cols), count), np.float32)
    uniform_cells(stream, np.asarray(rows), np.asarray(cols), out)
    return out.reshape(len(rows), len(cols), count)


def test_a_cell_has_its_numbers_whatever_the_window():
    whole = field(STREAM, np.arange(-5, 20), np.arange(100, 130))
    part = field(STREAM, np.arange(3, 9), np.arange(110, 112))
    np.testing.assert_array_equal(part, whole[8:14, 10:12])


@pytest.mark.parametrize(
    "other",
    [
        NoiseStream(8, "LULC", STREAM.time),
        NoiseStream(7 + 2**40, "LULC", STREAM.time),
        NoiseStream(7, "DEM", STREAM.time),
        NoiseStream(7, "LULC", STREAM.time + 1),
        NoiseStream(7, "LULC", STREAM.time + 2**40),
        NoiseStream(7, "LULC", STREAM.time, sample=1),
        NoiseStream(7, "LULC", STREAM.time, step=1),
    ],
)
def test_every_part_of_the_key_counts(other):
    assert other.key() != STREAM.key()
    cells = np.arange(4)
    assert not np.array_equal(field(other, cells, cells), field(STREAM, cells, cells))


def test_numbers_are_uniform_and_cells_independent():
    numbers = field(STREAM, np.arange(64), np.arange(64), 16).reshape(-1, 16)
    assert abs(float(numbers.mean()) - 0.5) < 0.005
    counts = np.histogram(numbers, 16, (0, 1))[0]
    assert np.abs(counts / counts.mean() - 1).max() < 0.05
    correlation = np.corrcoef(numbers[:-1].ravel(), numbers[1:].ravel())[0, 1]
    assert abs(correlation) < 0.01


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_seeds_out_of_range_are_refused(seed):
    with pytest.raises(ValueError, match="seed must lie in"):
        NoiseStream(seed, "LULC").key()
