# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The semantic subnetwork: a dilated residual network with a pyramid pooling head."""

from wsis_d2.modeling.semantic.inference import SemanticInference
from wsis_d2.modeling.semantic.psp_head import PSPHead, PyramidPooling
from wsis_d2.modeling.semantic.subnetwork import SemanticSubnetwork

__all__ = ["PSPHead", "PyramidPooling", "SemanticInference", "SemanticSubnetwork"]
