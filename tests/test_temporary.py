"""A run of the tests leaves nothing large in the temporary folder."""

import pytest
import seeded
from checkpoints import MOST_BYTES, Checkpoints, folder_bytes
from conftest import MOST_TEMPORARY_BYTES

pytest.importorskip("torch")
SHAPES = {"a": {"p.m.x": [1000, 250]}, "b": {"p.m.x": [500, 500]}, "c": {"p.m.x": [1000, 250]}}
MB = 1_000_000


def test_the_oldest_checkpoints_go_before_the_next_is_written(tmp_path):
    checkpoints = Checkpoints(SHAPES, tmp_path, seeded, 2 * MB)
    first, second = checkpoints.write("a", 0), checkpoints.write("b", 0)
    assert folder_bytes(tmp_path) == pytest.approx(2 * MB, rel=0.02)
    assert checkpoints.write("a", 0) == first  # used again, so now the newest
    third = checkpoints.write("c", 0)
    assert [path.exists() for path in (first, second, third)] == [True, False, True]
    assert checkpoints.write("b", 0).exists()
    assert folder_bytes(tmp_path) < 2.1 * MB
    checkpoints.remove_all()
    assert folder_bytes(tmp_path) == 0


def test_the_largest_checkpoint_of_the_tests_fits_below_the_limit_of_a_run(shapes):
    base = 4 * sum(seeded.np.prod(shape) for shape in shapes["base"].values())
    assert base < MOST_BYTES < MOST_TEMPORARY_BYTES


def test_passed_tests_leave_no_folders(pytestconfig):
    assert pytestconfig.getini("tmp_path_retention_policy") == "failed"
    assert pytestconfig.getini("tmp_path_retention_count") in (1, "1")
