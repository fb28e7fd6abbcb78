# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Weak means weak: the chain gives the same labels and weights whatever becomes of the masks."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from wsis_d2.data.datasets.sample.dataset import prepare_sample

ROOT = Path(__file__).resolve().parents[2]

# The weak chain in one process: classifier, labels, detector, semantic and instance stage.
CHAIN = """
import runpy, sys
from pathlib import Path

root, output = Path(sys.argv[1]), Path(sys.argv[2])


def tool(name, *arguments):
    sys.argv = [name, *map(str, arguments)]
    try:
        runpy.run_path(str(root / "tools" / name), run_name="__main__")
    except SystemExit as end:
        assert not end.code, (arguments, end.code)


def train(recipe, name, *more):
    tool("train_net.py", "--config-file", root / "configs" / recipe, "OUTPUT_DIR", output / name,
         "DATASETS.TEST", "()", "SOLVER.IMS_PER_BATCH", 2, "SEED", 3, "SOLVER.MAX_ITER", 3, *more)


classifier = "Sample-TagClassifier/tag_classifier_R_18.yaml"
train(classifier, "tags")
tool("make_weak_labels.py", "all", "--dataset", "sample_train_weak", "--output", output / "labels",
     "--classifier", output / "tags" / "model_final.pth", "--config-file",
     root / "configs" / classifier, "--workers", 1)
stores = ["DATASETS.LABEL_STORES", "[['sample_train_weak', '%s']]" % (output / "labels")]
train("Sample-Panoptic/detector.yaml", "detector", *stores)
train("Sample-Panoptic/semantic_weak.yaml", "semantic", *stores)
train("Sample-Panoptic/instance_weak.yaml", "instance", *stores,
      "MODEL.WSIS.DETECTOR_WEIGHTS", output / "detector" / "model_final.pth",
      "MODEL.WSIS.SEMANTIC_WEIGHTS", output / "semantic" / "model_final.pth")
"""


def delete_masks(sample):
    for split in ("train", "val"):
        shutil.rmtree(sample / f"panoptic_{split}")
        (sample / f"panoptic_{split}.json").unlink()
    (sample / "full_train.json").unlink()


def replace_masks_by_noise(sample):
    """Other segments, classes and pixels in every file that holds a mask of training images."""
    rng = np.random.default_rng(0)
    content = json.loads((sample / "panoptic_train.json").read_text())
    classes = [c["id"] for c in content["categories"]]
    for annotation in content["annotations"]:
        ids = rng.integers(1, 6, (128, 160)).astype(np.uint8)
        rgb = np.stack([ids, np.zeros_like(ids), np.zeros_like(ids)], -1)
        Image.fromarray(rgb).save(sample / "panoptic_train" / annotation["file_name"])
        annotation["segments_info"] = [
            {"id": k, "category_id": int(rng.choice(classes)), "area": int((ids == k).sum()),
             "bbox": [0, 0, 160, 128], "iscrowd": 0}
            for k in range(1, 6)
        ]  # fmt: skip
    (sample / "panoptic_train.json").write_text(json.dumps(content))
    content = json.loads((sample / "full_train.json").read_text())
    for annotation in content["annotations"]:
        annotation["segmentation"] = [rng.uniform(0, 128, 12).round(1).tolist()]
        annotation["bbox"] = rng.integers(1, 60, 4).tolist()
    (sample / "full_train.json").write_text(json.dumps(content))


def fingerprint(output):
    """Hashes of every stored label and of every weight of every stage."""
    result = {}
    for png in sorted((output / "labels").rglob("*.png")):
        result[str(png.relative_to(output))] = hashlib.sha256(png.read_bytes()).hexdigest()
    for name in ("tags", "detector", "semantic", "instance"):
        checkpoint = torch.load(output / name / "model_final.pth", weights_only=False)
        digest = hashlib.sha256()
        for key, value in sorted(checkpoint["model"].items()):
            digest.update(key.encode() + np.ascontiguousarray(torch.as_tensor(value)).tobytes())
        result[name] = digest.hexdigest()
    return result


def run_chain(folder, change=None):
    sample = folder / "datasets" / "wsis_sample"
    prepare_sample(sample, train=4, val=1)
    if change is not None:
        change(sample)
    environment = {
        **os.environ,
        "DETECTRON2_DATASETS": str(folder / "datasets"),
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": str(ROOT),
    }
    run = subprocess.run(
        [sys.executable, "-c", CHAIN, str(ROOT), str(folder / "out")],
        env=environment, cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    return fingerprint(folder / "out")


@pytest.mark.long
def test_masks_do_not_matter_to_weak_supervision(tmp_path):
    """Deleted or turned to noise: every label and every weight keeps its hash."""
    for name in ("intact", "deleted", "noise"):
        (tmp_path / name).mkdir()
    intact = run_chain(tmp_path / "intact")
    assert len(intact) > 4 * 2 + 4  # semantic and panoptic PNGs of four images, four stages
    assert run_chain(tmp_path / "deleted", delete_masks) == intact
    assert run_chain(tmp_path / "noise", replace_masks_by_noise) == intact
