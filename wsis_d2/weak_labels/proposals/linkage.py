# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Agglomerative linkage of a region graph: the two regions that are least apart merge, repeatedly.

The tree is the one that recomputing every distance after every merge gives; equal distances go by
the number of their edge. A distance that grows stays where it was in the queue, and is put right
when its turn comes: most edges are gone by then.
"""

import heapq

import numpy as np

from wsis_d2.weak_labels.proposals.compiled import njit


def average_linkage(
    edges: tuple[np.ndarray, np.ndarray], values: np.ndarray, lengths: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Merge regions by the mean value along their common boundary.

    Args:
        edges: two (E,) arrays, regions that touch, each pair once; the graph is connected.
        values: (E,) float64, strength of each boundary.
        lengths: (E,) float64, over 0: what a boundary weighs in the mean of joined ones.
        count: number of regions S.

    Returns:
        parents: (2S - 1,) int64, of each node its parent; nodes 0..S-1 are the regions, the others
            follow in the order of merging; the last is the root, its own parent.
        altitudes: (2S - 1,) float64, value at which a node came to be, never less than that of
            its parts; regions 0.
    """
    return _merge_all(*edges, values, lengths, np.ones(count), np.empty((count, 0)))


def ward_linkage(
    edges: tuple[np.ndarray, np.ndarray], means: np.ndarray, areas: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Merge regions where it adds least to the squared deviations from the regions' means.

    Args:
        edges: as for :func:`average_linkage`.
        means: (S, C) float64, C > 0.
        areas: (S,) float64, pixels.

    Returns:
        As for :func:`average_linkage`.
    """
    unused = np.ones(len(edges[0]))
    return _merge_all(*edges, unused, unused, areas, means)


@njit(error_model="numpy")
def _merge_all(sources, targets, values, lengths, areas, means):
    """Link by Ward's rule where there are means, else by average."""
    leaves, edges, ward = len(areas), len(sources), means.shape[1] > 0
    nodes = 2 * leaves - 1
    values, lengths = values.copy(), lengths.copy()
    area, mean = np.empty(nodes), np.empty((nodes, means.shape[1]))
    area[:leaves], mean[:leaves] = areas, means
    parents, altitudes = np.arange(nodes), np.zeros(nodes)
    # Edge e is half-edges 2e and 2e + 1; every region has a linked list of those that leave it.
    region, following = np.empty(2 * edges, np.int64), np.empty(2 * edges, np.int64)
    first = np.full(nodes, -1)
    for e in range(edges):
        for half, own in ((2 * e, sources[e]), (2 * e + 1, targets[e])):
            region[half] = own
            following[half] = first[own]
            first[own] = half
        if ward:
            values[e] = _ward_distance(area, mean, sources[e], targets[e])
    alive = np.ones(edges, np.bool_)
    queued = values.copy()  # no more than the value, for every edge alive
    queue = [(queued[e], e) for e in range(edges)]
    heapq.heapify(queue)
    edge_to = np.full(nodes, -1)
    for new in range(leaves, nodes):
        nearest = _pop(queue, queued, values, alive)
        alive[nearest] = False
        one, two = region[2 * nearest], region[2 * nearest + 1]
        parents[one] = parents[two] = new
        altitudes[new] = max(values[nearest], altitudes[one], altitudes[two])
        area[new] = area[one] + area[two]
        for k in range(mean.shape[1]):
            mean[new, k] = (area[one] * mean[one, k] + area[two] * mean[two, k]) / area[new]
        for old in (one, two):
            half = first[old]
            while half >= 0:
                e, after, other = half // 2, following[half], region[half ^ 1]
                if alive[e] and edge_to[other] < 0:
                    edge_to[other] = e
                    region[half] = new
                    following[half] = first[new]
                    first[new] = half
                elif alive[e]:  # both touched the other: two boundaries become one
                    twin = edge_to[other]
                    alive[e] = False
                    length = lengths[twin] + lengths[e]
                    values[twin] = (values[twin] * lengths[twin] + values[e] * lengths[e]) / length
                    lengths[twin] = length
                half = after
        half = first[new]
        while half >= 0:
            e, other = half // 2, region[half ^ 1]
            edge_to[other] = -1
            if ward:
                values[e] = _ward_distance(area, mean, new, other)
            if values[e] < queued[e]:
                queued[e] = values[e]
                heapq.heappush(queue, (values[e], e))
            half = following[half]
    return parents, altitudes


@njit()
def _pop(queue, queued, values, alive):
    """Take the edge of least value from the queue."""
    while True:
        key, e = queue[0]
        if not alive[e] or key != queued[e]:
            heapq.heappop(queue)
        elif values[e] > key:
            queued[e] = values[e]
            heapq.heapreplace(queue, (values[e], e))
        else:
            return e


@njit(error_model="numpy")
def _ward_distance(area, mean, one, two):
    squares = 0.0
    for k in range(mean.shape[1]):
        squares += (mean[one, k] - mean[two, k]) ** 2
    return area[one] * area[two] * squares / (area[one] + area[two])
