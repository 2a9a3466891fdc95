"""Kernels against NumPy, torch eager, torch.compile and CuPy, beside the machine's copy rate.

Contestants do the same work in the same process, in turns, on one thread (torch also on all of
them) or on a GPU. Asserted is that they agree, never how long they take; the figures are printed
and kept in ``results/kernels_cpu.json`` and ``results/kernels_gpu.json``.
"""

from __future__ import annotations

import pixel_contests
import pytest
import token_contests
import torch
from kernel_contest import OURS, Place, keep, race, result_of, summary

# Compilers of rivals warn of what they are.
pytestmark = pytest.mark.filterwarnings("default")

CONTESTS = {**pixel_contests.CONTESTS, **token_contests.CONTESTS}
ROUNDS = 15


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def place(request):
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device on this machine")
    return Place(request.param)


@pytest.mark.parametrize("name", list(CONTESTS))
def test_bytes_per_second(benchmark, place, name):
    torch.compiler.reset()
    case, same = CONTESTS[name](place), {}
    ours = result_of(case, OURS)
    for rival in [rival for rival in case.contestants if rival != OURS]:
        try:
            theirs = result_of(case, rival)
        except (ImportError, NotImplementedError, RuntimeError) as error:
            # Of a rival alone: torch has no kernel for a dtype, or finds no compiler.
            case.absent[rival] = f"{type(error).__name__}: {error}".splitlines()[0][:200]
            del case.contestants[rival]
            continue
        same[rival] = case.agree(ours, theirs)
    seconds = race(case, place, lambda each: benchmark.pedantic(each, rounds=ROUNDS))
    info = summary(case, place, seconds, same)
    benchmark.extra_info.update(info)
    keep(f"kernels_{'gpu' if place.is_gpu else 'cpu'}", name, info)
