# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Region proposals of one image, as sets of superpixels: compared with boxes, never rasterised."""

import abc
import dataclasses

import cv2
import numpy as np
from scipy import ndimage

from wsis_d2.weak_labels.proposals.compiled import njit


class ProposalSet(abc.ABC):
    """Proposals of one image, in the image's own pixels.

    Attributes:
        image_size: (H, W).
        areas: (N,) float64, pixels.
        boxes: (N, 4) float64, tight boxes, x0, y0, x1, y1, exclusive ends.
        owners: (N,) int, the index of the annotation that a proposal was made for, -1 = none;
            None: none was made for any.
        scores: (N,) float, how sure the source is of each; None where it does not tell.
    """

    image_size: tuple[int, int]
    areas: np.ndarray
    boxes: np.ndarray
    owners: np.ndarray | None = None
    scores: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.areas)

    def owned(self, owner: int) -> int | None:
        """Return the proposal that was made for an annotation, the best scored; None: none was."""
        if self.owners is None or owner < 0:
            return None
        own = np.flatnonzero(self.owners == owner)
        if not own.size:
            return None
        return int(own[0] if self.scores is None else own[np.argmax(self.scores[own])])

    def regions(self) -> np.ndarray | None:
        """Return small regions of like pixels, (H, W) int labels; None where there are none."""
        return None

    @property
    def working_size(self) -> tuple[int, int]:
        """(H, W) at which the proposals were made; less than ``image_size`` for giant images."""
        return self.image_size

    @abc.abstractmethod
    def intersections(self, box: tuple[int, int, int, int]) -> np.ndarray:
        """Return how many pixels of each proposal lie in a box, (N,) float64."""

    @abc.abstractmethod
    def mask_intersections(self, mask: np.ndarray) -> np.ndarray:
        """Return how many pixels each proposal shares with a mask, (H, W) bool: (N,) float64."""

    @abc.abstractmethod
    def mask(self, index: int) -> np.ndarray:
        """Return one proposal, (H, W) bool."""


@dataclasses.dataclass
class TreeProposals(ProposalSet):
    """Proposals over one superpixel map: each is up to four disjoint nodes of one region tree.

    A tree puts the superpixels in an order in which every node is one run; so a node's sum of
    anything is the difference of two cumulated sums, for all nodes at once.

    Attributes:
        superpixels: (h, w) int32, labels 0..S-1, at the working resolution.
        orders: (T, S) int32, of each tree the superpixels in its order.
        runs: (M, 3) int32, of each node its tree, start and end in the tree's order.
        nodes: (N, 4) int32, rows of ``runs`` of each proposal, -1 = none.
    """

    superpixels: np.ndarray
    orders: np.ndarray
    runs: np.ndarray
    nodes: np.ndarray
    image_size: tuple[int, int]

    def __post_init__(self) -> None:
        height, width = self.superpixels.shape
        self._scale = np.array([self.image_size[1] / width, self.image_size[0] / height])
        count = self.orders.shape[1]
        self._leaf_areas = np.bincount(self.superpixels.ravel(), minlength=count)
        leaf_boxes = label_boxes(self.superpixels, count)
        node_boxes = self._node_extremes(leaf_boxes)
        self.boxes = _union_boxes(self.nodes, node_boxes) * np.tile(self._scale, 2)
        self.areas = self._sum(self._leaf_areas) * self._scale.prod()

    @property
    def working_size(self) -> tuple[int, int]:
        """See :class:`ProposalSet`."""
        return self.superpixels.shape

    def regions(self) -> np.ndarray:
        """See :class:`ProposalSet`."""
        height, width = self.image_size
        return cv2.resize(self.superpixels, (width, height), interpolation=cv2.INTER_NEAREST)

    def intersections(self, box: tuple[int, int, int, int]) -> np.ndarray:
        """See :class:`ProposalSet`."""
        x0, y0, x1, y1 = scale_box(box, 1 / self._scale, self.superpixels.shape)
        inside = self.superpixels[y0:y1, x0:x1].ravel()
        counts = np.bincount(inside, minlength=self.orders.shape[1])
        factor = (box[2] - box[0]) * (box[3] - box[1]) / max(inside.size, 1)
        return np.minimum(self._sum(counts) * factor, self.areas)

    def mask_intersections(self, mask: np.ndarray) -> np.ndarray:
        """See :class:`ProposalSet`."""
        height, width = self.superpixels.shape
        weights = mask.astype(np.float32)
        if mask.shape != (height, width):
            weights = cv2.resize(weights, (width, height), interpolation=cv2.INTER_AREA)
        counts = np.bincount(
            self.superpixels.ravel(), weights=weights.ravel(), minlength=self.orders.shape[1]
        )
        return np.minimum(self._sum(counts) * self._scale.prod(), self.areas)

    def mask(self, index: int) -> np.ndarray:
        """See :class:`ProposalSet`; holes are filled."""
        chosen = np.zeros(self.orders.shape[1], np.uint8)
        chosen[self.leaves(index)] = 1
        mask = chosen[self.superpixels]
        return to_image_size(fill_holes(mask), self.image_size)

    def leaves(self, index: int) -> np.ndarray:
        """Return the superpixels of one proposal, ids."""
        runs = self.runs[[n for n in self.nodes[index] if n >= 0]]
        return np.concatenate([self.orders[tree, start:end] for tree, start, end in runs])

    def _sum(self, leaf_values: np.ndarray) -> np.ndarray:
        """Return each proposal's sum of a value of the superpixels, (N,) float64."""
        totals = np.zeros((self.orders.shape[0], self.orders.shape[1] + 1))
        np.cumsum(leaf_values[self.orders], axis=1, out=totals[:, 1:])
        tree, start, end = self.runs.T
        node = np.append(totals[tree, end] - totals[tree, start], 0.0)  # row -1 counts nothing
        return node[self.nodes].sum(axis=1)

    def _node_extremes(self, leaf_boxes: np.ndarray) -> np.ndarray:
        """Return each node's tight box, (M, 4), from those of the superpixels."""
        lows = leaf_boxes.astype(np.int32) * np.array([1, 1, -1, -1], np.int32)
        out = np.empty((len(self.runs), 4), np.int64)
        for tree, order in enumerate(self.orders):
            rows = np.flatnonzero(self.runs[:, 0] == tree)
            if rows.size:
                out[rows] = _range_minimum(lows[order], *self.runs[rows, 1:].T)
        out[:, 2:] *= -1
        return out


