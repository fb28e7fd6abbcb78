# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Hierarchies of regions over one superpixel map; watershed and graph tools are higra's.

Contours of each scale give an oriented-watershed ultrametric contour map; the maps are projected
on the finest superpixels, averaged, and linked again: a tree for each scale and one for all
(Arbelaez et al., "Multiscale Combinatorial Grouping", sections 3 and 4). Region trees, by Ward's
rule on colour and texture and by contour plus colour contrast, stand in for spectral globalisation:
an addition, not in the paper nor in MCG.
"""

import dataclasses
import functools

import cv2
import higra as hg
import numpy as np
from scipy import sparse

from wsis_d2.weak_labels.proposals.linkage import average_linkage, ward_linkage

#: Two (E,) arrays: superpixels that touch.
_Edges = tuple[np.ndarray, np.ndarray]


@dataclasses.dataclass
class Hierarchies:
    """Trees over one superpixel map.

    Attributes:
        superpixels: (h, w) int32, labels 0..S-1.
        edges: two (E,) arrays: superpixels that touch.
        trees: (parents, ranks) of each tree, both (2S - 1,) int32; ranks order the altitudes.
    """

    superpixels: np.ndarray
    edges: _Edges
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
    maps = [_watershed(contour) for contour in contours]
    finest = _limited(maps[-1], max_superpixels)
    superpixels, edges, count = finest.labels, finest.edges, finest.count
    if count == 1:
        return Hierarchies(superpixels, edges, [(np.zeros(1, np.int32),) * 2])
    areas = np.bincount(superpixels.ravel(), minlength=count).astype(np.float64)
    limit = size_damping * superpixels.size

    def damped(parents, altitudes):
        if size_damping == 0:
            return parents, altitudes
        return _damp(edges, parents, altitudes, areas, limit)

    saliencies = [_saliency(m, superpixels, edges, count) for m in maps]
    trees = []
    if len(maps) > 1:
        mean = np.mean(saliencies, axis=0)
        trees.append(damped(*average_linkage(edges, mean, finest.lengths, count)))
    trees += [damped(*_minimum_linkage(edges, s, count)) for s in saliencies]
    if texture is not None:
        means = _means(colour, superpixels, areas)
        both = np.concatenate([means, _means(texture, superpixels, areas)], axis=1)
        trees += [ward_linkage(edges, features, areas) for features in (means, both)]
        contrast = np.linalg.norm(means[edges[0]] - means[edges[1]], axis=1)
        contrast /= max(contrast.mean(), 1e-9)
        strengths = finest.strengths / max(finest.strengths.mean(), 1e-9)
        for weight in (1.0, _CONTRAST):
            values = strengths + weight * contrast
            trees.append(damped(*average_linkage(edges, values, finest.lengths, count)))
    return Hierarchies(superpixels, edges, [_ranked(*tree) for tree in trees])


def _ranked(parents: np.ndarray, altitudes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return a tree's parents and the ranks of its altitudes."""
    ranks = np.unique(altitudes, return_inverse=True)[1]
    return parents.astype(np.int32), ranks.reshape(-1).astype(np.int32)


