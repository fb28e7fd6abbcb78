# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Where region proposals come from: a registry of sources, and our own (``mcg``)."""

import abc
import dataclasses
from collections.abc import Callable, Mapping, Sequence

import cv2
import numpy as np
from fvcore.common.registry import Registry
from yacs.config import CfgNode

from wsis_d2.utils.errors import check_choice
from wsis_d2.weak_labels.proposals.contours import make_contours, texture_energies, to_lab
from wsis_d2.weak_labels.proposals.grouping import group_tree, preset
from wsis_d2.weak_labels.proposals.hierarchy import Hierarchies, build_hierarchies
from wsis_d2.weak_labels.proposals.proposal_set import ProposalSet, TreeProposals

#: Raised whenever the same options give other hierarchies: older labels do not count.
_ALGORITHM = 3
#: What texture energies are multiplied by to count like differences of Lab colour.
_TEXTURE = 25.0


class NamedRegistry(Registry):
    """A registry whose entries have names of their own, as they stand in configs."""

    def register_as(self, name: str) -> Callable[[type], type]:
        """Return a decorator that registers its class as ``name``."""

        def add(cls: type) -> type:
            self._do_register(name, cls)
            return cls

        return add


PROPOSAL_SOURCE_REGISTRY = NamedRegistry("PROPOSAL_SOURCE")
PROPOSAL_SOURCE_REGISTRY.__doc__ = """
Sources of region proposals, by ``WEAK_LABELS.PROPOSALS.NAME``. A source is a class with
``from_config(cfg)``; its objects must pickle (they go to worker processes).
"""


class ProposalSource(abc.ABC):
    """Gives the proposals of an image."""

    @abc.abstractmethod
    def __call__(self, image: np.ndarray, record: Mapping) -> ProposalSet | None:
        """Return the proposals of one image; None: the source makes none.

        Args:
            image: (H, W, 3) uint8 BGR.
            record: its weak record; sources that read files go by ``image_id``, ``file_name``.
        """

    def made_of(self, record: Mapping) -> str | None:
        """Return a hash of what an image's proposals depend on beside recipe and annotation."""
        return None

    def recipe(self) -> dict:
        """Return what the proposals depend on, for the label store's recipe."""
        fields: dict = dataclasses.asdict(self) if dataclasses.is_dataclass(self) else {}
        return {"source": type(self).__name__, **fields}


def build_proposal_source(cfg: CfgNode) -> ProposalSource:
    """Build the source that ``cfg.WEAK_LABELS.PROPOSALS.NAME`` names."""
    name = cfg.WEAK_LABELS.PROPOSALS.NAME
    check_choice("WEAK_LABELS.PROPOSALS.NAME", name, sorted(n for n, _ in PROPOSAL_SOURCE_REGISTRY))
    return PROPOSAL_SOURCE_REGISTRY.get(name).from_config(cfg)


@PROPOSAL_SOURCE_REGISTRY.register_as("mcg")
@dataclasses.dataclass(frozen=True)
class MCGSource(ProposalSource):
    """Multiscale combinatorial grouping (paper 3.2, by its reference [50]), ours.

    Additions, not in the paper: contours without a structured forest, region trees in the place of
    spectral globalisation, and ``size_damping``.

    Attributes:
        preset_name: "default", "scg" or "mcg": scales, trees and caps.
        max_side: a larger image is scaled down to this longer side; 0 = never.
        size_damping: see :func:`build_hierarchies`.
        contours: "learned" (small network), "gradient" (no weights) or "structured" (a
            structured-forest model of one's own, through OpenCV's contrib build).
        weights: file of the network ("" = the shipped one) or of the structured forest.
    """

    preset_name: str = "default"
    max_side: int = 1024
    size_damping: float = 0.002
    contours: str = "gradient"
    weights: str = ""

    def __post_init__(self) -> None:
        preset(self.preset_name)
        make_contours(self.contours, self.weights)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "MCGSource":
        """Read ``cfg.WEAK_LABELS.PROPOSALS``."""
        node = cfg.WEAK_LABELS.PROPOSALS
        return cls(
            preset_name=node.PRESET,
            contours=node.CONTOURS,
            weights=node.PATH,
        )

    def recipe(self) -> dict:
        """See :class:`ProposalSource`; weights count by what they are, not where they lie."""
        weights = make_contours(self.contours, self.weights).digest
        return {**super().recipe(), "weights": weights, "algorithm": _ALGORITHM}

    def __call__(self, image: np.ndarray, record: Mapping) -> ProposalSet:
        """See :class:`ProposalSource`; ``record`` is not used."""
        chosen = preset(self.preset_name)
        small = shrink(image, self.max_side)
        found = self._hierarchies(small, chosen)
        return group_hierarchies(found, chosen["caps"], image.shape[:2])

    def _hierarchies(self, image: np.ndarray, chosen: dict) -> Hierarchies:
        lab = to_lab(image)
        return build_hierarchies(
            [self._contours(image, scale) for scale in sorted(chosen["scales"])],
            lab,
            _TEXTURE * texture_energies(lab[..., 0]) if chosen["region_trees"] else None,
            size_damping=self.size_damping,
            max_superpixels=chosen["max_superpixels"],
        )

    def _contours(self, image: np.ndarray, scale: float) -> np.ndarray:
        """Return the contours seen at a scale; superpixels are never finer than the image."""
        size = image.shape[1], image.shape[0]
        scaled = tuple(max(1, round(s * scale)) for s in size)
        how = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
        resized = image if scaled == size else cv2.resize(image, scaled, interpolation=how)
        contours = make_contours(self.contours, self.weights)(resized)
        return contours if scale < 1 else cv2.resize(contours, size, interpolation=cv2.INTER_AREA)


def shrink(image: np.ndarray, max_side: int) -> np.ndarray:
    """Return an image scaled down so that its longer side is at most ``max_side`` (0 = any)."""
    longest = max(image.shape[:2])
    if not max_side or longest <= max_side:
        return image
    factor = max_side / longest
    size = tuple(max(1, round(s * factor)) for s in (image.shape[1], image.shape[0]))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA)


def group_hierarchies(
    found: Hierarchies, caps: Sequence[tuple[int, int, int, int]], image_size: tuple[int, int]
) -> TreeProposals:
    """Group every tree; ``caps`` has one entry a tree, or one for all."""
    orders, runs, nodes, offset = [], [], [], 0
    for number, (parents, altitudes) in enumerate(found.trees):
        limit = caps[number] if len(caps) > 1 and number < len(caps) else caps[0]
        order, tree_runs, tree_nodes = group_tree(parents, altitudes, found.edges, limit)
        orders.append(order)
        runs.append(np.insert(tree_runs, 0, number, axis=1))
        nodes.append(np.where(tree_nodes >= 0, tree_nodes + offset, -1))
        offset += len(tree_runs)
    return TreeProposals(
        superpixels=found.superpixels,
        orders=np.stack(orders),
        runs=np.concatenate(runs),
        nodes=np.concatenate(nodes),
        image_size=(image_size[0], image_size[1]),
    )
