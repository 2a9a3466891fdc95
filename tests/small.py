"""A model of 64 px tiles that runs in milliseconds, and random cubes for it."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords

pytest.importorskip("torch")

from terramind_cube.modalities import MODALITIES
from terramind_cube.model.loading import fill_untrained
from terramind_cube.model.tokenizers import Tokenizer
from terramind_cube.model.transformer import TerraMind
from terramind_cube.model.unet import UNetDescription
from terramind_cube.model.variants import (
    DESCRIPTION_KEY,
    MODELS,
    TOKENIZERS,
    RawInput,
    TokenSpace,
)
from terramind_cube.model.weights import save_safetensors

TILE_PX = 64

_GRIDS = ("LULC", "S1RTC", "DEM", "S2L2A", "NDVI")

MODEL = dataclasses.replace(
    MODELS["terramind_nano"],
    dim=32,
    heads=2,
    encoder_depth=2,
    decoder_depth=1,
    mlp_hidden=64,
    tile_px=TILE_PX,
    raw_inputs=tuple(
        RawInput(name, f"untok_{name.lower()}", len(MODALITIES[name].bands))
        for name in ("S2L2A", "S1RTC", "DEM")
    ),
    token_spaces=(
        *(TokenSpace(n, f"tok_{n.lower()}", MODALITIES[n].vocabulary) for n in _GRIDS),
        TokenSpace("Coordinates", "coords", 2200, "sequence"),
    ),
)
TOKENIZERS_BY_NAME = {
    name: dataclasses.replace(
        TOKENIZERS["nano", name],
        dim=32,
        heads=2,
        mlp_hidden=64,
        position_grid=4,
        # Sentinel-1 is decoded by diffusion, the others by a ViT.
        unet=UNetDescription(features=16, groups=4, blocks=1) if name == "S1RTC" else None,
    )
    for name in _GRIDS
}
TOKENIZER = TOKENIZERS_BY_NAME["LULC"]


def lively_model():
    """The small model with tokens that stand out, in the logits and beside pixels."""
    network = TerraMind(MODEL).eval().requires_grad_(False)
    fill_untrained(network)
    for target in network.decoder_embeddings.values():
        target.to_logits.weight *= 6
    for space in MODEL.token_spaces:
        network.encoder_embeddings[space.key].token_emb.weight *= 6
    return network


def write_weights(folder):
    """Write the small model and its tokenizers; return the arguments of `generate` for LULC."""
    for name, network, description in (
        ("model", TerraMind(MODEL), MODEL),
        *((name, Tokenizer(row), row) for name, row in TOKENIZERS_BY_NAME.items()),
    ):
        fill_untrained(network)
        if name == "model":
            # Untrained logits are nearly flat; these have tokens that stand out.
            for target in network.decoder_embeddings.values():
                target.to_logits.weight.data *= 3
        metadata = {DESCRIPTION_KEY: description.to_json()}
        save_safetensors(folder / f"{name}.safetensors", network.state_dict(), metadata)
    return {"weights": folder / "model.safetensors", "tokenizer_weights": tokenizers(folder)}


def write_captioned(folder):
    """Write a small model that knows captions; return its arguments of `generate`."""
    specials = ["[PAD]", "[UNK]", "[SOS]", "[EOS]", "[S_0]", "[S_1]", "[S_2]"]
    words = [*specials, "a", "lake", "and", "trees", "."]
    (folder / "words.txt").write_text("\n".join(words))
    spaces = (*MODEL.token_spaces, TokenSpace("Captions", "caption", len(words), "sequence"))
    description = dataclasses.replace(MODEL, token_spaces=spaces)
    network = TerraMind(description)
    fill_untrained(network)
    metadata = {DESCRIPTION_KEY: description.to_json()}
    save_safetensors(folder / "captioned.safetensors", network.state_dict(), metadata)
    vocabularies = {"Captions": folder / "words.txt"}
    return {"weights": folder / "captioned.safetensors", "vocabularies": vocabularies}


def tokenizers(folder, *names):
    """Return the tokenizer weights of some modalities, LULC by default."""
    return {name: folder / f"{name}.safetensors" for name in names or ("LULC",)}


def make_cube(
    height=200,
    width=180,
    *,
    modalities=("S2L2A", "S1RTC", "DEM"),
    times=2,
    row=-30_000 * 16,
    col=3_000 * 16,
    crs="EPSG:32632",
    resolution=10.0,
    seed=0,
):
    """A cube of smooth random fields with holes of nodata; world pixel (row, col) is its corner.

    The values of a world pixel do not depend on the corner.
    """
    affine = Affine(resolution, 0, col * resolution, 0, -resolution, -row * resolution)
    geobox = GeoBox((height, width), affine, crs)
    y, x = np.mgrid[row : row + height, col : col + width]
    dates = np.array(["2024-05-14T10:30", "2024-08-22T10:30"], "M8[ns]")[: times or 0]
    variables = {}
    for name in modalities:
        row_of = MODALITIES[name]
        rng = np.random.default_rng(seed + len(name) + len(row_of.bands))
        phase = rng.uniform(0, 6, (max(times, 1), len(row_of.bands), 4))
        field = sum(
            np.sin(y * f + phase[..., i, None, None])
            + np.cos(x * f + phase[..., i + 1, None, None])
            for i, f in ((0, 0.011), (2, 0.23))
        )
        hole = ((y // 50) * 7 + (x // 40) * 3) % 11 == len(name) % 3
        if name == "S2L2A":
            values = np.clip(1500 + 500 * field, 1, None).astype(np.uint16)
            values[..., hole] = 0
        elif name == "S1RTC":
            values = (-14 + 2 * field).astype(np.float32)
            values[..., hole] = np.nan
        else:
            values = (400 + 90 * field).astype(np.float32)
        if row_of.temporal == "static" or not times:
            values = values[0]
        if row_of.band_dim is None:
            values = values[..., 0, :, :]
        leading = [] if row_of.temporal == "static" or not times else ["time"]
        bands = [row_of.band_dim] if row_of.band_dim else []
        variables[name] = ((*leading, *bands, "y", "x"), values)
        if name == "S2L2A":
            assert values.shape[-3] == 12
    coords = dict(xr_coords(geobox))
    if times and any("time" in dims for dims, _ in variables.values()):
        coords["time"] = dates
    for name in modalities:
        if MODALITIES[name].band_dim:
            coords[MODALITIES[name].band_dim] = list(MODALITIES[name].bands)
    return xr.Dataset(variables, coords=coords)
