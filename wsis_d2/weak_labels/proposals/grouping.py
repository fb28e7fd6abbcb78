# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Combinatorial grouping: the regions of a tree, and pairs, triples and 4-tuples of neighbours.

A tree is cut top-down, the strongest boundary first. Each cut splits one region in two; every
connected set of up to four regions of the new cut that holds one of the two, and not both (both
are the region before), is a proposal (Arbelaez et al., "Multiscale Combinatorial Grouping",
section 5). Caps bound singles, pairs, triples and 4-tuples of each tree.
"""

from typing import NamedTuple

import numpy as np

from wsis_d2.utils.errors import check_choice
from wsis_d2.weak_labels.proposals.compiled import njit

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
    check_choice("WEAK_LABELS.PROPOSALS.PRESET", name, PRESETS)
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
    # Nodes of the pruned tree: the root first, then the two children of each split.
    kept = np.concatenate([[2 * count - 2], children[splits - count].ravel()])
    index = np.empty(2 * count - 1, np.int64)
    index[kept] = np.arange(len(kept))
    runs = np.stack([starts[kept], ends[kept]], axis=1)
    nodes = _enumerate(index[splits], order, runs, *edges, np.asarray(caps, np.int64))
    return order.astype(np.int32), runs.astype(np.int32), nodes


@njit()
def _children(parents, count):
    """Return the two children of each inner node, (S - 1, 2), the lower id first."""
    children = np.empty((count - 1, 2), np.int64)
    filled = np.zeros(count - 1, np.int64)
    for node in range(2 * count - 2):
        row = parents[node] - count
        children[row, filled[row]] = node
        filled[row] += 1
    return children


def _parents_first(splits: np.ndarray, parents: np.ndarray, count: int) -> np.ndarray:
    """Check the order of splits; where rounding put a child before its parent, sort by id."""
    place = np.full(2 * count - 1, -1)
    place[splits] = np.arange(len(splits))
    inner = splits[parents[splits] != splits]
    if (place[parents[inner]] < place[inner]).all():
        return splits
    return np.sort(splits)[::-1]


@njit()
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


class _Cut(NamedTuple):
    """The regions of the cut at hand, by number, and which of them touch.

    A pair of regions that touch is a pair of links, 2p and 2p + 1, one in the list of each.

    Attributes:
        slot: of each superpixel the slot of its region; the larger part of a region keeps the slot.
        region: of each slot its region.
        first, last: of each region the ends of its list; it ascends by the other region's number.
        before, after: of each link its neighbours in the list.
        owner: of each link the region in whose list it is.
        contacts: of each pair the number of superpixel edges between its regions.
    """

    slot: np.ndarray
    region: np.ndarray
    first: np.ndarray
    last: np.ndarray
    before: np.ndarray
    after: np.ndarray
    owner: np.ndarray
    contacts: np.ndarray


@njit()
def _append(cut, link, region):
    """Put a link at the end of a region's list."""
    cut.owner[link] = region
    cut.before[link] = cut.last[region]
    cut.after[link] = -1
    if cut.last[region] < 0:
        cut.first[region] = link
    else:
        cut.after[cut.last[region]] = link
    cut.last[region] = link


@njit()
def _remove(cut, link):
    """Take a link out of its list."""
    before, after, region = cut.before[link], cut.after[link], cut.owner[link]
    if before < 0:
        cut.first[region] = after
    else:
        cut.after[before] = after
    if after < 0:
        cut.last[region] = before
    else:
        cut.before[after] = before


@njit()
def _split(cut, pairs, old, one, order, runs, offsets, neighbours, contacts):
    """Replace a region by its parts, ``one`` and the next; return the number of pairs there are.

    Only the superpixels of the smaller part are looked at: what of the region's contacts are not
    its own are the larger one's. ``contacts`` is all 0, before and after.
    """
    two = one + 1
    smaller = runs[one, 1] - runs[one, 0] <= runs[two, 1] - runs[two, 0]
    small, large = (one, two) if smaller else (two, one)
    slot = (one + 1) // 2  # the first that is free
    cut.region[cut.slot[order[runs[old, 0]]]] = large
    cut.region[slot] = small
    inside = order[runs[small, 0] : runs[small, 1]]
    for leaf in inside:
        cut.slot[leaf] = slot
    for leaf in inside:
        for other in neighbours[offsets[leaf] : offsets[leaf + 1]]:
            contacts[cut.region[cut.slot[other]]] += 1
    link = cut.first[old]
    while link >= 0:
        following, other, pair = cut.after[link], cut.owner[link ^ 1], link // 2
        total = cut.contacts[pair]
        _remove(cut, link ^ 1)
        for part in (one, two):
            shared = contacts[other] if part == small else total - contacts[other]
            if shared > 0:
                pairs = _join(cut, pairs, pair, part, other, shared)
                pair = pairs
        contacts[other] = 0
        link = following
    if contacts[large] > 0:
        pairs = _join(cut, pairs, pairs, one, two, contacts[large])
    contacts[small] = contacts[large] = 0
    return pairs


