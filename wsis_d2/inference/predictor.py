# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A trained model, opened by run folder or zoo id, and applied to pictures."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from wsis_d2.checkpoint.reader import load_exactly
from wsis_d2.utils.errors import InputError
from wsis_d2.visualization.layers import Annotation, Labels
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

    def layer(self) -> Labels | Annotation:
        """Return the prediction as a layer to draw."""
        if self.ids is None:
            return Annotation(self.boxes, self.box_classes, scores=self.box_scores)
        return predicted_layer(self.ids, self.segments)


def open_model(name: str, device: str | None = None) -> tuple[CfgNode, str, dict[str, Any]]:
    """Return config, weights and metadata of a run's folder or of a released model.

    Args:
        name: OUTPUT_DIR of a run (``config.yaml``, ``metadata.json``, ``model_final.pth``), a
            checkpoint file in such a folder, or an id of the model zoo.
        device: "cpu" or "cuda"; None takes a GPU where there is one.

    Raises:
        InputError: neither a run's folder nor a released model; a file of it is missing.
    """
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
    cfg.MODEL.DEVICE = device
    cfg.MODEL.WEIGHTS = ""
    return cfg, str(weights), metadata


def model_classes(metadata: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the classes of a model's ``metadata.json`` in the order of their unified ids."""
    if metadata.get("categories"):
        return class_list(metadata["categories"])
    things = set(metadata["thing_ids"])
    rows = zip(metadata["stuff_classes"], metadata["stuff_colors"], strict=True)
    return class_list(
        [
            {"id": index, "name": name, "isthing": index in things, "color": color}
            for index, (name, color) in enumerate(rows)
        ]
    )


class PanopticPredictor:
    """Applies a trained model to pictures.

    Args:
        name: run folder or zoo id, see :func:`open_model`.
        device: "cpu" or "cuda"; None takes a GPU where there is one.
        max_side: larger pictures are scaled down to this longer side for the network, the result
            is given in the picture's own pixels; 0 never scales.
        score_threshold: detections below it are dropped; None keeps the model's own.

    Raises:
        InputError: the model cannot be opened, or is none of wsis_d2's panoptic models.
    """

    def __init__(
        self,
        name: str,
        device: str | None = None,
        max_side: int = 1333,
        score_threshold: float | None = None,
    ) -> None:
        cfg, weights, metadata = open_model(name, device)
        if cfg.MODEL.META_ARCHITECTURE != "WeakPanopticRCNN":
            raise InputError(
                f"--model {name}: is a {cfg.MODEL.META_ARCHITECTURE}, expected a WeakPanopticRCNN"
            )
        if score_threshold is not None:
            cfg.MODEL.WSIS.DETECTION_SCORE_THRESH = score_threshold
            cfg.MODEL.ROI_HEADS.SCORE_THRESH_TEST = score_threshold
        self.cfg = cfg
        self.classes = model_classes(metadata)
        self.max_side = max_side
        self.model = build_model(cfg).eval()
        load_exactly(self.model, weights)

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Prediction:
        """Predict one picture.

        Args:
            image: uint8 (H, W, 3) RGB.
        """
        height, width = image.shape[:2]
        shown = image
        if self.max_side and max(height, width) > self.max_side:
            factor = self.max_side / max(height, width)
            size = (max(1, round(width * factor)), max(1, round(height * factor)))
            shown = cv2.resize(image, size, interpolation=cv2.INTER_AREA)
        if self.cfg.INPUT.FORMAT == "BGR":
            shown = shown[..., ::-1]
        tensor = torch.from_numpy(np.ascontiguousarray(shown.transpose(2, 0, 1)))
        output = self.model([{"image": tensor, "height": height, "width": width}])[0]
        if output.get("panoptic_seg") is not None:
            ids, segments = output["panoptic_seg"]
            return Prediction(ids.cpu().numpy().astype(np.int32), segments, [], [], [])
        if output.get("sem_seg") is not None:
            return self._from_semantic(output["sem_seg"])
        found = output["instances"].to("cpu")
        return Prediction(
            None,
            [],
            found.pred_boxes.tensor.tolist(),
            found.pred_classes.tolist(),
            found.scores.tolist(),
        )

    def _from_semantic(self, probabilities: torch.Tensor) -> Prediction:
        """Return one segment a class of a semantic model's output."""
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
        return Prediction(ids, segments, [], [], [])
