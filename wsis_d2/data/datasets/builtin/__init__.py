# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The paper's datasets in their official layouts: VOC 2012 with SBD, COCO, Cityscapes."""