def scale_box(
    box: tuple[int, int, int, int], scale: np.ndarray, shape: tuple[int, int]
) -> tuple[int, int, int, int]:
    """Return a box in another resolution as integers, inside ``shape``, at least one pixel."""
    x0 = min(int(np.floor(box[0] * scale[0] + 0.5)), shape[1] - 1)
    y0 = min(int(np.floor(box[1] * scale[1] + 0.5)), shape[0] - 1)
    x1 = min(max(int(np.floor(box[2] * scale[0] + 0.5)), x0 + 1), shape[1])
    y1 = min(max(int(np.floor(box[3] * scale[1] + 0.5)), y0 + 1), shape[0])
    return x0, y0, x1, y1


def to_image_size(mask: np.ndarray, image_size: tuple[int, int]) -> np.ndarray:
    """Return a mask at the image's size, (H, W) bool; its outline is smoothed on the way up."""
    if mask.shape == tuple(image_size):
        return mask.astype(bool)
    height, width = image_size
    grown = cv2.resize(mask.astype(np.float32), (width, height), interpolation=cv2.INTER_LINEAR)
    return grown >= 0.5


def fill_holes(mask: np.ndarray) -> np.ndarray:
    """Return a mask with its holes filled, looking only at its tight box."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        return mask
    window = np.s_[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    filled = mask.copy()
    filled[window] = ndimage.binary_fill_holes(mask[window])
    return filled


@njit()
def label_boxes(labels: np.ndarray, count: int) -> np.ndarray:
    """Return the tight box of each label 0..count-1 of a (H, W) map, (count, 4) int64.

    A label without a pixel has the box 0, 0, 0, 0.
    """
    height, width = labels.shape
    boxes = np.zeros((count, 4), np.int64)
    for y in range(height):
        for x in range(width):
            box = boxes[labels[y, x]]
            if box[3] == 0:  # rows come in order: the first one stays the top
                box[0], box[1], box[2] = x, y, x + 1
            box[0] = min(box[0], x)
            box[2] = max(box[2], x + 1)
            box[3] = y + 1
    return boxes


@njit()
def _union_boxes(nodes, node_boxes):
    """Return the tight box of each proposal, (N, 4), from those of its nodes."""
    boxes = np.empty((len(nodes), 4), np.int64)
    for k in range(len(nodes)):
        boxes[k] = node_boxes[nodes[k, 0]]
        for n in nodes[k, 1:]:
            if n >= 0:
                box = node_boxes[n]
                boxes[k, 0] = min(boxes[k, 0], box[0])
                boxes[k, 1] = min(boxes[k, 1], box[1])
                boxes[k, 2] = max(boxes[k, 2], box[2])
                boxes[k, 3] = max(boxes[k, 3], box[3])
    return boxes


def _range_minimum(values: np.ndarray, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
    """Return the minimum of ``values[start:end]`` of each run, by doubling (sparse table)."""
    table = [values]
    while (1 << len(table)) <= len(values):
        half = 1 << (len(table) - 1)
        last = table[-1]
        table.append(np.minimum(last[:-half], last[half:]))
    levels = np.frexp(ends - starts)[1] - 1  # floor of log2
    out = np.empty((len(starts), values.shape[1]), values.dtype)
    for level in np.unique(levels):
        at = levels == level
        out[at] = np.minimum(table[level][starts[at]], table[level][ends[at] - (1 << int(level))])
    return out
