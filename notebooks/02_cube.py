# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # From a STAC search to a cube
#
# A study of a season needs the same pixels from several sensors on many dates: found, corrected,
# brought onto one grid and cleared of clouds. This page goes that way: search, look at what was
# found, load it lazily, mask clouds, pair radar with optical scenes, and follow the NDVI of each
# land cover from March to October.
#
# It needs no internet: an invented place of 4.5 x 4.5 km stands in for a provider. Of a real
# provider only the first lines differ. Its catalog is opened by name, and the search says where:
#
# ```python
# catalog = tc.open_catalog("planetary-computer")  # or "earth-search", "cdse", a URL, a file
# found = catalog.search(
#     modalities=["S2L2A", "S1RTC", "DEM", "LULC"],
#     bbox=(11.30, 46.60, 11.36, 46.64),  # west, south, east, north in degrees
#     datetime="2024-03/2024-10",
#     cloud_cover=60,
# )
# ```

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import xarray as xr

import terramind_cube as tc

folder = Path("season")
path = folder / "catalog" / "catalog.json"
# Dates of the scenes, and the share of each that clouds hide.
scenes = {
    "2024-03-30": 0.0, "2024-04-19": 0.02, "2024-05-14": 0.0, "2024-06-08": 0.01,
    "2024-06-28": 0.5, "2024-07-18": 0.01, "2024-08-12": 0.0, "2024-09-06": 0.04,
    "2024-10-06": 0.0,
}  # fmt: skip
if not path.exists():
    tc.synthetic.write_catalog(
        path.parent,
        size_px=448,
        seed=900_003,
        dates=list(scenes),
        clouds=list(scenes.values()),
        orbits=["ascending", "descending"],
    )

# %% [markdown]
# ## Search
#
# A search names modalities rather than collections: the provider's table says which collection
# holds each. The result counts what was found by date, draws the footprints, and says what is
# missing.

# %%
catalog = tc.open_catalog(path)
found = catalog.search(modalities=["S2L2A", "S1RTC", "DEM", "LULC"], datetime="2024")
found

# %% [markdown]
# ## Keep the search
#
# A provider adds and reprocesses scenes, so that the same search finds other items next year. Saved
# items make a study repeatable; the file opens like any catalog. `.parquet` writes
# stac-geoparquet, which stays fast for very many items.

# %%
saved = found.save(folder / "scenes.json", overwrite=True)
print(f"{saved}: {saved.stat().st_size / 1000:.0f} kB")

# %% [markdown]
# ## Load
#
# The cube is lazy: it has a grid, a time axis and metadata, but no pixel has been read. NDVI and
# RGB are computed from Sentinel-2. `SCL`, `cloud_mask` and `clear_fraction` come along wherever
# the scenes carry a scene classification.

# %%
cube = tc.load_cube(saved, modalities=["S2L2A", "S1RTC", "DEM", "LULC", "NDVI", "RGB"])
cube

# %% [markdown]
# **The offset of Sentinel-2.** Since processing baseline 04.00 the digital numbers are
# reflectance x 10000 + 1000, in products of any date that were reprocessed with it, and some
# providers have taken the 1000 off again. `load_cube` reads from each item what holds, subtracts
# what is left, and records it in `S2L2A_offset` (`s2_offset="keep"` leaves the numbers as they
# are).

# %% [markdown]
# ## Clouds
#
# `cloud_mask` is true where the scene classification says cloud, cirrus, cloud shadow, defective
# or no data; clouds and shadows are extended by 60 m, because their edges are thin. Reading the
# mask of all dates is cheap, so look at it first.

# %%
seen = cube[["RGB", "cloud_mask"]].compute()
east_km, north_km = cube["x"].values / 1000, cube["y"].values / 1000
extent = (east_km[0] - 0.005, east_km[-1] + 0.005, north_km[-1] - 0.005, north_km[0] + 0.005)


def days(dataset):
    return dataset["time"].dt.strftime("%Y-%m-%d").values


def show(axes, pixels, title, **style):
    """Draw one raster with axes in kilometres of the cube's CRS."""
    image = axes.imshow(pixels, extent=extent, **style)
    axes.set_title(title, loc="left", fontsize=9)
    axes.tick_params(labelsize=7)
    axes.locator_params(nbins=4)
    axes.ticklabel_format(useOffset=False)
    return image


def label(figure, bottom, left):
    for axes in bottom:
        axes.set_xlabel("easting (km)", fontsize=8)
    for axes in left:
        axes.set_ylabel("northing (km)", fontsize=8)


figure, grid = plt.subplots(3, 3, figsize=(9, 9.4), sharex=True, sharey=True, layout="constrained")
for number, (axes, day) in enumerate(zip(grid.flat, days(seen), strict=True)):
    clear = float(seen["clear_fraction"][number])
    show(axes, seen["RGB"][number].transpose("y", "x", "RGB_band"), f"{day}, {clear:.0%} clear")
    mask = seen["cloud_mask"][number].values
    if mask.any():
        axes.contour(np.flipud(mask), levels=[0.5], colors="#ffd23f", linewidths=0.6, extent=extent)
label(figure, grid[-1], grid[:, 0])
_ = figure.suptitle(
    "Sentinel-2, reflectance 0 to 0.2; masked areas outlined", x=0.01, ha="left", fontsize=11
)

# %% [markdown]
# `best_dates` returns the clearest dates, the best one first; it reads the scene classification
# alone. `cube.sel(time=best.sortby("time"))` is the cube of these dates.

