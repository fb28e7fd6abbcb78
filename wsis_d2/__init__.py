# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Panoptic segmentation from cheap annotation, an extension of Detectron2.

Importing the package registers its datasets, mappers, models, training hooks and the model zoo's
paths with Detectron2.
"""

import os
import warnings

__version__ = "0.1.0"

# Label making's worker processes need neither torch nor Detectron2, which cost each of them
# seconds and 400 MB: weak_labels/driver.py sets this for them.
if os.environ.get("WSIS_D2_NO_REGISTER") != "1":
    from wsis_d2.utils.requirements import check_detectron2

    check_detectron2()

    with warnings.catch_warnings():
        # Detectron2 scripts a few functions as it is imported, which current torch deprecates.
        warnings.filterwarnings("ignore", message=".*torch.jit.script")
        from wsis_d2 import data, model_zoo, modeling, relabeling  # noqa: F401
        from wsis_d2.config import add_wsis_config  # noqa: F401
        from wsis_d2.data import datasets, mappers  # noqa: F401
