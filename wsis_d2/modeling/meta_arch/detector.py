# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Where boxes come from: a detector of Detectron2 with an input size of its own, or files."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from detectron2.config import CfgNode, configurable, get_cfg
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.layers import batched_nms
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.structures import Boxes, Instances
from torch import nn

from wsis_d2.modeling.backbone.folded import fold_frozen_norms
from wsis_d2.modeling.precision import amp_dtype, autocast
from wsis_d2.modeling.semantic.inference import in_groups
from wsis_d2.structures.stages import stage_named
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.json_io import read_json

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
                f"{key} is {node[last]}, and is used only in the stage 'detector'; in the stage "
                f"{cfg.MODEL.WSIS.STAGE!r} set MODEL.WSIS.{own}, which is {cfg.MODEL.WSIS[own]}"
            )
        node[last] = cfg.MODEL.WSIS[own]
    return cfg


class Limits(NamedTuple):
    """Which detections become instance labels: least score, IoU of suppression, most."""

    score: float
    nms: float
    most: int


class Detector(nn.Module):
    """Boxes, scores and thing indices of images; trained on boxes alone (paper 4.1)."""

    @configurable
    def __init__(
        self,
        *,
        rcnn: nn.Module,
        min_size: int,
        max_size: int,
        channels_last: bool = True,
        class_map: Sequence[int] = (),
        limits: Limits | None = None,
        amp: torch.dtype | None = None,
        max_batch: int = 1,
    ) -> None:
        """
        Args:
            rcnn: a meta-architecture of Detectron2 that gives ``instances``.
            min_size: the shorter side of the image is resized to this; 0 keeps the size.
            max_size: bound of the longer side.
            channels_last: run convolutions in channels-last memory order.
            class_map: thing index of each of its classes, -1: drop; empty: they are the things.
            limits: of its detections, where it is no GeneralizedRCNN with limits of its own.
            amp: 16-bit type that it runs in; None: float32.
            max_batch: most images that run together at test time.
        """
        super().__init__()
        self.rcnn = rcnn
        fold_frozen_norms(self)
        self.min_size = min_size
        self.max_size = max_size
        self.limits = limits
        self.amp = amp
        self.max_batch = max_batch
        self.class_map = list(class_map)
        self.register_buffer("_map", torch.tensor(self.class_map, dtype=torch.int64), False)
        if channels_last:
            self.rcnn.to(memory_format=torch.channels_last)

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        options = cfg.MODEL.WSIS
        alone = "detector" in stage_named(options.STAGE).trained
        if alone and options.DETECTOR_CLASSES:
            raise InputError(
                "MODEL.WSIS.DETECTOR_CLASSES names another detector's classes, and the stage "
                "'detector' trains the run's own; leave it empty, and let the box head's last "
                "layer start at random with MODEL.WSIS.PARTIAL_WEIGHTS True"
            )
        cfg = (cfg if alone else instance_label_config(cfg)).clone()
        cfg.defrost()
        name = options.DETECTOR
        if options.DETECTOR_CLASSES:
            cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(options.DETECTOR_CLASS_MAP)
        cfg.MODEL.RETINANET.NUM_CLASSES = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        if name == "WeakPanopticRCNN" or name not in META_ARCH_REGISTRY:
            known = sorted(n for n, _ in META_ARCH_REGISTRY)
            raise InputError(f"MODEL.WSIS.DETECTOR is {name!r}, registered are {', '.join(known)}")
        limits = None
        if name != "GeneralizedRCNN" and not alone:
            limits = Limits(
                options.DETECTION_SCORE_THRESH,
                options.DETECTION_NMS_THRESH,
                options.MAX_DETECTIONS,
            )
        return {
            "rcnn": META_ARCH_REGISTRY.get(name)(cfg),
            "min_size": cfg.INPUT.MIN_SIZE_TEST,
            "max_size": cfg.INPUT.MAX_SIZE_TEST,
            "class_map": options.DETECTOR_CLASS_MAP if options.DETECTOR_CLASSES else (),
            "limits": limits,
            "amp": amp_dtype(cfg),
            "max_batch": cfg.TEST.IMS_PER_BATCH,
        }

    def forward(self, batched_inputs: list[dict]) -> dict[str, torch.Tensor]:
        """Losses of a training batch: ``image`` and ``instances`` of each record."""
        with autocast(next(self.rcnn.parameters()).device, self.amp):
            return self.rcnn(batched_inputs)

    def detect(
        self, images: Sequence[torch.Tensor], records: Sequence[Mapping] | None = None
    ) -> list[Instances]:
        """Detect things.

        Images that the network sees in one size run together.

        Args:
            images: (3, H, W) each, 0 to 255, BGR.
            records: of each image ``height`` and ``width`` that the boxes are given in; default
                the image's.

        Returns:
            Of each image ``pred_boxes``, ``scores``, ``pred_classes`` (thing indices 0..T-1).
        """
        inputs = [
            {"image": self._resized(image), **output_size(image, record)}
            for image, record in zip(images, records or [{}] * len(images), strict=True)
        ]
        step = max(1, getattr(getattr(self.rcnn, "backbone", None), "size_divisibility", 1))

        def padded(record: Mapping) -> tuple[int, ...]:
            return tuple(-(-side // step) for side in record["image"].shape[-2:])

        return in_groups(inputs, padded, self._run, self.max_batch)

    def _run(self, inputs: list[dict]) -> list[Instances]:
        with autocast(inputs[0]["image"].device, self.amp):
            outputs = self.rcnn(inputs)
        found = []
        for output in outputs:
            if "instances" not in output:
                raise InputError(
                    f"MODEL.WSIS.DETECTOR: {type(self.rcnn).__name__} gives no instances, "
                    "expected a detector"
                )
            found.append(self._limited(self._mapped(output["instances"])))
        return found

    def _mapped(self, found: Instances) -> Instances:
        """Drop what is no thing of the run, and give the rest their indices."""
        if not self.class_map:
            return found
        indices = self._map[found.pred_classes]
        found.pred_classes = indices
        return found[indices >= 0]

    def _limited(self, found: Instances) -> Instances:
        if self.limits is None:
            return found
        found = found[found.scores > self.limits.score]
        boxes, scores = found.pred_boxes.tensor.float(), found.scores.float()
        kept = batched_nms(boxes, scores, found.pred_classes, self.limits.nms)
        return found[kept[: self.limits.most]]

    def _resized(self, image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[-2:]
        if self.min_size <= 0:
            return image
        scale = self.min_size / min(height, width)
        scale = min(scale, self.max_size / max(height, width))
        wanted = (max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5)))
        if wanted == (height, width):
            return image
        return F.interpolate(
            image[None].float(), size=wanted, mode="bilinear", align_corners=False,
            antialias=scale < 1,
        )[0]  # fmt: skip


class BoxesFromFiles(nn.Module):
    """Boxes of COCO result files in the place of a detector. Addition, not in the paper.

    A file holds a list of ``image_id, category_id, bbox, score``; category ids are those of the
    images' own data set, or of the one that MODEL.WSIS.DETECTOR_CLASSES names.
    """

    @configurable
    def __init__(
        self,
        *,
        files: Mapping[str, str],
        limits: Limits,
        class_map: Sequence[int] = (),
        classes_of: str = "",
    ) -> None:
        """
        Args:
            files: data set to result file.
            limits: of what becomes an instance label.
            class_map: see :class:`Detector`.
            classes_of: the data set whose category ids the files have; "": the images' own.
        """
        super().__init__()
        self.files = dict(files)
        self.limits = limits
        self.class_map = list(class_map)
        self.classes_of = classes_of
        self._known: dict[str, dict] = {}

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict:
        options = cfg.MODEL.WSIS
        classes = options.DETECTOR_CLASSES
        if len(classes) > 1:
            raise InputError(
                "MODEL.WSIS.DETECTOR_CLASSES: result files have category ids, not positions; name "
                "the data set whose ids they are, e.g. ['coco_2017_val']"
            )
        return {
            "files": dict(options.DETECTOR_BOXES),
            "limits": Limits(
                options.DETECTION_SCORE_THRESH, options.DETECTION_NMS_THRESH, options.MAX_DETECTIONS
            ),
            "class_map": options.DETECTOR_CLASS_MAP if classes else (),
            "classes_of": classes[0] if classes else "",
        }

    def detect(
        self, images: Sequence[torch.Tensor], records: Sequence[Mapping] | None = None
    ) -> list[Instances]:
        """Return each image's boxes, as :meth:`Detector.detect`; the records name them.

        Raises:
            InputError: no file is named for an image's data set.
        """
        return [
            self._of(image, record)
            for image, record in zip(images, records or [{}] * len(images), strict=True)
        ]

    def _of(self, image: torch.Tensor, record: Mapping) -> Instances:
        dataset, device = record.get("dataset_name", ""), image.device
        if dataset not in self.files:
            raise InputError(
                f"MODEL.WSIS.DETECTOR_BOXES: no file for data set {dataset!r}, there are "
                f"{', '.join(self.files)}; a photograph of its own needs a detector"
            )
        if dataset not in self._known:
            self._known[dataset] = self._read(dataset)
        rows = self._known[dataset].get(str(record["image_id"]), [])
        size = output_size(image, record)
        height, width = size["height"], size["width"]
        table = torch.tensor(rows, dtype=torch.float64, device=device).reshape(-1, 6)
        boxes = Boxes(table[:, :4].float())
        boxes.clip((height, width))
        found = Instances((height, width))
        found.pred_boxes, found.scores = boxes, table[:, 4].float()
        found.pred_classes = table[:, 5].long()
        found = found[boxes.nonempty()]
        kept = batched_nms(
            found.pred_boxes.tensor, found.scores, found.pred_classes, self.limits.nms
        )
        return found[kept[: self.limits.most]]

    def _read(self, dataset: str) -> dict[str, list]:
        path = self.files[dataset]
        ids = MetadataCatalog.get(self.classes_of or dataset).get(
            "thing_dataset_id_to_contiguous_id"
        )
        things = MetadataCatalog.get(dataset).get("thing_ids")
        content = read_json(path)
        result: dict[str, list] = {}
        try:
            self._check_images({str(row["image_id"]) for row in content}, dataset)
            for row in content:
                place = ids.get(row["category_id"])
                if place is None:
                    raise InputError(
                        f"{path}: category_id {row['category_id']} is no thing of "
                        f"{(self.classes_of or dataset)!r}, expected one of {sorted(ids)}"
                    )
                index = self.class_map[place] if self.class_map else list(things).index(place)
                x, y, w, h = map(float, row["bbox"])
                values = [x, y, x + w, y + h, float(row["score"])]
                if not all(abs(v) < 1e9 for v in values):  # nor a float that is none
                    raise ValueError(f"bbox {row['bbox']}, score {row['score']}"[:120])
                if index >= 0 and values[4] > self.limits.score:
                    result.setdefault(str(row["image_id"]), []).append([*values, index])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            if isinstance(error, InputError):
                raise
            raise InputError(
                f"MODEL.WSIS.DETECTOR_BOXES: {path}: {type(error).__name__} {error}; expected a "
                "COCO result file, a list of image_id, category_id, bbox [x, y, width, height], "
                "score, in finite numbers"
            ) from None
        return result

    def _check_images(self, found: set[str], dataset: str) -> None:
        """Refuse a file that has no image of its data set: each would pass for one of no object."""
        if not found or dataset not in DatasetCatalog.list():
            return
        known = [str(record["image_id"]) for record in DatasetCatalog.get(dataset)]
        if known and found.isdisjoint(known):
            raise InputError(
                f"MODEL.WSIS.DETECTOR_BOXES: {self.files[dataset]}: none of its image ids (such as "
                f"{min(found)}) is one of data set {dataset!r} (such as {known[0]}); write the "
                "ids of its annotation file"
            )


def build_detector(cfg: CfgNode) -> nn.Module:
    """Build the source of boxes: a network, or files where MODEL.WSIS.DETECTOR_BOXES names them."""
    if not cfg.MODEL.WSIS.DETECTOR_BOXES:
        return Detector(cfg)
    if "detector" in stage_named(cfg.MODEL.WSIS.STAGE).trained:
        raise InputError(
            "MODEL.WSIS.DETECTOR_BOXES: boxes of files leave nothing to train in the stage "
            "'detector'; go on with 'semantic'"
        )
    return BoxesFromFiles(cfg)


def output_size(image: torch.Tensor, record: Mapping) -> dict[str, int]:
    """Return the height and width that results of an image are given in."""
    height, width = image.shape[-2:]
    return {
        "height": int(record.get("height", height)),
        "width": int(record.get("width", width)),
    }
