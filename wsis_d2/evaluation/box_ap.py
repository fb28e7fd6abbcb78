# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""AP of detected boxes against the annotated ones: what a detector alone is measured by.

Addition, not in the paper.
"""

import contextlib
import io
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.structures import BoxMode
from detectron2.utils import comm
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


class BoxAPEvaluator(DatasetEvaluator):
    """COCO's box AP of the ``instances`` output, on the boxes of the dataset's own records.

    Truth masks are not needed, so it measures on weakly annotated sets too. Results:
    ``{"bbox": {"AP", "AP50", "AP75", "AP-<class>" ...}}``, in percent, NaN for a class without
    boxes.

    Args:
        dataset_name: a registered dataset.
    """

    def __init__(self, dataset_name: str) -> None:
        self._metadata = MetadataCatalog.get(dataset_name)
        self._records = DatasetCatalog.get(dataset_name)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._seen: list = []
        self._found: list[dict] = []

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Add a batch; ``pred_classes`` are unified class ids."""
        for record, output in zip(inputs, outputs, strict=True):
            self._seen.append(record["image_id"])
            instances = output["instances"].to("cpu")
            boxes = BoxMode.convert(
                instances.pred_boxes.tensor, BoxMode.XYXY_ABS, BoxMode.XYWH_ABS
            ).tolist()
            rows = zip(boxes, instances.scores.tolist(), instances.pred_classes.tolist())  # noqa: B905
            self._found += [
                {"image_id": record["image_id"], "category_id": c, "bbox": b, "score": s}
                for b, s, c in rows
            ]

    def evaluate(self) -> dict[str, dict[str, float]] | None:
        """Return the results on the main process, None on others."""
        gathered = comm.gather((self._seen, self._found), dst=0)
        if not comm.is_main_process():
            return None
        # COCO's code wants image ids that are numbers.
        number = {
            image_id: n
            for n, image_id in enumerate(dict.fromkeys(i for seen, _ in gathered for i in seen))
        }
        found = [{**f, "image_id": number[f["image_id"]]} for _, rows in gathered for f in rows]
        return OrderedDict(bbox=self._average_precision(self._truth(number), found))

    def _truth(self, number: Mapping[Any, int]) -> dict:
        images: list[dict] = []
        annotations: list[dict] = []
        for record in self._records:
            if record["image_id"] not in number:
                continue
            image = number[record["image_id"]]
            images.append({"id": image, "height": record["height"], "width": record["width"]})
            for annotation in record["annotations"]:
                box = BoxMode.convert(
                    list(annotation["bbox"]), annotation["bbox_mode"], BoxMode.XYWH_ABS
                )
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image,
                        "category_id": annotation["category_id"],
                        "bbox": box,
                        "area": box[2] * box[3],
                        "iscrowd": annotation.get("iscrowd", 0),
                    }
                )
        categories = [{"id": i} for i in self._metadata.thing_ids]
        return {"images": images, "annotations": annotations, "categories": categories}

    def _average_precision(self, truth: dict, found: list[dict]) -> dict[str, float]:
        results = OrderedDict((name, float("nan")) for name in ("AP", "AP50", "AP75"))
        things = list(self._metadata.thing_ids)
        per_class = np.full((10, len(things)), np.nan)
        if truth["annotations"]:
            with contextlib.redirect_stdout(io.StringIO()):
                coco = COCO()
                coco.dataset = truth
                coco.createIndex()
                # loadRes cannot take an empty list; an empty COCO has no detections either.
                detections = coco.loadRes(found) if found else COCO()
                evaluation = COCOeval(coco, detections, "bbox")
                evaluation.evaluate()
                evaluation.accumulate()
            # (IoU thresholds, recalls, classes, areas, detections an image); -1: no such box.
            precision = evaluation.eval["precision"][:, :, :, 0, -1]
            known = (precision > -1).all((0, 1))
            per_class[:, known] = 100 * precision[:, :, known].mean(1)
        if np.isfinite(per_class).any():
            results["AP"] = float(np.nanmean(per_class))
            results["AP50"] = float(np.nanmean(per_class[0]))
            results["AP75"] = float(np.nanmean(per_class[5]))
        for k, thing in enumerate(things):
            name = self._metadata.thing_classes[thing]
            results[f"AP-{name}"] = float(per_class[:, k].mean())
        return results
