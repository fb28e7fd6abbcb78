# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Proposals without near-copies, in an order worth cutting: to compare at an equal budget.

Addition, not in the paper.
"""

import numpy as np

from wsis_d2.weak_labels.proposals.compiled import njit
from wsis_d2.weak_labels.proposals.proposal_set import TreeProposals

#: Singles, pairs, triples and 4-tuples that a tree gives in each turn.
TURNS = (4, 1, 1, 1)


def distinct_proposals(
    proposals: TreeProposals, iou: float = 0.95, limit: int | None = None
) -> np.ndarray:
    """Return the indices of proposals that differ, best first.

    Trees, and in each its singles, pairs, triples and 4-tuples, take turns, strongest boundaries
    first, :data:`TURNS` of each at a time; a proposal is dropped if one before it overlaps it by
    more than ``iou``.

    Args:
        proposals: of one image.
        iou: largest IoU that two proposals may have.
        limit: stop after so many; None = never.

    Returns:
        (K,) int64.
    """
    count = len(proposals)
    size = (proposals.nodes >= 0).sum(axis=1)
    kind = 4 * proposals.runs[proposals.nodes[:, 0], 0] + size
    place = np.empty(count, np.int64)
    for number in np.unique(kind):
        place[kind == number] = np.arange(np.count_nonzero(kind == number))
    place //= np.array(TURNS)[size - 1]
    order = np.lexsort((kind, place))
    areas = np.bincount(proposals.superpixels.ravel(), minlength=proposals.orders.shape[1])
    return _greedy(
        order,
        proposals._sum(areas),
        _sketch(proposals),
        areas.astype(np.float64),
        proposals.nodes,
        proposals.runs,
        proposals.orders,
        iou,
        count if limit is None else limit,
    )


def _sketch(proposals: TreeProposals) -> np.ndarray:
    """Return each proposal's sums of slow waves over its pixels, (N, 12), all within its area.

    Of two sets these differ by no more than the pixels in which the sets differ, and where sets
    lie apart they differ much: nearly all pairs are told apart without looking at their members.
    """
    height, width = proposals.superpixels.shape
    flat, count = proposals.superpixels.ravel(), proposals.orders.shape[1]
    y = (np.arange(height)[:, None] + 0.5) / height
    x = (np.arange(width)[None, :] + 0.5) / width
    sums = []
    for along, down in ((1, 0), (0, 1), (1, 1), (1, -1), (2, 0), (0, 2)):
        phase = 2 * np.pi * (along * x + down * y)
        for wave in (np.cos(phase), np.sin(phase)):
            values = np.broadcast_to(wave, (height, width)).ravel()
            sums.append(proposals._sum(np.bincount(flat, weights=values, minlength=count)))
    return np.ascontiguousarray(np.stack(sums, axis=1))


@njit(error_model="numpy")
def _greedy(order, totals, sketch, areas, nodes, runs, orders, iou, limit):
    step = -np.log(iou)
    buckets = int(np.log(max(totals.max(), 1.0)) / step) + 3
    first = np.full(buckets, -1, np.int64)  # linked lists of kept proposals by log area
    following = np.full(len(order), -1, np.int64)
    marked = np.zeros(len(areas), np.bool_)
    kept = np.empty(len(order), np.int64)
    number = 0
    for k in order:
        if number >= limit:
            break
        bucket = int(np.log(max(totals[k], 1.0)) / step)
        ready = False
        copy = False
        for b in range(max(bucket - 1, 0), min(bucket + 2, buckets)):
            other = first[b]
            while other >= 0 and not copy:
                # IoU > t needs |A xor B| < (1 - t) / (1 + t) * (|A| + |B|), and no sum may differ
                # by more than that.
                slack = (1 - iou) / (1 + iou) * (totals[k] + totals[other])
                close = abs(totals[k] - totals[other]) <= slack
                m = 0
                while close and m < sketch.shape[1]:
                    close = abs(sketch[k, m] - sketch[other, m]) <= slack
                    m += 1
                if close:
                    if not ready:
                        _mark(marked, k, nodes, runs, orders, True)
                        ready = True
                    shared = _shared(marked, other, nodes, runs, orders, areas)
                    copy = shared > iou * (totals[k] + totals[other] - shared)
                other = following[other]
            if copy:
                break
        if ready:
            _mark(marked, k, nodes, runs, orders, False)
        if not copy:
            kept[number] = k
            number += 1
            following[k] = first[bucket]
            first[bucket] = k
    return kept[:number].copy()


@njit()
def _mark(marked, k, nodes, runs, orders, value):
    for n in nodes[k]:
        if n >= 0:
            for at in range(runs[n, 1], runs[n, 2]):
                marked[orders[runs[n, 0], at]] = value


@njit()
def _shared(marked, k, nodes, runs, orders, areas):
    total = 0.0
    for n in nodes[k]:
        if n >= 0:
            for at in range(runs[n, 1], runs[n, 2]):
                leaf = orders[runs[n, 0], at]
                if marked[leaf]:
                    total += areas[leaf]
    return total
