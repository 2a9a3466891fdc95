"""Contests over pixels: ours, NumPy as one writes it and in place, torch eager and compiled, CuPy.

A contest is a function of the place; `CONTESTS` lists them by name.
"""

from __future__ import annotations

from functools import partial
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
from terramind_cube.modalities import V1_STATISTICS

__all__ = ["CONTESTS"]

SIDE, PATCH, RADAR_DATES = 2048, 16, 4
S2, S1 = V1_STATISTICS["S2L2A"], V1_STATISTICS["S1RTC"]


def decoded_bfloat16(bits: np.ndarray) -> np.ndarray:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def optical_pixels(is_scattered: bool = False) -> np.ndarray:
    """Reflectances (12, H, W) uint16; 0 in every band outside of the swath, 5 % of the pixels.

    Or in a tenth of the pixels, here and there: no sensor's, but the hardest to mask.
    """
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 8000, (12, SIDE, SIDE), np.uint16)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    is_nodata = rows + columns < 0.32 * SIDE
    pixels[:, rng.random((SIDE, SIDE)) < 0.1 if is_scattered else is_nodata] = 0
    return pixels


def radar_pixels() -> np.ndarray:
    """Decibels (dates, 2, H, W) float32, with NaN outside of the swath."""
    shape = (RADAR_DATES, 2, SIDE, SIDE)
    pixels = np.random.default_rng(1).normal(-14, 4, shape).astype(np.float32)
    rows, columns = np.mgrid[:SIDE, :SIDE]
    pixels[..., rows + columns < 0.32 * SIDE] = np.nan
    return pixels


