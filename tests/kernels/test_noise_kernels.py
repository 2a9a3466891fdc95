"""Random numbers of cells: those of Philox, normal, independent, and equal on every engine."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings

from terramind_cube.kernels import cpu, reference
from tests.kernels import cases


def words(*values):
    return tuple(np.array([value], np.uint64) for value in values)


@pytest.mark.parametrize(
    ("counter", "key", "expected"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        (
            (0xFFFFFFFF,) * 4,
            (0xFFFFFFFF, 0xFFFFFFFF),
            (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD),
        ),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_philox_gives_the_known_answers_of_its_authors(counter, key, expected):
    found = reference.philox(words(*counter), key)
    assert tuple(int(word[0]) for word in found) == expected


@pytest.mark.parametrize("name", ["philox_uniform", "philox_normal"])
def test_numbers_are_equal_bit_for_bit(name):
    @settings(deadline=None, max_examples=80)
    @given(cases.cells())
    def check(case):
        key, rows, cols, out = case
        expected = out.copy()
        getattr(reference, name)(key, rows, cols, expected)
        getattr(cpu, name)(key, rows, cols, out)
        cases.assert_same(out, expected)

    check()


ENGINES = pytest.mark.parametrize("engine", [cpu, reference], ids=["cpu", "reference"])


def normal(engine, cells=4000, count=50):
    out = np.full((cells, count), np.nan, np.float32)
    engine.philox_normal((3, 5), np.arange(cells), np.arange(cells)[::-1].copy(), out)
    return out


@ENGINES
def test_normal_numbers_are_those_of_box_and_muller(engine):
    uniform = np.empty((6, 8), np.float32)
    cells = np.arange(6)
    reference.philox_uniform((3, 5), cells, cells[::-1].copy(), uniform)
    radius = np.sqrt(-2 * np.log(uniform[:, ::2].astype(np.float64)))
    angle = 2 * np.pi * uniform[:, 1::2].astype(np.float64)
    for count in (8, 7, 1):
        found = normal(engine, 6, count)
        expected = np.stack([radius * np.cos(angle), radius * np.sin(angle)], -1).reshape(6, 8)
        np.testing.assert_allclose(found, expected[:, :count], rtol=0, atol=2e-6)


@ENGINES
@pytest.mark.parametrize("count", [50, 51])
def test_normal_numbers_have_the_moments_of_a_normal_distribution(engine, count):
    found = normal(engine, count=count).astype(np.float64)
    assert np.isfinite(found).all()
    assert abs(found.mean()) < 0.01
    assert abs(found.std() - 1) < 0.01
    assert abs((found**3).mean()) < 0.04
    assert abs((found**4).mean() - 3) < 0.08
    inside = [(np.abs(found) < bound).mean() for bound in (0.5, 1, 2, 3)]
    np.testing.assert_allclose(inside, [0.3829, 0.6827, 0.9545, 0.9973], rtol=0, atol=0.004)


@ENGINES
def test_normal_numbers_are_independent(engine):
    found = normal(engine).astype(np.float64)
    for first, second in (
        (found[:-1], found[1:]),  # cells
        (found[:, :-1:2], found[:, 1::2]),  # the two of a pair
        (found[:, 1:-1:2], found[:, 2::2]),  # pairs
    ):
        for power in (1, 2):  # a pair shares its radius
            correlation = np.corrcoef(first.ravel() ** power, second.ravel() ** power)[0, 1]
            assert abs(correlation) < 0.012


def test_uniform_numbers_lie_between_the_ends():
    out = np.empty((3000, 37), np.float32)
    cpu.philox_uniform((1, 2), np.arange(3000), np.arange(3000), out)
    assert ((out > 0) & (out < 1)).all()
    assert abs(out.mean() - 0.5) < 0.005
    np.testing.assert_allclose(np.histogram(out, 10, (0, 1))[0] / out.size, 0.1, rtol=0.03)


@ENGINES
@pytest.mark.parametrize("name", ["philox_uniform", "philox_normal"])
def test_a_cell_s_numbers_depend_on_no_other_cell(engine, name):
    fill = getattr(engine, name)
    rows, cols = np.arange(700), np.arange(700) * 7
    together, alone = np.empty((700, 9), np.float32), np.empty((1, 5), np.float32)
    fill((3, 4), rows, cols, together)
    for cell in (0, 84, 85, 86, 699):
        fill((3, 4), rows[cell : cell + 1], cols[cell : cell + 1], alone)
        np.testing.assert_array_equal(alone[0, :4], together[cell, :4])
