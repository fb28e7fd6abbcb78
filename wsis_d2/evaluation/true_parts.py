# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What limits a model: its parts replaced by the truth, one at a time.

Addition, not in the paper.
"""

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from torch import nn

from wsis_d2.config_checks.runs import check_true_parts
from wsis_d2.evaluation.panoptic_truth import PanopticTruth
from wsis_d2.modeling.instance import make_labels
from wsis_d2.modeling.meta_arch import WeakPanopticRCNN
from wsis_d2.structures.labels import IGNORE
from wsis_d2.utils.errors import InputError

TRUE_PARTS = ("boxes", "semantics")


class TruePartsModel(nn.Module):
    """Predicts like a ``WeakPanopticRCNN`` whose detector, semantic subnetwork or both are right.

    What is gained over the model itself is what the replaced part costs; with both replaced, what
    is left is the instance head's own loss. For evaluation alone.
    """

    def __init__(self, model: nn.Module, dataset_name: str, parts: list[str]) -> None:
        """
        Args:
            model: a ``WeakPanopticRCNN`` in an instance stage.
            dataset_name: the evaluated dataset, which must have panoptic truth.
            parts: of ``TRUE_PARTS``. "boxes": the detections are the tight boxes of the true
                things (no crowds), score 1. "semantics": a pixel's class is the true one with
                probability 1; void pixels keep what the model says.

        Raises:
            InputError: an unknown part, or a model without these parts.
        """
        super().__init__()
        unknown = sorted(set(parts) - set(TRUE_PARTS))
        if unknown:
            raise InputError(f"TEST.TRUE_PARTS: {unknown[0]!r}, expected some of {TRUE_PARTS}")
        if not isinstance(model, WeakPanopticRCNN) or model.instance is None:
            raise InputError(
                "TEST.TRUE_PARTS: replaces parts of a WeakPanopticRCNN in an instance stage; "
                "set MODEL.WSIS.STAGE to instance_piecewise or end_to_end"
            )
        self.model = model
        self.truth = PanopticTruth(dataset_name)
        self.parts = frozenset(parts)

    @torch.no_grad()
    def forward(self, batched_inputs: list[dict]) -> list[dict]:
        """As the model's in evaluation mode.

        Raises:
            InputError: an image without truth, or one that is evaluated in another size.
        """
        return [self._predict(record) for record in batched_inputs]

    def _predict(self, record: dict) -> dict:
        model = self.model
        image, size = model.input_of(record)
        key = self.truth.key(record)
        probabilities = model.class_probabilities([image], [size])[0]
        if "semantics" in self.parts:
            semantic = torch.as_tensor(self.truth.semantic(key).astype(np.int64)).to(model.device)
            if tuple(semantic.shape) != size:
                raise InputError(
                    f"{self.truth.file.png(key)}: its size is {tuple(semantic.shape)}, that of "
                    f"{record.get('file_name')} is {size}"
                )
            known = semantic != IGNORE
            one_hot = F.one_hot(semantic.where(known, 0), model.num_classes).permute(2, 0, 1)
            probabilities = torch.where(known, one_hot.to(probabilities.dtype), probabilities)
        if "boxes" in self.parts:
            labels = make_labels(*self._true_boxes(key), model.stuff_ids, size)
        else:
            labels = model.instance_labels([image], [record])[0]
        return {"sem_seg": probabilities, **model.merge(probabilities, image, labels)}

    def _true_boxes(self, key: str) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Boxes (D, 4) XYXY, scores (D,) and unified classes (D,) of the true things."""
        ids, classes = self.truth.ids(key), self.truth.classes
        boxes, labels = [], []
        for segment in self.truth.file.segments(key):
            unified = classes.contiguous[segment["category_id"]]
            if not classes.isthing[unified] or segment.get("iscrowd"):
                continue
            ys, xs = np.nonzero(ids == segment["id"])
            if len(ys):
                boxes.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1])
                labels.append(unified)
        device = self.model.device
        corners = torch.as_tensor(np.array(boxes, np.float32).reshape(-1, 4), device=device)
        classes = torch.as_tensor(labels, dtype=torch.int64, device=device)
        return corners, torch.ones(len(labels), device=device), classes


def with_true_parts(cfg: CfgNode, model: nn.Module, dataset_name: str) -> nn.Module:
    """Return the model as TEST.TRUE_PARTS has it evaluated: itself where that is empty.

    Raises:
        InputError: parts that cannot be replaced, or a run that would pass for the main one.
    """
    check_true_parts(cfg)
    parts = cfg.TEST.TRUE_PARTS
    return TruePartsModel(model, dataset_name, parts) if parts else model
