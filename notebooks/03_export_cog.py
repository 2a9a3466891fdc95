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
# # Export to Cloud-Optimized GeoTIFF
#
# A Cloud-Optimized GeoTIFF (COG) is a GeoTIFF with internal tiles and overviews in an order that a
# viewer can read in parts, also over http. QGIS, ArcGIS and web maps open it as it is. This page
# exports reflectance, an index and land cover from a cube, the same from a store that
# `cube.terramind.write` made, and checks what has been written.
#
# | what | continuous (reflectance, NDVI, dB, m) | classes (LULC, SCL) |
# |---|---|---|
# | overviews | average | nearest: the mean of two classes is a third one |
# | nodata | 0 for Sentinel-2, NaN for floats | 0 |
# | scale | 1e-4 for Sentinel-2, else none | none |
# | colours | the viewer's | a colour table in the file |

# %%
from pathlib import Path
import threading

import matplotlib.pyplot as plt
from matplotlib.patches import Patch, Rectangle
import numpy as np
import rasterio
import rasterio.shutil
import rioxarray  # adds .rio to xarray
import xarray as xr

import terramind_cube as tc

folder = Path("export")
path = folder / "catalog" / "catalog.json"
if not path.exists():
    tc.synthetic.write_catalog(path.parent, size_px=448, seed=900_003)

catalog = tc.open_catalog(path)
cube = tc.load_cube(catalog, modalities=["S2L2A", "S1RTC", "LULC", "NDVI"])

# GDAL's COG driver; tiles of 512 px, the default, suit larger scenes than this one.
CONTINUOUS = {
    "driver": "COG",
    "compress": "DEFLATE",
    "predictor": "YES",
    "blocksize": 256,
    "overview_resampling": "AVERAGE",
}
CLASSES = {**CONTINUOUS, "predictor": "NO", "overview_resampling": "NEAREST"}

# %% [markdown]
# ## Reflectance
#
# A GeoTIFF has bands and no time, so one date becomes one file. Viewers show the first three bands
# as red, green and blue: put `B04`, `B03` and `B02` first. `rio.to_raster` takes the rest from
# attributes: band names from `long_name`, the scale from `scale_factor` and `add_offset`, nodata
# from `write_nodata`. The file keeps integers and their scale: QGIS shows reflectance, while GDAL's
# tools and rasterio give the integers unless told otherwise (`gdal_translate -unscale`,
# `mask_and_scale=True`).

# %%
bands = ["B04", "B03", "B02", "B08"]
date = cube["S2L2A"].isel(time=0)
day = str(date["time"].dt.strftime("%Y-%m-%d").values)
reflectance = (
    date.sel(S2L2A_band=bands)
    .assign_attrs(long_name=bands, scale_factor=1e-4, add_offset=0.0, units="1")
    .rio.write_nodata(0)
)
reflectance_tif = folder / f"s2l2a_{day}.tif"
reflectance.rio.to_raster(reflectance_tif, **CONTINUOUS)

# %% [markdown]
# ## An index, one file per date
#
# Floats need a declared nodata as well: without it the file has NaN pixels and does not say so.
# `encoded=True` means that missing pixels are NaN in memory, whatever they are in a file.
# Attributes of the variable (item ids, terms of use; model, weights and seed of a generated one)
# become tags of the file, and `TIFFTAG_DATETIME` holds the time.

# %%
for moment in cube["time"].values:
    day = np.datetime_as_string(moment, "D")
    tags = {"TIFFTAG_DATETIME": moment.astype("datetime64[s]").item().strftime("%Y:%m:%d %H:%M:%S")}
    ndvi = cube["NDVI"].sel(time=moment).rio.write_nodata(np.nan, encoded=True)
    ndvi.rio.to_raster(folder / f"ndvi_{day}.tif", tags=tags, **CONTINUOUS)

sorted(file.name for file in folder.glob("*.tif"))

# %% [markdown]
# Overviews of backscatter in dB are means of dB, not of power: good for looking, not for measuring.
#
# ## Land cover, with its colours
#
# rioxarray writes no colour table, rasterio does. The COG driver writes the file when it is closed
# and nothing can be changed afterwards without breaking the layout, so colours, names and tags
# go in before. A colour table needs a single band of bytes (or uint16).


# %%
def write_land_cover(file, land_cover):
    """Write one date of land cover as a COG with TerraMind's colours."""
    box = land_cover.odc.geobox
    colours = {
        row.value: (*(int(row.color[i : i + 2], 16) for i in (1, 3, 5)), 255)
        for row in tc.LULC_CLASSES
    }
    size = {"height": box.height, "width": box.width, "count": 1, "dtype": "uint8"}
    with rasterio.open(
        file, "w", crs=str(box.crs), transform=box.transform, nodata=0, **size, **CLASSES
    ) as target:
        target.write(land_cover.values, 1)
        target.write_colormap(1, colours)
        target.set_band_description(1, land_cover.name)
        target.update_tags(**{name: str(value) for name, value in land_cover.attrs.items()})


truth_tif = folder / "lulc_truth.tif"
write_land_cover(truth_tif, cube["LULC"].isel(time=0))

