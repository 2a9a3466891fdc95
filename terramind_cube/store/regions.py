"""The regions of a store: parts of whole chunks that together tile every variable once."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Hashable, Mapping, Sequence

    import xarray as xr
    from numpy.typing import NDArray

__all__ = ["RegionPlan", "plan_regions"]


@dataclass(frozen=True)
class RegionPlan:
    """One unit of work.

    Attributes
    ----------
    key : str
        Name, unique in the store.
    bounds : mapping of str to tuple of int
        Start and stop of each dimension that the region limits.
    blocks : mapping of str to tuple of slice
        For each variable that this region writes, the part of it.
    """

    key: str
    bounds: Mapping[str, tuple[int, int]]
    blocks: Mapping[str, tuple[slice, ...]]


def plan_regions(
    result: xr.Dataset, regions: Sequence[Mapping[str, slice]]
) -> tuple[RegionPlan, ...]:
    """Check regions against the chunks of a chunked result and assign variables to them.

    Raises
    ------
    ValueError
        If a region names an unknown dimension, leaves the result, cuts a chunk, or if the regions
        do not tile every variable exactly once.
    """
    layers = [_Layer.of(array) for array in result.data_vars.values()]
    plans: dict[str, RegionPlan] = {}
    for region in regions:
        bounds = _read_bounds(region, result.sizes)
        key = "_".join(f"{dim}{start}-{stop}" for dim, (start, stop) in bounds.items()) or "all"
        if key in plans:
            raise ValueError(f"Region {key} is given twice; regions must not overlap.")
        blocks = {}
        for layer in layers:
            block = layer.claim(bounds, key)
            if block is not None:
                blocks[layer.name] = block
        plans[key] = RegionPlan(key, bounds, blocks)
    for layer in layers:
        layer.check_cover()
    return tuple(plans.values())


@dataclass(frozen=True)
class _Layer:
    """The chunk grid of one variable and how often each chunk was claimed."""

    name: str
    edges: Mapping[str, Mapping[int, int]]  # dimension -> pixel of an edge -> chunk index
    claims: NDArray[np.int32]
    seen: set[tuple[tuple[int, int], ...]]

    @classmethod
    def of(cls, array: xr.DataArray) -> _Layer:
        edges = {
            str(dim): {int(edge): i for i, edge in enumerate(np.cumsum([0, *sizes]))}
            for dim, sizes in zip(array.dims, array.chunks or (), strict=True)
        }
        counts = np.zeros([len(places) - 1 for places in edges.values()], np.int32)
        return cls(str(array.name), edges, counts, set())

    def claim(self, bounds: Mapping[str, tuple[int, int]], key: str) -> tuple[slice, ...] | None:
        """Return what a region writes, None if that is nothing or an earlier one writes it."""
        span = tuple(bounds.get(dim, (0, max(places))) for dim, places in self.edges.items())
        if span in self.seen or any(start == stop for start, stop in span):
            return None
        self.seen.add(span)
        chunks = []
        for (dim, places), (start, stop) in zip(self.edges.items(), span, strict=True):
            if start not in places or stop not in places:
                raise ValueError(
                    f"Region {key} cuts a chunk of {self.name}: {dim} {start}..{stop} is not on "
                    f"its chunk edges {_shorten(sorted(places))}. Choose regions of whole chunks."
                )
            chunks.append(slice(places[start], places[stop]))
        self.claims[tuple(chunks)] += 1
        return tuple(slice(start, stop) for start, stop in span)

    def check_cover(self) -> None:
        for wrong, what in (
            (self.claims == 0, "no region covers"),
            (self.claims > 1, "regions overlap at"),
        ):
            if wrong.any():
                where = ", ".join(
                    f"{dim} {sorted(places)[i]}..{sorted(places)[i + 1]}"
                    for (dim, places), i in zip(
                        self.edges.items(), np.argwhere(wrong)[0], strict=True
                    )
                )
                raise ValueError(
                    f"Regions must tile {self.name} exactly once, but {what} {where or 'it'}."
                )


def _shorten(edges: Sequence[int]) -> str:
    shown = [*map(str, edges[:4]), "...", str(edges[-1])] if len(edges) > 5 else map(str, edges)
    return ", ".join(shown)


def _read_bounds(
    region: Mapping[str, slice], sizes: Mapping[Hashable, int]
) -> dict[str, tuple[int, int]]:
    unknown = set(region) - set(sizes)
    if unknown:
        raise ValueError(
            f"A region names the dimension {min(unknown)!r}; the result has "
            f"{', '.join(map(str, sizes))}."
        )
    bounds = {}
    for dim, part in region.items():
        size = sizes[dim]
        start = 0 if part.start is None else part.start
        stop = size if part.stop is None else part.stop
        if part.step not in (None, 1) or not 0 <= start <= stop <= size:
            raise ValueError(
                f"A region has {dim}={part}: it must be a slice of step 1 in 0..{size}."
            )
        bounds[dim] = (int(start), int(stop))
    return {str(dim): bounds[str(dim)] for dim in sizes if dim in bounds}
