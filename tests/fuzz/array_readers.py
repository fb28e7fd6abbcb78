# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Proposals and checkpoints: sound files of arrays, damaged and read."""

import io
import zipfile
from pathlib import Path

import numpy as np
import pycocotools.mask as mask_util
import torch

from fuzz.damage import Choices, damaged_bytes
from fuzz.files import SIZE, base, put, put_json


def mat(data: bytes, packed: bool | None = None) -> None:
    from scipy.io import savemat

    from wsis_d2.weak_labels.proposals.files import read_mat

    choices = Choices(data)
    labels = np.empty((2, 1), object)
    labels[0, 0], labels[1, 0] = np.array([[1, 2]], np.uint16), np.array([[3]], np.uint16)
    superpixels = np.repeat(np.arange(1, 5, dtype=np.uint16), 48).reshape(SIZE)
    buffer = io.BytesIO()
    content = {"superpixels": superpixels, "labels": labels}
    savemat(buffer, content, do_compression=bool(choices.below(2)))
    with np.errstate(all="ignore"):
        read_mat(put("p.mat", damaged_bytes(buffer.getvalue(), choices)), SIZE)


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
    content = [{"image_id": 1, "segmentation": s} for s in (runs, text)]
    path = put_json("masks.json", content, Choices(data))
    files.coco_index.cache_clear()
    found = files.CocoJsonSource(str(path))(
        np.zeros((*SIZE, 3), np.uint8), {"image_id": 1, "file_name": "a.png"}
    )
    found.intersections((0, 0, 9, 9))
    found.mask(0)


def contour_weights(data: bytes) -> None:
    from wsis_d2.weak_labels.proposals import contours

    content = Path(contours.WEIGHTS).read_bytes()
    contours.load_weights.__wrapped__(put("w.npz", damaged_bytes(content, Choices(data))))


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
        made = io.BytesIO()
        with zipfile.ZipFile(io.BytesIO(content)) as old, zipfile.ZipFile(made, "w") as new:
            for name in old.namelist():
                part = old.read(name)
                if name.endswith("data.pkl"):
                    part = damaged_bytes(part, choices)
                new.writestr(name, part)
        content = made.getvalue()
    read_weights(str(put("c.pth", content)), "KEY")


def checkpoint_pkl(data: bytes) -> None:
    import pickle

    from wsis_d2.checkpoint.names import read_weights

    choices = Choices(data)
    value = {"model": {"w": np.arange(6, dtype="f4").reshape(2, 3)}, "__author__": "x"}
    content = pickle.dumps(value, choices.below(5))
    read_weights(str(put("c.pkl", damaged_bytes(content, choices))), "KEY")


def checkpoint_safetensors(data: bytes) -> None:
    from safetensors.torch import save

    from wsis_d2.checkpoint.names import read_weights

    content = save({"w": torch.arange(6.0).reshape(2, 3)})
    read_weights(str(put("c.safetensors", damaged_bytes(content, Choices(data)))), "KEY")


READERS = (
    mat,
    mat_73,
    masks_json,
    contour_weights,
    checkpoint_pth,
    checkpoint_pkl,
    checkpoint_safetensors,
)
