"""How kernels for GPUs are queued: device, stream, memory and arguments, told by stand-ins."""

from __future__ import annotations

import sys
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("numba_cuda")

from terramind_cube.kernels import cuda, cuda_vector
from terramind_cube.kernels.rules import Restoration, Standardization


class Tensor:
    """A stand-in for an array of a library: NumPy's memory, at a place."""

    def __init__(self, array, device=1):
        self.array, self.shape = array, array.shape
        self.device = SimpleNamespace(index=device, id=device)
        self.__cuda_array_interface__ = array.__array_interface__


class Room(np.ndarray):
    """A stand-in for device memory that Numba allocates."""

    def copy_to_device(self, array, stream):
        self[...] = array
        log.append(("copy", stream))


class Device:
    """A stand-in for a GPU."""

    def __init__(self, number):
        self.number = number

    def __enter__(self):
        log.append(("enter", self.number))

    def __exit__(self, *error):
        log.append(("leave", self.number))


log = []


def events():
    """What happened on the devices."""
    return [entry[0] for entry in log if entry[0] not in ("enter", "leave")]


@pytest.fixture(autouse=True)
def numba_stand_in(monkeypatch):
    """Replace what needs a driver; kernels only tell how they would run."""
    log.clear()

    def view(array, sync):
        assert sync is False
        return getattr(array, "array", array)

    def allocate(size, dtype):
        log.append(("allocate", size))
        return np.empty(size, dtype).view(Room)

    stand_in = SimpleNamespace(
        gpus={number: Device(number) for number in range(3)},
        external_stream=lambda pointer: f"stream {pointer}",
        default_stream=lambda: SimpleNamespace(synchronize=lambda: log.append(("wait",))),
        as_cuda_array=view,
        to_device=lambda array: log.append(("upload", array.shape)) or array,
        device_array=allocate,
        current_context=lambda: SimpleNamespace(device=SimpleNamespace(id=0)),
    )
    monkeypatch.setattr(cuda, "cuda", stand_in)
    monkeypatch.setattr(cuda, "_rooms", {})
    for name in dir(cuda.kernels):
        kernel = getattr(cuda.kernels, name)
        if hasattr(kernel, "typeof_pyval") and not name.startswith("_"):
            monkeypatch.setattr(cuda.kernels, name, Launcher(name, kernel))
    cuda._upload.cache_clear()
    yield
    cuda._upload.cache_clear()


class Launcher:
    """A stand-in for a kernel."""

    def __init__(self, name, kernel):
        self.name, self.kernel = name, kernel

    def __getitem__(self, configuration):
        def launch(*arguments):
            types = [str(self.kernel.typeof_pyval(np.asarray(a) if a is not None else a))
                     if isinstance(a, np.ndarray) else str(self.kernel.typeof_pyval(a))
                     for a in arguments]  # fmt: skip
            log.append(("launch", self.name, configuration, types))

        return launch


@pytest.fixture(params=["torch", "cupy"])
def library(request, monkeypatch):
    """Make `Tensor` the array of a library; its stream on device 1 is 71."""
    streams = SimpleNamespace(
        current_stream=lambda device: SimpleNamespace(cuda_stream=70 + device.index),
        get_current_stream=lambda device: SimpleNamespace(ptr=70 + device),
    )
    names = {"Tensor": Tensor} if request.param == "torch" else {"ndarray": Tensor}
    monkeypatch.setitem(sys.modules, request.param, SimpleNamespace(cuda=streams, **names))
    other = {"torch": "cupy", "cupy": "torch"}[request.param]
    monkeypatch.delitem(sys.modules, other, raising=False)
    return request.param


def launches():
    return [entry[1:] for entry in log if entry[0] == "launch"]


def normalizing(device=1, dtype="int16", tiles=2):
    rng = np.random.default_rng(0)
    x, out = np.zeros((1, 3, 40, 40), dtype), np.zeros((tiles, 3, 16, 32), np.float32)
    corners = np.zeros((tiles, 3), np.int64)
    rule = Standardization.of(rng.random(3), rng.random(3), 0)
    cuda.normalize(Tensor(x, device), corners, rule, Tensor(out, device))


def test_kernels_are_queued_on_the_stream_of_the_library(library):
    normalizing()
    assert events() == ["allocate", "copy", "upload", "wait", "launch"]
    assert (log.pop(0), log.pop()) == (("enter", 1), ("leave", 1))
    assert log[1] == ("copy", "stream 71")
    name, (blocks, threads, stream), types = launches()[0]
    assert (name, stream) == ("normalize_to_float32", "stream 71")
    assert blocks >= 128
    assert threads == (32, 8)
    assert types[3:6] == ["Tuple(float32, bool, bool)", "int64", "UniTuple(int64 x 2)"]


def test_constants_and_room_are_made_once_for_a_device_and_a_stream(library):
    normalizing()
    log.clear()
    normalizing()
    assert events() == ["copy", "launch"]
    log.clear()
    normalizing(device=2)
    assert events() == ["allocate", "copy", "upload", "wait", "launch"]
    log.clear()
    normalizing(tiles=2000)
    assert ("allocate", 8192) in log


