# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Hierarchies of regions over one superpixel map, on higra.

Contours of each scale give an oriented-watershed ultrametric contour map; the maps are projected
on the finest superpixels, averaged, and linked again: a tree for each scale and one for all
(Arbelaez et al., "Multiscale Combinatorial Grouping", sections 3 and 4). Region trees, by Ward's
rule on colour and texture and by contour plus colour contrast, stand in for spectral globalisation.
"""

import dataclasses
import functools
import zipfile
from pathlib import Path

import cv2
import higra as hg
import numpy as np
from scipy import sparse

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


#: How much more than its contour the colour contrast of a boundary weighs in the last tree.
_CONTRAST = 2.5


def build_hierarchies(
    contours: list[np.ndarray],
    colour: np.ndarray,
    texture: np.ndarray | None = None,
    *,
    size_damping: float,
    max_superpixels: int = 0,
) -> Hierarchies:
    """Build every tree of an image.

    Args:
        contours: contour strength of each scale, (h_k, w_k) float32, coarse to fine; the
            superpixels are those of the last one.
        colour: (h, w, 3) float32, CIE Lab, as large as the last contour map.
        texture: (h, w, T) float32, on colour's scale; None leaves out the region trees.
        size_damping: boundaries of regions smaller than this share of the image count less, by the
            square root of their size over it; 0 = off.
        max_superpixels: the weakest boundaries go until no more superpixels are left; 0 = all
            stay.

    Returns:
        The trees: for two or more scales, first all scales together, then one a scale, then the
        region trees: Ward's rule on colour, on colour and texture, then contour plus colour
        contrast, the contrast weighing once and :data:`_CONTRAST` times as much.
    """
    maps = [_ucm(contour) for contour in contours]
    shape = contours[-1].shape
    superpixels, rag, lengths, strength = _finest(contours[-1], maps[-1], max_superpixels)
    count = int(superpixels.max()) + 1
    if count == 1:
        return Hierarchies(superpixels, (np.empty(0, int),) * 2, [(np.zeros(1, np.int32),) * 2])
    sources, targets = rag.edge_list()
    flat = superpixels.ravel()
    areas = np.bincount(flat, minlength=count).astype(np.float64)
    saliencies = [_saliency(m, superpixels, sources, targets, count) for m in maps]
    trees = []
    if len(maps) > 1:
        mean = np.mean(saliencies, axis=0)
        trees.append(hg.binary_partition_tree_average_linkage(rag, mean, lengths))
    trees += [hg.bpt_canonical(rag, s) for s in saliencies]
    limit = size_damping * shape[0] * shape[1]
    if size_damping > 0:
        trees = [_damp(rag, *t, areas, limit, sources, targets) for t in trees]
    if texture is not None:
        means = _means(colour, flat, areas)
        trees.append(hg.binary_partition_tree_ward_linkage(rag, means, areas))
        both = np.concatenate([means, _means(texture, flat, areas)], axis=1)
        trees.append(hg.binary_partition_tree_ward_linkage(rag, both, areas))
        contrast = np.linalg.norm(means[sources] - means[targets], axis=1)
        contrast /= max(contrast.mean(), 1e-9)
        strength /= max(strength.mean(), 1e-9)
        for weight in (1.0, _CONTRAST):
            height = strength + weight * contrast
            tree = hg.binary_partition_tree_average_linkage(rag, height, lengths)
            damped = size_damping > 0
            trees.append(_damp(rag, *tree, areas, limit, sources, targets) if damped else tree)
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


#: Grids of pixels by shape: the images of a data set share a few.
_grid = functools.lru_cache(maxsize=4)(hg.get_4_adjacency_graph)


def _ucm(contour: np.ndarray) -> tuple:
    """Return superpixels, tree and altitudes of one contour map; one pixel has no tree."""
    if contour.size == 1:
        return np.zeros(contour.shape, np.int32), None, None
    graph = _grid(contour.shape)
    weights = hg.weight_graph(graph, contour.astype(np.float64), hg.WeightFunction.mean)
    tree, altitudes = hg.mean_pb_hierarchy(graph, weights, contour.shape)
    labels = hg.CptRegionAdjacencyGraph.construct(tree.leaf_graph)["vertex_map"]
    return np.asarray(labels, np.int32).reshape(contour.shape), tree, altitudes


def _finest(contour: np.ndarray, ucm: tuple, limit: int) -> tuple:
    """Return the superpixels, their adjacency graph, and its edges' lengths and mean strengths."""
    labels, tree, altitudes = ucm
    if tree is None or tree.num_leaves() == 1:
        return labels, None, None, None
    rag, graph = tree.leaf_graph, _grid(contour.shape)
    weights = hg.weight_graph(graph, contour.astype(np.float64), hg.WeightFunction.mean)
    total = hg.rag_accumulate_on_edges(rag, hg.Accumulators.sum, edge_weights=weights)
    lengths = hg.rag_accumulate_on_edges(
        rag, hg.Accumulators.sum, edge_weights=np.ones(graph.num_edges())
    )
    count = tree.num_leaves()
    if limit and count > limit:
        threshold = np.sort(altitudes[count:])[count - limit - 1]
        cut = hg.labelisation_horizontal_cut_from_threshold(tree, altitudes, threshold)
        rag = hg.make_region_adjacency_graph_from_labelisation(rag, cut)
        cut = np.asarray(hg.CptRegionAdjacencyGraph.construct(rag)["vertex_map"], np.int32)
        total = hg.rag_accumulate_on_edges(rag, hg.Accumulators.sum, edge_weights=total)
        lengths = hg.rag_accumulate_on_edges(rag, hg.Accumulators.sum, edge_weights=lengths)
        labels = cut[labels]
    return labels, rag, lengths, total / lengths


