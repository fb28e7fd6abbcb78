# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The files of a tiny project, all sound, and the commands that read them."""

import json

import cv2
import numpy as np
import torch

from helpers.annotation_writers import (
    write_coco,
    write_cvat,
    write_label_studio,
    write_labelme,
    write_voc,
    write_yolo,
)
from helpers.load_tool import ROOT

CONFIG = ROOT / "configs" / "Sample-Panoptic" / "tiny_semantic.yaml"
TAG_CONFIG = ROOT / "configs" / "Sample-TagClassifier" / "tag_classifier_R_18.yaml"
OUTSIDE = "load_exported"  # runs without the project, so it ends by itself


class World:
    """Paths of the tiny project and the commands that read them."""

    def __init__(self, tiny, root, program):
        self.root, self.out = root, root / "out"
        self.weak = tiny.data / "weak_train.json"
        self.image = tiny.data / "images" / "train" / "0001.png"
        self.gt = tiny.data / "panoptic_train.json"
        self.gt_png = tiny.data / "panoptic_train" / "0001.png"
        self.manifest = tiny.store / "manifest.json"
        self.label_png = sorted((tiny.store / "semantic").glob("*.png"))[0]
        self.pred = tiny.run / "inference" / "sample_val_full" / "panoptic_pred.json"
        self.pred_png = sorted(self.pred.with_suffix("").glob("*.png"))[0]
        self.val_gt = tiny.data / "panoptic_val.json"
        self.results = tiny.run / "results.json"
        self.metrics = tiny.run / "metrics.json"
        self.weights = tiny.run / "model_final.pth"
        self.config = tiny.run / "config.yaml"
        self.metadata = tiny.run / "metadata.json"
        self.classifier = root / "classifier.pth"
        torch.save({"model": {"w": torch.zeros(2)}}, self.classifier)
        self.recipe = root / "recipe.yaml"
        self.recipe.write_text(f'_BASE_: "{CONFIG}"\n')
        self.tag_recipe = root / "tag_recipe.yaml"
        self.tag_recipe.write_text(f'_BASE_: "{TAG_CONFIG}"\n')
        self.photo = root / "photo.png"
        self.photo.write_bytes(self.image.read_bytes())
        self.video = root / "film.avi"
        film = cv2.VideoWriter(str(self.video), cv2.VideoWriter_fourcc(*"MJPG"), 5, (64, 48))
        for shade in (0, 90, 200):
            film.write(np.full((48, 64, 3), shade, np.uint8))
        film.release()
        self._annotation_files(root)
        self._exported(root, program)
        self._commands(tiny)

    def _annotation_files(self, root):
        """The training boxes as annotation tools write them."""
        content = json.loads(self.weak.read_text())
        names = {c["id"]: c["name"] for c in content["categories"]}
        truth = {i["file_name"]: (i["width"], i["height"], []) for i in content["images"]}
        files = {i["id"]: i["file_name"] for i in content["images"]}
        for a in content["annotations"]:
            truth[files[a["image_id"]]][2].append((names[a["category_id"]], *a["bbox"]))
        classes = sorted(names.values())
        self.coco = write_coco(root, truth, classes)
        self.voc = write_voc(root, truth, edges=False) / "0001.xml"
        self.yolo = write_yolo(root, truth, classes) / "0001.txt"
        self.classes = self.yolo.parent / "classes.txt"
        self.classes.write_text("\n".join(classes))
        self.labelme = write_labelme(root, truth) / "0001.json"
        self.cvat = write_cvat(root, truth)
        self.tasks = write_label_studio(root, truth)
        self.tags = root / "tags.csv"
        self.tags.write_text("image,tags\n0001.png,sky;grass\n")

    def _exported(self, root, program):
        self.program = root / "model.pt2"
        self.program.write_bytes(program.read_bytes())
        self.detections = root / "boxes.json"
        self.detections.write_text('[{"box": [5, 5, 40, 40], "score": 0.9, "class": 0}]')

    def _commands(self, tiny):
        from wsis_d2 import _C

        out, photos = self.out, self.image.parent
        own = ["--annotations", self.weak, "--images", photos]
        truth = ["--gt-json", self.gt, "--gt-dir", self.gt.with_suffix("")]
        val = ["--annotations", tiny.data / "weak_val.json", "--images",
               tiny.data / "images" / "val"]  # fmt: skip
        page = ["--output", out / "page.html"]
        store = ["--store", tiny.store]
        overrides = ["DATASETS.OWN", [{"name": "bad_input", "json": str(self.weak), "images":
                     str(photos), "labels": str(tiny.store)}], "DATASETS.TRAIN",
                     "('bad_input',)", "DATASETS.TEST", "()", "OUTPUT_DIR", out / "train",
                     "SOLVER.MAX_ITER", "1", "SOLVER.IMS_PER_BATCH", "2"]  # fmt: skip
        recipe = ["--config-file", self.recipe]
        labels = ["--workers", "1", "--output", out / "store"]
        demo = ["demo", "--device", "cpu", "--output", out]
        brought = ["--images", photos, "--output", out / "own.json"]
        self.commands = {
            "report labels": ["report", "labels", *own, *truth, *store, *page],
            "report run": ["report", "run", *val, "--run", tiny.run, *page],
            "visualize annotation": ["visualize_data", "--source", "annotation", *own,
                                     "--output", out],
            "visualize proposal": ["visualize_data", "--source", "proposal", *own, *recipe,
                                   "--output", out],
            "visualize pseudo": ["visualize_data", "--source", "pseudo", *own, *truth, *store,
                                 "--output", out],
            "visualize prediction": ["visualize_data", "--source", "prediction", *val,
                                     "--run", tiny.run, "--output", out],
            "visualize dataloader": ["visualize_data", "--source", "dataloader", *recipe,
                                     "--output", out, *overrides],
            "import coco": ["import_annotations", "coco", "--annotations", self.coco, *brought],
            "import voc": ["import_annotations", "voc", "--annotations", self.voc.parent,
                           *brought],
            "import yolo": ["import_annotations", "yolo", "--annotations", self.yolo.parent,
                            *brought],
            "import labelme": ["import_annotations", "labelme", "--annotations",
                               self.labelme.parent, *brought],
            "import cvat": ["import_annotations", "cvat", "--annotations", self.cvat, *brought],
            "import labelstudio": ["import_annotations", "labelstudio", "--annotations",
                                   self.tasks, *brought],
            "import tags": ["import_annotations", "coco", "--annotations", self.coco, "--tags",
                            self.tags, "--categories", self.weak, *brought],
            "budget": ["annotation_budget", *own, "--results", self.results,
                       "--output", out / "budget.json"],
            "tables": ["make_tables", tiny.run, "--output", out],
            "publish": ["publish_model", "--run", tiny.run, "--id", "Test/model",
                        "--output", out],
            "demo": [*demo, "--model", tiny.run, "--sample", "1"],
            "demo photo": [*demo, "--input", self.photo],
            "demo video": [*demo, "--input", self.video],
            "export": ["export_model", "--model", tiny.run, "--output", out / "m.pt2"],
            "load": [OUTSIDE, "--program", self.program, "--operators", _C.__file__, "--input",
                     self.photo, "--detections", self.detections, "--output", out / "s.png"],
            "analyze": ["analyze_model", *recipe],
            "benchmark": ["benchmark", "--tasks", "data", "--repeat", "1", "--warmup", "0",
                          *recipe, *overrides],
            "evaluate panoptic": ["evaluate_panoptic", "--pred-json", self.pred, "--pred-dir",
                                  self.pred.with_suffix(""), "--gt-json", self.val_gt,
                                  "--gt-dir", self.val_gt.with_suffix(""),
                                  "--output", out / "r.json"],
            "evaluate labels": ["evaluate_labels", *store, *truth, "--output", out / "q.json"],
            "submission": ["make_submission", "voc", "--source", "panoptic", "--predictions",
                           self.pred.parent, "--output", out / "submission"],
            "make boxes": ["make_weak_labels", "boxes", *own, *labels, *recipe],
            "make tags": ["make_weak_labels", "tags", *own, *labels, "--classifier",
                          self.classifier, "--config-file", self.tag_recipe],
            "make merge": ["make_weak_labels", "merge", *own, *labels, "--boxes", tiny.store,
                           "--tags", tiny.store],
            "train": ["train_net", *recipe, *overrides],
            "evaluate": ["train_net", *recipe, "--eval-only", *overrides, "MODEL.WEIGHTS",
                         self.weights, "DATASETS.TEST", "('bad_input',)"],
            "iterate": ["train_iterative", *recipe, "--rounds", "1", *overrides],
            "contours": ["train_contours", "--photographs", self.photo, "--scenes", "1",
                         "--epochs", "1", "--output", out / "w.npz"],
        }  # fmt: skip
