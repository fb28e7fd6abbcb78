# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""One folder with all that users mix: from import over labels and training to predictions.

What every kind of picture gives is in test_walk_with_every_picture.py; here whole commands meet,
as a user types them, and each refusal is one line that names the file and what mends it.
"""

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from helpers.load_tool import ROOT, load_tool
from helpers.pictures import red_square, save
from PIL import Image

from wsis_d2.data.panoptic_format import PanopticFile, write_panoptic_png
from wsis_d2.utils.cli import main_with_errors
from wsis_d2.weak_labels.store import LabelStore

SHOWN, SQUARE = red_square()
BOX = (20, 70, 40, 40)  # x, y, width, height
UNUSABLE = {"halb.jpg": "truncated", "zwölf bit.png": "black"}
BRUSHED, POSED = "web.webp", "posiert ß.png"


def run_lengths(mask):
    """COCO's run lengths of a mask: columns first, beginning with zeros."""
    flat = mask.T.reshape(-1).astype(int)
    ends = np.flatnonzero(np.diff(flat)) + 1
    return np.diff([0, *ends, flat.size]).tolist()


def write_photos(photos):
    """Pictures that all show the square at one place, and two that cannot be used."""
    photos.mkdir()
    picture = Image.fromarray(SHOWN)
    for orientation in range(1, 9):
        save(photos / f"gedreht {orientation}.jpg", SHOWN, orientation, quality=95)
    picture.convert("CMYK").save(photos / "druck_ü.jpg", quality=95)
    picture.convert("RGBA").save(photos / "durchsichtig (1).png")
    picture.save(photos / BRUSHED, lossless=True)
    picture.save(photos / POSED)
    # In grey the square is the brighter part; the upper 8 of 16 bits count.
    grey = np.where(SQUARE, 200, 60) + np.random.default_rng(1).integers(-6, 6, SQUARE.shape)
    Image.fromarray(grey.astype(np.uint8)).save(photos / "grau.png")
    Image.fromarray((grey.astype(np.uint16) << 8) + 99).save(photos / "tief.png")
    Image.fromarray(grey.astype(np.uint16) << 4).save(photos / "zwölf bit.png")
    picture.save(photos / "halb.jpg", quality=95)
    data = (photos / "halb.jpg").read_bytes()
    (photos / "halb.jpg").write_bytes(data[: len(data) // 2])


def write_annotation(folder):
    """Boxes as CVAT and YOLO write them, tags as a spreadsheet does."""
    names = sorted(p.name for p in (folder / "photos").iterdir() if p.name != POSED)
    images, annotations = [], []
    for number, name in enumerate(names, start=1):
        images.append({"id": number, "file_name": name, "width": 160, "height": 120})
        entry = {"id": number, "image_id": number, "category_id": 4, "bbox": list(BOX)}
        if name == BRUSHED:
            mask = {"size": [120, 160], "counts": run_lengths(SQUARE)}
            entry |= {"iscrowd": 1, "segmentation": mask}
        annotations.append(entry)
    categories = [{"id": 4, "name": "square"}, {"id": 9, "name": "ground"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "cvat.json").write_text(json.dumps(content))
    rows = [f'"{name}";ground' for name in [*names, POSED]]
    (folder / "tags.csv").write_text("\n".join(["image;tags", *rows]), "utf-8-sig")
    (folder / "poses").mkdir()
    x, y, w, h = BOX
    values = [(x + w / 2) / 160, (y + h / 2) / 120, w / 160, h / 120, 0.2, 0.7, 2, 0.3, 0.8, 1]
    (folder / "poses" / f"{Path(POSED).stem}.txt").write_text("1 " + " ".join(map(str, values)))
    (folder / "poses" / "data.yaml").write_text("names: {1: Square}\nkpt_shape: [2, 3]\n")


def write_truth(folder, name, json_file, categories):
    """Panoptic truth of an own-data file's images: ground 1, square 7, whatever the list says."""
    (folder / name).mkdir()
    images = json.loads((folder / json_file).read_text())["images"]
    annotations = []
    for image in images:
        png = f"{image['id']}.png"
        write_panoptic_png(folder / name / png, np.where(SQUARE, 1, 2).astype(np.int32))
        segments = [
            {"id": 1, "category_id": 7},
            {"id": 2, "category_id": 1},
        ]
        annotations.append({"image_id": image["id"], "file_name": png, "segments_info": segments})
    content = {"images": images, "annotations": annotations, "categories": categories}
    (folder / f"{name}.json").write_text(json.dumps(content))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gemischte Bilder")
    write_photos(folder / "photos")
    write_annotation(folder)
    return folder


class Shell:
    """Commands as a user types them in a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, name, *arguments):
        """Run a tool; return status, what it said and its errors."""
        with (
            pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(io.StringIO()) as out,
            contextlib.redirect_stderr(io.StringIO()) as err,
            pytest.raises(SystemExit) as left,
        ):
            patch.chdir(self.folder)
            main_with_errors(load_tool(name).main, list(map(str, arguments)))
        return left.value.code, out.getvalue(), err.getvalue()

    def works(self, name, *arguments):
        status, out, err = self(name, *arguments)
        assert status == 0, f"{name}: {out[-1500:]}\n{err[-2500:]}"
        return out

    def refuses(self, name, *arguments):
        """Run a tool that ends with status 2; return its line."""
        status, out, err = self(name, *arguments)
        assert status == 2, f"{name}: {status}: {out[-1500:]}\n{err[-2500:]}"
        (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
        return line


IMPORT = ["coco", "--annotations", "cvat.json", "--images", "photos", "--tags", "tags.csv"]


@pytest.fixture(scope="module")
def imported(folder):
    """Training and validation files; what was said on the way."""
    shell = Shell(folder)
    return [
        shell.refuses("import_annotations", *IMPORT, "--output", "train.json"),
        shell.works("import_annotations", *IMPORT, "--output", "train.json", "--keep-going"),
        shell.works("import_annotations", *IMPORT, "--output", "train.json", "--keep-going",
                    "--crowds-as-objects", "--force", "--report", "report.json"),
        shell.works("import_annotations", "yolo", "--annotations", "poses", "--images",
                    "photos", "--categories", "train.json", "--output", "val.json"),
    ]  # fmt: skip


def test_import(folder, imported):
    refused, grouped, _, posed = imported
    assert any(name in refused for name in UNUSABLE) and "--keep-going" in refused
    assert "1 of the boxes are groups" in grouped and "--crowds-as-objects" in grouped
    assert "a pose, taken by its box" in posed
    dropped = json.loads((folder / "report.json").read_text())["dropped"]
    for name, reason in UNUSABLE.items():
        assert any(name in d["where"] and reason in d["why"] for d in dropped)
    expected = sorted(p.name for p in (folder / "photos").iterdir() if p.name not in UNUSABLE)
    train, val = (json.loads((folder / f"{n}.json").read_text()) for n in ("train", "val"))
    assert sorted(i["file_name"] for i in train["images"]) == expected  # POSED has a tag alone
    assert [i["file_name"] for i in val["images"]] == [POSED]
    classes = [(c["id"], c["name"], c["isthing"]) for c in train["categories"]]
    assert train["categories"] == val["categories"]
    assert classes == [(4, "square", 1), (9, "ground", 0)]
    assert len(train["annotations"]) == len(expected) - 1
    for annotation in (*train["annotations"], *val["annotations"]):
        assert set(annotation) == {"id", "image_id", "category_id", "bbox", "iscrowd"}
        assert annotation["category_id"] == 4 and annotation["iscrowd"] == 0
        np.testing.assert_allclose(annotation["bbox"], BOX, atol=1e-3)
    assert all(image["image_tags"] == [9] for image in train["images"])


@pytest.fixture(scope="module")
def labelled(folder, imported):
    shell = Shell(folder)
    shell.works("make_weak_labels", "boxes", "--annotations", "train.json", "--images", "photos",
                "--output", "labels", "--workers", "1", "--outside-boxes", "ground")  # fmt: skip
    return LabelStore.open(folder / "labels")


# The same classes with other ids in another order, and lists that contradict.
OTHER = [{"id": 1, "name": "ground", "isthing": 0}, {"id": 7, "name": "square", "isthing": 1}]
CONTRADICTIONS = {
    "stuff": ([{**c, "isthing": 0} for c in OTHER], '"square"'),
    "renamed": ([OTHER[0], {**OTHER[1], "name": "box"}], '"box"|"square"'),
    "more": ([*OTHER, {"id": 8, "name": "sky", "isthing": 0}], '"sky"'),
    "text": ([OTHER[0], {**OTHER[1], "isthing": "1"}], "isthing"),
    "none": ([OTHER[0], {"id": 7, "name": "square"}], "isthing"),
}


def test_labels_and_their_quality(folder, labelled):
    content = json.loads((folder / "train.json").read_text())
    for image in content["images"]:
        semantic = labelled.semantic(image["id"])
        assert (semantic[~SQUARE] == 1).mean() > 0.99, image["file_name"]
        assert (semantic == 0).sum() >= (1550 if image["file_name"] != POSED else 0)
    write_truth(folder, "truth", "train.json", OTHER)
    shell, truth = Shell(folder), ["--gt-json", "truth.json", "--gt-dir", "truth"]
    shell.works("evaluate_labels", "--store", "labels", *truth, "--output", "quality.json")
    (found,) = json.loads((folder / "quality.json").read_text())["stores"].values()
    assert found["classes"]["square"]["precision"] > 99
    assert found["objects"]["square"]["all"]["count"] == len(content["images"])
    for name, (categories, word) in CONTRADICTIONS.items():
        write_truth(folder, name, "train.json", categories)
        line = shell.refuses("evaluate_labels", "--store", "labels", "--gt-json", f"{name}.json",
                             "--gt-dir", name)  # fmt: skip
        assert f"{name}.json" in line and any(w in line for w in word.split("|")), line
        # The same list as a prediction, whose pixels are perfect.
        prediction = ["--pred-json", f"{name}.json", "--pred-dir", name]
        status, _, err = shell("evaluate_panoptic", *prediction, *truth, "--workers", "1",
                               "--output", f"{name}_result.json")  # fmt: skip
        if name == "none":  # a prediction need not say what the truth says
            assert status == 0 and quality(folder / f"{name}_result.json") == 100
        else:
            assert status == 2 and f"{name}.json" in err


def quality(results):
    """PQ of the one run in a results file."""
    (run,) = json.loads(results.read_text())["runs"].values()
    return run["panoptic_seg"]["PQ"]


@pytest.mark.long
def test_training_evaluation_and_demo(folder, labelled):
    shell = Shell(folder)
    write_truth(folder, "val_truth", "val.json", OTHER)
    swapped = [{**c, "isthing": 1 - c["isthing"]} for c in OTHER]
    write_truth(folder, "val_swapped", "val.json", swapped)

    def own(truth):
        return json.dumps([
            {"name": "mixed", "json": "train.json", "images": "photos", "labels": "labels",
             "outside_boxes": "ground"},
            {"name": "mixed_val", "json": "val.json", "images": "photos",
             "panoptic_json": f"{truth}.json", "panoptic_dir": truth},
        ])  # fmt: skip

    for name in ("detector", "semantic", "instance"):
        (folder / f"{name}.yaml").write_text(
            f'_BASE_: "{ROOT}/configs/Sample-Panoptic/tiny_{name}.yaml"\nDATASETS:\n'
            f'  OWN: {own("val_truth")}\n  TRAIN: ("mixed",)\n  TEST: ()\n'
        )

    def train(name, *more):
        return ["train_net", "--config-file", f"{name}.yaml", "SOLVER.MAX_ITER", "2",
                "SOLVER.IMS_PER_BATCH", "2", "OUTPUT_DIR", f"run/{name}", *more]  # fmt: skip

    parts = ["MODEL.WSIS.DETECTOR_WEIGHTS", "run/detector/model_final.pth",
             "MODEL.WSIS.SEMANTIC_WEIGHTS", "run/semantic/model_final.pth"]  # fmt: skip
    test = ["DATASETS.TEST", "('mixed_val',)"]
    line = shell.refuses(*train("instance", *parts))
    assert "run/detector/model_final.pth" in line
    shell.works(*train("detector"))
    shell.works(*train("semantic"))
    shell.works(*train("instance", *parts, *test))
    trained = quality(folder / "run/instance/results.json")
    # From the written files the same figures come out, in the truth's own class list.
    written = "run/instance/inference/mixed_val/panoptic_pred"
    truth = ["--gt-json", "val_truth.json", "--gt-dir", "val_truth"]
    shell.works("evaluate_panoptic", "--pred-json", f"{written}.json", "--pred-dir", written,
                *truth, "--workers", "1", "--output", "again.json")  # fmt: skip
    assert quality(folder / "again.json") == pytest.approx(trained)
    line = shell.refuses("train_net", "--config-file", "instance.yaml", "--eval-only", *test,
                         "DATASETS.OWN", own("val_swapped"), "OUTPUT_DIR", "run/swapped",
                         "MODEL.WEIGHTS", "run/instance/model_final.pth")  # fmt: skip
    assert "val_swapped.json" in line and "isthing" in line
    status, _, err = shell("demo", "--model", "run/instance", "--device", "cpu", "--input",
                           "photos", "--output", "predicted")  # fmt: skip
    lines = [line for line in err.splitlines() if line.startswith("error: ")]
    assert status == 1 and len(lines) == len(UNUSABLE)
    for name, reason in UNUSABLE.items():
        assert any(name in line and reason in line for line in lines)
    predicted = PanopticFile(folder / "predicted/panoptic.json", folder / "predicted/panoptic")
    assert len(predicted) == len(list((folder / "photos").iterdir())) - len(UNUSABLE)
    assert all(predicted.ids(key).shape == (120, 160) for key in predicted)