# %%
best = cube.terramind.best_dates(6, least_clear=0.5)
pd.DataFrame({"date": days(best), "clear": best["clear_fraction"].values.round(2)})

# %% [markdown]
# ## Radar beside optical
#
# Each date is paired with a Sentinel-1 scene not more than `pair_within="7D"` away. One relative
# orbit serves as many dates as it can, for another orbit looks at the slopes from another side, and
# that looks like change on the ground. `S1RTC_time` and `S1RTC_relative_orbit` say what was taken.

# %%
hours = (cube["S1RTC_time"] - cube["time"]) / np.timedelta64(1, "h")
pd.DataFrame(
    {
        "Sentinel-2": days(cube),
        "Sentinel-1": cube["S1RTC_time"].dt.strftime("%Y-%m-%d %H:%M").values,
        "difference (h)": hours.values.round().astype(int),
        "relative orbit": cube["S1RTC_relative_orbit"].values,
    }
)

# %% [markdown]
# All sensors lie on the same 10 m grid, pixel on pixel:

# %%
one = cube[["RGB", "S1RTC", "DEM"]].isel(time=2).compute()
figure, row = plt.subplots(1, 3, figsize=(11.5, 4.1), sharey=True, layout="constrained")
show(row[0], one["RGB"].transpose("y", "x", "RGB_band"), f"Sentinel-2, {days(cube)[2]}")
when = str(one["S1RTC_time"].dt.strftime("%Y-%m-%d").values)
radar = show(
    row[1], one["S1RTC"].sel(S1RTC_band="VV"), f"Sentinel-1 VV, {when}",
    cmap="gray", vmin=-18, vmax=-4,
)  # fmt: skip
relief = show(row[2], one["DEM"], "Elevation", cmap="cividis")
figure.colorbar(radar, ax=row[1], label="gamma nought (dB)", shrink=0.8)
figure.colorbar(relief, ax=row[2], label="elevation (m)", shrink=0.8)
label(figure, row, row[:1])

# %% [markdown]
# ## A season of NDVI
#
# For each land cover: median and quartiles of the NDVI of clear pixels. A class of which less than
# a quarter is seen on a date is left out there. The dotted line is the median of all pixels,
# clouded ones included: at the end of June it tells of the clouds rather than of the plants.

# %%
season = cube[["NDVI", "cloud_mask", "LULC"]].compute()
clear_ndvi = season["NDVI"].where(~season["cloud_mask"])

figure, axes = plt.subplots(figsize=(9, 4.8), layout="constrained")
table = {}
for cover in tc.LULC_CLASSES:
    is_class = season["LULC"] == cover.value
    if cover.value == 0 or is_class.mean() < 0.005:
        continue
    pixels = clear_ndvi.where(is_class)
    is_enough = pixels.count(("y", "x")) >= 0.25 * is_class.sum(("y", "x"))
    low, middle, high = (
        pixels.quantile(share, ("y", "x")).where(is_enough).values for share in (0.25, 0.5, 0.75)
    )
    name = cover.name.replace("_", " ")
    table[name] = middle
    time = season["time"].values
    is_seen = is_enough.values
    axes.fill_between(time[is_seen], low[is_seen], high[is_seen], color=cover.color, alpha=0.18)
    axes.plot(
        time[is_seen], middle[is_seen], "o-", color=cover.color, lw=2, mec="#444444", mew=0.5,
        label=name,
    )  # fmt: skip
    everything = season["NDVI"].where(is_class).median(("y", "x"))
    axes.plot(time, everything, ":", color=cover.color, lw=1.5)
axes.set_ylabel("NDVI")
axes.set_ylim(-0.3, 1)
axes.axhline(0, color="#999999", lw=0.6)
axes.spines[["top", "right"]].set_visible(False)
axes.legend(frameon=False, ncols=5, loc="upper right", fontsize=9)
_ = axes.set_title(
    "NDVI of clear pixels: median and quartiles; dotted: median of all pixels",
    loc="left",
    fontsize=10,
)

# %%
pd.DataFrame(table, index=days(season)).round(2)

# %% [markdown]
# ## Write it
#
# `to_zarr` reads, computes and writes chunk by chunk. The store keeps the coordinate reference
# system, the item ids, and the terms of use of each variable.

# %%
cube[["NDVI", "cloud_mask", "LULC"]].to_zarr(folder / "ndvi.zarr", mode="w", consolidated=False)
reopened = xr.open_zarr(folder / "ndvi.zarr", consolidated=False)
print(reopened.odc.geobox.crs.epsg, reopened["NDVI"].attrs["attribution"], sep=", ")

# %% [markdown]
# ## Each sensor on its own
#
# The model wants one grid. To look at what the sensors really measured, `mode="native"` gives a
# tree instead: bands by their own resolution, every radar pass at its own time, nothing paired.
# `tree.terramind.to_cube()` makes a cube of it.

# %%
tree = tc.load_cube(saved, modalities=["S2L2A", "S1RTC"], mode="native")
for node in tree.leaves:
    sizes = ", ".join(f"{name} {size}" for name, size in node.sizes.items())
    print(f"{node.path:<14} {sizes}")

# %% [markdown]
# ## From here
#
# `cube.terramind.generate(["LULC"])` maps TerraMind over the cube: see `01_quickstart`. How to give
# a result to QGIS as a Cloud-Optimized GeoTIFF is in `03_export_cog`.
