# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""A newcomer's walk with photographs: boxes from an annotation tool to predictions to look at.

Steps of training are few: that every command takes what the one before it gave is the point. Run
with ``--basetemp=FOLDER`` to keep the pictures and pages, and look at them.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers.annotation_writers import (
    write_coco,
    write_cvat,
    write_label_studio,
    write_labelme,
    write_voc,
    write_yolo,
)
from helpers.load_tool import ROOT
from helpers.shared_data import shared_data
from PIL import Image

from wsis_d2.data.panoptic_format import PanopticFile
from wsis_d2.visualization.visualizer import drawing_scale
from wsis_d2.weak_labels.store import LabelStore

pytestmark = pytest.mark.long

# What stuff is to be seen on twenty photographs of at most eight boxes, as one would tag it.
TAGS = {
    9: "table", 25: "trees;grass;sky", 30: "trees;grass", 34: "grass", 36: "sky;water;building",
    42: "ground", 61: "trees", 64: "sky;trees;ground;building", 72: "trees", 73: "ground;trees",
    74: "ground;building", 77: "sky;trees;wall;ground", 78: "wall;table", 81: "sky",
    86: "trees;ground", 92: "table", 94: "sky;building;ground", 109: "sky;water;grass;ground",
    133: "wall;ground", 136: "wall;ground",
}  # fmt: skip
STUFF = sorted({t for tags in TAGS.values() for t in tags.split(";")})
STEPS = ["SOLVER.MAX_ITER", "3", "SOLVER.IMS_PER_BATCH", "2", "TEST.EVAL_PERIOD", "0"]


@pytest.fixture(scope="module")
def walk(tmp_path_factory):
    """The photographs in a folder of their own, and the boxes that are known for them."""
    root = shared_data("coco128_instances")
    source = json.loads((root / "annotations" / "instances_train2017.json").read_text())
    names = {c["id"]: c["name"] for c in source["categories"]}
    folder = tmp_path_factory.mktemp("walk")
    (folder / "photos").mkdir()
    truth = {}
    for entry in source["images"]:
        if entry["id"] not in TAGS:
            continue
        boxes = [
            (names[a["category_id"]], *a["bbox"])
            for a in source["annotations"]
            if a["image_id"] == entry["id"] and not a["iscrowd"]
        ]
        truth[entry["file_name"]] = (entry["width"], entry["height"], boxes)
        (folder / "photos" / entry["file_name"]).symlink_to(root / "train2017" / entry["file_name"])
    assert len(truth) == 20
    rows = [f"{Path(n).name},{TAGS[int(Path(n).stem)]}" for n in truth]
    (folder / "tags.csv").write_text("\n".join(["image,tags", *rows]) + "\n")
    return folder, truth


