# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Reading checkpoints without running code that a file may carry.

A pickle can run any program while it is read. Here a ``.pth`` file is read with torch's
``weights_only`` and a ``.pkl`` file with an unpickler that makes plain containers and NumPy arrays
and nothing else, which is all that the model zoos' pickles hold. What needs more is refused unless
the user trusts the file (``--trust``, or ``WSIS_D2_TRUST_CHECKPOINTS=1``).
"""

import contextlib
import os
import pickle
import re
import zipfile
from collections import OrderedDict
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch

from wsis_d2.checkpoint.pretrained import pretrained_file
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.requirements import import_optional

TRUST_VARIABLE = "WSIS_D2_TRUST_CHECKPOINTS"


def trusts_checkpoints() -> bool:
    """Return whether the user trusts the checkpoints of this process."""
    return os.environ.get(TRUST_VARIABLE, "") == "1"


def trust_checkpoints(trust: bool = True) -> None:
    """Trust, or stop trusting, every checkpoint this process and its children read."""
    if trust:
        os.environ[TRUST_VARIABLE] = "1"
    else:
        os.environ.pop(TRUST_VARIABLE, None)


def _encode(text: str, encoding: str) -> bytes:
    """What Python 2's strings pickle through; only the harmless encoding."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"encoding {encoding!r} is not allowed")
    return text.encode("latin1")


def _multiarray() -> ModuleType:
    return import_module(f"numpy.{'_core' if hasattr(np, '_core') else 'core'}.multiarray")


_ARRAY_MODULES = ("numpy.core.multiarray", "numpy._core.multiarray")
_PLAIN = {
    ("collections", "OrderedDict"): OrderedDict,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _encode,
}


class _PlainUnpickler(pickle.Unpickler):
    """Makes containers, numbers, strings and NumPy arrays; refuses everything else by name."""

    def find_class(self, module: str, name: str) -> Any:
        if module in _ARRAY_MODULES and name in ("_reconstruct", "scalar"):
            return getattr(_multiarray(), name)
        if (module, name) in _PLAIN:
            return _PLAIN[module, name]
        raise pickle.UnpicklingError(f"the file asks for {module}.{name}")


def _numpy_globals() -> list[Any]:
    """What torch's weights_only reader must know to read NumPy arrays and numbers."""
    core = _multiarray()
    kinds = [type(np.dtype(k)) for k in "?bBhHiIlLqQefd"]
    return [core._reconstruct, core.scalar, np.ndarray, np.dtype, *dict.fromkeys(kinds)]


def read_checkpoint(path: str | os.PathLike, *, trust: bool | None = None) -> Any:
    """Return what a ``.pth``, ``.pkl`` or ``.safetensors`` file holds, tensors on the CPU.

    Args:
        path: a local file.
        trust: read it even if that may run code; None asks :func:`trusts_checkpoints`.

    Raises:
        InputError: the file is missing, empty, truncated, no checkpoint, or may carry code.
    """
    path = Path(path)
    trust = trusts_checkpoints() if trust is None else trust
    if path.is_dir():
        raise InputError(
            f"{path}: a folder, expected a checkpoint file (.pth, .pkl or .safetensors)"
        )
    try:
        size = path.stat().st_size
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}, expected a checkpoint") from None
    if size == 0:
        raise InputError(f"{path}: is empty, expected a checkpoint; copy or download it again")
    try:
        if path.suffix == ".pkl":
            with open(path, "rb") as file:
                if trust:
                    return pickle.load(file, encoding="latin1")
                return _PlainUnpickler(file, encoding="latin1").load()
        if path.suffix == ".safetensors":
            return _safetensors_load(path)
        return _torch_load(path, trust)
    except InputError:
        raise
    except (pickle.UnpicklingError, AttributeError, ImportError) as error:
        named = re.search(r"(?:asks for|GLOBAL|[Uu]nsupported class) +([\w.]+)", str(error))
        if named:
            reason = f"it asks for {named.group(1)}"
            raise InputError(
                f"{path}: refused, reading it could run code ({reason}); expected a checkpoint of "
                "arrays only. If you trust who made the file, add --trust"
            ) from None
        raise InputError(_broken(path, error)) from None
    except (RuntimeError, EOFError, ValueError, TypeError, KeyError, IndexError, MemoryError,
            OSError, zipfile.BadZipFile, UnicodeDecodeError) as error:  # fmt: skip
        raise InputError(_broken(path, error)) from None


