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
# # A land-cover map from Sentinel-2, in four lines
#
# TerraMind has seen millions of places with several sensors at once. From what you have of a place
# (here Sentinel-2, Sentinel-1 and a terrain model) it generates what you do not have (here the
# land cover). `terramind_cube` runs it over a whole scene and gives the result back as an
# `xarray.Dataset` on the same grid.
#
# This page needs neither internet nor a GPU. Its satellite images are computed: an invented place
# of 4.5 x 4.5 km, written as GeoTIFFs with a STAC catalog, just as a data provider would offer it.

# %%
from pathlib import Path

import xarray as xr

import terramind_cube as tc

folder = Path("quickstart")
path = folder / "catalog" / "catalog.json"
if not path.exists():
    tc.synthetic.write_catalog(path.parent, size_px=448)

# %% [markdown]
# ## The four lines
#
# Open the catalog, load a cube, generate, look. The second and the third line compute nothing:
# they describe what would be read and generated. The fourth needs pixels of one date, so it reads
# the images and runs the model for that date.

# %%
catalog = tc.open_catalog(path)
cube = tc.load_cube(catalog, modalities=["S2L2A", "S1RTC", "DEM", "LULC"])
result = cube.terramind.generate(["LULC"])
cube.terramind.plot(result)

# %% [markdown]
# **These classes mean nothing yet.** The small model that comes with the package is not trained;
# it shows the way from the images to the map. The truth, on the left below, is what a trained model
# should come close to. It is in the cube as `LULC` and was not shown to the model.
#
# ## What a cube is
#
# One variable per sensor, all on one grid of 10 m. Sentinel-2 is reflectance x 10000 with 0 for
# missing pixels, Sentinel-1 is in decibel, the terrain in metres. The radar scene nearest in time
# stands beside each optical one: `S1RTC_time` says when it was taken.

# %%
cube

# %% [markdown]
# ## What comes out
#
# `LULC` holds a class code per pixel, `LULC_confidence` the probability that the model gives to
# that class. The attributes say how it was made: model, weights, inputs, seed, version.

# %%
result

# %%
result["LULC"].attrs

# %% [markdown]
# ## Write it
#
# `write` goes through the area piece by piece, so that memory does not grow with its size. If it is
# interrupted, the same line with `resume=True` goes on where it stopped. `xr.open_zarr` opens the
# store with its coordinate reference system, and so do QGIS and GDAL.

# %%
store = cube.terramind.write(folder / "lulc.zarr", ["LULC"], resume=True)
land_cover = xr.open_zarr(store)
land_cover.odc.geobox

# %% [markdown]
# ## How sure is it?
#
# Where the confidence is low, several classes are about equally likely. Without training the model
# is sure of little; a trained one has most of its pixels at the right end.

# %%
confidence = land_cover["LULC_confidence"].isel(time=0).load()
share = float((confidence > 0.5).mean())
print(f"{share:.0%} of the pixels have a confidence above one half")
_ = confidence.plot.hist(bins=50, range=(0, 1))

# %% [markdown]
# The other date of the same place:

# %%
cube.terramind.plot(land_cover, time=1)

# %% [markdown]
# ## From here
#
# With the released weights (they are downloaded once) the same call gives a real map:
#
# ```python
# cube.terramind.generate(
#     ["LULC"],
#     model="terramind_v1_base",
#     weights="pretrained",
# )
# ```
#
# With real images, `open_catalog` takes the URL of a STAC API, and `load_cube` an area and a time:
# `bbox=(west, south, east, north)`, `datetime="2024-05"`. On the command line the same is
# `terramind-cube generate`.
