# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A trained model, opened by run folder or zoo id, and applied to pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode

from wsis_d2.checkpoint.parts import load_trained
from wsis_d2.checkpoint.weight_keys import only_weights
from wsis_d2.modeling.build import build_model
from wsis_d2.modeling.upsampling import upsample_labels
from wsis_d2.structures.classes import ClassTable
from wsis_d2.structures.stages import stage_of
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.image_io import image_tensor
from wsis_d2.visualization.layers import AnnotationLayer, LabelLayer
from wsis_d2.visualization.palette import class_list
from wsis_d2.visualization.sample_pictures import predicted_layer


@dataclass
class Prediction:
    """What a model says of one picture, in the picture's own pixels.

    Attributes:
        ids: (H, W) int32 segment ids, 0 = none; None for a detector.
        segments: ``{"id", "category_id" (unified), "isthing", "score", "scores", "area"}`` each.
        boxes: XYXY of detections; only for a detector.
        box_classes: unified class ids of ``boxes``.
        box_scores: scores of ``boxes``.
    """

    ids: np.ndarray | None
    segments: list[dict[str, Any]]
    boxes: list[list[float]]
    box_classes: list[int]
    box_scores: list[float]

    def layer(self) -> LabelLayer | AnnotationLayer:
        """Return the prediction as a layer to draw."""
        if self.ids is None:
            return AnnotationLayer(self.boxes, self.box_classes, scores=self.box_scores)
        return predicted_layer(self.ids, self.segments)


def open_model(name: str, device: str | None = None) -> tuple[CfgNode, str, dict[str, Any]]:
    """Return config, weights and metadata of a run's folder or of a released model.

    Args:
        name: OUTPUT_DIR of a run (``config.yaml``, ``metadata.json``, ``model_final.pth``), a
            checkpoint file in such a folder, or an id of the model zoo.
        device: "cpu" or "cuda"; None takes a GPU where there is one.

    Raises:
        InputError: neither a run's folder nor a released model; a file of it is missing, or its
            config and its metadata have different classes.
    """
    from wsis_d2.engine.run_classes import fill_classes
    from wsis_d2.model_zoo import get_config, get_metadata
    from wsis_d2.model_zoo.publish import read_metadata, self_contained_config

    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"--device {device}: no GPU is visible; use --device cpu")
    path = Path(name)
    folder, weights = path, path / "model_final.pth"
    if path.is_file():
        folder, weights = path.parent, path
    if not path.exists():
        if name.startswith(("/", ".", "~")) or path.suffix in (".pth", ".pkl"):
            raise InputError(f"--model {name}: no such run folder or checkpoint")
        cfg, metadata = get_config(name, trained=True), get_metadata(name)
        weights = cfg.MODEL.WEIGHTS
    else:
        cfg = self_contained_config(folder / "config.yaml")
        metadata = read_metadata(folder / "metadata.json")
        if not weights.is_file():
            raise InputError(f"{weights}: no such file, expected the run's last checkpoint")
    fill_classes(cfg, model_classes(metadata, name))
    cfg = only_weights(cfg)
    cfg.MODEL.DEVICE = device
    return cfg, str(weights), metadata


def model_classes(metadata: dict[str, Any], name: str) -> ClassTable:
    """Return the classes of a model's ``metadata.json``, which ``name`` names in messages."""
    classes = ClassTable.of_metadata(metadata, f"the metadata.json of {name}")
    if classes is None:
        raise InputError(f"the metadata.json of {name}: has no classes; training writes them")
    return classes


