"""Pictures: the right panels, the right colours, and no more computed than is drawn."""

from __future__ import annotations

from io import StringIO

import dask.array as da
import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgb
from matplotlib.image import imread
from odc.geo.geobox import GeoBox
from odc.geo.xr import xr_coords
from rich.console import Console

from terramind_cube.display import quicklook, save_quicklook, show_progress, true_colour
from terramind_cube.modalities import LULC_CLASSES
from terramind_cube.store.ledger import Receipt
from terramind_cube.synthetic import make_scene


@pytest.fixture(scope="module")
def cube():
    scene = make_scene(900_004, (64, 96), date="2024-06-01")
    return scene[["S2L2A", "S1RTC", "DEM", "LULC"]]


@pytest.fixture
def result(cube):
    classes = np.full((1, 64, 96), 2, np.uint8)
    classes[0, :, 48:] = 7
    confidence = np.full((1, 64, 96), 0.75, np.float32)
    confidence[0, 0] = np.nan
    dims = ("time", "y", "x")
    data = {"LULC": (dims, classes), "LULC_confidence": (dims, confidence)}
    return xr.Dataset(data, coords={name: cube[name] for name in (*dims, "spatial_ref")})


def titles(figure):
    return [axes.get_title(loc="left") for axes in figure.axes]


def texts(figure):
    return [text.get_text() for text in figure.texts]


def test_all_four_panels_and_a_colour_bar(cube, result):
    figure = quicklook(cube, result)
    assert titles(figure) == [
        "Sentinel-2, true colour",
        "Land cover, generated",
        "Land cover, truth",
        "Confidence in the class",
        "",
    ]
    assert "01 June 2024" in texts(figure)
    assert figure.axes[0].images[0].get_extent() == [0.0, 0.96, 0.0, 0.64]
    assert figure.axes[3].images[0].get_clim() == (0, 1)


def test_a_cube_alone_shows_colour_and_its_own_land_cover(cube):
    assert titles(quicklook(cube)) == ["Sentinel-2, true colour", "Land cover"]


def test_without_optical_bands_radar_is_shown(cube):
    figure = quicklook(cube[["S1RTC"]])
    assert titles(figure) == ["Sentinel-1, false colour"]
    assert not figure.legends


def test_classes_have_their_published_colours_and_the_legend_names_those_that_occur(cube, result):
    figure = quicklook(cube.drop_vars("LULC"), result)
    pixels = figure.axes[1].images[0].get_array()
    for column, value in ((0, 2), (95, 7)):
        colour = [round(255 * part) for part in to_rgb(LULC_CLASSES[value].color)]
        assert pixels[0, column].tolist() == colour
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["trees", "snow ice"]


def test_true_colour_is_stretched_and_grey_where_there_is_no_data(cube):
    holed = cube.copy(deep=True)
    holed["S2L2A"][0, 3, :8, :8] = 0
    colour = true_colour(holed)
    assert colour.dims == ("y", "x", "band")
    assert colour.dtype == np.uint8
    assert (colour[:8, :8] == 176).all()
    red = cube["S2L2A"].sel(S2L2A_band="B04")[0, 32:].values.ravel()
    drawn = colour.sel(band="red")[32:].values.ravel()
    assert (np.diff(drawn[np.argsort(red)].astype(int)) >= 0).all()
    assert drawn.max() - drawn.min() > 100


def test_one_variable_per_band_gives_the_same_picture(cube):
    bands = {band: cube["S2L2A"].sel(S2L2A_band=band, drop=True) for band in ("B02", "B03", "B04")}
    np.testing.assert_array_equal(true_colour(xr.Dataset(bands)), true_colour(cube))


