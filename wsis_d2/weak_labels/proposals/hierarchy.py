# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Hierarchies of regions over one superpixel map, on higra.

Contours of each scale give an oriented-watershed ultrametric contour map; the maps are projected
on the finest superpixels, averaged, and linked again: a tree for each scale and one for all
(Arbelaez et al., "Multiscale Combinatorial Grouping", sections 3 and 4). Two region trees, by
Ward's rule on colour and by contour plus colour contrast, stand in for spectral globalisation.
"""

import dataclasses
import zipfile
from pathlib import Path

import higra as hg
import numpy as np

from wsis_d2.weak_labels.atomic import atomic_write


@dataclasses.dataclass
class Hierarchies:
    """Trees over one superpixel map.

    Attributes:
        superpixels: (h, w) int32, labels 0..S-1.
        edges: two (E,) arrays: superpixels that touch.
        trees: (parents, ranks) of each tree, both (2S - 1,) int32; ranks order the altitudes.
    """

    superpixels: np.ndarray
    edges: tuple[np.ndarray, np.ndarray]
    trees: list[tuple[np.ndarray, np.ndarray]]


def build_hierarchies(
    contours: list[np.ndarray],
    features: np.ndarray,
    *,
    region_trees: bool,
    size_damping: float,
) -> Hierarchies:
    """Build every tree of an image.

    Args:
        contours: contour strength of each scale, (h, w) float32, brought to one size; the last
            one is the finest.
        features: (h, w, C) float32, colour (and texture) in which regions are compared.
        region_trees: add the two region trees.
        size_damping: boundaries of regions smaller than this share of the image count less, by the
            square root of their size over it; 0 = off.

    Returns:
        The trees: for two or more scales, first all scales together, then one a scale, then the
        region trees.
    """
    shape = contours[0].shape
    graph = hg.get_4_adjacency_graph(shape)
    maps = [_ucm(graph, contour, shape) for contour in contours]
    superpixels = maps[-1][0]
    count = int(superpixels.max()) + 1
    if count == 1:
        return Hierarchies(superpixels, (np.empty(0, int),) * 2, [(np.zeros(1, np.int32),) * 2])
    rag = hg.make_region_adjacency_graph_from_labelisation(graph, superpixels)
    sources, targets = rag.edge_list()
    areas = np.bincount(superpixels.ravel(), minlength=count).astype(np.float64)
    saliencies = [_saliency(m, superpixels, sources, targets, count) for m in maps]
    weights = hg.weight_graph(graph, contours[-1].astype(np.float64), hg.WeightFunction.mean)
    strength = hg.rag_accumulate_on_edges(rag, hg.Accumulators.mean, edge_weights=weights)
    lengths = hg.rag_accumulate_on_edges(
        rag, hg.Accumulators.sum, edge_weights=np.ones(graph.num_edges())
    )
    trees = []
    if len(maps) > 1:
        mean = np.mean(saliencies, axis=0)
        trees.append(hg.binary_partition_tree_average_linkage(rag, mean, lengths))
    trees += [hg.bpt_canonical(rag, s) for s in saliencies]
    if size_damping > 0:
        limit = size_damping * superpixels.size
        trees = [_damp(rag, *t, areas, limit, sources, targets) for t in trees]
    if region_trees:
        means = np.stack(
            [np.bincount(superpixels.ravel(), f.ravel(), count) / areas for f in _planes(features)],
            axis=1,
        )
        trees.append(hg.binary_partition_tree_ward_linkage(rag, means, areas))
        contrast = np.linalg.norm(means[sources] - means[targets], axis=1)
        both = strength / max(strength.mean(), 1e-9) + contrast / max(contrast.mean(), 1e-9)
        tree = hg.binary_partition_tree_average_linkage(rag, both, lengths)
        trees.append(_damp(rag, *tree, areas, limit, sources, targets) if size_damping else tree)
    return Hierarchies(superpixels, (sources, targets), [_ranked(*tree) for tree in trees])


def save_hierarchies(found: Hierarchies, path: Path) -> None:
    """Keep the hierarchies of an image in a compressed file, written whole or not at all."""
    with atomic_write(path) as file:
        np.savez_compressed(
            file,
            superpixels=found.superpixels,
            edges=np.stack(found.edges).astype(np.int32),
            trees=np.stack([np.stack(t) for t in found.trees]).astype(np.int32),
        )


def load_hierarchies(path: Path) -> Hierarchies | None:
    """Return what :func:`save_hierarchies` kept; None where it is missing or damaged."""
    try:
        with np.load(path, allow_pickle=False) as file:
            trees = [(parents, ranks) for parents, ranks in file["trees"]]
            sources, targets = file["edges"]
            return Hierarchies(file["superpixels"], (sources, targets), trees)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _ranked(tree, altitudes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a tree's parents and the ranks of its altitudes."""
    ranks = np.unique(altitudes, return_inverse=True)[1]
    return tree.parents().astype(np.int32), ranks.reshape(-1).astype(np.int32)


def _ucm(graph, contour: np.ndarray, shape: tuple[int, int]) -> tuple:
    """Return superpixels, tree and altitudes of one contour map."""
    weights = hg.weight_graph(graph, contour.astype(np.float64), hg.WeightFunction.mean)
    if shape[0] * shape[1] == 1:
        return np.zeros(shape, np.int32), None, None
    tree, altitudes = hg.mean_pb_hierarchy(graph, weights, shape)
    rag = tree.leaf_graph
    labels = hg.CptRegionAdjacencyGraph.construct(rag)["vertex_map"]
    return np.asarray(labels, np.int32).reshape(shape), tree, altitudes


def _saliency(ucm: tuple, superpixels, sources, targets, count: int) -> np.ndarray:
    """Return the altitude at which the two sides of each edge merge in one scale's tree."""
    labels, tree, altitudes = ucm
    if tree is None or tree.num_leaves() == 1:
        return np.zeros(len(sources))
    if labels is superpixels:
        return altitudes[tree.lowest_common_ancestor(sources, targets)]
    own = hg.project_fine_to_coarse_labelisation(
        superpixels.ravel(), labels.ravel(), count, int(labels.max()) + 1
    ).astype(np.int64)
    return altitudes[tree.lowest_common_ancestor(own[sources], own[targets])]


def _damp(rag, tree, altitudes, areas, limit: float, sources, targets) -> tuple:
    """Return the tree again after weakening the boundaries of small regions."""
    node_areas = hg.accumulate_sequential(tree, areas, hg.Accumulators.sum)
    smaller = hg.accumulate_parallel(tree, node_areas, hg.Accumulators.min)
    factor = np.sqrt(np.minimum(smaller, limit) / limit)
    factor[: tree.num_leaves()] = 1.0
    merged = (altitudes * factor)[tree.lowest_common_ancestor(sources, targets)]
    return hg.bpt_canonical(rag, merged)


def _planes(features: np.ndarray):
    return (features[..., k] for k in range(features.shape[2]))
