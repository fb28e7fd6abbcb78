# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Predictions on a set without truth, such as a challenge's test set, written and not measured."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

import torch
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from wsis_d2.data.panoptic_format import (
    PREDICTION_FOLDER,
    PREDICTION_JSON,
    SEMANTIC_FOLDER,
    write_panoptic_png,
    write_png,
    write_semantic_classes,
)
from wsis_d2.evaluation.panoptic_truth import panoptic_prediction
from wsis_d2.structures.classes import parse_categories
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.json_io import write_json


class PredictionWriter(DatasetEvaluator):
    """Writes ``panoptic_seg`` and ``sem_seg`` outputs as the evaluators do; has no results.

    Files: ``panoptic_pred.json`` with ``panoptic_pred/*.png`` (COCO panoptic with scores) and
    ``semantic_pred/*.png`` (uint8 unified ids) with ``semantic_pred.json`` (their classes), named
    like the images.

    Args:
        dataset_name: a registered dataset; its metadata's ``categories`` and ``image_root`` are
            read.
        output_folder: where the files go; all processes share it.
    """

    def __init__(self, dataset_name: str, output_folder: str | Path) -> None:
        self.metadata = MetadataCatalog.get(dataset_name)
        self.classes = parse_categories(self.metadata.categories, f"dataset {dataset_name}")
        self.output_folder = Path(output_folder)
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._images: list[dict[str, Any]] = []
        self._pngs: dict[str, str] = {}  # of a prediction to its picture
        self._annotations: list[dict[str, Any]] = []

    def process(
        self, inputs: Sequence[Mapping[str, Any]], outputs: Sequence[Mapping[str, Any]]
    ) -> None:
        """Write a batch of images."""
        for record, output in zip(inputs, outputs, strict=True):
            name = self._name(record["file_name"])
            png = str(PurePath(name).with_suffix(".png"))
            self._note(png, record["file_name"])
            image = {"id": record["image_id"], "file_name": name}
            if output.get("sem_seg") is not None:
                labels = output["sem_seg"].argmax(0).to(torch.uint8).cpu().numpy()
                write_png(self.output_folder / SEMANTIC_FOLDER / png, labels)
                image["height"], image["width"] = map(int, labels.shape)
            if output.get("panoptic_seg") is not None:
                ids, segments = panoptic_prediction(
                    output["panoptic_seg"], self.classes, self.metadata.get("label_divisor", 1000)
                )
                write_panoptic_png(self.output_folder / PREDICTION_FOLDER / png, ids)
                image["height"], image["width"] = map(int, ids.shape)
                self._annotations.append(
                    {"image_id": record["image_id"], "file_name": png, "segments_info": segments}
                )
            self._images.append(image)

    def _note(self, png: str, picture: str) -> None:
        other = self._pngs.setdefault(png, picture)
        if other != picture:
            raise InputError(
                f"{picture}: its prediction would replace that of {other}, both are {png}; rename "
                "one of the pictures"
            )

    def _name(self, file_name: str) -> str:
        relative = os.path.relpath(file_name, self.metadata.image_root)
        return os.path.basename(file_name) if relative.startswith("..") else relative

    def evaluate(self) -> dict[str, dict[str, float]]:
        """Write the JSON on the main process; return no results.

        Raises:
            InputError: predictions of two pictures, made by two processes, are one file.
        """
        comm.synchronize()
        pngs = comm.gather(self._pngs)
        gathered = comm.gather((self._images, self._annotations))
        if comm.is_main_process():
            for png, picture in (pair for part in pngs for pair in part.items()):
                self._note(png, picture)
            content = {
                "images": [image for images, _ in gathered for image in images],
                "annotations": [a for _, annotations in gathered for a in annotations],
                "categories": self.classes.categories,
            }
            for name, key in (("images", "id"), ("annotations", "image_id")):
                content[name] = sorted(content[name], key=lambda entry: str(entry[key]))
            write_json(self.output_folder / PREDICTION_JSON, content)
            write_semantic_classes(
                self.output_folder / SEMANTIC_FOLDER, self.classes, sorted(self._pngs)
            )
        return {}
