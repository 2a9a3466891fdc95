"""What is generated from is looked at in passing: refused, told once, or taken as nodata."""

from __future__ import annotations

import warnings

import dask
import numpy as np
import pytest
from distributed import Client, LocalCluster
from small import make_cube

from terramind_cube.accessor import TerraMindAccessor
from terramind_cube.display import describe_store
from terramind_cube.inference import mapping
from terramind_cube.inference import plan as plan_module
from terramind_cube.store import read_receipts
from terramind_cube.testing import assert_lazy
from tests.cube.scenes import warns_user

CHUNKS = {"y": 50, "x": 64}


@pytest.fixture(scope="module")
def generate(small_weights):
    def call(cube, **changes):
        arguments = {"overlap": 16, "threads": 1, "temperature": 0, **small_weights, **changes}
        return TerraMindAccessor(cube).generate(["LULC"], **arguments)

    return call


@pytest.fixture
def small_groups(monkeypatch):
    monkeypatch.setattr(plan_module, "GROUP_PX", 96)


@pytest.fixture(scope="module")
def cube():
    return make_cube()


CHANGES = {
    "0 to 1": (lambda s2: s2.astype("f4") / 10_000, r"0 to 1.*cube\['S2L2A'\] \* 10000"),
    "0 to 1, doubles, NaN": (lambda s2: (s2 / 10_000).where(s2 > 0), r"0 to 1.*\* 10000"),
    "percent": (lambda s2: s2.astype("f4") / 100, r"percent.*cube\['S2L2A'\] \* 100\."),
    "negative": (lambda s2: s2.astype("f4") - 30_000, "negative .* no reflectance"),
    "one date of two": (
        lambda s2: s2.where(s2.time == s2.time[0], s2 / 10_000), "0 to 1.* 10000",
    ),
    "standardised": (lambda s2: (s2 - s2.mean()) / s2.std(), "standardised already"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CHANGES))
@pytest.mark.parametrize("what", ["generate", "embed", "normalize", "bands"])
def test_reflectance_in_another_unit_is_refused_with_the_factor(
    generate, cube, monkeypatch, name, what
):
    change, message = CHANGES[name]
    wrong = cube.assign(S2L2A=change(cube.S2L2A))
    if what == "bands":
        wrong = wrong.S2L2A.to_dataset("S2L2A_band").assign_coords(spatial_ref=cube.spatial_ref)
    calls = {
        "generate": generate,
        "bands": generate,
        "embed": lambda cube: TerraMindAccessor(cube).embed(),
        "normalize": lambda cube: TerraMindAccessor(cube).normalize(),
    }
    # In memory while it is built, lazily in each group's task before the model runs.
    if name != "one date of two":
        monkeypatch.setattr(mapping, "run_group", lambda *_: pytest.fail("the model ran"))
    with pytest.raises(ValueError, match=message):
        calls[what](wrong)
    with assert_lazy():
        lazy = calls[what](wrong.chunk(CHUNKS))
    with pytest.raises(ValueError, match=message):
        lazy.compute()


