"""The one place that asks what kind of array it holds, and where that goes.

NumPy arrays and tensors on the CPU go to `cpu`, without copies; CuPy arrays, tensors on a GPU and
other objects with a ``__cuda_array_interface__`` to `cuda`, which is imported when the first of
them comes. Results are of the caller's kind. Neither torch nor CuPy is imported here: an array of
theirs cannot exist before they are. `pixels`, `tokens` and `tiles` hold the public functions.
"""

from __future__ import annotations

import importlib
import math
import operator
import reprlib
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from terramind_cube.kernels import cpu

if TYPE_CHECKING:
    from collections.abc import Sequence
    from types import ModuleType

    from numpy.typing import NDArray

__all__ = [
    "Array",
    "Held",
    "dtype_name",
    "engine_of",
    "hold",
    "input_array",
    "number",
    "numbers",
    "output_array",
    "refuse_overlap",
    "whole",
]

Array: TypeAlias = Any
"""A NumPy array, a torch tensor, a CuPy array or another device array."""

_OVERLAP_WORK = 10_000
"""Bound of the search for shared elements of two strided arrays."""


@dataclass(frozen=True, eq=False)
class Held:
    """An argument: what the caller gave, and what an engine gets.

    Attributes
    ----------
    name : str
        Of the argument.
    array : array
        As it was given; results are returned like this.
    kind : str
        ``"NumPy"``, ``"torch"``, ``"CuPy"``, or the type's name of another device array.
    device : str
        ``"cpu"``, ``"cuda:0"`` and so on; ``"cuda"`` where the array does not tell.
    dtype : str
        ``"bfloat16"`` of a tensor whose `view` holds the bits as uint16.
    shape : tuple of int
    view : array
        The same memory as a `numpy.ndarray`, or as a device array.
    """

    name: str
    array: Any
    kind: str
    device: str
    dtype: str
    shape: tuple[int, ...]
    view: Any

    @property
    def is_on_host(self) -> bool:
        """Whether CPUs can read the memory."""
        return self.device == "cpu"

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def where(self) -> str:
        """Kind and device, for messages."""
        return f"{self.kind} array on {self.device}"

    def empty(self, shape: tuple[int, ...], dtype: str) -> Any:
        """Return a new array of the same kind on the same device."""
        if self.kind == "NumPy":
            return np.empty(shape, dtype)
        if self.kind == "torch":
            torch: Any = sys.modules["torch"]
            return torch.empty(shape, dtype=getattr(torch, dtype), device=self.array.device)
        if self.kind == "CuPy":
            with self.array.device:
                return sys.modules["cupy"].empty(shape, dtype)
        raise ValueError(
            f"{self.name}: a {self.kind} cannot be allocated here; give out=, {dtype} {shape}."
        )

    def merged(self, *shape: int) -> Any:
        """Return the view in another shape of the same order; read-only arguments may be copied."""
        return self.view.reshape(shape)

    def merged_out(self, *shape: int) -> Any:
        """Return the view in another shape, in the same memory.

        Raises
        ------
        ValueError
            If the axes of a strided array cannot be merged.
        """
        merged = self.merged(*shape)
        if self.is_on_host and self.size and not np.may_share_memory(merged, self.view):
            raise ValueError(
                f"{self.name}: expected an array whose axes can be merged from {self.shape} to "
                f"{shape}, got strides of {self.view.strides} bytes."
            )
        return merged

    def any_nan(self) -> bool:
        """Whether any number is NaN; waits for the device."""
        if not self.size:
            return False
        values = self._computing()
        return bool((values != values).any())  # noqa: PLR0124  # of every kind

    def bounds(self) -> tuple[int, int]:
        """Return the least and the greatest number of an array that is not empty."""
        values = self._computing()
        if hasattr(values, "aminmax"):  # of torch: waits for a GPU once
            torch: Any = sys.modules["torch"]
            least, greatest = torch.stack(values.aminmax()).tolist()
            return least, greatest
        return int(values.min()), int(values.max())

    def _computing(self) -> Any:
        """Return the array with methods that compute."""
        if hasattr(self.view, "min"):
            return self.view
        engine_of(self)  # which says what is missing
        for library, convert in (("cupy", "asarray"), ("torch", "as_tensor")):
            module: Any = sys.modules.get(library)
            if module is not None and module.cuda.is_available():  # torch may be without CUDA
                return getattr(module, convert)(self.view)
        return importlib.import_module("numba.cuda").as_cuda_array(self.view).copy_to_host()


class _Bare:
    """The memory of a device array of which nothing is known but its interface."""

    def __init__(self, array: Any, shape: tuple[int, ...]) -> None:
        interface = array.__cuda_array_interface__
        # Such arrays are contiguous: another shape is the same memory.
        self.__cuda_array_interface__ = {**interface, "shape": shape}
        self.shape, self.dtype = shape, np.dtype(interface["typestr"])
        self._owner = array

    def reshape(self, shape: tuple[int, ...]) -> _Bare:
        return _Bare(self._owner, shape)