@dataclasses.dataclass
class _Regions:
    """Watershed regions of a contour map, and how they merge.

    Attributes:
        labels: (h, w) int32, 0..count - 1.
        rag: higra's graph of the regions; None for a single one.
        lengths: (E,) float64, pixels along each edge.
        strengths: (E,) float64, mean contour along it.
    """

    labels: np.ndarray
    rag: hg.UndirectedGraph | None = None
    lengths: np.ndarray | None = None
    strengths: np.ndarray | None = None

    @functools.cached_property
    def count(self) -> int:
        """Number of regions."""
        return 1 if self.rag is None else self.rag.num_vertices()

    @functools.cached_property
    def edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Regions that touch, two (E,) arrays."""
        return (np.empty(0, int),) * 2 if self.rag is None else self.rag.edge_list()

    @functools.cached_property
    def tree(self) -> tuple[hg.Tree, np.ndarray]:
        """Tree and altitudes of merging by mean contour: the ultrametric contour map."""
        merged = average_linkage(self.edges, self.strengths, self.lengths, self.count)
        return hg.Tree(merged[0]), merged[1]


#: Grids of pixels by shape: the images of a data set share a few.
_grid = functools.lru_cache(maxsize=4)(hg.get_4_adjacency_graph)


def _watershed(contour: np.ndarray) -> _Regions:
    """Return the regions of one contour map."""
    if contour.size == 1:
        return _Regions(np.zeros(contour.shape, np.int32))
    graph = _grid(contour.shape)
    weights = hg.weight_graph(graph, contour.astype(np.float64), hg.WeightFunction.mean)
    basins = hg.labelisation_watershed(graph, weights)
    rag = hg.make_region_adjacency_graph_from_labelisation(graph, basins)
    labels = _labels(rag).reshape(contour.shape)
    if rag.num_vertices() == 1:
        return _Regions(labels)
    sums = hg.rag_accumulate_on_edges(rag, hg.Accumulators.sum, edge_weights=weights)
    lengths = hg.rag_accumulate_on_edges(
        rag, hg.Accumulators.sum, edge_weights=np.ones(graph.num_edges())
    )
    return _Regions(labels, rag, lengths, sums / lengths)


def _labels(rag: hg.UndirectedGraph) -> np.ndarray:
    """Return the region of each vertex of the graph that ``rag`` was made from, int32."""
    return hg.CptRegionAdjacencyGraph.construct(rag)["vertex_map"].astype(np.int32)


def _limited(regions: _Regions, limit: int) -> _Regions:
    """Merge across the weakest boundaries until ``limit`` regions are left; 0 = all stay."""
    if not limit or regions.count <= limit:
        return regions
    tree, altitudes = regions.tree
    threshold = np.sort(altitudes[regions.count :])[regions.count - limit - 1]
    cut = hg.labelisation_horizontal_cut_from_threshold(tree, altitudes, threshold)
    rag = hg.make_region_adjacency_graph_from_labelisation(regions.rag, cut)
    sums, lengths = (
        hg.rag_accumulate_on_edges(rag, hg.Accumulators.sum, edge_weights=w)
        for w in (regions.strengths * regions.lengths, regions.lengths)
    )
    return _Regions(_labels(rag)[regions.labels], rag, lengths, sums / lengths)


def _saliency(regions: _Regions, superpixels: np.ndarray, edges: _Edges, count: int) -> np.ndarray:
    """Return the altitude at which the superpixels of each edge merge in one scale's tree."""
    if regions.count == 1:
        return np.zeros(len(edges[0]))
    labels = regions.labels
    if labels.shape != superpixels.shape:
        height, width = superpixels.shape
        labels = cv2.resize(labels, (width, height), interpolation=cv2.INTER_NEAREST)
    own = _majority(superpixels.ravel(), labels.ravel(), count, regions.count)
    tree, altitudes = regions.tree
    return altitudes[tree.lowest_common_ancestor(own[edges[0]], own[edges[1]])]


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


def _means(planes: np.ndarray, superpixels: np.ndarray, areas: np.ndarray) -> np.ndarray:
    """Return the means of (h, w, C) planes over each superpixel, (S, C)."""
    flat, count = superpixels.ravel(), len(areas)
    sums = [np.bincount(flat, planes[..., c].ravel(), count) for c in range(planes.shape[2])]
    return np.stack(sums, axis=1) / areas[:, None]


def _minimum_linkage(
    edges: _Edges, values: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return parents and altitudes of merging by the weakest part of a boundary."""
    tree, altitudes = hg.bpt_canonical((*edges, count), values)
    return tree.parents(), altitudes


def _damp(
    edges: _Edges, parents: np.ndarray, altitudes: np.ndarray, areas: np.ndarray, limit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return the tree again after weakening the boundaries of small regions."""
    tree = hg.Tree(parents)
    node_areas = hg.accumulate_sequential(tree, areas, hg.Accumulators.sum)
    smaller = hg.accumulate_parallel(tree, node_areas, hg.Accumulators.min)
    factor = np.sqrt(np.minimum(smaller, limit) / limit)
    factor[: len(areas)] = 1.0
    merged = (altitudes * factor)[tree.lowest_common_ancestor(*edges)]
    return _minimum_linkage(edges, merged, len(areas))
