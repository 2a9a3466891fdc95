"""Blending is a partition of unity and does not depend on the region."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from terramind_cube.grid import Region
from terramind_cube.inference.blend import Blend, tile_weights


@pytest.mark.parametrize("overlap", [0, 16, 24])
def test_two_neighbours_sum_to_one_in_their_overlap(overlap):
    row = tile_weights(64, overlap)[32]
    assert row.max() == 1
    if overlap:
        np.testing.assert_allclose(row[-overlap:] + row[:overlap], 1, rtol=1e-6)
    else:
        assert (row == 1).all()


def blended(region, tiles, probabilities, overlap=16):
    found = np.full((3, *region.shape), -1, np.float32)

    def settle(rows, mean):
        assert (found[:, rows] == -1).all()
        found[:, rows] = mean

    blend = Blend(region, torch.from_numpy(tile_weights(64, overlap)), (3,), settle)
    for tile in tiles:
        if tile[0] + 64 > region.y0 and tile[0] < region.y1:
            blend.add(tile, torch.from_numpy(probabilities[tile]))
    blend.finish()
    return found


def test_a_region_is_the_same_part_of_the_whole():
    tiles = [(y, x) for y in (0, 48, 96) for x in (0, 48)]
    rng = np.random.default_rng(0)
    probabilities = {tile: rng.dirichlet(np.ones(3), (64, 64)) for tile in tiles}
    probabilities = {
        tile: np.moveaxis(p, -1, 0).astype(np.float32) for tile, p in probabilities.items()
    }
    whole = blended(Region(0, 160, 0, 112), tiles, probabilities)
    for y0, y1 in ((0, 50), (50, 100), (70, 160), (159, 160)):
        part = blended(Region(y0, y1, 0, 112), tiles, probabilities)
        np.testing.assert_array_equal(part, whole[:, y0:y1])


def test_blend_equals_the_weighted_mean_of_probabilities():
    tiles = [(0, 0), (48, 0)]
    probabilities = {
        tile: np.full((3, 64, 64), [[[v]] for v in values], np.float32)
        for tile, values in zip(tiles, ([0.8, 0.2, 0.0], [0.1, 0.3, 0.6]), strict=True)
    }
    found = blended(Region(0, 112, 0, 64), tiles, probabilities)
    weight = (np.arange(16) + 0.5) / 16
    mixed = (1 - weight[:, None]) * [0.8, 0.2, 0.0] + weight[:, None] * [0.1, 0.3, 0.6]
    np.testing.assert_allclose(found[:, 48:64, 30].T, mixed, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(found[:, 10, 10], [0.8, 0.2, 0.0], rtol=1e-6)
    np.testing.assert_allclose(found[:, 100, 10], [0.1, 0.3, 0.6], rtol=1e-6)


def test_rows_that_no_tile_reached_stay_empty():
    probability = np.full((3, 64, 64), 1 / 3, np.float32)
    found = blended(
        Region(0, 300, 0, 64), [(0, 0), (236, 0)], dict.fromkeys([(0, 0), (236, 0)], probability)
    )
    assert np.isnan(found[:, 64:236]).all()
    assert np.isfinite(found[:, :64]).all()
    assert np.isfinite(found[:, 236:]).all()