# %% [markdown]
# ## From a store
#
# A store that `cube.terramind.write` made opens as a Dataset with its CRS; everything above holds
# for it. (GDAL also reads the store itself, as `ZARR:"lulc.zarr":/LULC`.) The default model is not
# trained, so its classes mean nothing yet.

# %%
store = cube.terramind.write(folder / "lulc.zarr", ["LULC"], inputs=["S2L2A", "S1RTC"], resume=True)
generated = xr.open_zarr(store)

for number, moment in enumerate(generated["time"].values):
    day = np.datetime_as_string(moment, "D")
    one = generated.isel(time=number)
    write_land_cover(folder / f"lulc_{day}.tif", one["LULC"])
    confidence = one["LULC_confidence"].rio.write_nodata(np.nan, encoded=True)
    confidence.rio.to_raster(folder / f"lulc_confidence_{day}.tif", **CONTINUOUS)

# %% [markdown]
# ## Check
#
# Open the file again: layout, CRS, nodata, overviews and values.


# %%
def check(file, expected):
    """Compare a COG with the array that went into it, and say what it holds."""
    with rasterio.open(file) as source:
        assert source.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert source.crs == expected.rio.crs
        assert source.transform == expected.rio.transform()
        assert source.overviews(1)
        np.testing.assert_array_equal(source.read().squeeze(), expected.values)
        print(
            f"{file.name}: {source.crs}, {source.descriptions}, {source.dtypes[0]}, "
            f"nodata {source.nodata}, scale {source.scales[0]:g}, overviews {source.overviews(1)}, "
            f"{file.stat().st_size / 1000:.0f} kB"
        )


check(reflectance_tif, reflectance)
check(truth_tif, cube["LULC"].isel(time=0))
for number, day in enumerate(cube["time"].dt.strftime("%Y-%m-%d").values):
    check(folder / f"ndvi_{day}.tif", cube["NDVI"].isel(time=number))
    check(folder / f"lulc_{day}.tif", generated["LULC"].isel(time=number))
    check(folder / f"lulc_confidence_{day}.tif", generated["LULC_confidence"].isel(time=number))

# %% [markdown]
# Scaled reading gives reflectance, and the overview of classes holds no class that the map does
# not have:

# %%
scaled = rioxarray.open_rasterio(reflectance_tif, mask_and_scale=True)
with rasterio.open(truth_tif, overview_level=0) as overview, rasterio.open(truth_tif) as source:
    coarse, fine, palette = overview.read(1), source.read(1), source.colormap(1)
assert set(np.unique(coarse)) <= set(np.unique(fine))
colour_of = np.array([palette[code][:3] for code in range(256)], np.uint8)

box = cube.odc.geobox.boundingbox
extent = [edge / 1000 for edge in (box.left, box.right, box.bottom, box.top)]
figure, row = plt.subplots(1, 3, figsize=(11.5, 4.6), layout="constrained")
row[0].imshow((scaled[:3] / 0.2).clip(0, 1).transpose("y", "x", "band"), extent=extent)
row[0].set_title("reflectance, 0 to 0.2", loc="left", fontsize=10)
west, south = extent[0] + 2.6, extent[2] + 1.2
row[0].add_patch(Rectangle((west, south), 1, 1, fill=False, color="white"))
for axes, pixels, size in zip(row[1:], (fine, coarse), ("10 m", "20 m, an overview"), strict=True):
    axes.imshow(colour_of[pixels], extent=extent, interpolation="nearest")
    axes.set(xlim=(west, west + 1), ylim=(south, south + 1))
    axes.set_title(f"land cover of the square, {size}", loc="left", fontsize=10)
for axes in row:
    axes.set_xlabel("easting (km)")
    axes.locator_params(nbins=4)
    axes.ticklabel_format(useOffset=False)
row[0].set_ylabel("northing (km)")
shown = [cover for cover in tc.LULC_CLASSES if cover.value in coarse]
patches = [Patch(color=cover.color, label=cover.name.replace("_", " ")) for cover in shown]
_ = figure.legend(handles=patches, loc="outside lower center", ncols=len(patches), frameon=False)

# %% [markdown]
# ## Larger than memory
#
# The COG driver copies a finished raster, so that rasterio and rioxarray hold all of it in memory,
# three to four times over. Write a large scene as a plain tiled GeoTIFF first, chunk by chunk, and
# let GDAL copy that file; then memory does not grow with the scene:

# %%
plain = folder / "plain.tif"
ndvi = cube["NDVI"].isel(time=0).rio.write_nodata(np.nan, encoded=True)
ndvi.rio.to_raster(plain, tiled=True, bigtiff="IF_SAFER", lock=threading.Lock())
rasterio.shutil.copy(plain, folder / "ndvi_large.tif", bigtiff="IF_SAFER", **CONTINUOUS)
plain.unlink()
check(folder / "ndvi_large.tif", ndvi)

# %% [markdown]
# ## Limits
#
# - One data type, one nodata and one size of pixel for all bands of a file: dB and classes are
#   files of their own.
# - No time axis and no names of dimensions. Dates are file names and tags.
# - Colour tables: one band of uint8 or uint16. Names of classes are in the tags `flag_values` and
#   `flag_meanings`, which QGIS does not read as a legend.
# - Averages skip nodata pixels, so that an overview covers slightly more than the pixels do.
# - A COG is never edited. GDAL refuses to open it for changes; write it again.
