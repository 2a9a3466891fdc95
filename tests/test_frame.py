"""The frame of the project: environments agree, and the house keeps its own rules."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import terramind_cube

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
CONDA_NAMES = {
    "dask[array]": "dask-core",
    "matplotlib": "matplotlib-base",
    "torch": "pytorch-gpu",
    "cupy-cuda12x": "cupy",
    "numba-cuda[cu12]": "numba-cuda",
}
SOURCES = sorted((ROOT / "terramind_cube").rglob("*.py"))


def requirements(lines):
    return dict(re.fullmatch(r"([\w.\-\[\]]+)(.*)", line).groups() for line in lines)


def test_conda_environment_holds_what_pyproject_asks_for():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    conda = requirements(line for line in environment["dependencies"] if isinstance(line, str))
    extras = PROJECT["optional-dependencies"]
    wanted = requirements(
        [*PROJECT["dependencies"], *extras["cuda12"], *extras["notebooks"], *extras["test"]]
    )
    for name, bound in wanted.items():
        assert conda.get(CONDA_NAMES.get(name, name)) == bound, name
    assert conda["python"] == PROJECT["requires-python"]
    known = {CONDA_NAMES.get(name, name) for name in wanted} | {"python", "pip", "cuda-version"}
    assert set(conda) == known


def test_constraints_satisfy_pyproject():
    from packaging.requirements import Requirement

    lines = (ROOT / "constraints.txt").read_text().splitlines()
    pinned = dict(line.lower().split("==") for line in lines if "==" in line)
    assert pinned["torch"] == "2.13.0"
    groups = PROJECT["optional-dependencies"]
    for line in [*PROJECT["dependencies"], *groups["test"], *groups["dev"], *groups["notebooks"]]:
        requirement = Requirement(line)
        version = pinned.get(requirement.name.lower())
        assert version is None or requirement.specifier.contains(version), line
    assert {"xarray", "dask", "zarr", "odc-stac", "numba", "rasterio"} <= set(pinned)


def test_no_file_or_function_is_too_long():
    for path in SOURCES:
        text = path.read_text()
        assert len(text.splitlines()) <= 450, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                lines = node.end_lineno - body[0].lineno + 1 if body else 0
                assert lines <= 60, f"{path.name}: {node.name} has {lines} lines"


def public_objects():
    for module in pkgutil.walk_packages(terramind_cube.__path__, "terramind_cube."):
        loaded = importlib.import_module(module.name)
        for name in getattr(loaded, "__all__", ()):
            yield f"{module.name}.{name}", getattr(loaded, name)


def test_everything_public_is_documented():
    for name, thing in public_objects():
        if inspect.isclass(thing) or inspect.isfunction(thing):
            assert inspect.getdoc(thing), name
    for name in terramind_cube.__all__:
        assert hasattr(terramind_cube, name)


@pytest.mark.parametrize("module", ["terramind_cube", "terramind_cube.cli"])
def test_import_touches_neither_cuda_nor_the_network(module):
    code = f"""
import socket, sys
def refuse(*arguments, **options): raise AssertionError("network")
socket.socket.connect = refuse
import {module}
import torch
assert not torch.cuda.is_initialized()
assert "cupy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)
