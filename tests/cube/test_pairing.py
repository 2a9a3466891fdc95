"""Steps in time, and which steps of two sensors belong together."""

from datetime import UTC, datetime, timedelta

import pystac
import pytest
from hypothesis import given
from hypothesis import strategies as st

from terramind_cube.cube.pairing import (
    TimeStep,
    group_steps,
    pair_nearest,
    pair_years,
    parse_tolerance,
)
from terramind_cube.modalities import MODALITIES
from terramind_cube.stac.bands import ItemBands

START = datetime(2024, 1, 1, tzinfo=UTC)


def source(name, when, modality="S2L2A"):
    return ItemBands(pystac.Item(name, None, None, when, {}), MODALITIES[modality], ())


def steps(*days):
    return [TimeStep(START + timedelta(days=d), ()) for d in days]


def ids(groups):
    return [[s.item.id for s in step.sources] for step in groups]


def test_solar_day_follows_the_longitude():
    # 23:50 and 00:10 UTC are one morning in New Zealand, two dates in Greenwich.
    evening, morning = START - timedelta(minutes=10), START + timedelta(minutes=10)
    sources = [source("b", morning), source("a", evening)]
    assert ids(group_steps(sources, longitude_deg=174)) == [["a", "b"]]
    assert ids(group_steps(sources, longitude_deg=0)) == [["a"], ["b"]]
    assert group_steps(sources, longitude_deg=174)[0].time == evening


def test_static_layers_are_one_step_whatever_their_dates():
    sources = [source("new", START, "DEM"), source("old", START - timedelta(9999), "DEM")]
    assert ids(group_steps(sources, longitude_deg=0)) == [["old", "new"]]


@given(
    times=st.lists(st.integers(0, 400), min_size=1, max_size=6),
    others=st.lists(st.integers(0, 400), max_size=6, unique=True),
    within=st.integers(0, 40),
)
def test_nearest_pairs_are_never_further_than_any_other(times, others, within):
    candidates = steps(*sorted(others))
    moments = [START + timedelta(days=t) for t in times]
    places = pair_nearest(moments, candidates, timedelta(days=within))
    for moment, place in zip(moments, places, strict=True):
        distances = [abs(step.time - moment) for step in candidates]
        if place is None:
            assert all(d > timedelta(days=within) for d in distances)
        else:
            assert distances[place] == min(distances) <= timedelta(days=within)


def test_years_pair_within_themselves_only():
    candidates = [TimeStep(datetime(year, 1, 1, tzinfo=UTC), ()) for year in (2022, 2024)]
    times = [datetime(2024, 12, 31, tzinfo=UTC), datetime(2023, 1, 1, tzinfo=UTC)]
    assert pair_years(times, candidates) == [1, None]


def test_tolerance_is_a_duration():
    assert parse_tolerance("7D") == timedelta(days=7)
    assert parse_tolerance(timedelta(hours=3)) == timedelta(hours=3)
    for bad in ("soon", "-1D", None):
        with pytest.raises(ValueError, match="pair_within"):
            parse_tolerance(bad)
