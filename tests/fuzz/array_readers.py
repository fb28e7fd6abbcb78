# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Proposals and checkpoints: sound files of arrays, damaged and read."""

import io
import json
import struct
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import torch

from fuzz.damage import Choices, damaged_bytes, damaged_json
from fuzz.files import SIZE, base, put, put_json


def damaged_mat(content: dict, choices: Choices) -> bytes:
    """Damage a MATLAB file of version 5 (of 4, in which cells are missing), compressed or not."""
    from scipy.io import savemat

    buffer = io.BytesIO()
    if choices.below(16) == 1:
        plain = {
            k: v for k, v in content.items() if getattr(v, "dtype", None) not in (None, object)
        }
        savemat(buffer, plain or {"a": 1}, format="4")
    else:
        savemat(buffer, content)
    file = buffer.getvalue()
    if choices.below(2):
        file = file[:128] + damaged_bytes(file[128:], choices)
    else:
        file = damaged_bytes(file, choices)
    if choices.below(2):  # compressed, as MATLAB writes it: the damage lies inside
        body = zlib.compress(file[128:], 1)
        file = file[:128] + struct.pack("<II", 15, len(body)) + body
    return file


def mat(data: bytes) -> None:
    from wsis_d2.weak_labels.proposals.files import read_mat

    labels = np.empty((2, 1), object)
    labels[0, 0], labels[1, 0] = np.array([[1, 2]], np.uint16), np.array([[3]], np.uint16)
    superpixels = np.repeat(np.arange(1, 5, dtype=np.uint16), 48).reshape(SIZE)
    content = {"superpixels": superpixels, "labels": labels, "other": {"a": [1.5, "x"]}}
    with np.errstate(all="ignore"):
        read_mat(put("p.mat", damaged_mat(content, Choices(data))), SIZE)


def sbd(data: bytes) -> None:
    from collections import Counter

    from scipy import sparse

    from wsis_d2.data.datasets.builtin.voc import fuse, read_sbd

    objects = np.repeat(np.uint8([0, 1, 2, 0]), 48).reshape(SIZE)
    borders = np.empty((2, 1), object)
    borders[:, 0] = [sparse.csc_matrix(objects == k) for k in (1, 2)]
    content = {"Segmentation": objects, "Categories": np.uint8([[3], [5]]), "Boundaries": borders}
    with np.errstate(all="ignore"):
        file = put("s.mat", damaged_mat({"GTinst": content}, Choices(data)))
        found, classes, _ = read_sbd(str(file), "GTinst")
        if found.shape == SIZE:  # else refused: another size than its image's
            fuse(np.repeat(np.int32([0, 3, 5, 255]), 48).reshape(SIZE), found, classes, Counter())


def mat_73(data: bytes) -> None:
    """HDF5's reader is C: run this one in a process that may die."""
    import h5py

    from wsis_d2.weak_labels.proposals.files import read_mat

    with h5py.File(base() / "p73.mat", "w") as file:
        file["superpixels"] = np.repeat(np.arange(1.0, 5), 48).reshape(SIZE).T
        part = file.create_dataset("#refs#/a", data=np.array([[1.0, 2.0]]))
        file["labels"] = np.array([[part.ref]], h5py.ref_dtype)
    content = (base() / "p73.mat").read_bytes()
    with np.errstate(all="ignore"):
        read_mat(put("q73.mat", damaged_bytes(content, Choices(data))), SIZE)


def masks_json(data: bytes) -> None:
    from wsis_d2.weak_labels.proposals import files

    runs = {"size": [12, 16], "counts": [20, 5, 167]}
    text = {**runs, "counts": mask_util.frPyObjects(runs, *SIZE)["counts"].decode()}
    choices = Choices(data)
    content = [{"image_id": 1, "id": k, "segmentation": s} for k, s in enumerate((runs, text))]
    if choices.below(2):
        content = {"images": [{"id": 1, "file_name": "a.png"}], "annotations": content}
    path = put_json("masks.json", content, choices)
    files.coco_index.cache_clear()
    found = files.CocoJsonSource(str(path))(
        np.zeros((*SIZE, 3), np.uint8), {"image_id": 1, "file_name": "a.png"}
    )
    found.intersections((0, 0, 9, 9))
    found.mask(0)


