# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Masks of promptable segmenters: Segment Anything and its kin, through ``transformers``.

Addition, not in the paper: these networks learned from true masks of other images.
"""

import dataclasses
import functools
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask
from yacs.config import CfgNode

from wsis_d2.structures.annotation import centre_boxes
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.files import list_files, sha256_file
from wsis_d2.weak_labels.proposals.files import RLEProposals
from wsis_d2.weak_labels.proposals.source import PROPOSAL_SOURCE_REGISTRY, ProposalSource

_KEY = "WEAK_LABELS.PROPOSALS.PATH"
_EXAMPLE = "facebook/sam-vit-base"
_WEIGHTS = ("*.safetensors", "*.bin")


@PROPOSAL_SOURCE_REGISTRY.register_as("segment_anything")
@dataclasses.dataclass(frozen=True)
class SegmentAnythingSource(ProposalSource):
    """One mask for each annotated box, prompted by it: ``owners`` and ``scores`` are set.

    Attributes:
        path: a folder that ``save_pretrained`` wrote, or a name on the Hugging Face hub, which is
            downloaded once. Any model of ``AutoModelForMaskGeneration`` that takes boxes: sam,
            sam_hq, sam2, edgetam.
        batch: boxes that go through the mask decoder together; the image is encoded once.
        device: "" is a GPU where there is one.
    """

    path: str
    batch: int = 64
    device: str = ""

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "SegmentAnythingSource":
        """Read ``cfg.WEAK_LABELS.PROPOSALS.PATH``; look for the model.

        Raises:
            InputError: ``transformers`` or the model is missing.
        """
        source = cls(cfg.WEAK_LABELS.PROPOSALS.PATH)
        _identity(source.path)
        return source

    def recipe(self) -> dict:
        """See :class:`ProposalSource`; weights count by what they are, not where they lie."""
        return {"source": "segment_anything", "model": _identity(self.path)}

    def __call__(self, image: np.ndarray, record: Mapping) -> RLEProposals:
        """See :class:`ProposalSource`."""
        boxes = centre_boxes(record)
        size = int(image.shape[0]), int(image.shape[1])
        owners = [k for k, box in enumerate(boxes) if not box.is_group]
        rles: list[dict] = []
        scores: list[float] = []
        segmenter = _Segmenter.load(self.path, self.device) if owners else None
        for start in range(0, len(owners), self.batch):
            if not start:
                segmenter.look_at(image)
            corners = [boxes[k].corners for k in owners[start : start + self.batch]]
            masks, found = segmenter.masks(corners)
            rles += [coco_mask.encode(np.asfortranarray(mask, np.uint8)) for mask in masks]
            scores += found
        return RLEProposals(rles, size, np.array(owners, int), np.array(scores, float))


class _Segmenter:
    """A model with its processor, and the image that it looks at."""

    def __init__(self, path: str, device: str) -> None:
        import torch

        auto = _transformers()
        self.device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        try:
            self.processor = auto.AutoProcessor.from_pretrained(path)
            self.model = auto.AutoModelForMaskGeneration.from_pretrained(path)
        except (OSError, ValueError, ImportError, KeyError) as error:
            raise _missing(path, error) from None
        self.model.to(self.device).eval()

    @staticmethod
    @functools.lru_cache(maxsize=1)
    def load(path: str, device: str) -> "_Segmenter":
        """Return the segmenter of a process, loaded when it is first asked for."""
        return _Segmenter(path, device)

    def look_at(self, image: np.ndarray) -> None:
        """Encode an image, (H, W, 3) uint8 BGR."""
        import torch

        self.image = np.ascontiguousarray(image[..., ::-1])
        pixels = self.processor(images=self.image, return_tensors="pt")["pixel_values"]
        with torch.inference_mode():
            self.seen = self.model.get_image_embeddings(pixels.to(self.device))

    def masks(self, corners: list[tuple[int, int, int, int]]) -> tuple[np.ndarray, list[float]]:
        """Return the (N, H, W) bool masks of boxes, x0, y0, x1, y1 with exclusive ends, and IoU."""
        import torch

        boxes = [[[float(v) for v in box] for box in corners]]
        inputs = self.processor(images=self.image, input_boxes=boxes, return_tensors="pt")
        sizes = [inputs[k] for k in ("original_sizes", "reshaped_input_sizes") if k in inputs]
        with torch.inference_mode():
            outputs = self.model(
                input_boxes=inputs["input_boxes"].to(self.device, torch.float32),
                image_embeddings=self.seen,
                multimask_output=False,
            )
        masks = self.processor.post_process_masks(outputs.pred_masks.cpu(), *sizes)[0]
        return masks[:, 0].numpy(), outputs.iou_scores[0, :, 0].float().cpu().tolist()


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise InputError(
            "WEAK_LABELS.PROPOSALS.NAME segment_anything: needs transformers, which is not "
            "installed; install it with: pip install 'wsis_d2[sam]'"
        ) from None
    return transformers


@functools.lru_cache(maxsize=4)
def _identity(path: str) -> list[str]:
    """Return what tells a model from others: its name, its kind and its revision or content."""
    auto = _transformers()
    if not path:
        raise InputError(
            f"{_KEY}: '', the source segment_anything expects a folder with the model, or its "
            f"name on the Hugging Face hub, e.g. {_EXAMPLE}"
        )
    files: list[Path] = []
    if os.path.isdir(path):
        files = sorted(f for pattern in _WEIGHTS for f in list_files(path, pattern))
        if not files:
            raise _missing(path, f"no weights in the folder ({' or '.join(_WEIGHTS)})")
    try:
        config = auto.AutoConfig.from_pretrained(path)
    except (OSError, ValueError, KeyError) as error:
        raise _missing(path, error) from None
    known = auto.AutoModelForMaskGeneration._model_mapping
    if type(config) not in known:
        raise InputError(
            f"{_KEY} {path}: a model of kind {config.model_type!r}, which takes no boxes as "
            f"prompts; expected a Segment Anything model, e.g. {_EXAMPLE}"
        )
    revision = getattr(config, "_commit_hash", None) or "-".join(sha256_file(f)[:16] for f in files)
    return [os.path.basename(os.path.normpath(path)), config.model_type, revision]


def _missing(path: str, error: object) -> InputError:
    why = " ".join(str(error).split())[:160]
    return InputError(
        f"{_KEY} {path}: no promptable segmenter could be loaded ({why}); expected a folder that "
        "save_pretrained wrote, or, with a network, a name on the Hugging Face hub, "
        f"e.g. {_EXAMPLE}"
    )
