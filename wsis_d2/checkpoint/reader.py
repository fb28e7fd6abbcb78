# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Reading checkpoints without running code that a file may carry.

A pickle can run any program while it is read. Here a ``.pth`` file is read with torch's
``weights_only`` and a ``.pkl`` file with an unpickler that makes plain containers and NumPy arrays
and nothing else (:mod:`wsis_d2.checkpoint.plain_pickle`), which is all that the model zoos' pickles
hold. Neither takes more memory than a few times the file's size. What needs more is refused unless
the user trusts the file (``--trust``, or ``WSIS_D2_TRUST_CHECKPOINTS=1``).
"""

import contextlib
import errno
import os
import pickle
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from wsis_d2.checkpoint.plain_pickle import PlainUnpickler, asked_names, stand_ins
from wsis_d2.checkpoint.pretrained import pretrained_file
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.requirements import import_optional

TRUST_VARIABLE = "WSIS_D2_TRUST_CHECKPOINTS"


def trusts_checkpoints() -> bool:
    """Return whether the user trusts the checkpoints of this process."""
    return os.environ.get(TRUST_VARIABLE, "") == "1"


def trust_checkpoints() -> None:
    """Trust every checkpoint that this process and its children read."""
    os.environ[TRUST_VARIABLE] = "1"


# What torch's weights_only reader knows and files of arrays do not need: called, these take as much
# memory as a file says.
_GREEDY = re.compile(r"(__builtin__|builtins)\.bytearray|torch\.(\w+\.)*\w*(Tensor|TypedStorage)")


def read_checkpoint(path: str | os.PathLike, *, trust: bool | None = None) -> Any:
    """Return what a ``.pth``, ``.pkl`` or ``.safetensors`` file holds, tensors on the CPU.

    Args:
        path: a local file.
        trust: read it even if that may run code; None asks :func:`trusts_checkpoints`.

    Raises:
        InputError: the file is missing, empty, truncated, no checkpoint, or may carry code.
        OSError: the file may be sound, and could not be read: no permission, a failing drive.
    """
    path = Path(path)
    trust = trusts_checkpoints() if trust is None else trust
    if path.is_dir():
        raise InputError(
            f"{path}: a folder, expected a checkpoint file (.pth, .pkl or .safetensors)"
        )
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        raise InputError(f"{path}: no such file, expected a checkpoint") from None
    if size == 0:
        raise InputError(f"{path}: is empty, expected a checkpoint; copy or download it again")
    try:
        if path.suffix.lower() == ".pkl":
            with open(path, "rb") as file:
                if trust:
                    return pickle.load(file, encoding="latin1")
                return PlainUnpickler(file, encoding="latin1").load()
        if path.suffix.lower() == ".safetensors":
            return _safetensors_load(path)
        return _torch_load(path, trust)
    except InputError:
        raise
    except OSError as error:
        if error.errno in (None, errno.EINVAL):  # none of the system; an offset before the file
            raise InputError(_broken(path, error)) from None
        error.filename = str(path)  # a read that fails does not name its file
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
    except Exception as error:  # pickles and archives that are broken raise almost anything
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
    _check_records(path)
    allow = getattr(torch.serialization, "safe_globals", _safe_globals)
    with allow(stand_ins()):
        return torch.load(path, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def _safe_globals(found: list[Any]) -> Iterator[None]:
    """As ``torch.serialization.safe_globals``, which torch 2.4 lacks."""
    before = torch.serialization.get_safe_globals()
    torch.serialization.add_safe_globals(found)
    try:
        yield
    finally:
        torch.serialization.clear_safe_globals()
        torch.serialization.add_safe_globals(before)


def _check_records(path: Path) -> None:
    """Refuse a file that would unpack to more than it holds, or whose weights are damaged.

    Raises:
        ValueError: records are compressed or lie in one another, which torch never writes; it
            asks for memory without content; or a checksum is wrong, at which torch does not look.
    """
    with contextlib.ExitStack() as stack:
        stream: IO[bytes] = stack.enter_context(open(path, "rb"))
        if stream.read(4) == b"PK\x03\x04":
            archive = stack.enter_context(zipfile.ZipFile(path))
            records = archive.infolist()
            stored = all(r.compress_type == zipfile.ZIP_STORED for r in records)
            if not stored or sum(r.file_size for r in records) > path.stat().st_size:
                raise ValueError("its records are compressed, which torch does not do")
            if not any(record.CRC for record in records):  # torch was told to compute none
                for record in records:
                    record.CRC = None
            if (damaged := archive.testzip()) is not None:
                raise ValueError(f"the checksum of its record {damaged} is wrong")
            pickles: list[IO[bytes]] = [
                stack.enter_context(archive.open(r)) for r in records
                if r.filename.endswith("/data.pkl")
            ]  # fmt: skip
        else:  # before torch 1.6: magic number, version, machine, then what was saved
            stream.seek(0)
            pickles = [stream] * 4
        for each in pickles:
            for name in sorted(asked_names(each)):
                if _GREEDY.fullmatch(name):
                    raise ValueError(f"asks for {name}, which takes memory without content")


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
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            value = np.asarray(value, order="C")
            value = torch.from_numpy(value.astype(value.dtype.newbyteorder("="), copy=False))
        kind = _unfit(value) if isinstance(name, str) else "not called by a text"
        if kind:
            shown = name if isinstance(name, str) else repr(name)[:60]
            raise InputError(
                f"{path}: entry {shown!r:.80} is {kind}, expected an array of parameters"
            )
        small = value.is_floating_point() and value.element_size() == 1  # isfinite knows no float8
        if value.is_floating_point() and not bool(
            torch.isfinite(value.float() if small else value).all()
        ):
            raise InputError(
                f"{path}: parameter {name} holds NaN or infinity; the training that wrote it had "
                "diverged, take an earlier checkpoint"
            )
        result[name] = value
    return result


def _unfit(value: Any) -> str:
    """Return why a value is no array of a network, "" if it is one."""
    if not isinstance(value, torch.Tensor):
        return type(value).__name__
    if value.layout != torch.strided or value.is_quantized or value.is_meta:
        return "sparse, quantised or without content"
    if value.is_complex():
        return "complex"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return f"{value.numel()} repetitions of fewer values"
    return ""


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
    if str(local).lower().endswith(".pkl"):
        if "model" in data and "__author__" in data:
            return data
        data = data.get("blobs", data)
        if not isinstance(data, dict):
            raise InputError(f"{path}: its 'blobs' are {type(data).__name__}, expected a dict")
        model = {k: v for k, v in data.items() if not str(k).endswith("_momentum")}
        return {"model": model, "__author__": "Caffe2", "matching_heuristics": True}
    if "model_state" in data:
        return {"model": data["model_state"], "__author__": "pycls", "matching_heuristics": True}
    if "model" not in data and isinstance(data.get("state_dict"), dict):
        return {"model": data["state_dict"]}
    return data if "model" in data else {"model": data}
