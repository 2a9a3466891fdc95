"""``tree.terramind``: the same work on a tree of native resolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import xarray as xr

from terramind_cube.accessor.dataset import TerraMindAccessor

if TYPE_CHECKING:
    from datetime import timedelta

__all__ = ["TerraMindTreeAccessor"]


@xr.register_datatree_accessor("terramind")
class TerraMindTreeAccessor(TerraMindAccessor):
    """TerraMind on a tree of each sensor's own resolutions, bands and times.

    All methods work on the cube that `to_cube` makes of it.

    Parameters
    ----------
    tree : xarray.DataTree
        What ``load_cube(..., mode="native")`` gives, also read again from a store, or a part of it.
    """

    def __init__(self, tree: xr.DataTree) -> None:
        self._given = tree

    @property
    def _cube(self) -> xr.Dataset:
        return self.to_cube()

    def to_cube(self, pair_within: str | timedelta = "7D") -> xr.Dataset:
        """Return the tree as one cube, on one grid and time axis.

        Where the items are at hand, ``load_cube(..., mode="analysis")`` is preferred: it brings
        pixels from the files onto the grid in one step, and reads only what the grid needs. Here
        the pixels of the tree are brought onto it, which were resampled already where the items of
        a sensor did not share a lattice.

        Parameters
        ----------
        pair_within : str or timedelta, default "7D"
            Largest time between an optical and a radar scene of one date.

        Returns
        -------
        xarray.Dataset
            Lazy, as `load_cube` gives it, on the finest optical grid, or else on that of the first
            modality, with pixels of 10 m. Coarser bands and classes are repeated (nearest
            neighbour), elevation and, as linear power, backscatter interpolated (bilinear) where
            they do not lie on the grid. Radar is paired with the nearest optical date, as far as
            possible from one relative orbit, annual maps by year.

        Raises
        ------
        ValueError
            If the tree holds no modality, a group has no CRS, the groups of a sensor have different
            dates, or none of a modality's pairs.

        Warns
        -----
        UserWarning
            If some dates stay without a modality.
        """
        from terramind_cube.cube.tree import tree_to_cube

        return tree_to_cube(cast("xr.DataTree", self._given), pair_within)
