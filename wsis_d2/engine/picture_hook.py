# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Pictures in TensorBoard while training: a sample, its targets and what the model makes of it."""

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.engine.train_loop import HookBase
from torch import nn

from wsis_d2.structures.stages import stage_of
from wsis_d2.visualization.palette import metadata_classes
from wsis_d2.visualization.sample_pictures import (
    draw_layer,
    output_layer,
    sample_image,
    sample_panels,
)
from wsis_d2.visualization.visualizer import side_by_side


class PictureHook(HookBase):
    """Every ``period`` iterations, draw a sample of the batch and the model's output for it.

    Drawing changes nothing of the training: the model is in evaluation mode meanwhile, and every
    iteration draws its own random state.

    Args:
        cfg: the run's config.
        model: the model that is trained, not wrapped.
        period: iterations between two pictures, at least 1.
    """

    def __init__(self, cfg: CfgNode, model: nn.Module, period: int) -> None:
        self.model, self.period = model, period
        self.format = cfg.INPUT.FORMAT
        self.thing_ids = list(cfg.MODEL.WSIS.THING_IDS)
        self.classes = metadata_classes(MetadataCatalog.get(cfg.DATASETS.TRAIN[0]))

    def after_step(self) -> None:
        """Put the picture where the writers find it."""
        if (self.trainer.iter + 1) % self.period:
            return
        sample = self.trainer.last_batch[0]
        panels = sample_panels(sample, self.classes, self.thing_ids, self.format)
        training = self.model.training
        self.model.eval()
        try:
            with torch.no_grad():
                layer = output_layer(self.model([{"image": sample["image"]}])[0])
        finally:
            self.model.train(training)
        if layer is not None:
            panels["output"] = draw_layer(sample_image(sample, self.format), layer, self.classes)
        picture = side_by_side(panels, 256)
        self.trainer.storage.put_image("training", np.ascontiguousarray(picture.transpose(2, 0, 1)))


def build_picture_hook(cfg: CfgNode, model: nn.Module) -> PictureHook | None:
    """Return the hook that ``VIS_PERIOD`` asks for, or None.

    None too for the detector's own stage, where Detectron2 draws proposals under the same key, and
    for models without label maps.
    """
    if cfg.VIS_PERIOD < 1 or "semantic" not in stage_of(cfg).parts:
        return None
    return PictureHook(cfg, model, cfg.VIS_PERIOD)
