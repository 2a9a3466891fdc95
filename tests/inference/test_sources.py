"""What a model gets of a window: standardised patches and images, wherever invalid pixels lie."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from terramind_cube.inference.sources import (
    InputBuffers,
    InputLayer,
    Source,
    TileShape,
    usable_tiles,
)
from terramind_cube.modalities import MODALITIES, V1_STATISTICS, Statistics, standardize
from terramind_cube.model.embeddings import patchify

CPU = torch.device("cpu")
SHAPE = TileShape(tile_px=32, patch_px=16, dtype="float32")


def layer(name, form="pixels", bands=None):
    row = MODALITIES[name]
    bands = tuple(range(len(row.bands))) if bands is None else bands
    statistics = None if row.kind == "classes" else V1_STATISTICS[name]
    return InputLayer(name, form, row.fill_value, statistics, bands, row.bands)


def window(name, bands, height=70, width=61, seed=0):
    rng = np.random.default_rng(seed)
    if name == "LULC":
        return rng.integers(1, 10, (1, height, width)).astype(np.uint8)
    if name == "S2L2A":
        return rng.integers(1, 9000, (bands, height, width)).astype(np.uint16)
    return rng.normal(-12, 4, (bands, height, width)).astype(np.float32)


def padded(pixels, height, width):
    rest = ((0, 0), (0, height - pixels.shape[1]), (0, width - pixels.shape[2]))
    return np.pad(pixels, rest, mode="reflect")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ["S2L2A", "S1RTC"])
def test_patches_are_those_of_the_standardised_image(name, dtype):
    row = layer(name)
    pixels = window(name, row.channels)
    pixels[1, 5, 7] = row.nodata
    shape = TileShape(32, 16, dtype)
    source = Source(row, pixels, (80, 80), CPU)
    buffers = InputBuffers([source], (100, 200), 3, shape)
    tiles = [(100, 200), (148, 248)]
    buffers.fill(tiles)
    found = buffers.images()[name]
    assert found.dtype == getattr(torch, dtype)
    assert found.shape == (3, 2, 2, 16, 16, row.channels)
    values = standardize(name, padded(pixels, 80, 80))
    values[:, 5, 7] = 0
    exact = InputBuffers([source], (100, 200), 3, SHAPE)
    exact.fill(tiles)
    assert torch.equal(found, exact.images()[name].to(found.dtype))
    for slot, (y, x) in enumerate(tiles):
        image = torch.from_numpy(values[None, :, y - 100 : y - 68, x - 200 : x - 168])
        expected = patchify(image.contiguous(), 16)[0]
        patches = exact.images()[name][slot].reshape(4, -1)
        torch.testing.assert_close(patches, expected, rtol=1e-5, atol=1e-5)
    assert (found[2] == 0).all()


def test_images_for_a_tokenizer_keep_their_layout():
    row = layer("S2L2A", "tokens")
    pixels = window("S2L2A", 12)
    buffers = InputBuffers([Source(row, pixels, (70, 61), CPU)], (0, 0), 1, SHAPE)
    buffers.fill([(16, 16)])
    expected = standardize("S2L2A", pixels)[:, 16:48, 16:48]
    np.testing.assert_allclose(buffers.images()["S2L2A"][0], expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("form", ["pixels", "tokens"])
def test_bands_that_are_not_looked_at_are_their_mean(form):
    few, every = layer("S2L2A", form, (1, 2, 3)), layer("S2L2A", form)
    pixels = window("S2L2A", 12)
    made = []
    for row, part in ((few, pixels[1:4]), (every, pixels)):
        buffers = InputBuffers([Source(row, part, (70, 61), CPU)], (0, 0), 1, SHAPE)
        buffers.fill([(0, 0)])
        image = buffers.images()["S2L2A"][0]
        made.append(image.permute(4, 0, 2, 1, 3).reshape(12, 32, 32) if form == "pixels" else image)
    torch.testing.assert_close(made[0][1:4], made[1][1:4], rtol=0, atol=0)
    assert (made[0][[0, *range(4, 12)]] == 0).all()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_one_band_that_is_no_number_makes_the_pixel_its_mean(value):
    row = layer("S1RTC")
    pixels = window("S1RTC", 2)
    pixels[0, 3, 4] = value
    source = Source(row, pixels, (70, 61), CPU)
    assert (~source.is_valid).nonzero().tolist() == [[3, 4]]
    buffers = InputBuffers([source], (0, 0), 1, SHAPE)
    buffers.fill([(0, 0)])
    patches = buffers.images()["S1RTC"][0]
    assert torch.isfinite(patches).all()
    assert (patches[0, 0, 3, 4] == 0).all()


def test_class_codes_become_integers_and_invalid_ones_0():
    row = layer("LULC", "tokens")
    pixels = window("LULC", 1).astype(np.float64)
    pixels[0, 2, 3] = np.nan
    buffers = InputBuffers([Source(row, pixels, (80, 80), CPU)], (0, 0), 1, SHAPE)
    buffers.fill([(0, 0)])
    codes = buffers.images()["LULC"]
    assert codes.dtype == torch.int64
    assert codes[0, 2, 3] == 0
    np.testing.assert_array_equal(codes[0, 4:], pixels[0, 4:32, :32])


@pytest.mark.parametrize("wrong", [10, 255])
def test_codes_of_another_map_are_named(wrong):
    pixels = window("LULC", 1)
    pixels[0, 60, 60] = wrong
    with pytest.raises(ValueError, match=f"LULC holds the code {wrong}"):
        Source(layer("LULC", "tokens"), pixels, (70, 61), CPU)


def test_tiles_without_a_known_pixel_are_left_out():
    radar, optical = window("S1RTC", 2), window("S2L2A", 12)
    radar[:], optical[:] = np.nan, 0
    radar[:, 69, 60], optical[:, 0, 0] = -10, 500
    sources = [
        Source(layer(name), pixels, (70, 61), CPU)
        for name, pixels in (("S1RTC", radar), ("S2L2A", optical))
    ]
    tiles = [(y, x) for y in (0, 16, 38) for x in (0, 16, 29)]
    assert usable_tiles(sources, (0, 0), tiles, 32) == [(0, 0), (38, 29)]


@pytest.mark.parametrize("dtype", [">u2", "int64", "float64"])
def test_other_numbers_are_read_as_floats(dtype):
    pixels = window("S2L2A", 12)
    source = Source(layer("S2L2A"), pixels.astype(dtype), (70, 61), CPU)
    np.testing.assert_array_equal(source.pixels, pixels.astype(np.float32))


def test_an_embedding_of_ones_own_sees_float32():
    """It is not cast with the model's."""
    row = InputLayer("soil", "pixels", np.nan, Statistics((1.0,), (2.0,)), (0,), ("soil",))
    shape = TileShape(32, 16, "bfloat16")
    source = Source(row, np.full((1, 32, 32), 1.2345, np.float32), (32, 32), CPU)
    buffers = InputBuffers([source], (0, 0), 1, shape)
    buffers.fill([(0, 0)])
    np.testing.assert_allclose(buffers.images()["soil"], 0.11725, rtol=1e-6)
