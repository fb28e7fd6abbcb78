# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The detector: Detectron2's Faster R-CNN with an input size of its own."""

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Instances
from torch import nn

from wsis_d2.modeling.backbone.folded import fold_frozen_norms
from wsis_d2.utils.errors import InputError

# Detectron2's keys of what a detector gives, and those of what becomes an instance label.
_OUTPUT_KEYS = {
    "MODEL.ROI_HEADS.SCORE_THRESH_TEST": "DETECTION_SCORE_THRESH",
    "MODEL.ROI_HEADS.NMS_THRESH_TEST": "DETECTION_NMS_THRESH",
    "TEST.DETECTIONS_PER_IMAGE": "MAX_DETECTIONS",
}


def instance_label_config(cfg: CfgNode) -> CfgNode:
    """Return the config of the detector as the source of instance labels.

    It keeps fewer, surer boxes than in its own stage: those of ``MODEL.WSIS``.

    Raises:
        InputError: one of Detectron2's keys, which count in the detector's own stage, was set to
            another value.
    """
    usual, cfg = get_cfg(), cfg.clone()
    cfg.defrost()
    for key, own in _OUTPUT_KEYS.items():
        *parents, last = key.split(".")
        node, default = cfg, usual
        for parent in parents:
            node, default = node[parent], default[parent]
        if node[last] not in (default[last], cfg.MODEL.WSIS[own]):
            raise InputError(
                f"{key} is {node[last]}, and counts in the stage 'detector' alone; in the stage "
                f"{cfg.MODEL.WSIS.STAGE!r} set MODEL.WSIS.{own}, which is {cfg.MODEL.WSIS[own]}"
            )
        node[last] = cfg.MODEL.WSIS[own]
    return cfg


class Detector(nn.Module):
    """Boxes, scores and thing indices of an image; trained on boxes alone (paper 4.1)."""

    @configurable
    def __init__(
        self, *, rcnn: nn.Module, min_size: int, max_size: int, channels_last: bool = True
    ) -> None:
        """
        Args:
            rcnn: Detectron2's GeneralizedRCNN.
            min_size: the shorter side of the image is resized to this; 0 keeps the size.
            max_size: bound of the longer side.
            channels_last: run convolutions in channels-last memory order.
        """
        super().__init__()
        self.rcnn = rcnn
        fold_frozen_norms(self)
        self.min_size = min_size
        self.max_size = max_size
        if channels_last:
            self.rcnn.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        if cfg.MODEL.WSIS.STAGE != "detector":
            cfg = instance_label_config(cfg)
        return {
            "rcnn": META_ARCH_REGISTRY.get("GeneralizedRCNN")(cfg),
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "channels_last": cfg.MODEL.WSIS.CHANNELS_LAST,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor]:
        """Losses of a training batch: ``image`` and ``instances`` of each record."""
        return self.rcnn(batched_inputs)

    def detect(self, image: torch.Tensor, size: tuple[int, int] | None = None) -> Instances:
        """Detect things.

        Args:
            image: (3, H, W), 0 to 255, BGR.
            size: (height, width) the boxes are given in; default the image's.

        Returns:
            ``pred_boxes``, ``scores``, ``pred_classes`` (thing indices 0..T-1).
        """
        height, width = image.shape[-2:]
        size = size or (height, width)
        resized = image
        if self.min_size > 0:
            scale = self.min_size / min(height, width)
            scale = min(scale, self.max_size / max(height, width))
            wanted = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
            if wanted != (height, width):
                resized = F.interpolate(
                    image[None].float(), size=wanted, mode="bilinear",
                    align_corners=False, antialias=scale < 1,
                )[0]  # fmt: skip
        record = {"image": resized, "height": size[0], "width": size[1]}
        return self.rcnn.inference([record])[0]["instances"]
