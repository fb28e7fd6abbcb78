# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Combinatorial grouping: the regions of a tree, and pairs, triples and 4-tuples of neighbours.

A tree is cut top-down, the strongest boundary first. Each cut splits one region in two; every
connected set of up to four regions of the new cut that holds one of the two, and not both (both
are the region before), is a proposal (Arbelaez et al., "Multiscale Combinatorial Grouping",
section 5). Caps bound singles, pairs, triples and 4-tuples of each tree.
"""

import numba
import numpy as np

from wsis_d2.utils.errors import InputError

#: Caps of singles, pairs, triples and 4-tuples for each tree. "scg" has one scale; "mcg" names
#: the trees multi-scale, scale 0.5, scale 1, scale 2 (published working points, in that order).
#: "default" has more trees and asks for more of their own regions: these are the best proposal of
#: two objects in three.
PRESETS = {
    "scg": {
        "scales": (1.0,),
        "region_trees": False,
        "max_superpixels": 16000,
        "caps": ((700, 4000, 6000, 3000),),
    },
    "mcg": {
        "scales": (0.5, 1.0, 2.0),
        "region_trees": False,
        "max_superpixels": 16000,
        "caps": (
            (90, 2000, 300, 300),
            (500, 3000, 10000, 4000),
            (200, 5000, 5000, 300),
            (900, 700, 700, 200),
        ),
    },
    "default": {
        "scales": (0.5, 1.0),
        "region_trees": True,
        "max_superpixels": 16000,
        "caps": ((3000, 1500, 2000, 1000),),
    },
}

#: Regions of the finest cut looked at; the caps are reached far above it.
_MAX_SPLITS = 1500


def preset(name: str) -> dict:
    """Return the named preset.

    Raises:
        InputError: there is none of this name.
    """
    if name not in PRESETS:
        raise InputError(
            f"WEAK_LABELS.PROPOSALS.PRESET: {name!r}, expected one of {', '.join(PRESETS)}"
        )
    return PRESETS[name]


def group_tree(
    parents: np.ndarray,
    altitudes: np.ndarray,
    edges: tuple[np.ndarray, np.ndarray],
    caps: tuple[int, int, int, int],
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Enumerate the proposals of one binary tree.

    Args:
        parents: (2S - 1,) of each node its parent, which has a larger id; the root is its own.
            Nodes 0..S-1 are the superpixels.
        altitudes: (2S - 1,) strength of the boundary that a node's split opens; superpixels 0.
        edges: two (E,) arrays, superpixels that touch.
        caps: at most so many singles, pairs, triples and 4-tuples.

    Returns:
        order: (S,) int32, superpixels in an order in which every node is one run.
        runs: (M, 2) int32, start and end of each node that is used.
        nodes: (N, 4) int32, rows of ``runs`` of each proposal, -1 = none.
    """
    parents = np.asarray(parents, np.int64)
    count = (len(parents) + 1) // 2
    children = _children(parents, count)
    order, starts, ends = _runs(children, count)
    # A parent has a larger id than its children and is at least as high: stable sort on both.
    inner = np.arange(count, 2 * count - 1)
    splits = inner[np.lexsort((-inner, -np.asarray(altitudes)[count:]))]
    splits = _parents_first(splits, parents, count)[:_MAX_SPLITS]
    # Nodes of the pruned tree, the root first, then the children of each split.
    kept = np.concatenate([[2 * count - 2], children[splits - count].ravel()]).astype(np.int64)
    index = np.full(2 * count - 1, -1, np.int64)
    index[kept] = np.arange(len(kept))
    touching = _touching(kept, index, parents, children, splits, count, *edges)
    pairs = index[children[splits - count]].reshape(-1, 2)
    nodes = _enumerate(index[splits], pairs, touching, np.asarray(caps, np.int64))
    runs = np.stack([starts[kept], ends[kept]], axis=1).astype(np.int32)
    return order.astype(np.int32), runs, nodes


def _children(parents: np.ndarray, count: int) -> np.ndarray:
    """Return the two children of each inner node, (S - 1, 2)."""
    if count == 1:
        return np.empty((0, 2), np.int64)
    return np.argsort(parents[:-1], kind="stable").reshape(-1, 2)


def _parents_first(splits: np.ndarray, parents: np.ndarray, count: int) -> np.ndarray:
    """Check the order of splits; where rounding put a child before its parent, sort by id."""
    place = np.full(2 * count - 1, -1)
    place[splits] = np.arange(len(splits))
    inner = splits[parents[splits] != splits]
    if (place[parents[inner]] < place[inner]).all():
        return splits
    return np.sort(splits)[::-1]


