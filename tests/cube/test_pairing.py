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
    pair_scenes,
    pair_years,
    parse_tolerance,
)
from terramind_cube.modalities import MODALITIES
from terramind_cube.stac.bands import ItemBands

START = datetime(2024, 1, 1, tzinfo=UTC)


def source(name, when, modality="S2L2A", **properties):
    fields = {key.replace("__", ":"): value for key, value in properties.items()}
    return ItemBands(pystac.Item(name, None, None, when, fields), MODALITIES[modality], ())


def radar(day, orbit, coverage=1.0):
    """A step of one pass of Sentinel-1."""
    when = START + timedelta(days=day)
    found = source(f"{orbit}-{day}", when, "S1RTC", sat__relative_orbit=orbit)
    return TimeStep(when, (found,), coverage)


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


def test_one_orbit_serves_all_dates_that_it_reaches():
    times = [START + timedelta(days=d) for d in (0, 12, 24, 60)]
    passes = [
        radar(1, 15),
        radar(3, 88),
        radar(13, 15),
        radar(15, 88),
        radar(27, 88),
        radar(58, 15),
    ]
    places = pair_scenes(times, passes, timedelta(days=7))
    # Orbit 15 is nearer and reaches as many dates; the third date has only the other one.
    assert [passes[place].relative_orbit for place in places] == [15, 15, 88, 15]
    assert places == [0, 2, 4, 5]


def test_orbit_that_covers_the_area_is_preferred_to_a_nearer_one():
    times = [START, START + timedelta(days=12)]
    passes = [radar(0, 15, 0.2), radar(2, 88, 1.0), radar(12, 15, 0.2), radar(14, 88, 1.0)]
    assert pair_scenes(times, passes, timedelta(days=3)) == [1, 3]


@given(
    days=st.lists(st.integers(0, 60), min_size=1, max_size=6, unique=True),
    passes=st.lists(
        st.tuples(st.integers(0, 60), st.sampled_from([None, 15, 88, 117]), st.sampled_from([0.3, 1.0])),
        max_size=8, unique_by=lambda p: p[:2],
    ),
    within=st.integers(0, 12),
    random=st.randoms(use_true_random=False),
)  # fmt: skip
def test_pairs_stay_within_their_window_and_do_not_depend_on_order(days, passes, within, random):
    times = [START + timedelta(days=d) for d in days]
    found = [source(f"p{n}", START + timedelta(days=d), "S1RTC", **({} if o is None else {"sat__relative_orbit": o}))
             for n, (d, o, _) in enumerate(passes)]  # fmt: skip
    shuffled = random.sample(found, len(found))
    window = timedelta(days=within)
    pairs = []
    for items in (found, shuffled):
        candidates = group_steps(items, longitude_deg=0)
        places = pair_scenes(times, candidates, window)
        pairs.append([None if p is None else ids([candidates[p]]) for p in places])
        for time, place in zip(times, places, strict=True):
            near = [step for step in candidates if abs(step.time - time) <= window]
            assert (place is None) == (not near)
            assert place is None or candidates[place] in near
    assert pairs[0] == pairs[1]


def test_passes_of_one_day_are_steps_of_their_own_and_slices_of_a_pass_are_not():
    morning, evening = START + timedelta(hours=5), START + timedelta(hours=17)
    down = {"sat__orbit_state": "descending", "sat__relative_orbit": 51}
    up = {"sat__orbit_state": "ascending", "sat__relative_orbit": 73}
    items = [
        source("slice 2", morning + timedelta(seconds=25), "S1RTC", **down),
        source("slice 1", morning, "S1RTC", **down),
        source("next orbit", morning + timedelta(minutes=98), "S1RTC", **(down | {"sat__relative_orbit": 52})),
        source("evening", evening, "S1RTC", **up),
    ]  # fmt: skip
    steps = group_steps(items, longitude_deg=0)
    assert ids(steps) == [["slice 1", "slice 2"], ["next orbit"], ["evening"]]
    assert [step.relative_orbit for step in steps] == [51, 52, 73]


def test_years_pair_within_themselves_only():
    candidates = [TimeStep(datetime(year, 1, 1, tzinfo=UTC), ()) for year in (2022, 2024)]
    times = [datetime(2024, 12, 31, tzinfo=UTC), datetime(2023, 1, 1, tzinfo=UTC)]
    assert pair_years(times, candidates) == [1, None]
    # A year that is asked for serves every date; of two equally near ones the earlier does.
    assert pair_years(times, candidates, 2022) == [0, 0]
    assert pair_years(times, candidates, 2021) == [None, None]
    assert pair_years(times, candidates, "nearest") == [1, 0]
    assert pair_years(times, [], "nearest") == [None, None]


def test_tolerance_is_a_duration():
    assert parse_tolerance("7D") == timedelta(days=7)
    assert parse_tolerance(timedelta(hours=3)) == timedelta(hours=3)
    for bad in ("soon", "-1D", None):
        with pytest.raises(ValueError, match="pair_within"):
            parse_tolerance(bad)
