# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Pickles of plain containers, numbers, strings and NumPy arrays, and nothing else.

Detectron2's and Caffe2's ``.pkl`` files hold no more. A pickle calls what it names; here it can
name four stand-ins alone, which build an array of the bytes that the file itself has. NumPy's own
functions would take a file's word for a shape or a dtype, and so its word for how much memory.
"""

import functools
import math
import pickle
import pickletools
import struct
from collections import OrderedDict
from typing import IO, Any

import numpy as np

_CODES = {"b1", *(f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)), "f2", "f4", "f8"}
_MOST_SIDES = 8
#: What modules have called NumPy's functions.
_BUFFER_MODULES = ("numpy.core.numeric", "numpy._core.numeric")
_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")


class _NDArray:
    """Stands for the name ``numpy.ndarray``, which files hand to ``_reconstruct``."""

    def __new__(cls, *_: Any) -> "_NDArray":
        raise pickle.UnpicklingError("an array without content")


class _DType:
    """Stands for a ``numpy.dtype`` of plain numbers."""

    def __init__(self, code: str, align: Any = False, copy: Any = False) -> None:
        if code not in _CODES:
            raise pickle.UnpicklingError(f"an array of {str(code)[:20]!r}, expected real numbers")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple) -> None:
        order = state[1]
        if order not in ("<", ">", "|", "="):
            raise pickle.UnpicklingError("a dtype of no known byte order")
        if order in "<>":
            self.dtype = self.dtype.newbyteorder(order)


class _Array(np.ndarray):
    """An array that takes no more content than the file holds."""

    def __setstate__(self, state: tuple) -> None:
        _, shape, kind, fortran, data = state
        data = data.encode("latin1") if isinstance(data, str) else data
        if not isinstance(kind, _DType) or not isinstance(data, bytes):
            raise pickle.UnpicklingError("an array whose content is no bytes")
        sides = shape if isinstance(shape, tuple) and len(shape) <= _MOST_SIDES else [-1]
        if not all(type(n) is int and 0 <= n < 1 << 40 for n in sides):
            raise pickle.UnpicklingError("an array of no shape")
        if math.prod(shape) * kind.dtype.itemsize != len(data):
            raise pickle.UnpicklingError("an array of another size than its content")
        whole: Any = (1, shape, kind.dtype, bool(fortran), data)
        super().__setstate__(whole)


def _reconstruct(kind: Any, shape: Any, code: Any) -> _Array:
    if kind is not _NDArray:
        raise pickle.UnpicklingError("an array of an unknown kind")
    return np.ndarray.__new__(_Array, (0,), np.int8)  # its content follows


def _frombuffer(data: Any, kind: Any, shape: Any, order: Any = "C", axes: Any = None) -> np.ndarray:
    """How protocol 5 writes arrays, also those whose axes lie in another order in memory."""
    made = _reconstruct(_NDArray, (0,), b"b")
    made.__setstate__((1, shape, kind, order == "F", data))
    return made if axes is None else made.transpose(axes)


def _scalar(kind: Any, data: Any) -> Any:
    data = data.encode("latin1") if isinstance(data, str) else data
    if not isinstance(kind, _DType) or len(data) != kind.dtype.itemsize:
        raise pickle.UnpicklingError("a number of another size than its content")
    return np.frombuffer(data, kind.dtype)[0]


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """What Python 2's strings pickle through; only the harmless encoding."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


def _no_bytes() -> bytes:
    """How protocol 2 writes the content of an array without values."""
    return b""


_NAMES: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): _NDArray,
    ("numpy", "dtype"): _DType,
    ("_codecs", "encode"): _encode,
    **{(module, "bytes"): _no_bytes for module in ("builtins", "__builtin__")},
    **{(module, "_reconstruct"): _reconstruct for module in _ARRAY_MODULES},
    **{(module, "scalar"): _scalar for module in _ARRAY_MODULES},
    **{(module, "_frombuffer"): _frombuffer for module in _BUFFER_MODULES},
}
# INST and OBJ call classes, the others ask for objects of elsewhere or for memory unseen.
_REFUSED = (b"i", b"o", b"P", b"Q", b"\x82", b"\x83", b"\x84", b"\x92", b"\x97", b"\x98")


# What the standard library does not say of it: its types.
_Unpickler: Any = pickle._Unpickler


class PlainUnpickler(_Unpickler):
    """Makes containers, numbers, strings and NumPy arrays; refuses everything else by name.

    The unpickler written in Python: the one in C allocates as many objects as a file says.
    """

    dispatch = {k: v for k, v in _Unpickler.dispatch.items() if bytes([k]) not in _REFUSED}

    def find_class(self, module: str, name: str) -> Any:
        """Return the stand-in of a name."""
        try:
            return _NAMES[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"the file asks for {module}.{name}") from None

    def load_build(self) -> None:
        """Give an object its state, arrays and dtypes alone."""
        if not isinstance(self.stack[-2], _Array | _DType):
            raise pickle.UnpicklingError("state of an object that has none")
        state, made = self.stack.pop(), self.stack[-1]
        made.__setstate__(state)

    dispatch[pickle.BUILD[0]] = load_build

    def load_bytearray(self) -> None:
        """Read bytes that may be written to, which are arrays' alone, as bytes."""
        (length,) = struct.unpack("<Q", self.read(8))
        self.append(self.read(length))

    dispatch[pickle.BYTEARRAY8[0]] = load_bytearray


def stand_ins() -> list[Any]:
    """Return the stand-ins for torch's ``weights_only`` reader.

    It finds an object by ``__module__`` and ``__qualname__`` (``__name__`` before torch 2.5), so
    they have those of what they stand for; and it gives a state to objects whose types are among
    these.
    """
    made = [_Array]
    for (module, name), found in _NAMES.items():
        if module != "collections":  # torch has that itself
            if not isinstance(found, type):
                found = functools.partial(found)
            found.__module__, found.__qualname__, found.__name__ = module, name, name
            made.append(found)
    return made


def asked_names(stream: IO[bytes]) -> set[str]:
    """Return the ``module.name`` of all that a pickle asks for, without reading it.

    Args:
        stream: at the pickle's begin; left behind its end.

    Raises:
        ValueError: it is no pickle.
    """
    names, texts = set(), ["", ""]
    for opcode, argument, _ in pickletools.genops(stream):
        if opcode.name in ("GLOBAL", "INST"):
            names.add(str(argument).replace(" ", "."))
        elif opcode.name == "STACK_GLOBAL":
            names.add(".".join(texts))
        elif isinstance(argument, str):
            texts = [texts[1], argument]
    return names