def as_patches(xp: Any, image: Any) -> Any:
    """View (C, H, W) as (H / p, W / p, p, p, C)."""
    c, h, w = image.shape
    cut = image.reshape(c, h // PATCH, PATCH, w // PATCH, PATCH)
    return cut.permute(1, 3, 2, 4, 0) if xp is torch else cut.transpose(1, 3, 2, 4, 0)


class Normalizing:
    """The contestants of `normalize`.

    Parameters
    ----------
    place : Place
    pixels : numpy.ndarray, shape (..., C, H, W)
    statistics : Statistics
    nodata : float
    is_half, is_cut, from_power : bool
        Whether the result is bfloat16; cut into patches; of power.
    """

    def __init__(
        self, place, pixels, statistics, nodata, *, is_half=False, is_cut=False, from_power=False
    ):
        self.place, self.statistics, self.nodata = place, statistics, nodata
        self.is_half, self.is_cut, self.from_power = is_half, is_cut, from_power
        self.x = place.put(pixels)
        mean, std = (np.asarray(v, np.float32) for v in (statistics.mean, statistics.std))
        self.mean, self.std = (place.put(v[:, None, None]) for v in (mean, std))
        self.scale = 1 / self.std
        c, h, w = pixels.shape[-3:]
        shape = (h // PATCH, w // PATCH, PATCH, PATCH, c) if is_cut else pixels.shape
        self.out = place.put(np.zeros(shape, np.uint16 if is_half else np.float32))
        # What is not laid out or encoded as the result is computed here first.
        is_direct = not is_half and not is_cut
        self.image = self.out if is_direct else place.put(np.zeros(pixels.shape, np.float32))
        self.is_float = pixels.dtype.kind == "f"

    def ours(self) -> None:
        out = self.place.ours(self.out)
        if self.is_half and self.place.is_gpu:
            out = self.out.view(torch.bfloat16)
        kernels.normalize(
            self.place.ours(self.x),
            mean=self.statistics.mean,
            std=self.statistics.std,
            nodata=self.nodata,
            from_power=self.from_power,
            dtype="bfloat16" if self.is_half else "float32",
            patch_px=PATCH if self.is_cut else None,
            out=out,
        )

    def numpy_plain(self) -> np.ndarray:
        """As one writes it: every step a new array."""
        x, mean, std = (t.numpy() for t in (self.x, self.mean, self.std))
        masked = ~np.isfinite(x) if self.is_float else x == self.nodata
        values = x.astype(np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            if self.from_power:
                values = 10 * np.log10(values)
            values = (values - mean) / std
        values = np.where(masked.any(axis=-3, keepdims=True), np.float32(0), values)
        if self.is_half:
            bits = values.view(np.uint32)
            values = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return np.ascontiguousarray(as_patches(np, values)) if self.is_cut else values

    def numpy_in_place(self, by_index: bool = False) -> None:
        """Every step into a buffer that is there already."""
        x, mean, scale, image, out = (
            t.numpy() for t in (self.x, self.mean, self.scale, self.image, self.out)
        )
        flags, masked = self._flags
        if self.is_float:
            np.isfinite(x, out=flags)
            np.logical_not(flags, out=flags)
        else:
            np.equal(x, self.nodata, out=flags)
        np.any(flags, axis=-3, keepdims=True, out=masked)
        if self.from_power:
            with np.errstate(invalid="ignore", divide="ignore"):
                np.log10(x, out=image)
            np.multiply(image, np.float32(10), out=image)
            np.subtract(image, mean, out=image)
        else:
            np.subtract(x, mean, out=image)
        np.multiply(image, scale, out=image)
        if by_index:
            image[:, masked[0]] = 0
        else:
            np.copyto(image, 0, where=masked)
        if self.is_half:
            image = self._rounded(image)
        if image is not out:
            np.copyto(out, as_patches(np, image) if self.is_cut else image, casting="unsafe")

    def _rounded(self, image: np.ndarray) -> np.ndarray:
        """Turn the buffer's numbers into the bits of bfloat16."""
        bits, odd = image.view(np.uint32), self._odd
        np.right_shift(bits, 16, out=odd)
        np.bitwise_and(odd, 1, out=odd)
        np.add(bits, odd, out=bits)
        np.add(bits, 0x7FFF, out=bits)
        return np.right_shift(bits, 16, out=bits)

    def torch_eager(self) -> None:
        """In place as far as torch can."""
        is_masked = ~torch.isfinite(self.x) if self.is_float else self.x == self.nodata
        if self.from_power:
            torch.log10(self.x, out=self.image).mul_(10).sub_(self.mean)
        else:
            torch.sub(self.x, self.mean, out=self.image)
        self.image.mul_(self.scale).masked_fill_(is_masked.any(-3, keepdim=True), 0)
        if self.image is not self.out:
            target = self.out.view(torch.bfloat16) if self.is_half else self.out
            target.copy_(as_patches(torch, self.image) if self.is_cut else self.image)

    def torch_plain(self, x, mean, scale, out) -> None:
        """What is compiled, into the result."""
        is_masked = ~torch.isfinite(x) if self.is_float else x == self.nodata
        values = x.float()
        if self.from_power:
            values = 10 * torch.log10(values)
        values = (values - mean) * scale
        values = torch.where(is_masked.any(-3, keepdim=True), 0.0, values)
        out.copy_(as_patches(torch, values) if self.is_cut else values)

    def cupy_elementwise(self) -> None:
        """A reduction for the mask, then one elementwise kernel."""
        x, mean, scale = (self.place.view(t) for t in (self.x, self.mean, self.scale))
        xp, out = self.place.xp, self.place.view(self.out)
        flags = ~xp.isfinite(x) if self.is_float else x == self.nodata
        masked = flags.any(axis=-3, keepdims=True)
        if self.is_cut:
            out = out.transpose(4, 0, 2, 1, 3)
            cut = (-1, SIDE // PATCH, PATCH, SIDE // PATCH, PATCH)
            x, masked = x.reshape(cut), masked.reshape(cut)
            mean, scale = mean[..., None, None], scale[..., None, None]
        self._elementwise(x, mean, scale, masked, out)

    def contestants(self) -> dict[str, Contestant]:
        found = {OURS: Contestant(self.ours)}
        if self.place.is_gpu:
            self._elementwise = _cupy_kernel(self.place.xp, self.is_half, self.from_power)
            found["CuPy elementwise"] = Contestant(self.cupy_elementwise)
        else:
            shape = tuple(self.x.shape)
            mask_shape = (*shape[:-3], 1, *shape[-2:])
            self._flags = np.zeros(shape, np.bool_), np.zeros(mask_shape, np.bool_)
            self._odd = np.zeros(shape, np.uint32) if self.is_half else None
            found["NumPy"] = Contestant(self.numpy_plain)
            found["NumPy in place"] = Contestant(self.numpy_in_place)
            if len(shape) == 3:
                # Faster where nodata is scattered, slower where it is not.
                by_index = partial(self.numpy_in_place, by_index=True)
                found["NumPy in place, mask as index"] = Contestant(by_index)
        out = self.out.view(torch.bfloat16) if self.is_half else self.out
        compiled = compiled_into(self.torch_plain, self.x, self.mean, self.scale, out)
        add_torch(found, self.place, self.torch_eager, compiled)
        return found


def _cupy_kernel(cupy: Any, is_half: bool, from_power: bool) -> Any:
    number = "10.0f * log10f((float)x)" if from_power else "(float)x"
    code = f"float v = masked ? 0.0f : ({number} - mean) * scale;"
    code += (
        "unsigned int b = __float_as_uint(v); out = (b + 0x7FFFu + ((b >> 16) & 1u)) >> 16;"
        if is_half
        else "out = v;"
    )
    target = "uint16 out" if is_half else "float32 out"
    return cupy.ElementwiseKernel(
        "T x, float32 mean, float32 scale, bool masked", target, code, "normalize"
    )


def normalize_contest(
    what: str, make: Any, statistics: Any, nodata: float, goals: dict[str, float], **form: Any
) -> Any:
    """Return the contest of `normalize` for one kind of pixels and one form of the result."""

    def contest(place: Place) -> Case:
        work = Normalizing(place, make(), statistics, nodata, **form)
        number = work.x.element_size() + work.out.element_size()
        # Sums of rounding errors: a unit in the last place, or a rounding to bfloat16.
        agree = close(2**-7, 1e-3, decoded_bfloat16) if work.is_half else close(1e-5, 1e-5)
        return Case(
            what=what,
            unit="number",
            units=work.x.numel(),
            bytes=number * work.x.numel(),
            numbers=work.x.numel(),
            outs=(work.out,),
            contestants=work.contestants(),
            agree=agree,
            goals=goals.get(place.device, {}),
        )

    return contest


def valid_contest(place: Place) -> Case:
    x = place.put(optical_pixels())
    out = place.put(np.zeros((SIDE, SIDE), np.bool_))
    flags = place.put(np.zeros(tuple(x.shape), np.bool_))

    def ours():
        kernels.valid_pixels(place.ours(x), nodata=0, out=place.ours(out))

    def written(xp):
        return (place.view(x) != 0).all(axis=0)

    def in_place():
        np.not_equal(x.numpy(), 0, out=flags.numpy())
        np.all(flags.numpy(), axis=0, out=out.numpy())

    def eager():
        torch.ne(x, 0, out=flags)
        torch.all(flags, dim=0, out=out)

    def plain(x, out):
        out.copy_((x != 0).all(0))

    contestants = {OURS: Contestant(ours)}
    add_arrays(contestants, place, written, in_place)
    add_torch(contestants, place, eager, compiled_into(plain, x, out))
    return Case(
        what="valid_pixels: uint16 12 x 2048 x 2048, nodata 0, to bool",
        unit="pixel",
        units=SIDE * SIDE,
        bytes=(2 * 12 + 1) * SIDE * SIDE,
        numbers=x.numel(),
        outs=(out,),
        contestants=contestants,
        agree=close(0, 0),
    )


def denormalize_contest(place: Place) -> Case:
    """The rival's results may differ by one where the sum is rounded once and not twice."""
    values = np.random.default_rng(2).normal(0, 1, (12, SIDE, SIDE)).astype(np.float32)
    known = (optical_pixels() != 0).all(axis=0)
    x, valid = place.put(values), place.put(known)
    mean, std = (place.put(np.asarray(v, np.float32)[:, None, None]) for v in (S2.mean, S2.std))
    out = place.put(np.zeros(values.shape, np.uint16))
    image = place.put(np.zeros(values.shape, np.float32))
    low, high = 0.0, 10_000.0

    def ours():
        kernels.denormalize(
            place.ours(x), mean=S2.mean, std=S2.std, limits=(low, high), nodata=0,
            valid=place.ours(valid), out=place.ours(out),
        )  # fmt: skip

    def written(xp):
        a, m, s, v = (place.view(t) for t in (x, mean, std, valid))
        return xp.where(v, xp.rint(xp.clip(a * s + m, low, high)), 0).astype(xp.uint16)

    def in_place():
        a, m, s, v, scratch = (t.numpy() for t in (x, mean, std, valid, image))
        np.multiply(a, s, out=scratch)
        np.add(scratch, m, out=scratch)
        np.clip(scratch, low, high, out=scratch)
        np.rint(scratch, out=scratch)
        np.copyto(out.numpy(), scratch, casting="unsafe")
        np.copyto(out.numpy(), 0, where=~v)

    def eager():
        torch.mul(x, std, out=image).add_(mean).clamp_(low, high).round_()
        out.copy_(image.masked_fill_(~valid, 0))

    def plain(x, mean, std, valid, out):
        values = (x * std + mean).clamp(low, high).round()
        out.copy_(torch.where(valid, values, 0.0))

    contestants = {OURS: Contestant(ours)}
    add_arrays(contestants, place, written, in_place)
    add_torch(contestants, place, eager, compiled_into(plain, x, mean, std, valid, out))
    return Case(
        what="denormalize: float32 12 x 2048 x 2048 to uint16, rounded, limits, valid pixels",
        unit="number",
        units=x.numel(),
        bytes=6 * x.numel() + SIDE * SIDE,
        numbers=x.numel(),
        outs=(out,),
        contestants=contestants,
        agree=close(0, 1),
    )


_OPTICAL, _RADAR = "uint16 12 x 2048 x 2048, nodata 0", f"float32 {RADAR_DATES} x 2 x 2048 x 2048"
_MAIN_GOALS = {
    "cpu": {"fraction_of_copy": 0.80, "NumPy in place": 6.0},
    "cuda": {"fraction_of_copy": 0.85, "torch.compile": 1.2},
}

CONTESTS = {
    "normalize, float32": normalize_contest(
        f"normalize: {_OPTICAL}, to float32", optical_pixels, S2, 0, _MAIN_GOALS
    ),
    "normalize, float32, scattered nodata": normalize_contest(
        f"normalize: {_OPTICAL} in a tenth of the pixels at random, to float32",
        lambda: optical_pixels(is_scattered=True), S2, 0, _MAIN_GOALS,
    ),
    "normalize, bfloat16": normalize_contest(
        f"normalize: {_OPTICAL}, to bfloat16", optical_pixels, S2, 0, {}, is_half=True
    ),
    "normalize, float32 patches": normalize_contest(
        f"normalize: {_OPTICAL}, to float32 patches of 16 px", optical_pixels, S2, 0, {},
        is_cut=True,
    ),
    "normalize, bfloat16 patches": normalize_contest(
        f"normalize: {_OPTICAL}, to bfloat16 patches of 16 px", optical_pixels, S2, 0, {},
        is_cut=True, is_half=True,
    ),
    "normalize, decibels": normalize_contest(
        f"normalize: {_RADAR} dB, nodata NaN, to float32", radar_pixels, S1, np.nan, {}
    ),
    "normalize, power": normalize_contest(
        f"normalize: {_RADAR} linear power, to float32 dB, standardised",
        lambda: np.float32(10) ** (radar_pixels() / np.float32(10)), S1, np.nan, {},
        from_power=True,
    ),
    "valid_pixels": valid_contest,
    "denormalize": denormalize_contest,
}  # fmt: skip