def _saliency(ucm: tuple, superpixels, sources, targets, count: int) -> np.ndarray:
    """Return the altitude at which the two sides of each edge merge in one scale's tree."""
    labels, tree, altitudes = ucm
    if tree is None or tree.num_leaves() == 1:
        return np.zeros(len(sources))
    height, width = superpixels.shape
    if labels.shape != superpixels.shape:
        labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
    own = _majority(superpixels.ravel(), labels.ravel(), count, tree.num_leaves())
    return altitudes[tree.lowest_common_ancestor(own[sources], own[targets])]


def _majority(fine: np.ndarray, coarse: np.ndarray, count: int, coarse_count: int) -> np.ndarray:
    """Return the coarse label that most pixels of each fine one have (the lowest of equals)."""
    shared = sparse.csr_matrix(
        (np.ones(fine.size, np.int32), (fine, coarse)), shape=(count, coarse_count)
    )
    shared.sum_duplicates()
    starts = shared.indptr[:-1]
    most = np.maximum.reduceat(shared.data, starts)
    is_most = shared.data == np.repeat(most, np.diff(shared.indptr))
    places = np.where(is_most, shared.indices, coarse_count)
    return np.minimum.reduceat(places, starts).astype(np.int64)


def _means(planes: np.ndarray, flat: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Return the means of (h, w, C) planes over each superpixel, (S, C)."""
    planes = np.moveaxis(planes, 2, 0)
    sums = [np.bincount(flat, plane.ravel(), len(areas)) for plane in planes]
    return np.stack(sums, axis=1) / areas[:, None]


def _damp(rag, tree, altitudes, areas, limit: float, sources, targets) -> tuple:
    """Return the tree again after weakening the boundaries of small regions."""
    node_areas = hg.accumulate_sequential(tree, areas, hg.Accumulators.sum)
    smaller = hg.accumulate_parallel(tree, node_areas, hg.Accumulators.min)
    factor = np.sqrt(np.minimum(smaller, limit) / limit)
    factor[: tree.num_leaves()] = 1.0
    merged = (altitudes * factor)[tree.lowest_common_ancestor(sources, targets)]
    return hg.bpt_canonical(rag, merged)