def hold(array: Array, name: str) -> Held:
    """Find out what an argument is.

    Raises
    ------
    TypeError
        If it is no array of a kind that an engine takes.
    ValueError
        If a tensor is sparse, or on a device without an engine.
    """
    if isinstance(array, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: expected an array without a mask, got a MaskedArray: fill it with a nodata "
            "value, as x.filled(0)."
        )
    if isinstance(array, np.ndarray):
        return Held(name, array, "NumPy", "cpu", array.dtype.name, array.shape, np.asarray(array))
    if isinstance(array, getattr(sys.modules.get("torch"), "Tensor", ())):
        return _hold_tensor(array, name)
    interface = getattr(array, "__cuda_array_interface__", None)
    if interface is None:
        is_lazy = type(array).__module__.partition(".")[0] in ("xarray", "dask")
        raise TypeError(
            f"{name}: expected a NumPy array, a torch tensor or a CuPy array, "
            f"got {type(array).__name__}"
            f"{': use cube.terramind.normalize, or its values' if is_lazy else ''}."
        )
    is_cupy = isinstance(array, getattr(sys.modules.get("cupy"), "ndarray", ()))
    kind, device = (
        ("CuPy", f"cuda:{array.device.id}") if is_cupy else (type(array).__name__, "cuda")
    )
    dtype, shape = np.dtype(interface["typestr"]).name, tuple(interface["shape"])
    view = array if hasattr(array, "reshape") else _Bare(array, shape)
    return Held(name, array, kind, device, dtype, shape, view)


def _hold_tensor(tensor: Any, name: str) -> Held:
    torch: Any = sys.modules["torch"]
    if tensor.device.type not in ("cpu", "cuda") or tensor.layout is not torch.strided:
        raise ValueError(
            f"{name}: expected a dense tensor on cpu or cuda, "
            f"got {tensor.layout} on {tensor.device}."
        )
    view = tensor.detach()
    if tensor.dtype is torch.bfloat16:  # neither NumPy nor the array interface knows it
        view = view.view(torch.uint16)
    device = "cpu"
    if tensor.device.type == "cuda":
        device = f"cuda:{tensor.device.index}"
    else:
        view = view.numpy()
    dtype = str(tensor.dtype).removeprefix("torch.")
    return Held(name, tensor, "torch", device, dtype, tuple(tensor.shape), view)


def engine_of(held: Held) -> ModuleType:
    """Return the engine that computes where an array is.

    Raises
    ------
    ImportError
        If a device array comes without numba-cuda.
    """
    if held.is_on_host:
        return cpu
    try:
        return importlib.import_module("terramind_cube.kernels.cuda")
    except ImportError as error:
        raise ImportError(
            f"{held.name} is a {held.where}; kernels on GPUs need numba-cuda: "
            "pip install 'terramind-cube[cuda12]' (or cuda13)."
        ) from error


def input_array(
    array: Array,
    name: str,
    dtypes: Sequence[str],
    like: Held | None = None,
    ndim: int | None = None,
) -> Held:
    """Check an argument that is read.

    Parameters
    ----------
    array : array
    name : str
        Of the argument.
    dtypes : sequence of str
        Those that are taken.
    like : Held, optional
        An argument of whose kind and device it must be.
    ndim : int, optional
        Number of axes.

    Raises
    ------
    TypeError, ValueError
        If it does not fit.
    """
    held = hold(array, name)
    _check_dtype(held, dtypes)
    _check_place(held, like)
    if ndim is not None and len(held.shape) != ndim:
        raise ValueError(f"{name}: expected {ndim} axes, got shape {held.shape}.")
    if held.is_on_host and not held.view.dtype.isnative:
        native = held.view.astype(held.view.dtype.newbyteorder("="))
        return Held(name, array, held.kind, "cpu", held.dtype, held.shape, native)
    return held


def output_array(
    array: Array, name: str, shape: tuple[int, ...], dtypes: Sequence[str], like: Held
) -> Held:
    """Check an argument that is written to, or make it, of the first dtype.

    Tensors hold ``"bfloat16"`` as such, other arrays as the bits in uint16.

    Raises
    ------
    TypeError, ValueError
        If it does not fit.
    """
    if like.kind != "torch":
        dtypes = ["uint16" if dtype == "bfloat16" else dtype for dtype in dtypes]
    if array is None:
        return hold(like.empty(shape, dtypes[0]), name)
    held = hold(array, name)
    _check_place(held, like)
    if held.shape != shape or held.dtype not in dtypes:
        raise ValueError(
            f"{name}: expected {' or '.join(dtypes)} {shape}, got {held.dtype} {held.shape}."
        )
    if held.is_on_host:
        is_writable = held.view.flags.writeable
        if not is_writable or _is_repeated(held.view) or not held.view.dtype.isnative:
            is_or_has = "is read-only" if not is_writable else "repeats elements or swaps bytes"
            raise ValueError(f"{name}: expected an array to write to, got one that {is_or_has}.")
    elif _interface(held)["data"][1]:
        raise ValueError(f"{name}: expected an array to write to, got one that is read-only.")
    return held


