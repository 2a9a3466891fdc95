"""Random numbers depend on what and where, never on how the work is cut."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from terramind_cube.kernels import reference
from terramind_cube.noise import NoiseStream, normal_batch, uniform_batch

STREAM = NoiseStream(seed=7, modality="LULC", time=1_700_000_000_000_000_000)


def field(stream, rows, cols, count=8):
    out = np.empty((len(rows) * len(cols), count), np.float32)
    uniform_batch(stream, [(np.asarray(rows), np.asarray(cols))], out[None])
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


@pytest.mark.parametrize("places", [[0], [11, 3, 4], [5, 5], list(range(12))])
def test_some_cells_have_the_numbers_that_they_have_among_all(places):
    rows, cols = np.arange(-2, 1), np.arange(7, 11)
    whole = field(STREAM, rows, cols).reshape(12, -1)
    out = np.full((len(places), 8), np.nan, np.float32)
    uniform_batch(STREAM, [(rows, cols)], out[None], np.array(places)[None])
    np.testing.assert_array_equal(out, whole[places])


def test_no_cells_are_no_numbers():
    out = np.empty((1, 0, 8), np.float32)
    uniform_batch(STREAM, [(np.arange(3), np.arange(4))], out, np.empty((1, 0), np.int64))


def image(rows, cols, bands=2, patch=16, stream=STREAM):
    out = np.full((bands, len(rows) * patch, len(cols) * patch), np.nan, np.float32)
    normal_batch(stream, [(np.asarray(rows), np.asarray(cols))], out[None])
    return out


def test_overlapping_images_agree_on_every_pixel_of_a_world_cell():
    whole = image(np.arange(-3, 6), np.arange(20, 32))
    part = image(np.arange(-1, 4), np.arange(23, 25))
    np.testing.assert_array_equal(part, whole[:, 32:112, 48:80])
    np.testing.assert_array_equal(image([2], [30]), whole[:, 80:96, 160:176])


def test_a_band_has_its_numbers_however_many_there_are():
    rows, cols = np.arange(2), np.arange(3)
    twelve = image(rows, cols, bands=12)
    for bands in (1, 2, 5):
        np.testing.assert_array_equal(image(rows, cols, bands), twelve[:bands])
    assert abs(np.corrcoef(twelve.reshape(12, -1))[~np.eye(12, dtype=bool)]).max() < 0.15


def test_a_cell_s_numbers_go_band_by_band_and_row_by_row():
    numbers = np.empty((1, 3 * 4 * 4), np.float32)
    reference.philox_normal(STREAM.key(), np.array([5]), np.array([-9]), numbers)
    found = image(np.arange(4, 7), np.arange(-10, -7), bands=3, patch=4)
    np.testing.assert_allclose(found[:, 4:8, 4:8], numbers.reshape(3, 4, 4), rtol=0, atol=1e-5)


@pytest.mark.parametrize("patch", [16, 3, 1])
def test_every_pixel_of_a_patch_has_a_number_of_its_own(patch):
    found = image(np.arange(3), np.arange(4), bands=3, patch=patch)
    assert len(np.unique(found)) > 0.99 * found.size
    assert np.isfinite(found).all()


def test_images_are_standard_normal_and_white():
    found = image(np.arange(12), np.arange(12), bands=3).astype(np.float64)
    assert abs(found.mean()) < 0.01
    assert abs(found.std() - 1) < 0.01
    assert abs((found**4).mean() - 3) < 0.08
    for axis in range(3):
        neighbours = [np.take(found, range(*ends), axis) for ends in
                      ((0, found.shape[axis] - 1), (1, found.shape[axis]))]  # fmt: skip
        assert abs(np.corrcoef(*(part.ravel() for part in neighbours))[0, 1]) < 0.015
    between = np.corrcoef(found[:, :-16].ravel(), found[:, 16:].ravel())[0, 1]  # of other cells
    assert abs(between) < 0.015


@pytest.mark.parametrize("change", [{"seed": 8}, {"modality": "S1RTC/image"}, {"sample": 1}])
def test_other_streams_give_other_images(change):
    other = image([0], [0], stream=dataclasses.replace(STREAM, **change))
    assert abs(np.corrcoef(other.ravel(), image([0], [0]).ravel())[0, 1]) < 0.2


CELLS = [(np.arange(2), np.arange(3)), (np.arange(7, 9), np.arange(-9, -6))]


@pytest.mark.parametrize("places", [None, np.array([[5, 0, 1], [2, 2, 4]])])
def test_a_batch_has_the_numbers_of_its_grids(places):
    count = 6 if places is None else 3
    out = np.full((2, count, 5), np.nan, np.float32)
    uniform_batch(STREAM, CELLS, out, places)
    for slot, cells in enumerate(CELLS):
        whole = field(STREAM, *cells, 5).reshape(6, 5)
        expected = whole if places is None else whole[places[slot]]
        np.testing.assert_array_equal(out[slot], expected)


def test_a_batch_has_the_images_of_its_grids():
    out = np.full((2, 3, 8, 12), np.nan, np.float32)
    normal_batch(STREAM, CELLS, out)
    for slot, cells in enumerate(CELLS):
        np.testing.assert_array_equal(out[slot], image(*cells, bands=3, patch=4))


@pytest.mark.parametrize("is_inference", [False, True])
def test_tensors_and_strided_arrays_are_filled_alike(is_inference):
    arrays = np.empty((2, 6, 5), np.float32), np.empty((2, 3, 8, 12), np.float32)
    fills = [(uniform_batch, array) for array in arrays[:1]] + [(normal_batch, arrays[1])]
    for fill, array in fills:
        fill(STREAM, CELLS, array)
        with torch.inference_mode(is_inference):
            tensor = torch.empty(array.shape)
            fill(STREAM, CELLS, tensor)
        np.testing.assert_array_equal(tensor.numpy(), array)
        strided = np.full((*array.shape, 2), np.nan, np.float32)
        fill(STREAM, CELLS, strided[..., 0])
        np.testing.assert_array_equal(strided[..., 0], array)
        assert np.isnan(strided[..., 1]).all()


@pytest.mark.parametrize(
    ("fill", "shape", "places", "message"),
    [
        (uniform_batch, (2, 5, 4), None, r"out: expected shape \(2, 6"),
        (uniform_batch, (2, 6, 4), np.zeros((1, 6), np.int64), r"places: expected shape \(2, n"),
        (normal_batch, (2, 3, 8, 11), None, "out: expected float32"),
        (normal_batch, (1, 3, 8, 12), None, "out: expected float32"),
    ],
)
def test_batches_that_do_not_fit_are_refused(fill, shape, places, message):
    out = np.zeros(shape, np.float32)
    with pytest.raises(ValueError, match=message):
        fill(STREAM, CELLS, out, *(() if places is None else (places,)))
    assert not out.any()


def test_grids_of_several_shapes_are_refused():
    cells = [CELLS[0], (np.arange(2), np.arange(4))]
    with pytest.raises(ValueError, match=r"cells: expected grids of one shape"):
        uniform_batch(STREAM, cells, np.zeros((2, 6, 4), np.float32))
