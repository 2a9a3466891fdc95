"""Weights files are read by their headers, and refused by name when anything is wrong."""

from __future__ import annotations

import json
import os
import pickle
import resource
import threading
import time
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from terramind_cube.model import weights as weights_module
from terramind_cube.model.weights import (
    WeightsError,
    check_tensors,
    file_sha256,
    load_tensors,
    read_header,
    save_safetensors,
)

TENSORS = {
    "encoder.0.weight": torch.arange(15, dtype=torch.float32).reshape(3, 5),
    "encoder.0.bias": torch.linspace(-1, 1, 3).to(torch.bfloat16),
    "scale": torch.tensor(2.5, dtype=torch.float64),
    "ids": torch.tensor([[1, -2], [3, 4]]),
    "flags": torch.tensor([True, False, True]),
}
KINDS = ["zip.pt", "zip.pth", "zip.bin", "legacy.pt", "w.safetensors"]


def _write(path, tensors=TENSORS):
    if path.suffix == ".safetensors":
        save_safetensors(path, tensors, {"origin": "test"})
    else:
        is_zip = path.stem != "legacy"
        torch.save(OrderedDict(tensors), path, _use_new_zipfile_serialization=is_zip)
    return path


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_gives_header_and_tensors_back(tmp_path, name):
    path = _write(tmp_path / name)
    header = read_header(path)
    assert header.path == path
    assert header.shapes == {key: tuple(tensor.shape) for key, tensor in TENSORS.items()}
    assert header.dtypes == {
        "encoder.0.weight": "float32", "encoder.0.bias": "bfloat16", "scale": "float64",
        "ids": "int64", "flags": "bool",
    }  # fmt: skip
    assert header.metadata == ({"origin": "test"} if path.suffix == ".safetensors" else {})
    loaded = load_tensors(str(path))
    assert loaded.keys() == TENSORS.keys()
    for key, tensor in TENSORS.items():
        assert loaded[key].dtype == tensor.dtype
        assert torch.equal(loaded[key], tensor)


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_nested_checkpoint_is_unwrapped(tmp_path, key):
    path = tmp_path / "w.pt"
    torch.save({key: TENSORS, "epoch": 3, "optimizer": {"lr": 0.1}}, path)
    assert read_header(path).shapes.keys() == TENSORS.keys()
    assert torch.equal(load_tensors(path)["ids"], TENSORS["ids"])


def test_tied_tensors_stay_tied_in_a_checkpoint(tmp_path):
    table = torch.rand(4, 3)
    path = _write(tmp_path / "w.pt", {"token_emb.weight": table, "to_logits.weight": table})
    assert set(read_header(path).shapes.values()) == {(4, 3)}
    loaded = load_tensors(path)
    assert loaded["token_emb.weight"].data_ptr() == loaded["to_logits.weight"].data_ptr()


def _huge_checkpoint(path):
    with torch.serialization.skip_data():
        torch.save({"huge": torch.empty(2**28)}, path)


def _huge_safetensors(path):
    text = json.dumps({"huge": {"dtype": "F32", "shape": [2**28], "data_offsets": [0, 2**30]}})
    path.write_bytes(len(text).to_bytes(8, "little") + text.encode())
    os.truncate(path, 8 + len(text) + 2**30)


@pytest.mark.parametrize(
    ("name", "write"), [("w.pt", _huge_checkpoint), ("w.safetensors", _huge_safetensors)]
)
def test_gibibyte_is_inspected_and_loaded_without_reading_its_data(tmp_path, name, write):
    path = tmp_path / name  # sparse: it takes no space on the disk
    write(path)
    before_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    assert read_header(path).shapes == {"huge": (2**28,)}
    assert time.perf_counter() - began < 0.5
    assert load_tensors(path)["huge"].numel() == 2**28
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kib < 100 * 1024


@pytest.mark.parametrize("read", [read_header, load_tensors])
@pytest.mark.parametrize("name", KINDS)
def test_truncated_file_is_refused_at_any_length(tmp_path, read, name):
    whole = _write(tmp_path / name).read_bytes()
    for number, length in enumerate([0, 1, 7, 8, 60, len(whole) // 2, len(whole) - 1]):
        # Another name each time, so that no mapping of an earlier content is in the way.
        path = tmp_path / str(number) / name
        path.parent.mkdir()
        path.write_bytes(whole[:length])
        with pytest.raises(WeightsError) as caught:
            read(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"\n<!DOCTYPE html><html>Not found</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (bytes(range(256)) * 4, "damaged"),
    ],
    ids=["empty", "web page", "pointer", "noise"],
)
def test_foreign_content_is_named(tmp_path, suffix, content, said):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(content)
    for read in (read_header, load_tensors):
        with pytest.raises(WeightsError, match=said) as caught:
            read(path)
        assert str(path) in str(caught.value)


@pytest.mark.parametrize(("name", "lie"), [("w.pt", "w.safetensors"), ("w.safetensors", "w.pt")])
def test_wrong_suffix_is_refused(tmp_path, name, lie):
    path = _write(tmp_path / name).rename(tmp_path / lie)
    with pytest.raises(WeightsError, match=r"not what its name says|damaged"):
        read_header(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([torch.ones(2)], "holds a list"),
        (torch.ones(2), "holds a Tensor"),
        ({"a": torch.ones(2), "epoch": 3}, "'epoch' is a int"),
        ({1: torch.ones(2)}, "1 is a Tensor"),
        ({}, "no tensors"),
        ({"model": {}}, "no tensors"),
    ],
)
def test_checkpoint_that_is_no_mapping_of_tensors_is_refused(tmp_path, content, said):
    path = tmp_path / "w.pt"
    torch.save(content, path)
    with pytest.raises(WeightsError, match=said) as caught:
        load_tensors(path)
    assert str(path) in str(caught.value)