def test_the_default_stream_is_numbas(library, monkeypatch):
    module = sys.modules[library]
    monkeypatch.setattr(
        module.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0)
    )
    monkeypatch.setattr(module.cuda, "get_current_stream", lambda device: SimpleNamespace(ptr=0))
    cuda.class_map(*(Tensor(np.zeros(n, t)) for n, t in (((2, 9), "f4"), (9, "u1"), (9, "f4"))))
    (_, (_, _, stream), _) = launches()[0]
    assert hasattr(stream, "synchronize")


@pytest.mark.parametrize(("told", "expected"), [({}, 0), ({"stream": None}, 0), ({"stream": 5}, 5)])
def test_other_arrays_tell_their_stream(told, expected):
    array = SimpleNamespace(__cuda_array_interface__=told)
    assert cuda._place(array) == (0, expected)


def test_arguments_have_the_types_that_were_compiled(library):
    images = Tensor(np.zeros((1, 2, 3, 4), np.float32))
    rule = Restoration(*np.ones((2, 2), np.float32), (-np.inf, 7.5), 0)
    valid = Tensor(np.ones((3, 4), np.bool_))
    for known, dtype in ((None, "uint8"), (valid, "float32")):
        cuda.denormalize(images, 0, rule, known, Tensor(np.zeros((1, 2, 3, 4), dtype)))
    for *_, types in launches():
        assert types[1] == "int64"
        assert types[3] == "Tuple(float32, float32, float32, bool, bool)"
        assert types[4] == "array(bool, 2d, C)"
    log.clear()
    cuda.valid_pixels(images, float("nan"), Tensor(np.zeros((1, 3, 4), np.bool_)))
    cells = np.arange(5)
    cuda.philox_normal((2**32 - 1, 0), -cells, cells, Tensor(np.zeros((5, 3), np.float32)))
    place = tuple(np.array([0, 0, 0, 0, 2, 2]))
    tile, weights = Tensor(np.zeros((1, 2, 2), "f4")), Tensor(np.zeros((2, 2), "f4"))
    ring = Tensor(np.zeros((1, 9, 9), "f4")), Tensor(np.zeros((9, 9), "f4"))
    cuda.blend_accumulate(tile, weights, place, *ring)
    cuda.blend_finish(*ring, 3, Tensor(np.zeros((1, 2, 9), "f4")))
    tokens = Tensor(np.zeros((1, 4), np.int64))
    cuda.fsq_quantize(Tensor(np.zeros((1, 2, 4), "f4")), (5, 4), tokens)
    cuda.fsq_dequantize(tokens, (5, 4), Tensor(np.zeros((1, 2, 4), "f4")))
    types = {name: types for name, _, types in launches()}
    assert types["valid_pixels"][1] == "float32"
    assert types["philox_normal"][:2] == ["UniTuple(int64 x 2)", "array(int64, 1d, C)"]
    assert types["blend_accumulate"][2] == "UniTuple(int64 x 6)"
    assert types["blend_finish"][2] == "int64"
    assert types["fsq_quantize"][1] == types["fsq_dequantize"][1] == "array(int64, 2d, C)"


def test_images_of_uint16_go_to_the_vector_kernel(library, monkeypatch):
    calls = []

    class Kernel:
        def __init__(self, source, name, options):
            assert (source, name) == (cuda_vector.SOURCE, "normalize")
            assert "-DCHANNELS=3" in options

        def compile(self):
            pass

        def __call__(self, grid, block, arguments):
            calls.append((grid, block, arguments))

    @contextmanager
    def external(pointer):
        assert pointer == 71
        yield

    cupy = SimpleNamespace(RawKernel=Kernel, cuda=SimpleNamespace(ExternalStream=external))
    monkeypatch.setattr(cuda_vector, "_cupy", lambda: cupy)
    monkeypatch.setattr(cuda_vector, "_address", lambda array: 32)
    cuda_vector._compiled.cache_clear()
    normalizing(dtype="uint16")
    (((blocks,), block, arguments),) = calls
    assert (blocks, block) == (2, (256,))
    assert [value.itemsize for value in arguments] == [8] * 5 + [4] * 5
    assert [int(value) for value in arguments[4:]] == [2 * 16 * 32 // 8, 40, 40, 16, 32, 0]
    assert not launches()
    normalizing(dtype="int16")
    assert len(launches()) == len(calls) == 1
    cuda_vector._compiled.cache_clear()


def test_what_cupy_cannot_compile_goes_to_numba_with_a_warning(library, monkeypatch):
    class Kernel:
        def __init__(self, *arguments):
            raise RuntimeError("no NVRTC")

    monkeypatch.setattr(cuda_vector, "_cupy", lambda: SimpleNamespace(RawKernel=Kernel))
    monkeypatch.setattr(cuda_vector, "_address", lambda array: 32)
    cuda_vector._compiled.cache_clear()
    with pytest.warns(RuntimeWarning, match="no NVRTC"):
        normalizing(dtype="uint16")
    normalizing(dtype="uint16")  # warns once
    assert len(launches()) == 2
    cuda_vector._compiled.cache_clear()
