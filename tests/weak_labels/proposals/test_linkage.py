# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Linkage of region graphs, against distances that are computed anew for every merge, and higra."""

import higra as hg
import numpy as np
import pytest

from wsis_d2.weak_labels.proposals.linkage import average_linkage, ward_linkage


def random_graph(rng, count):
    """A connected graph: a random tree with further edges; each pair once."""
    pairs = {(int(rng.integers(k)), k) for k in range(1, count)}
    pairs |= {tuple(sorted(rng.choice(count, 2, replace=False).tolist())) for _ in range(2 * count)}
    return tuple(np.array(sorted(pairs)).T)


def merge_naively(edges, count, distance):
    """Merge the two touching groups of least distance until one is left: parents, altitudes."""
    groups = {k: {k} for k in range(count)}
    parents, altitudes = np.arange(2 * count - 1), np.zeros(2 * count - 1)
    for new in range(count, 2 * count - 1):
        where = {leaf: name for name, group in groups.items() for leaf in group}
        touching = {tuple(sorted((where[a], where[b]))) for a, b in zip(*edges, strict=True)}
        touching = [(a, b) for a, b in touching if a != b]
        least, a, b = min((distance(groups[a], groups[b]), a, b) for a, b in touching)
        parents[a] = parents[b] = new
        altitudes[new] = max(least, altitudes[a], altitudes[b])
        groups[new] = groups.pop(a) | groups.pop(b)
    return parents, altitudes


@pytest.mark.parametrize("seed", range(8))
def test_average_linkage_is_the_mean_along_the_boundary(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 40))
    edges = random_graph(rng, count)
    values, lengths = rng.random(len(edges[0])), rng.integers(1, 9, len(edges[0])).astype(float)

    def distance(one, two):
        along = [
            k
            for k, (a, b) in enumerate(zip(*edges, strict=True))
            if (a in one and b in two) or (b in one and a in two)
        ]
        return np.average(values[along], weights=lengths[along])

    parents, altitudes = average_linkage(edges, values, lengths, count)
    expected = merge_naively(edges, count, distance)
    np.testing.assert_array_equal(parents, expected[0])
    np.testing.assert_allclose(altitudes, expected[1], rtol=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_ward_linkage_adds_least_to_the_squared_deviations(seed):
    rng = np.random.default_rng(seed)
    count = int(rng.integers(2, 40))
    edges = random_graph(rng, count)
    means, areas = rng.random((count, 3)), rng.integers(1, 9, count).astype(float)

    def deviations(group):
        group = sorted(group)
        centre = np.average(means[group], axis=0, weights=areas[group])
        return (areas[group] * ((means[group] - centre) ** 2).sum(axis=1)).sum()

    def distance(one, two):
        return deviations(one | two) - deviations(one) - deviations(two)

    parents, altitudes = ward_linkage(edges, means, areas)
    expected = merge_naively(edges, count, distance)
    np.testing.assert_array_equal(parents, expected[0])
    np.testing.assert_allclose(altitudes, expected[1], rtol=1e-9, atol=1e-12)


def test_large_graphs_against_higra():
    rng = np.random.default_rng(0)
    graph = hg.get_4_adjacency_graph((40, 50))
    edges, count = graph.edge_list(), graph.num_vertices()
    values, lengths = rng.random((2, graph.num_edges()))
    means, areas = rng.random((count, 4)), rng.random(count)
    for mine, (tree, altitudes) in (
        (
            average_linkage(edges, values, lengths, count),
            hg.binary_partition_tree_average_linkage(graph, values, lengths),
        ),
        (
            ward_linkage(edges, means, areas),
            hg.binary_partition_tree_ward_linkage(graph, means, areas),
        ),
    ):
        np.testing.assert_array_equal(mine[0], tree.parents())
        np.testing.assert_allclose(mine[1], altitudes)


def test_equal_distances_go_by_the_number_of_the_edge():
    edges = np.array([0, 1, 2]), np.array([1, 2, 3])
    parents, altitudes = average_linkage(edges, np.full(3, 0.5), np.ones(3), 4)
    assert parents.tolist() == [4, 4, 5, 6, 5, 6, 6]
    assert altitudes.tolist() == [0, 0, 0, 0, 0.5, 0.5, 0.5]


def test_a_single_region_is_its_own_tree():
    parents, altitudes = average_linkage((np.empty(0, int),) * 2, np.empty(0), np.empty(0), 1)
    assert parents.tolist() == [0] and altitudes.tolist() == [0]
