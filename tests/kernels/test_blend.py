"""Sums of overlapping tiles and maps of classes: compiled and defined alike, and right."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from terramind_cube.kernels import cpu, reference
from tests.kernels import cases

often = settings(deadline=None, max_examples=150)
ENGINES = pytest.mark.parametrize("engine", [cpu, reference], ids=["cpu", "reference"])


@often
@given(cases.tiles_in_a_ring())
def test_sums_and_means_are_equal_bit_for_bit(case):
    tiles, parts, total, weight = case
    results = []
    for engine in (reference, cpu):
        sums = (total.copy(), weight.copy()) if engine is reference else (total, weight)
        with np.errstate(all="ignore"):
            for values, weights, place in tiles:
                engine.blend_accumulate(values, weights, place, *sums)
        outs = [np.full((len(total), rows, total.shape[2]), 7, np.float32) for _, rows in parts]
        kept = [array.copy() for array in sums]
        for (first_row, _), out in zip(parts, outs, strict=True):
            engine.blend_finish(*sums, first_row, out)
        assert not any(array.any() for array in sums)
        results.append([*kept, *outs])
    for found, expected in zip(*results, strict=True):
        cases.assert_same(found, expected)


@ENGINES
def test_means_are_those_of_the_whole_region(engine):
    rng = np.random.default_rng(0)
    t, width, height, ring_rows = 16, 60, 100, 24
    total, weight = (
        np.zeros((3, ring_rows, width), np.float32),
        np.zeros((ring_rows, width), np.float32),
    )
    exact, weights_of_all = np.zeros((3, height, width)), np.zeros((height, width))
    found = np.full((3, height, width), 7, np.float32)
    done = 0
    for row in range(-4, height, 8):
        begin, end = max(row, 0), min(row + t, height)
        ready = np.empty((3, begin - done, width), np.float32)
        engine.blend_finish(total, weight, done, ready)
        found[:, done:begin], done = ready, begin
        for column in range(0, width - 20, 11):
            columns = min(t, width - column)
            values = rng.normal(0, 5, (3, t, t)).astype(np.float32)
            weights = rng.uniform(0.01, 1, (t, t)).astype(np.float32)
            place = (begin - row, 0, begin, column, end - begin, columns)
            engine.blend_accumulate(values, weights, place, total, weight)
            part = np.s_[begin - row : end - row, :columns]
            target = np.s_[begin:end, column : column + columns]
            weights_of_all[target] += weights[part]
            for band in range(3):
                exact[band][target] += values[band][part].astype(np.float64) * weights[part]
    ready = np.empty((3, height - done, width), np.float32)
    engine.blend_finish(total, weight, done, ready)
    found[:, done:] = ready
    with np.errstate(invalid="ignore"):
        expected = exact / weights_of_all
    assert np.isnan(expected).any(axis=0).sum() == (weights_of_all == 0).sum() > 0
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@often
@given(cases.probabilities())
def test_classes_are_equal_on_every_engine(case):
    probability, classes, confidence = case
    expected = classes.copy(), confidence.copy()
    reference.class_map(probability, *expected)
    cpu.class_map(probability, classes, confidence)
    cases.assert_same(classes, expected[0])
    cases.assert_same(confidence, expected[1])


@ENGINES
def test_the_most_probable_class_is_found(engine):
    rng = np.random.default_rng(0)
    probability = np.round(rng.random((10, 30, 200)) * 20).astype(np.float32)  # with ties
    probability[4, 3, 5] = np.nan
    classes, confidence = np.empty(6000, np.uint8), np.empty(6000, np.float32)
    engine.class_map(probability.reshape(10, -1), classes, confidence)
    expected = probability.argmax(axis=0)
    expected[3, 5] = 0
    np.testing.assert_array_equal(classes.reshape(30, 200), expected)
    np.testing.assert_array_equal(confidence.reshape(30, 200), probability.max(axis=0))


@ENGINES
def test_two_hundred_classes_have_numbers_of_their_own(engine):
    probability = np.eye(200, dtype=np.float32)
    classes, confidence = np.empty(200, np.uint8), np.empty(200, np.float32)
    engine.class_map(probability, classes, confidence)
    np.testing.assert_array_equal(classes, np.arange(200))
    assert (confidence == 1).all()
