# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Proposals that others have made: published MCG files, COCO result files, or none at all.

Addition, not in the paper.
"""

import dataclasses
import functools
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from pycocotools import mask as coco_mask
from scipy import sparse
from yacs.config import CfgNode

from wsis_d2.structures.pictures import shared_folders
from wsis_d2.structures.rle import checked_rle
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import file_stamp, list_files, sha256_file
from wsis_d2.utils.matlab import MOST_BYTES, read_matlab
from wsis_d2.weak_labels.proposals.coco_index import coco_index, id_text
from wsis_d2.weak_labels.proposals.proposal_set import ProposalSet, label_boxes
from wsis_d2.weak_labels.proposals.source import PROPOSAL_SOURCE_REGISTRY, ProposalSource
from wsis_d2.weak_labels.store_status import files_digest

_PATH_KEY = "WEAK_LABELS.PROPOSALS.PATH"


class SuperpixelProposals(ProposalSet):
    """Proposals that are lists of superpixels.

    Boxes are computed from the superpixels: in published MCG files the rows of ``bboxes`` belong
    to other proposals than the rows of ``labels``.
    """

    def __init__(self, superpixels: np.ndarray, members: list[np.ndarray]) -> None:
        """Take (H, W) labels 0..S-1, and the labels of each proposal."""
        self._superpixels = superpixels.astype(np.int32)
        self.image_size = superpixels.shape
        count = int(superpixels.max()) + 1
        lengths = [len(m) for m in members]
        columns = np.concatenate([*members, np.empty(0, np.int64)]).astype(np.int64)
        starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        boxes = label_boxes(self._superpixels, count)[columns].astype(np.float64)
        self.boxes = np.zeros((len(members), 4))
        if len(members):
            self.boxes[:, :2] = np.minimum.reduceat(boxes[:, :2], starts[:-1])
            self.boxes[:, 2:] = np.maximum.reduceat(boxes[:, 2:], starts[:-1])
        self._matrix = sparse.csr_matrix(
            (np.ones(len(columns)), columns, starts), shape=(len(members), count)
        )
        self._matrix.sum_duplicates()  # what is listed twice counts once
        self._matrix.data[:] = 1
        self.areas = self._matrix @ np.bincount(self._superpixels.ravel(), minlength=count)

    def intersections(self, box: tuple[int, int, int, int]) -> np.ndarray:
        """See :class:`ProposalSet`."""
        x0, y0, x1, y1 = box
        inside = self._superpixels[y0:y1, x0:x1].ravel()
        return self._matrix @ np.bincount(inside, minlength=self._matrix.shape[1])

    def mask_intersections(self, mask: np.ndarray) -> np.ndarray:
        """See :class:`ProposalSet`."""
        inside = self._superpixels[mask]
        return self._matrix @ np.bincount(inside, minlength=self._matrix.shape[1])

    def mask(self, index: int) -> np.ndarray:
        """See :class:`ProposalSet`."""
        chosen = np.zeros(self._matrix.shape[1], bool)
        chosen[self._matrix[index].indices] = True
        return chosen[self._superpixels]


class RLEProposals(ProposalSet):
    """Proposals that are COCO run-length masks."""

    def __init__(
        self,
        rles: list[dict],
        image_size: tuple[int, int],
        owners: np.ndarray | None = None,
        scores: np.ndarray | None = None,
    ) -> None:
        """Take compressed run-length masks of ``image_size`` = (H, W)."""
        self._rles = rles
        self.owners, self.scores = owners, scores
        self.image_size = image_size
        self.areas = np.asarray(coco_mask.area(rles), float).reshape(len(rles))
        boxes = np.asarray(coco_mask.toBbox(rles), float).reshape(len(rles), 4)
        boxes[:, 2:] += boxes[:, :2]
        self.boxes = boxes

    def intersections(self, box: tuple[int, int, int, int]) -> np.ndarray:
        """See :class:`ProposalSet`."""
        mask = np.zeros(self.image_size, bool)
        mask[box[1] : box[3], box[0] : box[2]] = True
        return self.mask_intersections(mask)

    def mask_intersections(self, mask: np.ndarray) -> np.ndarray:
        """See :class:`ProposalSet`."""
        if not self._rles:
            return np.zeros(0)
        other = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
        # With the second one a crowd, "IoU" is the shared part of the first one's area.
        return coco_mask.iou(self._rles, [other], [1])[:, 0] * self.areas

    def mask(self, index: int) -> np.ndarray:
        """See :class:`ProposalSet`."""
        return coco_mask.decode(self._rles[index]).astype(bool)


@PROPOSAL_SOURCE_REGISTRY.register_as("none")
@dataclasses.dataclass(frozen=True)
class NoSource(ProposalSource):
    """No proposals: GrabCut alone decides."""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "NoSource":
        """Take nothing from the config."""
        return cls()

    def __call__(self, image: np.ndarray, record: Mapping) -> None:
        """Return None."""
        return None


@PROPOSAL_SOURCE_REGISTRY.register_as("mcg_mat")
@dataclasses.dataclass(frozen=True)
class MatSource(ProposalSource):
    """Published MCG files: one MATLAB file an image, somewhere below a folder.

    A file is an image's if its name without ``.mat`` is the image file's, the image id, or ends
    in ``_`` and the id as 12 digits (COCO_val2014_000000000042.mat). Of several those count that
    share most folders with the image. Versions up to 7 and 7.3 (HDF5) are read.
    """

    path: str

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "MatSource":
        """Read ``cfg.WEAK_LABELS.PROPOSALS.PATH``."""
        return cls(_existing(cfg.WEAK_LABELS.PROPOSALS.PATH, "mcg_mat", folder=True))

    def __call__(self, image: np.ndarray, record: Mapping) -> ProposalSet:
        """See :class:`ProposalSource`."""
        image_id, found = record["image_id"], self._files(record)
        if len(found) > 1:
            raise InputError(
                f"{_PATH_KEY} {self.path}: two files of image {image_id!r}, {found[0]} and "
                f"{found[1]}; name the folder that holds one kind of proposals"
            )
        if not found:
            raise InputError(
                f"{_PATH_KEY} {self.path}: no proposals of image {image_id!r}; looked for "
                + ", ".join(f"{n}.mat" for n in _mat_names(record))
            )
        return read_mat(found[0], image.shape[:2])

    def made_of(self, record: Mapping) -> str | None:
        """See :class:`ProposalSource`."""
        return files_digest(self._files(record))

    def _files(self, record: Mapping) -> list[str]:
        index = _mat_index(self.path)
        found = next((index[n] for n in _mat_names(record) if n in index), [])
        shared = [shared_folders(file, str(record["file_name"])) for file in found]
        return [file for file, n in zip(found, shared, strict=True) if n == max(shared)]

    def recipe(self) -> dict:
        """See :class:`ProposalSource`."""
        return {"source": "mcg_mat", "path": os.path.basename(os.path.normpath(self.path))}


def _mat_names(record: Mapping) -> list[str]:
    """Return what the file of an image may be called, without suffix."""
    image_id = record["image_id"]
    names = [Path(str(record["file_name"])).stem, str(image_id)]
    return [*names, f"{image_id:012d}"] if isinstance(image_id, int) else names


def read_mat(path: str | os.PathLike, image_size: tuple[int, int]) -> SuperpixelProposals:
    """Read one published MCG file.

    Raises:
        InputError: it is no such file, or is of an image of another size.
    """
    try:
        superpixels, members = (_read_hdf5 if _is_hdf5(path) else _read_mat)(path, image_size)
        superpixels = superpixels.astype(np.int64)
        members = [m.astype(np.int64) - 1 for m in members if m.size]
    except InputError as error:
        raise InputError(f"{error}; expected MCG proposals: superpixels and labels") from None
    except Exception as error:  # HDF5's reader raises almost anything over a broken file
        raise InputError(
            f"{path}: no MCG proposals ({error!r:.200}); expected superpixels and "
            "labels of a MATLAB file"
        ) from None
    _check_size(path, superpixels.shape, image_size)
    highest = int(superpixels.max())
    if superpixels.min() < 1 or highest > superpixels.size:
        raise InputError(
            f"{path}: superpixels {int(superpixels.min())} to {highest}, expected numbers from 1, "
            "no more than pixels"
        )
    if any(m.min() < 0 or m.max() >= highest for m in members):
        raise InputError(f"{path}: labels name superpixels outside 1..{highest}")
    return SuperpixelProposals(superpixels - 1, members)


def _is_hdf5(path: str | os.PathLike) -> bool:
    import h5py

    return h5py.is_hdf5(path)


def _read_mat(path: str | os.PathLike, image_size: tuple[int, int]) -> tuple:
    content = read_matlab(path, ["superpixels", "labels"])
    labels = content["labels"]
    if labels.dtype != object:  # which of its sides are the proposals, nothing tells
        raise ValueError(f"labels are a matrix of {labels.dtype}, expected cells")
    return content["superpixels"], [np.asarray(m).ravel() for m in labels.ravel()]


def _read_hdf5(path: str | os.PathLike, image_size: tuple[int, int]) -> tuple:
    """Read a file of version 7.3, whose arrays may be said to be larger than it, or elsewhere."""
    import h5py

    left = MOST_BYTES

    def read(dataset: h5py.Dataset) -> np.ndarray:
        nonlocal left
        if not isinstance(dataset, h5py.Dataset) or dataset.external or dataset.is_virtual:
            raise ValueError("an array is not in the file")
        left -= dataset.size * max(dataset.dtype.itemsize, 8)
        if left < 0:
            raise ValueError(f"it unpacks to more than {MOST_BYTES >> 20} MB")
        return dataset[()]

    with h5py.File(path, "r") as file:
        for name in ("superpixels", "labels"):
            if not isinstance(file.get(name, getlink=True), h5py.HardLink):
                raise ValueError(f"{name} is not in the file")
        _check_size(path, file["superpixels"].shape[::-1], image_size)
        superpixels = read(file["superpixels"]).T
        parts = [file[reference] for reference in read(file["labels"]).ravel()]
        # What MATLAB writes for an empty array are its sides.
        return superpixels, [read(p).ravel() for p in parts if not p.attrs.get("MATLAB_empty")]


def _check_size(path: str | os.PathLike, found: tuple, image_size: tuple[int, int]) -> None:
    if len(found) != 2 or tuple(found) != tuple(image_size):
        shown = " x ".join(map(str, found[::-1]))
        raise InputError(
            f"{path}: proposals of an image of {shown}, the image is {image_size[1]} x "
            f"{image_size[0]}"
        )


@PROPOSAL_SOURCE_REGISTRY.register_as("coco_json")
@dataclasses.dataclass(frozen=True)
class CocoJsonSource(ProposalSource):
    """A COCO file with masks, from any generator of masks.

    A list (or an object's ``annotations``) of ``{"image_id", "segmentation": RLE}``, optionally
    with ``score``. A mask is that of one annotated box, not the best fit among many, where the
    entry names it as ``annotation_id``, or where the entries of an image have as ``id`` just those
    that its annotations have.
    """

    path: str

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "CocoJsonSource":
        """Read ``cfg.WEAK_LABELS.PROPOSALS.PATH``."""
        return cls(_existing(cfg.WEAK_LABELS.PROPOSALS.PATH, "coco_json", folder=False))

    def __call__(self, image: np.ndarray, record: Mapping) -> ProposalSet:
        """See :class:`ProposalSource`."""
        index = coco_index(self.path, _PATH_KEY, file_stamp(self.path))
        index.pictures.check(record["image_id"], record.get("file_name"), "the annotated data")
        found = index.entries(record["image_id"])
        if found is None:
            raise InputError(
                f"{_PATH_KEY} {self.path}: no proposals of image {record['image_id']!r}"
            )
        size = [int(s) for s in image.shape[:2]]
        rles = []
        for segmentation in (entry["segmentation"] for entry in found):
            try:
                rles.append(checked_rle(segmentation, (size[0], size[1])))
            except ValueError as error:
                raise InputError(
                    f"{self.path}: a mask of image {record['image_id']!r}: {error}: "
                    f"{str(segmentation)[:60]}"
                ) from None
        scores = [entry.get("score") for entry in found]
        return RLEProposals(
            rles,
            (size[0], size[1]),
            owners=_owners(found, record),
            scores=None if None in scores else np.asarray(scores, float),
        )

    def made_of(self, record: Mapping) -> str | None:
        """See :class:`ProposalSource`; masks are found by the ids of annotations."""
        ids = [annotation.get("id") for annotation in record.get("annotations", ())]
        return hashlib.sha256(json.dumps(ids, default=str).encode()).hexdigest()[:16]

    def recipe(self) -> dict:
        """See :class:`ProposalSource`."""
        return {
            "source": "coco_json",
            "path": os.path.basename(self.path),
            "sha256": sha256_file(self.path)[:16],
        }


@functools.lru_cache(maxsize=2)
def _mat_index(folder: str) -> dict[str, list[str]]:
    """Return file names without suffix, and their last 12 digits, to paths."""
    index: dict[str, list[str]] = {}
    for path in list_files(folder, "**/*.mat"):
        digits = path.stem.rpartition("_")[2]
        ends = {path.stem, digits} if len(digits) == 12 and digits.isdigit() else {path.stem}
        for name in ends:
            index.setdefault(name, []).append(str(path))
    return index


def _owners(entries: list[dict], record: Mapping) -> np.ndarray | None:
    """Return the index of the annotation that each entry is the mask of, -1 = of none."""
    places = {
        id_text(a["id"]): k
        for k, a in enumerate(record.get("annotations", ()))
        if a.get("id") is not None
    }
    if any(entry.get("annotation_id") is not None for entry in entries):
        ids = [id_text(entry.get("annotation_id")) for entry in entries]
    else:
        ids = [id_text(entry.get("id")) for entry in entries]
        if len(ids) != len(places) or set(ids) != places.keys():
            return None  # numbers of its own
    return np.array([places.get(i, -1) for i in ids], int)


def _existing(path: str, name: str, folder: bool) -> str:
    if not path or not (os.path.isdir(path) if folder else os.path.isfile(path)):
        what = "a folder of .mat files" if folder else "a JSON file"
        raise InputError(f"{_PATH_KEY}: {path!r}, the source {name} expects {what}")
    return path
