# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Networks; importing this registers them with Detectron2."""

from wsis_d2.modeling import backbone, ignoring_mask_head, instance, meta_arch, semantic

__all__ = ["backbone", "ignoring_mask_head", "instance", "meta_arch", "semantic"]