def _broken(path: Path, error: BaseException) -> str:
    text = " ".join(str(error).split())
    reason = "no pickle" if text.startswith("Weights only") else text or type(error).__name__
    reason = reason[:120]
    return (
        f"{path}: cannot be read as a checkpoint, truncated or of another format ({reason}); "
        "copy or download it again"
    )


def _safetensors_load(path: Path) -> dict[str, torch.Tensor]:
    library = import_optional("safetensors.torch", "pretrained")
    try:
        return library.load_file(path)
    except import_optional("safetensors", "pretrained").SafetensorError as error:
        raise ValueError(str(error)) from None


def _torch_load(path: Path, trust: bool) -> Any:
    if trust:
        return torch.load(path, map_location="cpu", weights_only=False)
    allow = getattr(torch.serialization, "safe_globals", None)
    if allow is None:  # torch 2.4
        torch.serialization.add_safe_globals(_numpy_globals())
        allow = contextlib.nullcontext
    with allow(_numpy_globals()):
        return torch.load(path, map_location="cpu", weights_only=True)


def model_state(checkpoint: Any, path: str | os.PathLike) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers of a read checkpoint.

    Raises:
        InputError: it holds no parameters, something that is no array, or values that are not
            finite; the first is named.
    """
    state = checkpoint.get("model", checkpoint) if isinstance(checkpoint, dict) else None
    if not isinstance(state, dict) or not state:
        raise InputError(f"{path}: holds no parameters, expected a checkpoint with a 'model' entry")
    result = {}
    for name, value in state.items():
        if isinstance(value, np.ndarray) and value.dtype != object:
            value = torch.from_numpy(np.ascontiguousarray(value))
        if not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            raise InputError(f"{path}: entry {name!r} is {kind}, expected an array of parameters")
        if value.is_floating_point() and not bool(torch.isfinite(value).all()):
            raise InputError(
                f"{path}: parameter {name} holds NaN or infinity; the training that wrote it had "
                "diverged, take an earlier checkpoint"
            )
        result[name] = value
    return result


def load_file(path: str) -> dict[str, Any]:
    """Read a checkpoint wherever Detectron2 finds one; its parameters are the entry ``model``.

    Args:
        path: file, URL, ``detectron2://...``, ``wsis-d2://ID``, or an address of
            :mod:`wsis_d2.checkpoint.pretrained`.

    Returns:
        What the file holds, as Detectron2's checkpointer gives it: ``matching_heuristics`` marks
        names that are ends of a model's, ``__author__`` the project that they are of.

    Raises:
        InputError: it cannot be fetched or read, or is no checkpoint.
    """
    try:
        local = pretrained_file(path)
    except (OSError, AssertionError) as error:
        text = " ".join(str(error).split())
        raise InputError(f"{path}: cannot be read ({text})") from None
    data = read_checkpoint(local)
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds {type(data).__name__}, expected a checkpoint")
    if str(local).endswith(".pkl"):
        if "model" in data and "__author__" in data:
            return data
        data = data.get("blobs", data)
        model = {k: v for k, v in data.items() if not k.endswith("_momentum")}
        return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}
    if "model_state" in data:
        return {"model": data["model_state"], "__author__": "pycls", "matching_heuristics": True}
    if "model" not in data and isinstance(data.get("state_dict"), dict):
        return {"model": data["state_dict"]}
    return data if "model" in data else {"model": data}