def test_a_store_of_a_wrong_unit_is_refused_before_it_is_made(cube, small_weights, tmp_path):
    wrong = cube.assign(S2L2A=cube.S2L2A / 10_000)
    with pytest.raises(ValueError, match=r"\* 10000"):
        TerraMindAccessor(wrong).write(tmp_path / "out.zarr", ["LULC"], **small_weights)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value", "dtype"),
    [
        ("S2L2A", 65535, "uint16"), ("S2L2A", 64321, "uint16"), ("S2L2A", 65535, "f4"),
        ("S2L2A", -9999, "int16"), ("S2L2A", -9999, "f8"), ("DEM", -32768, "int16"),
        ("DEM", -9999, "f4"), ("DEM", -32767, "f4"), ("DEM", 9500, "f4"), ("S1RTC", -9999, "f4"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("chunks", [None, CHUNKS])
@pytest.mark.filterwarnings("ignore:.*they count as nodata:UserWarning")
@pytest.mark.filterwarnings("ignore:.*are void, and count as nodata:UserWarning")
def test_pixels_that_can_be_nothing_are_nodata(generate, cube, name, value, dtype, chunks):
    """Single ones, which no sample meets, too; the cube itself stays as it is."""
    pixels = (
        cube[name].fillna(0).round().astype(dtype) if "i" in dtype else cube[name].astype(dtype)
    )
    few, holes = pixels.copy(deep=True), pixels.astype("f4").copy(deep=True)
    few[..., 81:84, 101:103] = value
    holes[..., 81:84, 101:103] = 0 if name == "S2L2A" else np.nan
    cube = cube.assign({name: few})
    before = few.copy(deep=True)
    result = generate(cube.chunk(chunks) if chunks else cube, inputs=[name]).compute()
    expected = generate(cube.assign({name: holes}), inputs=[name]).compute()
    assert (result.LULC.values == expected.LULC.values).all()
    assert np.isnan(result.LULC_confidence.values[..., 81:84, 101:103]).all()
    np.testing.assert_array_equal(few, before)
    shown = TerraMindAccessor(cube).normalize([name])[name]
    assert (shown[..., 81:84, 101:103] == 0).all()


def many_saturated(cube):
    pixels = cube.S2L2A.copy(deep=True)
    pixels[..., 40:160, 20:150] = 65535
    return cube.assign(S2L2A=pixels, S1RTC=10 ** (cube.S1RTC / 10))


@pytest.mark.parametrize(("seed", "scheduler"), [(1, "synchronous"), (2, "threads")])
def test_what_looks_wrong_is_told_once(generate, cube, seed, scheduler, small_groups):
    result = generate(many_saturated(cube).chunk(CHUNKS), chunks=48, seed=seed)
    with warnings.catch_warnings(record=True) as caught, dask.config.set(scheduler=scheduler):
        warnings.simplefilter("always", UserWarning)
        result.compute()
        result.compute()
    told = sorted(str(w.message) for w in caught if w.category is UserWarning)
    # Two modalities, six groups of each of two dates, computed twice.
    assert len(told) == 2
    assert told[0].startswith("S1RTC of 2024-")
    assert "linear power" in told[0]
    assert "64000 or more" in told[1]
    assert "find_implausible" in told[1]


@pytest.mark.parametrize("where", ["threads", "cluster"])
@pytest.mark.filterwarnings("ignore:S1RTC of 2024:UserWarning")
def test_receipts_and_the_report_hold_it(
    cube, small_weights, tmp_path, monkeypatch, small_groups, where
):
    """Of the region that it concerns: the south-east of the second date."""
    radar = cube.S1RTC.copy(deep=True)
    radar[1, :, 60:, 60:] = 10 ** (radar[1, :, 60:, 60:] / 10)
    wrong = cube.assign(S1RTC=radar).chunk(CHUNKS)
    settings = {**small_weights, "overlap": 0, "threads": 1, "chunks": 48, "inputs": ["S1RTC"]}
    runs, run_group = [], mapping.run_group
    monkeypatch.setattr(mapping, "run_group", lambda *args: runs.append(1) or run_group(*args))
    if where == "threads":
        path = TerraMindAccessor(wrong).write(tmp_path / "out.zarr", ["LULC"], **settings)
    else:
        with LocalCluster(
            n_workers=1, threads_per_worker=1, processes=False, dashboard_address=None
        ) as cluster, Client(cluster):  # fmt: skip
            path = TerraMindAccessor(wrong).write(tmp_path / "out.zarr", ["LULC"], **settings)
    receipts = read_receipts(path)
    # The look costs no second run of a group.
    assert len(runs) == len(receipts) == 12
    remarked = {receipt.key: receipt.remarks for receipt in receipts if receipt.remarks}
    assert remarked
    for key, remarks in remarked.items():
        assert key.startswith("time1-2_")
        assert any("S1RTC of 2024-08-22: the median is" in text for text in remarks)
    assert any("y96-192_x96-180" in key for key in remarked)
    assert not any("y0-96_x0-96" in key for key in remarked)
    rows = describe_store(path)
    texts = {text for receipt in receipts for text in receipt.remarks}
    assert ("Inputs", f"{len(texts)} things look wrong, see find_implausible()") in rows
    assert any("S1RTC of 2024-08-22" in text for _, text in rows)


def test_plausible_stores_say_nothing(cube, small_weights, tmp_path):
    settings = {**small_weights, "overlap": 16, "threads": 1}
    path = TerraMindAccessor(cube).write(tmp_path / "out.zarr", ["LULC"], **settings)
    assert all(not receipt.remarks for receipt in read_receipts(path))
    assert not any("look wrong" in text for _, text in describe_store(path))


def test_clients_of_a_cluster_hear_of_it(generate, cube, small_groups):
    wrong = cube.assign(S1RTC=10 ** (cube.S1RTC / 10)).chunk(CHUNKS)
    with (
        LocalCluster(n_workers=1, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster),
        warns_user("S1RTC of 2024-.*linear power"),
    ):
        generate(wrong, inputs=["S1RTC"], chunks=48).compute()


def test_plausible_cubes_are_not_talked_about(generate, cube):
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        generate(cube).compute()