@numba.njit(cache=True)
def _runs(children, count):
    """Lay the superpixels out so that each node is one run; return order, starts, ends."""
    total = 2 * count - 1
    sizes = np.ones(total, np.int64)
    for node in range(count, total):
        a, b = children[node - count]
        sizes[node] = sizes[a] + sizes[b]
    starts = np.zeros(total, np.int64)
    for node in range(total - 1, count - 1, -1):
        a, b = children[node - count]
        starts[a] = starts[node]
        starts[b] = starts[node] + sizes[a]
    order = np.empty(count, np.int64)
    for leaf in range(count):
        order[starts[leaf]] = leaf
    return order, starts, starts + sizes


@numba.njit(cache=True)
def _touching(kept, index, parents, children, splits, count, sources, targets):
    """Return which nodes of the pruned tree touch, (M, M) bool; unions touch what parts touch."""
    size = len(kept)
    # The kept node that stands for each superpixel: its lowest kept ancestor.
    lowest = np.empty(len(parents), np.int64)
    for node in range(len(parents) - 1, -1, -1):
        lowest[node] = index[node] if index[node] >= 0 else lowest[parents[node]]
    touching = np.zeros((size, size), np.bool_)
    for k in range(len(sources)):
        a, b = lowest[sources[k]], lowest[targets[k]]
        if a != b:
            touching[a, b] = True
            touching[b, a] = True
    for k in range(len(splits) - 1, -1, -1):  # children before parents
        node = index[splits[k]]
        a, b = index[children[splits[k] - count, 0]], index[children[splits[k] - count, 1]]
        for other in range(size):
            if touching[a, other] or touching[b, other]:
                touching[node, other] = True
                touching[other, node] = True
    return touching


@numba.njit(cache=True)
def _enumerate(splits, pairs, touching, caps):
    """Return the proposals as rows of four nodes, -1 = none."""
    size = touching.shape[0]
    counts = np.zeros(4, np.int64)
    out = np.full((caps.sum(), 4), -1, np.int32)
    alive = np.zeros(size, np.bool_)
    alive[0] = True
    near0 = np.empty(size, np.int64)
    near1 = np.empty(size, np.int64)
    near2 = np.empty(size, np.int64)
    total = 0
    if caps[0] > 0:
        out[0, 0] = 0
        counts[0] = 1
        total = 1
    for k in range(len(splits)):
        alive[splits[k]] = False
        alive[pairs[k, 0]] = True
        alive[pairs[k, 1]] = True
        if (counts >= caps).all():
            break
        for side in range(2):
            new = pairs[k, side]
            sibling = pairs[k, 1 - side]
            if counts[0] < caps[0]:
                out[total, 0] = new
                counts[0] += 1
                total += 1
            if (counts[1:] >= caps[1:]).all():
                continue
            # Connected sets that hold `new`, each once: extend by nodes that the set so far
            # does not touch yet, or that come later in the list at hand.
            n0 = 0
            for a in range(size):
                if alive[a] and touching[new, a] and a != sibling:
                    near0[n0] = a
                    n0 += 1
            for i in range(n0):
                a = near0[i]
                if counts[1] < caps[1]:
                    out[total, 0] = new
                    out[total, 1] = a
                    counts[1] += 1
                    total += 1
                if (counts[2:] >= caps[2:]).all():
                    continue
                n1 = 0
                for j in range(i + 1, n0):
                    near1[n1] = near0[j]
                    n1 += 1
                for b in range(size):
                    fresh = b != new and b != sibling and not touching[new, b]
                    if alive[b] and touching[a, b] and fresh:
                        near1[n1] = b
                        n1 += 1
                for j in range(n1):
                    b = near1[j]
                    if counts[2] < caps[2]:
                        out[total, 0] = new
                        out[total, 1] = a
                        out[total, 2] = b
                        counts[2] += 1
                        total += 1
                    if counts[3] >= caps[3]:
                        continue
                    n2 = 0
                    for m in range(j + 1, n1):
                        near2[n2] = near1[m]
                        n2 += 1
                    for c in range(size):
                        fresh = c != new and c != sibling and c != a
                        fresh = fresh and not touching[new, c] and not touching[a, c]
                        if alive[c] and touching[b, c] and fresh:
                            near2[n2] = c
                            n2 += 1
                    for m in range(n2):
                        if counts[3] >= caps[3]:
                            break
                        out[total, 0] = new
                        out[total, 1] = a
                        out[total, 2] = b
                        out[total, 3] = near2[m]
                        counts[3] += 1
                        total += 1
    return out[:total]
