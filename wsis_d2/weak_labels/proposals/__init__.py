# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Region proposals for boxes."""

from wsis_d2.weak_labels.proposals.files import CocoJsonSource, MatSource, NoSource
from wsis_d2.weak_labels.proposals.proposal_set import ProposalSet, TreeProposals
from wsis_d2.weak_labels.proposals.segment_anything import SegmentAnythingSource
from wsis_d2.weak_labels.proposals.select import select_proposal
from wsis_d2.weak_labels.proposals.source import (
    PROPOSAL_SOURCE_REGISTRY,
    MCGSource,
    ProposalSource,
    build_proposal_source,
)

__all__ = [
    "PROPOSAL_SOURCE_REGISTRY",
    "CocoJsonSource",
    "MCGSource",
    "MatSource",
    "NoSource",
    "ProposalSet",
    "ProposalSource",
    "SegmentAnythingSource",
    "TreeProposals",
    "build_proposal_source",
    "select_proposal",
]
