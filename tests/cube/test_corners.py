"""Coordinates that are pixel corners, as stackstac gives them, and what tells so."""

from __future__ import annotations

import types
import warnings

import numpy as np
import pytest
import xarray as xr
from affine import Affine
from small import make_cube

from terramind_cube.accessor import TerraMindAccessor
from terramind_cube.cube.layout import read_geobox, read_layout
from tests.cube.scenes import warns_user


@pytest.fixture(scope="module")
def cube():
    return make_cube(96, 80, modalities=("S2L2A", "DEM"))


def stacked(cube, *, corners=True, tell=lambda affine: {"transform": affine}, names=("S2L2A",)):
    """The cube as `stackstac.stack` would give it: corners as coordinates, the truth beside them."""
    affine = cube.odc.geobox.affine
    cube = cube.assign_coords(
        epsg=32632, id=("time", np.array(["a", "b"], object)),
        **({"x": cube.x - 5, "y": cube.y + 5} if corners else {}),
    )  # fmt: skip
    for name in names:
        cube[name] = cube[name].assign_attrs(tell(affine), crs="epsg:32632", resolution=10.0)
    return cube


def said(affine):
    return " ".join(map(str, affine[:6]))


SPELLINGS = {
    "affine": lambda affine: {"transform": affine},
    "nine numbers": lambda affine: {"transform": list(affine)},
    "six numbers of a file": lambda affine: {"transform": np.array(affine[:6])},
    "text": lambda affine: {"transform": said(affine)},
    "spec": lambda affine: {"spec": types.SimpleNamespace(transform=affine)},
}


@pytest.mark.parametrize("name", list(SPELLINGS))
@pytest.mark.parametrize(
    "change",
    [
        lambda cube: cube,
        lambda cube: cube.isel(y=slice(7, None), x=slice(3, 70)),
        lambda cube: cube.chunk(y=32),
        lambda cube: cube.assign_attrs(cube.S2L2A.attrs).drop_attrs(deep=False).assign_attrs(
            transform=cube.S2L2A.attrs.get("transform"), spec=cube.S2L2A.attrs.get("spec")
        ),
    ],
)  # fmt: skip
def test_the_transform_goes_before_corners(cube, name, change):
    with warns_user("pixel corners, by the attribute transform of .*xy_coords='center'"):
        geobox = read_geobox(change(stacked(cube, tell=SPELLINGS[name])))
    assert geobox == change(cube).odc.geobox


@pytest.mark.parametrize("name", list(SPELLINGS))
def test_centres_beside_a_transform_are_centres(cube, name):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for change in (lambda c: c, lambda c: c.isel(y=slice(5, 50), x=slice(1, 9))):
            told = change(stacked(cube, corners=False, tell=SPELLINGS[name]))
            assert read_geobox(told) == change(cube).odc.geobox


@pytest.mark.parametrize("chunks", [None, {"y": 40}])
def test_outputs_lie_where_the_pixels_do(cube, small_weights, tmp_path, chunks):
    given = stacked(cube)
    given = given.chunk(chunks) if chunks else given
    arguments = {**small_weights, "overlap": 16, "threads": 1}
    expected = TerraMindAccessor(cube).generate(["LULC"], **arguments).compute()
    with warns_user("pixel corners"):
        result = TerraMindAccessor(given).generate(["LULC"], **arguments).compute()
    xr.testing.assert_identical(result.drop_attrs(), expected.drop_attrs())
    with warns_user("pixel corners"):
        path = TerraMindAccessor(given).write(tmp_path / "out.zarr", ["LULC"], **arguments)
    with xr.open_zarr(path) as opened:
        assert opened.odc.geobox == cube.odc.geobox
    with warns_user("pixel corners"):
        shown = TerraMindAccessor(given).normalize(["DEM"])
    np.testing.assert_array_equal(shown.x, cube.x)
    np.testing.assert_array_equal(shown.y, cube.y)
    assert shown.odc.geobox == cube.odc.geobox
    with warns_user("pixel corners"):
        features = TerraMindAccessor(given).embed(weights=small_weights["weights"], threads=1)
    assert float(features.token_x[0]) == float(cube.x[0]) + 75


def test_a_lost_transform_is_missed(cube):
    """`stack.to_dataset("band")` drops all attributes."""
    for corners in (True, False):
        given = stacked(cube, corners=corners)
        for data in given.variables.values():
            data.attrs.pop("transform", None)
        given = given.odc.assign_crs("EPSG:32632")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            read_geobox(given)
        assert any("look like the pixel corners" in str(w.message) for w in caught) == corners


def test_contradictions_are_told(cube):
    odd = stacked(cube, tell=lambda a: {"transform": a @ Affine.translation(0.3, 0)})
    with warns_user("of S2L2A fits the coordinates y and x neither"):
        assert read_geobox(odd).affine.c == cube.odc.geobox.affine.c - 5
    both = stacked(stacked(cube, names=["DEM"]), corners=False)
    with pytest.raises(ValueError, match="S2L2A and DEM lie half a pixel apart"):
        read_layout(both)


@pytest.mark.parametrize(
    "tell",
    [
        lambda a: {"transform": "identity"},
        lambda a: {"transform": None},
        lambda a: {"transform": [a.c, a.a, 0, a.f, 0, a.e]},  # GDAL's order
        lambda a: {"transform": a @ Affine.rotation(30)},
        lambda a: {"transform": {"a": 1}},
        lambda a: {},
    ],
)
def test_what_is_no_transform_tells_nothing(cube, tell):
    given = stacked(cube, corners=False, tell=tell)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert read_geobox(given) == cube.odc.geobox
    elsewhere = given.assign(
        S2L2A=given.S2L2A.assign_attrs(crs="epsg:32633", transform=Affine(10, 0, 3, 0, -10, 4))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert read_geobox(elsewhere) == cube.odc.geobox


def test_coarser_pixels_of_centres_fit(cube):
    given = stacked(cube, corners=False).coarsen(y=2, x=2).mean(keep_attrs=True)
    with warns_user("resolution is 20 m"), warnings.catch_warnings():
        warnings.filterwarnings("error", "The attribute transform")
        read_geobox(given)
    given = stacked(cube).coarsen(y=2, x=2).mean(keep_attrs=True)
    with warns_user("neither as pixel centres nor as corners"):
        read_geobox(given)