class _Payload:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return (os.mkdir, (str(self.target),))


@pytest.mark.parametrize("is_zip", [True, False])
def test_pickled_code_is_refused_and_not_run(tmp_path, is_zip):
    path, target = tmp_path / "w.pt", tmp_path / "harm"
    content = {"a": torch.ones(2), "b": _Payload(target)}
    torch.save(content, path, _use_new_zipfile_serialization=is_zip)
    for read in (read_header, load_tensors):
        with pytest.raises(WeightsError, match="holds code or other objects"):
            read(path)
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(_Payload(target)))
    with pytest.raises(WeightsError):
        read_header(tmp_path / "plain.bin")
    assert not target.exists()


def test_absent_and_unknown_files_are_refused(tmp_path):
    for read in (read_header, load_tensors):
        with pytest.raises(FileNotFoundError, match="absent"):
            read(tmp_path / "absent.pt")
        (tmp_path / "w.npz").write_bytes(b"PK")
        with pytest.raises(WeightsError, match="safetensors"):
            read(tmp_path / "w.npz")


def test_equal_shapes_pass_and_optional_names_may_come_and_go():
    check_tensors({"a": (1, 2), "b": (3,)}, {"a": (1, 2), "b": (3,)}, source="f")
    check_tensors({"a": (1,), "b": (3,)}, {"a": (1,), "c": ()}, source="f", optional={"b", "c"})


def test_every_kind_of_misfit_is_listed_at_once():
    with pytest.raises(WeightsError) as caught:
        check_tensors({"a": (2, 3), "gone": (1,)}, {"a": (3, 2), "new": ()}, source="w.pt")
    assert str(caught.value).startswith("w.pt does not fit the network")
    for part in (
        "1 tensor missing: gone",
        "1 tensor of another shape: a is (3, 2) instead of (2, 3)",
        "1 tensor unexpected: new",
    ):
        assert part in str(caught.value)


def test_optional_tensor_of_another_shape_is_still_an_error():
    with pytest.raises(WeightsError, match=r"a is \(2,\) instead of \(1,\)"):
        check_tensors({"a": (1,)}, {"a": (2,)}, source="f", optional=["a"])


def test_long_lists_are_abridged_with_their_count():
    expected = {f"t{number:02d}": (1,) for number in range(20)}
    with pytest.raises(WeightsError, match=r"20 tensors missing: t00, .*, t07 and 12 more\.") as e:
        check_tensors(expected, {}, source="f")
    assert "t08" not in str(e.value)


def test_saved_file_is_valid_for_the_reference_library(tmp_path):
    column = torch.arange(6.0).reshape(2, 3).T
    tensors = {**TENSORS, "strided": column, "tied": column, "none": torch.zeros(0, 4)}
    save_safetensors(tmp_path / "w.safetensors", tensors, {"é": "ü", "a": "1"})
    loaded = load_file(tmp_path / "w.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in tensors.items())
    assert read_header(tmp_path / "w.safetensors").metadata == {"é": "ü", "a": "1"}


def test_equal_weights_are_saved_as_equal_bytes(tmp_path):
    metadata = {str(number): "x" for number in range(6)}
    first, second = tmp_path / "1.safetensors", tmp_path / "2.safetensors"
    save_safetensors(first, TENSORS, metadata)
    turned = dict(reversed(TENSORS.items())), dict(reversed(metadata.items()))
    save_safetensors(second, *turned)
    assert file_sha256(first) == file_sha256(second)


def test_interrupted_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = _write(tmp_path / "w.safetensors")
    before = path.read_bytes()

    def fail(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(weights_module.os, "fsync", fail)
    with pytest.raises(OSError, match="No space left"):
        save_safetensors(path, {"a": torch.ones(3)}, {})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_bad_destination_or_dtype_is_refused_before_writing(tmp_path):
    with pytest.raises(WeightsError, match=r"must end in \.safetensors"):
        save_safetensors(tmp_path / "w.pt", TENSORS, {})
    with pytest.raises(FileNotFoundError, match="No folder"):
        save_safetensors(tmp_path / "absent" / "w.safetensors", TENSORS, {})
    with pytest.raises(WeightsError, match="z is complex64"):
        save_safetensors(tmp_path / "w.safetensors", {"z": torch.ones(2) * 1j}, {})
    assert list(tmp_path.iterdir()) == []


def test_a_file_loads_in_many_threads_at_once(tmp_path):
    tensors = {"a": torch.from_numpy(np.random.default_rng(5).random(100_000, dtype=np.float32))}
    path = _write(tmp_path / "w.safetensors", tensors)
    equal = []

    def load():
        equal.append(torch.equal(load_tensors(path)["a"], tensors["a"]))

    threads = [threading.Thread(target=load) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert equal == [True] * 8