def test_a_large_scene_is_thinned_and_its_lazy_result_computed_once():
    grid = GeoBox.from_bbox((4e5, 5e6, 4e5 + 30000, 5e6 + 30000), "EPSG:32632", resolution=10)
    runs = []

    def run(block, block_info=None):
        runs.append(block_info[None]["chunk-location"])
        return block

    base = da.zeros(grid.shape.yx, dtype=np.uint8, chunks=1500).map_blocks(
        run, dtype=np.uint8, meta=np.empty((0, 0), np.uint8)
    )
    result = xr.Dataset(
        {"LULC": (("y", "x"), base), "LULC_confidence": (("y", "x"), base / np.float32(9))},
        coords=xr_coords(grid),
    )
    figure = quicklook(xr.Dataset(coords=xr_coords(grid)), result)
    assert figure.axes[0].images[0].get_array().shape == (1000, 1000, 3)
    assert figure.axes[0].images[0].get_extent() == [0.0, 30.0, 0.0, 30.0]
    assert len(runs) == len(set(runs)) == 4


def test_the_date_of_the_result_is_the_date_of_the_cube(cube, result):
    other = result.assign_coords(time=result["time"] + np.timedelta64(5, "D"))
    other["LULC"] = other["LULC"] * 0 + np.uint8(1)
    both = xr.concat([result, other], dim="time")
    later = cube.assign_coords(time=other["time"])
    for shown, name in ((cube, "trees"), (later, "water")):
        legend = quicklook(shown.drop_vars("LULC"), both).legends[0]
        assert name in [text.get_text() for text in legend.get_texts()]


def test_what_cannot_be_drawn_is_refused(cube, result, tmp_path):
    with pytest.raises(ValueError, match=r"nothing to draw.*DEM"):
        quicklook(cube[["DEM"]])
    with pytest.raises(ValueError, match="1 dates, 0 to 0"):
        quicklook(cube, time=1)
    with pytest.raises(ValueError, match=r"another grid.* y differ"):
        quicklook(cube, result.isel(y=slice(1, None)))
    shifted = result.assign_coords(time=result["time"] + np.timedelta64(1, "D"))
    with pytest.raises(ValueError, match="nothing of 2024-06-01"):
        save_quicklook(tmp_path / "refused.png", cube, shifted)
    with pytest.raises(ValueError, match="no true colour"):
        true_colour(cube[["S1RTC"]])
    assert not list(tmp_path.iterdir())


def test_the_saved_picture_is_the_same_each_time_and_has_room_for_a_note(cube, result, tmp_path):
    paths = [
        save_quicklook(tmp_path / f"{i}.png", cube, result, note=note)
        for i, note in enumerate(("Nothing is true.", "Nothing is true.", None))
    ]
    noted, again, plain = (path.read_bytes() for path in paths)
    assert noted == again != plain
    assert imread(paths[0]).shape[0] > imread(paths[2]).shape[0] > 500


def test_jupyter_gets_a_picture(cube):
    assert quicklook(cube)._repr_png_().startswith(b"\x89PNG")


@pytest.mark.parametrize("is_terminal", [True, False])
def test_progress_says_how_many_groups_are_done(is_terminal):
    sink = StringIO()
    console = Console(file=sink, force_terminal=is_terminal, width=100)
    receipt = Receipt("all", {}, 1.0, {}, "2024-06-01")
    with show_progress(console, 30, already=10) as report:
        for done in range(11, 31):
            report(done, 30, receipt)
    text = sink.getvalue()
    assert ("30/30" if is_terminal else "30 of 30 tile groups") in text
    assert ("\x1b" in text) is is_terminal
    if not is_terminal:
        assert len(text.splitlines()) == 7  # one per tenth, 10 were done before


def test_every_generated_raster_has_a_panel(cube):
    grid = cube.isel(time=[0])
    blank = grid["LULC"].astype("float32")
    radar = (grid["S1RTC"].dims, np.full(grid["S1RTC"].shape, -12.0, np.float32))
    result = xr.Dataset(
        {"S1RTC": radar, "DEM": 100 * blank, "NDVI": blank / 10, "S2L2A": grid["S2L2A"]},
        coords=grid.coords,
    )
    titles = [axes.get_title(loc="left") for axes in quicklook(grid, result).axes]
    for title in ("Sentinel-2", "Sentinel-1 RTC", "Elevation", "NDVI"):
        assert f"{title}, generated" in titles, titles
