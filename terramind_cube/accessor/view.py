"""What an accessor tells and shows of a cube, without any model."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

import numpy as np
import xarray as xr

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from numpy.typing import NDArray

__all__ = ["CubeView"]


class CubeView:
    """Dates and pictures of a cube.

    Parameters
    ----------
    cube : xarray.Dataset
    """

    def __init__(self, cube: xr.Dataset) -> None:
        self._given: xr.Dataset | xr.DataTree = cube

    @property
    def _cube(self) -> xr.Dataset:
        """The cube that the model looks at."""
        return cast("xr.Dataset", self._given)

    def best_dates(self, n: int, *, least_clear: float = 0.0) -> xr.DataArray:
        """Return the dates on which most of the cube's area is seen clearly, the best one first.

        Only ``cloud_mask`` is computed, or ``clear_fraction`` where there is no mask.

        Parameters
        ----------
        n : int
            Largest number of dates.
        least_clear : float
            Smallest clear fraction of a date, 0 to 1.

        Returns
        -------
        xarray.DataArray of datetime64, dims (time,)
            With the coordinate ``clear_fraction``; of equally clear dates the earlier one is first.
            ``cube.sel(time=cube.terramind.best_dates(3))`` takes these dates,
            ``cube.sel(time=cube.terramind.best_dates(3).sortby("time"))`` in order of time.

        Raises
        ------
        ValueError
            If `n` is not positive, the cube has no ``clear_fraction``, or no date is so clear.
        """
        cube = self._cube
        if int(n) != n or n < 1:
            raise ValueError(f"n is the number of dates, at least 1, got {n!r}.")
        if not {"clear_fraction", "time"} <= set(cube.coords) or "time" not in cube.dims:
            raise ValueError(
                "The cube has no coordinate clear_fraction along time: load S2L2A with clouds=True "
                "from items that have a scene classification (SCL)."
            )
        clear = _clear_fraction(cube)
        order = np.argsort(-clear, kind="stable")
        # Nothing is clear on a date without a scene classification.
        chosen = [place for place in order if clear[place] >= max(least_clear, 1e-9)][:n]
        if not chosen:
            best = float(np.nanmax(clear, initial=0.0))
            raise ValueError(
                f"No date is seen clearly by {least_clear:g} of the area; the best one by {best:.2g}."
            )
        times = cube["time"].values[chosen]
        coords = {"time": times, "clear_fraction": ("time", clear[chosen].astype(np.float32))}
        return xr.DataArray(times, dims="time", coords=coords, name="time")

    def find_implausible(self, *, window_px: int = 512) -> list[str]:
        """Return what looks wrong in a window of each date: an offset, a unit, a legend.

        Providers' metadata are wrong at times. Only the windows are computed.

        Parameters
        ----------
        window_px : int
            Side of the window in the middle of the area.

        Returns
        -------
        list of str
            Empty where all is plausible; see `terramind_cube.cube.plausibility`.

        Raises
        ------
        ValueError
            If the window is not positive.
        """
        from terramind_cube.cube.plausibility import find_implausible

        return find_implausible(self._cube, window_px=window_px)

    def plot(self, result: xr.Dataset | None = None, *, time: int = 0) -> Figure:
        """Draw one date of the cube: true colour, land cover, confidence, whatever is there.

        Parameters
        ----------
        result : xarray.Dataset, optional
            What was generated from the cube; the cube's own LULC is then shown as the truth.
        time : int
            Position along time.

        Returns
        -------
        matplotlib.figure.Figure

        Raises
        ------
        ValueError
            If there is nothing to draw.
        """
        from terramind_cube.display import quicklook

        return quicklook(self._cube, result, time=time)


def _clear_fraction(cube: xr.Dataset) -> NDArray[np.float64]:
    """Return the clear share of what the cube holds, which may be a part of what was loaded."""
    whole = cube["clear_fraction"].variable
    if "cloud_mask" not in cube.data_vars:
        return np.asarray(whole.compute().values, np.float64)
    clear = 1 - cube["cloud_mask"].mean(("y", "x"), dtype=np.float64).compute().values
    return np.asarray(clear, np.float64)
