"""Contests over tokens, tiles and noise, as in `pixel_contests`."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from kernel_contest import (
    OURS,
    Case,
    Contestant,
    Place,
    add_arrays,
    add_torch,
    close,
    compiled_into,
)

from terramind_cube import kernels
from terramind_cube.inference.blend import tile_weights
from terramind_cube.kernels.dispatch import engine_of, hold
from terramind_cube.modalities import LULC_CLASSES, MODALITIES

__all__ = ["CONTESTS"]

LEVELS = MODALITIES["S2L2A"].fsq_levels
GRID = 16
TOKENS = {"cpu": 1 << 20, "cuda": 1 << 24}  # a launch takes longer than a GPU for the former
BANDS, TILE, OVERLAP, TILES = 12, 224, 32, 9
SIDE = 2048
NOISE_CELLS, NOISE_EACH = 4096, 12 * 16 * 16


def same_tokens(ours: tuple[np.ndarray, ...], theirs: tuple[np.ndarray, ...]) -> str:
    """Rivals' sigmoids round otherwise: where a step is next to a tie, ids differ."""
    share = float(np.mean(ours[0] == theirs[0]))
    assert share > 0.9999
    return f"{share:.6f} of the tokens"


def quantize_contest(place: Place) -> Case:
    shape = (TOKENS[place.device] // GRID**2, len(LEVELS), GRID, GRID)
    latent = place.put(np.random.default_rng(3).normal(0, 2, shape).astype(np.float32))
    ids = place.put(np.zeros((shape[0], GRID, GRID), np.int64))
    steps = place.put(np.array(LEVELS, np.float32)[:, None, None] - 1)
    basis = place.put(np.cumprod((1, *LEVELS[:-1]))[:, None, None])
    scratch = place.put(np.zeros(shape, np.float32))
    whole_basis = basis.float()  # ids are below 2^24

    def alone():
        flat = (shape[0], len(LEVELS), GRID * GRID), (shape[0], GRID * GRID)
        a, b = place.ours(latent).reshape(flat[0]), place.ours(ids).reshape(flat[1])
        engine_of(hold(b, "ids")).fsq_quantize(a, LEVELS, b)

    def written(xp):
        x, s, b = (place.view(t) for t in (latent, steps, basis))
        return (xp.rint(1 / (1 + xp.exp(-x)) * s).astype(xp.int64) * b).sum(axis=1)

    def in_place():
        x, s, b, values = (t.numpy() for t in (latent, steps, whole_basis, scratch))
        np.negative(x, out=values)
        np.exp(values, out=values)
        np.add(values, 1, out=values)
        np.divide(s, values, out=values)
        np.rint(values, out=values)
        np.multiply(values, b, out=values)
        values.sum(axis=1, out=ids.numpy(), dtype=np.int64)

    def eager():
        torch.sigmoid(latent, out=scratch).mul_(steps).round_()
        torch.sum(scratch.long() * basis, dim=1, out=ids)

    def plain(latent, steps, basis, out):
        out.copy_(((torch.sigmoid(latent) * steps).round().long() * basis).sum(1))

    contestants = {
        OURS: Contestant(lambda: kernels.fsq_quantize(place.ours(latent), LEVELS, place.ours(ids))),
        "ours without the check for NaN": Contestant(alone),
    }
    add_arrays(contestants, place, written, in_place)
    add_torch(contestants, place, eager, compiled_into(plain, latent, steps, basis, ids))
    return Case(
        what=f"fsq_quantize: float32 latents of {len(LEVELS)} levels to int64 ids",
        unit="token",
        units=ids.numel(),
        bytes=(4 * len(LEVELS) + 8) * ids.numel(),
        numbers=latent.numel(),
        outs=(ids,),
        contestants=contestants,
        agree=same_tokens,
    )


def dequantize_contest(place: Place) -> Case:
    batch = TOKENS[place.device] // GRID**2
    drawn = np.random.default_rng(4).integers(0, math.prod(LEVELS), (batch, GRID, GRID))
    ids = place.put(drawn)
    levels = place.put(np.array(LEVELS)[:, None, None])
    basis = place.put(np.cumprod((1, *LEVELS[:-1]))[:, None, None])
    steps = levels.float() - 1
    codes = place.put(np.zeros((batch, len(LEVELS), GRID, GRID), np.float32))
    scratch = place.put(np.zeros(tuple(codes.shape), np.int64))

    def alone():
        flat = (batch, GRID * GRID), (batch, len(LEVELS), GRID * GRID)
        a, b = place.ours(ids).reshape(flat[0]), place.ours(codes).reshape(flat[1])
        engine_of(hold(b, "codes")).fsq_dequantize(a, LEVELS, b)

    def written(xp):
        i, n, b, s = (place.view(t) for t in (ids, levels, basis, steps))
        return (i[:, None] // b % n).astype(xp.float32) / s

    def in_place():
        i, n, b, s, digits = (t.numpy() for t in (ids, levels, basis, steps, scratch))
        np.floor_divide(i[:, None], b, out=digits)
        np.remainder(digits, n, out=digits)
        np.divide(digits, s, out=codes.numpy(), casting="unsafe")

    def eager():
        torch.div(ids[:, None], basis, rounding_mode="floor", out=scratch).remainder_(levels)
        torch.div(scratch, steps, out=codes)

    def plain(ids, basis, levels, steps, out):
        out.copy_((ids[:, None] // basis % levels).float() / steps)

    contestants = {
        OURS: Contestant(
            lambda: kernels.fsq_dequantize(place.ours(ids), LEVELS, place.ours(codes))
        ),
        "ours without the check of the ids": Contestant(alone),
    }
    add_arrays(contestants, place, written, in_place)
    compiled = compiled_into(plain, ids, basis, levels, steps, codes)
    add_torch(contestants, place, eager, compiled)
    return Case(
        what=f"fsq_dequantize: int64 ids to float32 codes of {len(LEVELS)} levels",
        unit="token",
        units=ids.numel(),
        bytes=(4 * len(LEVELS) + 8) * ids.numel(),
        numbers=codes.numel(),
        outs=(codes,),
        contestants=contestants,
        agree=close(1e-6, 1e-6),
    )


class Blending:
    """A row of overlapping tiles, its sums in a ring of rows, and the means of its rows."""

    def __init__(self, place: Place) -> None:
        self.place = place
        width = TILES * (TILE - OVERLAP) + OVERLAP
        rng = np.random.default_rng(5)
        tiles = rng.normal(0, 1, (TILES, BANDS, TILE, TILE)).astype(np.float32)
        self.tiles, self.weights = place.put(tiles), place.put(tile_weights(TILE, OVERLAP))
        self.total = place.put(np.zeros((BANDS, TILE, width), np.float32))
        self.weight = place.put(np.zeros((TILE, width), np.float32))
        self.mean = place.put(np.zeros((BANDS, TILE, width), np.float32))
        self.scratch = place.put(np.zeros((BANDS, TILE, TILE), np.float32))

    def clear(self) -> None:
        self.total.zero_()
        self.weight.zero_()

    def fill(self) -> None:
        """Give sums as after a row of tiles."""
        self.total.fill_(2)
        self.weight.fill_(0.5)

    def parts(self, kind: Any) -> list[tuple[Any, ...]]:
        """Return tile and the sums to which it is added, each as one kind of array."""
        total, weight = kind(self.total), kind(self.weight)
        starts = range(0, weight.shape[1] - OVERLAP, TILE - OVERLAP)
        return [
            (tile, total[..., x : x + TILE], weight[:, x : x + TILE])
            for tile, x in zip(kind(self.tiles), starts, strict=True)
        ]

    def accumulate(self) -> None:
        ours = self.place.ours
        total, weight, weights = ours(self.total), ours(self.weight), ours(self.weights)
        for k, tile in enumerate(ours(self.tiles)):
            place = (0, 0, 0, k * (TILE - OVERLAP), TILE, TILE)
            kernels.blend_accumulate(tile, weights, place, total, weight)


def accumulate_contest(place: Place) -> Case:
    work = Blending(place)
    pixels = TILES * TILE * TILE

    def written(xp):
        weights = place.view(work.weights)
        for tile, total, weight in work.parts(place.view):
            total[:] += tile * weights
            weight[:] += weights

    def in_place():
        weights, scratch = work.weights.numpy(), work.scratch.numpy()
        for tile, total, weight in work.parts(place.view):
            np.multiply(tile, weights, out=scratch)
            np.add(total, scratch, out=total)
            np.add(weight, weights, out=weight)

    def eager():
        for tile, total, weight in work.parts(lambda tensor: tensor):
            total.addcmul_(tile, work.weights)
            weight.add_(work.weights)

    def add_one(tile, total, weight, weights):
        total.add_(tile * weights)
        weight.add_(weights)

    compiled = torch.compile(add_one, dynamic=False, fullgraph=True)

    def each_compiled():
        for part in work.parts(lambda tensor: tensor):
            compiled(*part, work.weights)

    contestants = {OURS: Contestant(work.accumulate)}
    add_arrays(contestants, place, written, in_place)
    add_torch(contestants, place, eager, each_compiled)
    return Case(
        what=f"blend_accumulate: a row of {TILES} tiles {BANDS} x {TILE} x {TILE}, overlap "
        f"{OVERLAP}, added to float32 sums",
        unit="pixel",
        units=pixels,
        bytes=(12 * BANDS + 12) * pixels,
        numbers=BANDS * pixels,
        outs=(work.total, work.weight),
        contestants=contestants,
        agree=close(1e-5, 1e-5),
        prepare=work.clear,
    )


def finish_contest(place: Place) -> Case:
    work = Blending(place)
    pixels = work.weight.numel()
    arrays = work.total, work.weight, work.mean

    def written(xp):
        total, weight, _ = (place.view(t) for t in arrays)
        mean = total / weight
        total[:], weight[:] = 0, 0
        return mean, total, weight

    def in_place():
        total, weight, mean = (t.numpy() for t in arrays)
        np.divide(total, weight, out=mean)
        total.fill(0)
        weight.fill(0)

    def eager():
        torch.div(work.total, work.weight, out=work.mean)
        work.clear()

    def plain(total, weight, mean):
        mean.copy_(total / weight)
        total.zero_()
        weight.zero_()

    def ours():
        total, weight, mean = map(place.ours, arrays)
        kernels.blend_finish(total, weight, 0, mean)

    contestants = {OURS: Contestant(ours)}
    add_arrays(contestants, place, written, in_place)
    add_torch(contestants, place, eager, compiled_into(plain, *arrays))
    return Case(
        what=f"blend_finish: {TILE} rows of {BANDS} bands, means out of sums, which become 0",
        unit="pixel",
        units=pixels,
        bytes=(12 * BANDS + 8) * pixels,
        numbers=BANDS * pixels,
        outs=(work.mean, work.total, work.weight),
        contestants=contestants,
        agree=close(1e-6, 0),
        prepare=work.fill,
    )


def class_contest(place: Place) -> Case:
    count = len(LULC_CLASSES)
    drawn = np.random.default_rng(6).random((count, SIDE, SIDE), np.float32)
    probability = place.put(drawn)
    classes = place.put(np.zeros((SIDE, SIDE), np.uint8))
    confidence = place.put(np.zeros((SIDE, SIDE), np.float32))
    indices = place.put(np.zeros((SIDE, SIDE), np.int64))

    def written(xp):
        numbers = place.view(probability)
        return numbers.argmax(axis=0).astype(xp.uint8), numbers.max(axis=0)

    def in_place():
        np.argmax(probability.numpy(), axis=0, out=indices.numpy())
        np.copyto(classes.numpy(), indices.numpy(), casting="unsafe")
        np.max(probability.numpy(), axis=0, out=confidence.numpy())

    def eager():
        torch.max(probability, dim=0, out=(confidence, indices))
        classes.copy_(indices)

    def plain(probability, classes, confidence):
        greatest, found = probability.max(dim=0)
        classes.copy_(found)
        confidence.copy_(greatest)

    arrays = probability, classes, confidence
    contestants = {OURS: Contestant(lambda: kernels.class_map(*map(place.ours, arrays)))}
    add_arrays(contestants, place, written, in_place)
    add_torch(contestants, place, eager, compiled_into(plain, *arrays))
    return Case(
        what=f"class_map: float32 probabilities {count} x {SIDE} x {SIDE} to uint8 and float32",
        unit="pixel",
        units=SIDE * SIDE,
        bytes=(4 * count + 5) * SIDE * SIDE,
        numbers=probability.numel(),
        outs=(classes, confidence),
        contestants=contestants,
        agree=close(0, 0),
    )


def noise_contest(place: Place) -> Case:
    """Rivals draw in order; ours gives each world cell the same numbers in whatever order."""
    out = place.put(np.zeros((NOISE_CELLS, NOISE_EACH), np.float32))
    rows, cols = (axis.ravel() for axis in np.mgrid[:64, : NOISE_CELLS // 64])

    def ours():
        kernels.philox_normal((1, 2), rows, cols, place.ours(out))

    def agree(ours, theirs):
        mean, std = float(theirs[0].mean()), float(theirs[0].std())
        assert abs(mean - ours[0].mean()) < 2e-3
        assert abs(std - ours[0].std()) < 2e-3
        return f"mean {mean:.4f}, standard deviation {std:.4f}"

    contestants = {OURS: Contestant(ours)}
    if place.is_gpu:
        size = tuple(out.shape)
        contestants["CuPy"] = Contestant(lambda: place.xp.random.standard_normal(size, np.float32))
    else:
        bits = np.random.Generator(np.random.Philox(0))
        contestants["NumPy in place"] = Contestant(
            lambda: bits.standard_normal(dtype=np.float32, out=out.numpy())
        )
    generator = torch.Generator(place.device).manual_seed(0)
    contestants["torch eager"] = Contestant(lambda: out.normal_(generator=generator))
    return Case(
        what=f"philox_normal: {NOISE_EACH} float32 numbers for each of {NOISE_CELLS} cells",
        unit="number",
        units=out.numel(),
        bytes=4 * out.numel(),
        numbers=out.numel(),
        outs=(out,),
        contestants=contestants,
        agree=agree,
        absent={"torch.compile": "knows no noise by cells; its own is torch's"},
    )


CONTESTS = {
    "fsq_quantize": quantize_contest,
    "fsq_dequantize": dequantize_contest,
    "blend_accumulate": accumulate_contest,
    "blend_finish": finish_contest,
    "class_map": class_contest,
    "philox_normal": noise_contest,
}