def refuse_overlap(written: Sequence[Held], read: Sequence[Held | None] = ()) -> None:
    """Refuse outputs that share memory with an input or with each other."""
    for i, output in enumerate(written):
        for other in (*read, *written[:i]):
            if other is not None and _is_shared(other, output):
                raise ValueError(
                    f"{output.name}: expected memory of its own, "
                    f"got an array that overlaps {other.name}."
                )


def numbers(
    values: Any, name: str, expected: str, ndim: int = 1, is_whole: bool = False
) -> NDArray[Any]:
    """Return an argument that is a number or a sequence of numbers.

    Raises
    ------
    ValueError
        If it is none.
    """
    try:
        found = np.asarray(values)
        is_number = found.dtype.kind in ("iu" if is_whole else "iuf") and found.ndim == ndim
    except (RuntimeError, TypeError, ValueError):  # ragged, or a tensor that NumPy cannot read
        is_number = False
    if not is_number or isinstance(values, np.ma.MaskedArray):
        raise ValueError(f"{name}: expected {expected}, got {reprlib.repr(values)}.")
    return found


def number(value: Any, name: str) -> float:
    """Return an argument that is one number; see `numbers`."""
    return float(numbers(value, name, "a number", 0))


def whole(value: Any, name: str, expected: str = "a whole number") -> int:
    """Return an argument that is one whole number; nothing is truncated."""
    with suppress(TypeError):
        if not isinstance(value, bool):
            return operator.index(value)
    raise ValueError(f"{name}: expected {expected}, got {reprlib.repr(value)}.")


def dtype_name(dtype: Any, taken: Sequence[str]) -> str:
    """Return the name of a dtype that is given as such, as a NumPy or torch dtype, or as a type."""
    name = dtype.__name__ if isinstance(dtype, type) else str(dtype).removeprefix("torch.")
    if name not in taken:
        raise ValueError(f"dtype: expected {' or '.join(map(repr, taken))}, got {dtype!r}.")
    return name


def _is_shared(one: Held, other: Held) -> bool:
    """Return whether two arrays share memory; where that is too hard to tell, they may."""
    if one.is_on_host != other.is_on_host:
        return False
    if one.is_on_host:
        try:
            return np.shares_memory(one.view, other.view, max_work=_OVERLAP_WORK)  # type: ignore[arg-type]
        except np.exceptions.TooHardError:
            return True
    spans = []
    for held in (one, other):
        interface = _interface(held)
        start = interface["data"][0]
        spans.append((start, start + held.size * np.dtype(interface["typestr"]).itemsize))
    (start, end), (first, last) = spans
    return bool(max(start, first) < min(end, last))


def _is_repeated(array: NDArray[Any]) -> bool:
    """Return whether two places of an array may be one in memory.

    They are not where each axis steps over all that the axes of smaller steps cover.
    """
    covered = array.itemsize
    for step, n in sorted((abs(s), n) for s, n in zip(array.strides, array.shape, strict=True)):
        if n > 1:
            if step < covered:
                return array.size > 0
            covered += (n - 1) * step
    return False


def _interface(held: Held) -> dict[str, Any]:
    interface: dict[str, Any] = held.view.__cuda_array_interface__
    return interface


def _check_dtype(held: Held, dtypes: Sequence[str]) -> None:
    if held.dtype not in dtypes:
        raise ValueError(f"{held.name}: expected {', '.join(dtypes)}, got {held.dtype}.")


def _check_place(held: Held, like: Held | None) -> None:
    """Refuse arrays of several kinds or devices, and strided device arrays."""
    if like is not None and (held.kind, held.device) != (like.kind, like.device):
        raise ValueError(
            f"{held.name}: expected a {like.where} as {like.name}, got a {held.where}."
        )
    if held.is_on_host:
        return
    interface = _interface(held)
    strides = interface.get("strides")
    itemsize = np.dtype(interface["typestr"]).itemsize
    expected = [itemsize * math.prod(held.shape[i + 1 :]) for i in range(len(held.shape))]
    if strides is None or not held.size:
        return
    if any(
        step != there and n > 1
        for step, there, n in zip(strides, expected, held.shape, strict=True)
    ):
        raise ValueError(
            f"{held.name}: expected a C-contiguous device array, such as "
            f"{'x.contiguous()' if held.kind == 'torch' else 'cupy.ascontiguousarray(x)'} gives, "
            f"got strides of {tuple(strides)} bytes for shape {held.shape}."
        )
