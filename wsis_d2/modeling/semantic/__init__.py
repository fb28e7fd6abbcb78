# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The semantic subnetwork: any backbone, and a pyramid pooling head or another."""

from wsis_d2.modeling.semantic.head import RegistryHead, SemanticHead, build_semantic_head
from wsis_d2.modeling.semantic.inference import SemanticInference
from wsis_d2.modeling.semantic.psp_head import PSPHead, PyramidPooling
from wsis_d2.modeling.semantic.subnetwork import SemanticSubnetwork

__all__ = [
    "PSPHead",
    "PyramidPooling",
    "RegistryHead",
    "SemanticHead",
    "SemanticInference",
    "SemanticSubnetwork",
    "build_semantic_head",
]
