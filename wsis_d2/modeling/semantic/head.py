# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""What a semantic head does here, and Detectron2's own heads doing it."""

import importlib

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec
from detectron2.modeling import SEM_SEG_HEADS_REGISTRY
from detectron2.utils import comm
from torch import nn

from wsis_d2.utils.errors import InputError


class SemanticHead(nn.Module):
    """Features to class logits, and the mean cross entropy over labelled pixels (paper eq. 1).

    The mean is over the pixels of all processes, so that several processes give the loss of one
    with the same images.

    Attributes:
        num_classes: number of classes C.
        ignore_value: label of pixels without a class.
        stride: pixels of the image a logit stands for.
        size_divisibility: what sides of the image must be a multiple of; 0: of ``stride``, plus 1.
        loss_weight, aux_loss_weight: of both losses.
    """

    num_classes: int
    ignore_value: int
    stride: int
    size_divisibility: int = 0
    loss_weight: float = 1.0
    aux_loss_weight: float = 0.0

    def forward(
        self, features: dict[str, torch.Tensor]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return logits (N, C, h, w), and those of an auxiliary classifier while training."""
        raise NotImplementedError

    def losses(
        self,
        logits: torch.Tensor,
        aux_logits: torch.Tensor | None,
        targets: torch.Tensor,
    ) -> dict[str, torch.Tensor]:
        """Mean cross entropy over labelled pixels.

        Args:
            logits: (N, C, H, W), at the targets' size.
            aux_logits: the same of the auxiliary classifier, or None.
            targets: (N, H, W) int64, ``ignore_value`` where there is no label.

        Returns:
            ``loss_sem_seg`` and, with an auxiliary classifier, ``loss_sem_seg_aux``; 0 with a
            graph where no pixel has a label.
        """
        count = (targets != self.ignore_value).sum().float()
        count = mean_over_processes(count).clamp(min=1.0)

        def mean_loss(scores: torch.Tensor) -> torch.Tensor:
            total = F.cross_entropy(
                scores.float(), targets, reduction="sum", ignore_index=self.ignore_value
            )
            return total / count

        losses = {"loss_sem_seg": self.loss_weight * mean_loss(logits)}
        if aux_logits is not None:
            losses["loss_sem_seg_aux"] = self.aux_loss_weight * mean_loss(aux_logits)
        return losses


# Detectron2's DeepLab heads read these; a project that adds them to its config has its own.
_DEEPLAB = {
    "ASPP_CHANNELS": 256,
    "ASPP_DILATIONS": [6, 12, 18],
    "ASPP_DROPOUT": 0.1,
    "USE_DEPTHWISE_SEPARABLE_CONV": False,
    "LOSS_TYPE": "cross_entropy",
}


class RegistryHead(SemanticHead):
    """A head of Detectron2's registry: SemSegFPNHead, DeepLabV3PlusHead or one's own.

    Addition, not in the paper, which uses PSPNet and says that any network will do (3.5).

    Such a head returns losses while training and logits at the image's size otherwise. Here logits
    are needed in both, for the CRF and for what annotation says.
    """

    def __init__(self, inner: nn.Module, name: str, num_classes: int, divisibility: int) -> None:
        """
        Args:
            inner: the head.
            name: its name in the registry, for messages.
            num_classes: number of classes C.
            divisibility: the greatest stride of its features.
        """
        super().__init__()
        self.inner = inner
        self.name = name
        self.num_classes = num_classes
        self.ignore_value = getattr(inner, "ignore_value", 255)
        self.loss_weight = getattr(inner, "loss_weight", 1.0)
        self.stride = getattr(inner, "common_stride", 1)
        self.size_divisibility = divisibility

    def forward(self, features: dict[str, torch.Tensor]) -> tuple[torch.Tensor, None]:
        """Return logits (N, C, H, W), None."""
        training = self.inner.training
        # The head's own flag alone, which chooses what it returns; its layers go on training.
        self.inner.training = False
        try:
            found = self.inner(features)
        finally:
            self.inner.training = training
        logits = found[0] if isinstance(found, tuple) else found
        if (
            not isinstance(logits, torch.Tensor)
            or logits.dim() != 4
            or logits.shape[1] != self.num_classes
        ):
            is_tensor = isinstance(logits, torch.Tensor)
            shape = tuple(logits.shape) if is_tensor else f"a {type(logits).__name__}"
            raise InputError(
                f"MODEL.SEM_SEG_HEAD.NAME {self.name}: gives {shape} for logits, expected "
                f"(N, {self.num_classes}, H, W)"
            )
        return logits, None

    def losses(
        self, logits: torch.Tensor, aux_logits: torch.Tensor | None, targets: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        """The usual loss, or DeepLab's "hard_pixel_mining" where the head is set to it."""
        if getattr(self.inner, "loss_type", "") == "hard_pixel_mining":
            loss = self.inner.loss(logits.float(), targets)
            return {"loss_sem_seg": self.loss_weight * loss}
        return super().losses(logits, aux_logits, targets)


def build_semantic_head(cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> SemanticHead:
    """Build MODEL.SEM_SEG_HEAD.NAME on a backbone's features.

    Raises:
        InputError: no such head is registered, or it does not fit the features.
    """
    own = cfg.MODEL.SEM_SEG_HEAD
    name = own.NAME
    if name not in SEM_SEG_HEADS_REGISTRY and name.startswith("DeepLab"):
        importlib.import_module("detectron2.projects.deeplab")  # registers its heads
    if name not in SEM_SEG_HEADS_REGISTRY:
        known = sorted(n for n, _ in SEM_SEG_HEADS_REGISTRY)
        raise InputError(f"MODEL.SEM_SEG_HEAD.NAME is {name!r}, registered are {', '.join(known)}")
    missing = [f for f in own.IN_FEATURES if f not in input_shape]
    if missing:
        raise InputError(
            f"MODEL.SEM_SEG_HEAD.IN_FEATURES names {missing[0]!r}, the backbone gives "
            f"{', '.join(input_shape)}"
        )
    # Images have all sizes: no pooling of the crop's size.
    plain = cfg.clone()
    plain.defrost()
    plain.INPUT.CROP.ENABLED = False
    if name.startswith("DeepLab"):
        projected = [48] * (len(own.IN_FEATURES) - 1)
        for key, value in {**_DEEPLAB, "PROJECT_CHANNELS": projected}.items():
            plain.MODEL.SEM_SEG_HEAD.setdefault(key, value)
    try:
        head = SEM_SEG_HEADS_REGISTRY.get(name)(plain, input_shape)
    except (KeyError, AssertionError, ValueError, TypeError) as error:
        text = " ".join(str(error).split())[:200]
        raise InputError(
            f"MODEL.SEM_SEG_HEAD.NAME {name}: cannot be built ({type(error).__name__}: {text}); "
            "expected a head made from (cfg, input_shape), and its keys in MODEL.SEM_SEG_HEAD"
        ) from error
    if isinstance(head, SemanticHead):
        return head
    strides = [shape.stride for f, shape in input_shape.items() if f in own.IN_FEATURES]
    return RegistryHead(head, name, own.NUM_CLASSES, max(strides))


def mean_over_processes(value: torch.Tensor) -> torch.Tensor:
    """Return the mean of a tensor over all processes; itself where there is one."""
    world = comm.get_world_size()
    if world == 1:
        return value
    value = value.clone()
    torch.distributed.all_reduce(value)
    return value / world