class PanopticPredictor:
    """Applies a trained model to pictures.

    Args:
        name: run folder or zoo id, see :func:`open_model`.
        device: "cpu" or "cuda"; None takes a GPU where there is one.
        max_side: larger pictures are scaled down to this longer side for the network and its CRF,
            and the labels brought up to the picture's own pixels with the picture as guide
            (:func:`wsis_d2.modeling.upsampling.upsample_labels`); 0 never scales.
        score_threshold: detections below it are dropped; None keeps the model's own.
        full_size: run the CRF on all pixels of larger pictures too, with time and memory that
            grow with them.
        batch: most pictures that :meth:`batch` shows the network together; None keeps the
            model's TEST.IMS_PER_BATCH.

    Raises:
        InputError: the model cannot be opened, or is none of wsis_d2's panoptic models.
    """

    def __init__(
        self,
        name: str,
        device: str | None = None,
        max_side: int = 1333,
        score_threshold: float | None = None,
        full_size: bool = False,
        batch: int | None = None,
    ) -> None:
        cfg, weights, metadata = open_model(name, device)
        if cfg.MODEL.META_ARCHITECTURE != "WeakPanopticRCNN":
            raise InputError(
                f"--model {name}: is a {cfg.MODEL.META_ARCHITECTURE}, expected a WeakPanopticRCNN"
            )
        if score_threshold is not None:
            if stage_of(cfg).parts == ("detector",):
                cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = score_threshold
                cfg.MODEL.RETINANET.SCORE_THRESH_TEST = score_threshold
            else:
                cfg.MODEL.WSIS.DETECTION_SCORE_THRESH = score_threshold
        if batch is not None:
            cfg.TEST.IMS_PER_BATCH = batch
        self.cfg = cfg
        self.classes = class_list(model_classes(metadata, name).categories)
        self.max_side = max_side
        # Boxes cost nothing at full size; the detector has no labels to bring up.
        self.full_size = full_size or stage_of(cfg).parts == ("detector",)
        self.model = build_model(cfg).eval()
        load_trained(self.model, weights, key="--model")

    @property
    def batch_size(self) -> int:
        """Most pictures that the network sees together."""
        return self.cfg.TEST.IMS_PER_BATCH

    def __call__(self, image: np.ndarray) -> Prediction:
        """Predict one picture, uint8 (H, W, 3) RGB."""
        return self.batch([image])[0]

    @torch.no_grad()
    def batch(self, images: Sequence[np.ndarray]) -> list[Prediction]:
        """Predict pictures; those that are padded to one size run together.

        Args:
            images: uint8 (H, W, 3) RGB each.
        """
        outputs = self.model([self._input(image) for image in images])
        return [self._prediction(*pair) for pair in zip(images, outputs, strict=True)]

    def _input(self, image: np.ndarray) -> dict[str, Any]:
        height, width = size = image.shape[:2]
        shown = image
        if self.max_side and max(height, width) > self.max_side:
            factor = self.max_side / max(height, width)
            small = (max(1, round(width * factor)), max(1, round(height * factor)))
            shown = cv2.resize(image, small, interpolation=cv2.INTER_AREA)
        if not self.full_size:
            size = shown.shape[:2]
        if self.cfg.INPUT.FORMAT == "BGR":
            shown = shown[..., ::-1]
        return {"image": image_tensor(shown), "height": size[0], "width": size[1]}

    def _prediction(self, image: np.ndarray, output: dict[str, Any]) -> Prediction:
        if output.get("panoptic_seg") is not None:
            ids, segments = output["panoptic_seg"]
            return _of_size(image, ids.cpu().numpy().astype(np.int32), segments)
        if output.get("sem_seg") is not None:
            return _of_size(image, *self._from_semantic(output["sem_seg"]))
        found = output["instances"].to("cpu")
        return Prediction(
            None,
            [],
            found.pred_boxes.tensor.tolist(),
            found.pred_classes.tolist(),
            found.scores.tolist(),
        )

    @staticmethod
    def _from_semantic(probabilities: torch.Tensor) -> tuple[np.ndarray, list[dict[str, Any]]]:
        """Return ids and segments of a semantic model's output, one segment a class."""
        confidence, labels = probabilities.max(0)
        ids = (labels + 1).cpu().numpy().astype(np.int32)
        segments = []
        for index in torch.unique(labels).tolist():
            mask = labels == index
            score = float(confidence[mask].mean())
            segments.append(
                {
                    "id": index + 1,
                    "category_id": index,
                    "isthing": False,
                    "score": score,
                    "scores": {"mean_confidence": score},
                    "area": int(mask.sum()),
                }
            )
        return ids, segments


def _of_size(image: np.ndarray, ids: np.ndarray, segments: list[dict[str, Any]]) -> Prediction:
    """Return segments in the picture's own pixels, with the areas they have there."""
    if ids.shape != image.shape[:2]:
        ids = upsample_labels(ids, image)
        areas = np.bincount(ids.ravel(), minlength=1 + max((s["id"] for s in segments), default=0))
        segments = [{**s, "area": int(areas[s["id"]])} for s in segments if areas[s["id"]]]
    return Prediction(ids, segments, [], [], [])