@njit()
def _join(cut, pairs, pair, one, two, contacts):
    """Let ``pair`` say that two regions touch; return the number of pairs there are."""
    cut.contacts[pair] = contacts
    _append(cut, 2 * pair, one)
    _append(cut, 2 * pair + 1, two)
    return max(pairs, pair + 1)


@njit()
def _adjacency(count, sources, targets):
    """Return the superpixels that touch superpixel s: neighbours[offsets[s]:offsets[s + 1]]."""
    offsets = np.zeros(count + 1, np.int64)
    for k in range(len(sources)):
        offsets[sources[k] + 1] += 1
        offsets[targets[k] + 1] += 1
    offsets = np.cumsum(offsets)
    place = offsets.copy()
    neighbours = np.empty(2 * len(sources), np.int64)
    for k in range(len(sources)):
        for one, two in ((sources[k], targets[k]), (targets[k], sources[k])):
            neighbours[place[one]] = two
            place[one] += 1
    return offsets, neighbours


@njit()
def _extend(cut, region, marked, near, number):
    """Add the neighbours of a region that are not marked yet to a list, and mark them."""
    link = cut.first[region]
    while link >= 0:
        other = cut.owner[link ^ 1]
        if not marked[other]:
            marked[other] = True
            near[number] = other
            number += 1
        link = cut.after[link]
    return number


@njit()
def _enumerate(splits, order, runs, sources, targets, caps):
    """Return the proposals as rows of four nodes, -1 = none.

    Region 0 is the root; split k makes regions 2k + 1 and 2k + 2.
    """
    count, size = len(order), len(runs)
    offsets, neighbours = _adjacency(count, sources, targets)
    contacts = np.zeros(size, np.int64)
    cut = _Cut(
        np.zeros(count, np.int64),
        np.zeros(len(splits) + 1, np.int64),
        np.full(size, -1, np.int64),
        np.full(size, -1, np.int64),
        np.empty(len(neighbours), np.int64),
        np.empty(len(neighbours), np.int64),
        np.empty(len(neighbours), np.int64),
        np.empty(len(sources), np.int64),
    )
    pairs = 0
    counts = np.zeros(4, np.int64)
    out = np.full((caps.sum(), 4), -1, np.int32)
    marked = np.zeros(size, np.bool_)
    near0 = np.empty(size, np.int64)
    near1 = np.empty(size, np.int64)
    near2 = np.empty(size, np.int64)
    total = 0
    if caps[0] > 0:
        out[0, 0] = 0
        counts[0] = 1
        total = 1
    for k in range(len(splits)):
        if (counts >= caps).all():
            break
        one = 2 * k + 1
        more = (counts[1:] < caps[1:]).any()  # once these are enough, nothing need touch
        if more:
            pairs = _split(cut, pairs, splits[k], one, order, runs, offsets, neighbours, contacts)
        for new, sibling in ((one, one + 1), (one + 1, one)):
            if counts[0] < caps[0]:
                out[total, 0] = new
                counts[0] += 1
                total += 1
            if not more:
                continue
            # Connected sets that hold `new`, each once: extend by regions that the set so far
            # does not touch yet, or that come later in the list at hand.
            marked[new] = marked[sibling] = True
            n0 = _extend(cut, new, marked, near0, 0)
            for i in range(n0):
                a = near0[i]
                if counts[1] < caps[1]:
                    out[total, :2] = new, a
                    counts[1] += 1
                    total += 1
                if (counts[2:] >= caps[2:]).all():
                    continue
                later1 = n0 - i - 1
                near1[:later1] = near0[i + 1 : n0]
                n1 = _extend(cut, a, marked, near1, later1)
                for j in range(n1):
                    b = near1[j]
                    if counts[2] < caps[2]:
                        out[total, :3] = new, a, b
                        counts[2] += 1
                        total += 1
                    if counts[3] >= caps[3]:
                        continue
                    later2 = n1 - j - 1
                    near2[:later2] = near1[j + 1 : n1]
                    n2 = _extend(cut, b, marked, near2, later2)
                    for c in near2[: min(n2, caps[3] - counts[3])]:
                        out[total] = new, a, b, c
                        counts[3] += 1
                        total += 1
                    marked[near2[later2:n2]] = False
                marked[near1[later1:n1]] = False
            marked[near0[:n0]] = False
            marked[new] = marked[sibling] = False
    return out[:total]
