"""What stands in for an array of CuPy, which needs a GPU even to make one.

It behaves like one where it counts: it refuses to become a NumPy array, and what NumPy and torch may
ask of it is what CuPy answers.
"""

from __future__ import annotations

import numpy as np


class Elsewhere(np.lib.mixins.NDArrayOperatorsMixin):
    """An array that is not the host's, by the protocols that CuPy speaks."""

    __array_priority__ = 100

    def __init__(self, held):
        self.held = held

    shape = property(lambda self: self.held.shape)
    dtype = property(lambda self: self.held.dtype)
    ndim = property(lambda self: self.held.ndim)
    size = property(lambda self: self.held.size)
    nbytes = property(lambda self: self.held.nbytes)

    def __len__(self):
        return len(self.held)

    def __array__(self, *arguments, **options):
        raise TypeError("Implicit conversion to a NumPy array is not allowed.")

    def __array_function__(self, function, types, arguments, options):
        del types
        return _wrap(function(*_unwrap(arguments), **_unwrap(options)))

    def __array_ufunc__(self, ufunc, method, *arguments, **options):
        return _wrap(getattr(ufunc, method)(*_unwrap(arguments), **_unwrap(options)))

    def __getitem__(self, index):
        return _wrap(self.held[_unwrap(index)])

    def __setitem__(self, index, values):
        assert isinstance(values, Elsewhere)
        self.held[index] = values.held

    def astype(self, dtype, **options):
        return Elsewhere(self.held.astype(dtype, **options))

    def get(self):
        return self.held

    def transpose(self, *axes):
        return Elsewhere(self.held.transpose(*axes))

    def __dlpack__(self, **options):
        return self.held.__dlpack__(**options)

    def __dlpack_device__(self):
        return self.held.__dlpack_device__()


def _wrap(value):
    return Elsewhere(value) if isinstance(value, np.ndarray) else value


def _unwrap(value):
    if isinstance(value, Elsewhere):
        return value.held
    if isinstance(value, tuple | list):
        return type(value)(map(_unwrap, value))
    if isinstance(value, dict):
        return {name: _unwrap(part) for name, part in value.items()}
    return value