def tool(folder, name, *arguments):
    """Run a command as a user does; return what it said."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    run = subprocess.run(
        [sys.executable, str(ROOT / "tools" / f"{name}.py"), *map(str, arguments)],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert run.returncode == 0, f"{name}: {run.stdout[-1500:]}\n{run.stderr[-2500:]}"
    assert "Traceback" not in run.stderr
    return run.stdout


def boxes_by_name(path):
    """{file name: [(class, x, y, width, height), ...]} of an own-data file."""
    content = json.loads(Path(path).read_text())
    names = {c["id"]: c["name"] for c in content["categories"]}
    files = {i["id"]: i["file_name"] for i in content["images"]}
    found = {name: [] for name in files.values()}
    for a in content["annotations"]:
        found[files[a["image_id"]]].append((names[a["category_id"]], *a["bbox"]))
    return found


def test_the_walk(walk, monkeypatch):
    folder, truth = walk
    classes = sorted({b[0] for _, _, boxes in truth.values() for b in boxes})

    # Every format gives the same boxes back.
    exported = {
        "coco": write_coco(folder, truth, classes),
        "voc": write_voc(folder, truth, edges=True),
        "yolo": write_yolo(folder, truth, classes),
        "labelme": write_labelme(folder, truth),
        "cvat": write_cvat(folder, truth),
        "labelstudio": write_label_studio(folder, truth),
    }
    (exported["yolo"] / "classes.txt").write_text("\n".join(classes))
    for kind, path in exported.items():
        said = tool(folder, "import_annotations", kind, "--annotations", path, "--images", "photos",
                    "--tags", "tags.csv", "--output", f"weak_{kind}.json",
                    "--report", f"{kind}_report.json")  # fmt: skip
        assert "20 images" in said
        found = boxes_by_name(folder / f"weak_{kind}.json")
        wanted = {name: boxes for name, (_, _, boxes) in truth.items()}
        assert found.keys() == wanted.keys()
        for name, boxes in wanted.items():
            assert [b[0] for b in found[name]] == [b[0] for b in boxes]
            np.testing.assert_allclose(
                [b[1:] for b in found[name]], [b[1:] for b in boxes], atol=1e-4
            )
        assert not json.loads((folder / f"{kind}_report.json").read_text())["dropped"]

    # Look at it, plan, label.
    data = ["--annotations", "weak_coco.json", "--images", "photos"]
    tool(folder, "visualize_data", "--source", "annotation", *data, "--output", "look")
    assert len(list((folder / "look").glob("*.png"))) == 20
    assert "weak" in tool(folder, "annotation_budget", *data, "--num-images", "3000")
    own = [{"name": "walk", "json": "weak_coco.json", "images": "photos", "labels": "labels"}]
    recipes = {"tags": "Sample-TagClassifier/tag_classifier_R_18", "detector":
               "Sample-Panoptic/tiny_detector", "semantic": "Sample-Panoptic/tiny_semantic",
               "panoptic": "Sample-Panoptic/tiny_instance"}  # fmt: skip
    for name, base in recipes.items():
        (folder / f"{name}.yaml").write_text(
            f'_BASE_: "{ROOT}/configs/{base}.yaml"\nDATASETS:\n  OWN: {json.dumps(own)}\n'
            '  TRAIN: ("walk",)\n  TEST: ()\n'
        )

    def train(name, *more):
        tool(folder, "train_net", "--config-file", f"{name}.yaml", *STEPS, "OUTPUT_DIR",
             f"run/{name}", *more)  # fmt: skip

    train("tags")
    tool(
        folder,
        "make_weak_labels",
        "all",
        "--config-file",
        "tags.yaml",
        "--dataset",
        "walk",
        "--classifier",
        "run/tags/model_final.pth",
        "--output",
        "labels",
        "--workers",
        "2",
    )
    store = LabelStore.open(folder / "labels")
    content = json.loads((folder / "weak_coco.json").read_text())
    assert all(store.done(image["id"]) for image in content["images"])
    tool(folder, "report", "labels", *data, "--store", "labels", "--output", "labels.html")
    tool(folder, "visualize_data", "--source", "pseudo", *data, "--store", "labels",
         "--output", "look")  # fmt: skip

    # Train the three stages, predict, publish, predict by id.
    train("detector")
    train("semantic")
    train("panoptic", "MODEL.WSIS.DETECTOR_WEIGHTS", "run/detector/model_final.pth",
          "MODEL.WSIS.SEMANTIC_WEIGHTS", "run/semantic/model_final.pth")  # fmt: skip
    tool(folder, "demo", "--model", "run/panoptic", "--device", "cpu", "--input", "photos",
         "--output", "predicted", "--report", "predicted.html")  # fmt: skip
    predicted = PanopticFile(folder / "predicted" / "panoptic.json", folder / "predicted/panoptic")
    sizes = {Path(name).stem: (h, w) for name, (w, h, _) in truth.items()}
    assert len(list(predicted)) == 20
    for entry in predicted.images:
        ids = predicted.ids(str(entry["id"]))
        assert ids.shape == sizes[entry["file_name"]] and (ids > 0).all()
        overlay = Image.open(folder / "predicted" / "overlays" / f"{entry['file_name']}.png")
        scale = drawing_scale(*ids.shape)  # small pictures are drawn enlarged
        assert overlay.size == tuple(scale * side for side in ids.shape[::-1])
    tool(folder, "report", "run", "--run", "walk=run/panoptic", "--output", "run.html")
    tool(folder, "publish_model", "--run", "run/panoptic", "--id", "Walk/model", "--half",
         "--store", "labels", "--output", "zoo")  # fmt: skip
    monkeypatch.setenv("WSIS_D2_MODEL_ZOO", str(folder / "zoo"))
    tool(folder, "demo", "--model", "Walk/model", "--device", "cpu",
         "--input", "photos/000000000034.jpg", "--output", "from_zoo")  # fmt: skip
    assert (folder / "from_zoo" / "overlays" / "000000000034.png").exists()