def contour_weights(data: bytes) -> None:
    from wsis_d2.weak_labels.proposals import contours

    choices = Choices(data)
    content = Path(contours.WEIGHTS).read_bytes()
    if choices.below(2):
        content = damaged_bytes(content, choices)
    else:
        content = damaged_archive(content, choices, ".npy")
    contours.load_weights.__wrapped__(put("w.npz", content))


def damaged_archive(content: bytes, choices: Choices, ending: str) -> bytes:
    """Damage the parts with an ending of a ZIP archive, whose checksums are right again."""
    made = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
        parts = old.namelist()
        chosen = choices.of([name for name in parts if name.endswith(ending)])
        for name in parts:
            part = old.read(name)
            if name == chosen:  # its first bytes say what the others are
                part = damaged_bytes(part[:512], choices) + part[512:]
            new.writestr(name, part)
    return made.getvalue()


def checkpoint_pth(data: bytes) -> None:
    from wsis_d2.checkpoint.names import read_weights

    choices = Choices(data)
    buffer = io.BytesIO()
    state = {"conv.weight": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(3)}
    saved = {"model": state, "iteration": 5, "trainer": {"x": np.float64(2), "y": np.arange(3)}}
    legacy = not choices.below(4)
    torch.save(saved, buffer, _use_new_zipfile_serialization=not legacy)
    content = buffer.getvalue()
    if legacy or not choices.below(4):
        content = damaged_bytes(content, choices)
    else:
        content = damaged_archive(content, choices, "data.pkl")
    read_weights(str(put("c.pth", content)), "KEY")


def checkpoint_pkl(data: bytes) -> None:
    import pickle

    from wsis_d2.checkpoint.names import read_weights

    choices = Choices(data)
    value = {"model": {"w": np.arange(6, dtype="f4").reshape(2, 3)}, "__author__": "x"}
    content = pickle.dumps(value, choices.of((0, 4, 1, 2, 3, 5)))
    read_weights(str(put("c.pkl", damaged_bytes(content, choices))), "KEY")


def checkpoint_safetensors(data: bytes) -> None:
    from safetensors.torch import save

    from wsis_d2.checkpoint.names import read_weights

    choices = Choices(data)
    content = save({"w": torch.arange(6.0).reshape(2, 3), "n": torch.tensor(1)}, {"format": "pt"})
    if choices.below(2):
        content = damaged_bytes(content, choices)
    else:
        (length,) = struct.unpack("<Q", content[:8])
        header = json.dumps(damaged_json(json.loads(content[8 : 8 + length]), choices)).encode()
        content = struct.pack("<Q", len(header)) + header + content[8 + length :]
    read_weights(str(put("c.safetensors", content)), "KEY")


def caffemodel(data: bytes) -> None:
    from wsis_d2.modeling.semantic.public_pspnet import read_caffemodel

    def field(number: int, content: bytes) -> bytes:
        return bytes([number << 3 & 127 | 128 | 2, number >> 4, len(content)]) + content

    blob = field(7, field(1, b"\2\3")) + field(5, np.arange(6, dtype="<f4").tobytes())
    old = b"\x08\1\x10\1\x18\2\x20\3" + field(5, np.arange(6, dtype="<f4").tobytes())
    layer = field(1, b"conv1") + field(7, blob) + field(7, old)
    content = field(1, b"net") + field(100, layer)
    path = put("net.caffemodel", damaged_bytes(content, Choices(data)))
    for arrays in read_caffemodel(path).values():
        assert all(array.dtype == np.float32 for array in arrays)


READERS = (
    mat,
    mat_73,
    sbd,
    masks_json,
    contour_weights,
    checkpoint_pth,
    checkpoint_pkl,
    checkpoint_safetensors,
    caffemodel,
)
