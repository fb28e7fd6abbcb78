# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Truth and predictions meet by the names of their classes, from a model and from files."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.data import MetadataCatalog
from helpers.load_tool import load_tool
from helpers.panoptic_scenes import save_png
from PIL import Image

from wsis_d2.config import add_wsis_config
from wsis_d2.data.datasets.builtin.metadata import VOC_CATEGORIES
from wsis_d2.data.panoptic_format import PanopticFile
from wsis_d2.evaluation import build_evaluator, evaluate_files, write_submission
from wsis_d2.evaluation.from_files import FileOptions
from wsis_d2.evaluation.label_quality import evaluate_store
from wsis_d2.structures.classes import parse_categories
from wsis_d2.utils.cli import main_with_errors
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.store import LabelStore

NAME = "class_lists_test"
ISTHING = {"cow": 1, "grass": 0, "dog": 1, "sky": 0}
OWN = ["cow", "grass", "dog"]
TRUTH = ["dog", "grass", "cow"]
# One picture: grass (segment 1), a cow (2) above, two dogs (3, 4) below.
IDS = np.ones((20, 30), np.int32)
IDS[2:8, 3:12], IDS[12:18, 3:9], IDS[12:18, 15:27] = 2, 3, 4
SEGMENTS = {1: "grass", 2: "cow", 3: "dog", 4: "dog"}


def categories(names: list[str]) -> list[dict]:
    return [{"id": k, "name": n, "isthing": ISTHING[n]} for k, n in enumerate(names, start=1)]


def write(folder: Path, stem: str, names: list[str], change=None) -> dict[str, Path]:
    """Write the scene as a COCO panoptic file with these classes; return its two paths."""
    save_png(folder / stem / "0.png", IDS)
    infos = [
        {"id": k, "category_id": names.index(name) + 1, "iscrowd": 0}
        for k, name in SEGMENTS.items()
    ]
    content = {
        "images": [{"id": 7, "file_name": "0.jpg", "height": 20, "width": 30}],
        "annotations": [{"image_id": 7, "file_name": "0.png", "segments_info": infos}],
        "categories": categories(names),
    }
    if change is not None:
        change(content)
    (folder / f"{stem}.json").write_text(json.dumps(content))
    return {"json": folder / f"{stem}.json", "dir": folder / stem}


def from_model(folder: Path, truth: dict[str, Path], own: list[str], **more) -> dict:
    """Evaluate a model that is right on a dataset with the classes ``own``."""
    if NAME in MetadataCatalog.list():
        MetadataCatalog.remove(NAME)
    classes = parse_categories(categories(own), "own")
    MetadataCatalog.get(NAME).set(
        **classes.metadata(), panoptic_json=str(truth["json"]), panoptic_root=str(truth["dir"]),
        evaluator_type="wsis_panoptic",
    )  # fmt: skip
    cfg = get_cfg()
    add_wsis_config(cfg)
    evaluator = build_evaluator(cfg, NAME, folder / "inference")
    evaluator.reset()
    segments = [{"id": k, "category_id": own.index(name)} for k, name in SEGMENTS.items()]
    logits = torch.stack(
        [torch.from_numpy(np.isin(IDS, [k for k, n in SEGMENTS.items() if n == name]))
         for name in own]
    ).float()  # fmt: skip
    record = {"image_id": 7, "file_name": "0.jpg"}
    evaluator.process(
        [record], [{"panoptic_seg": (torch.from_numpy(IDS), segments), "sem_seg": logits}]
    )
    return evaluator.evaluate()


def is_perfect(results: dict) -> None:
    assert results["panoptic_seg"]["PQ"] == 100
    assert results["sem_seg"]["mIoU"] == 100
    assert results["apr"]["APr_vol"] == 100


def test_a_right_model_gets_100_whatever_the_truths_order(tmp_path, monkeypatch):
    """The issue's case; by places, PQ is 33.3: the grass alone."""
    truth = write(tmp_path, "truth", TRUTH)
    is_perfect(from_model(tmp_path, truth, OWN))
    written = json.loads((tmp_path / "inference/panoptic_pred.json").read_text())
    assert [c["name"] for c in written["categories"]] == OWN
    # The files it wrote are right from files too, the semantic output included.
    options = FileOptions(semantic_folder=tmp_path / "inference/semantic_pred", workers=1)
    is_perfect(
        evaluate_files(
            tmp_path / "inference/panoptic_pred.json", tmp_path / "inference/panoptic_pred",
            truth["json"], truth["dir"], options,
        )
    )  # fmt: skip
    # So they are where the folder of that output goes by another name than its own.
    (tmp_path / "link").symlink_to(tmp_path / "inference/semantic_pred")
    monkeypatch.chdir(tmp_path / "inference/semantic_pred")
    for folder in (tmp_path / "link", Path(".")):
        is_perfect(
            evaluate_files(
                tmp_path / "inference/panoptic_pred.json", tmp_path / "inference/panoptic_pred",
                truth["json"], truth["dir"], FileOptions(semantic_folder=folder, workers=1),
            )
        )  # fmt: skip


@pytest.mark.parametrize(
    ("own", "truth", "words"),
    [
        (OWN, ["sky", *TRUTH], '"sky"'),
        ([*OWN, "sky"], TRUTH, '"sky"'),
    ],
)
def test_truth_of_other_classes_is_refused_before_an_image(own, truth, words, tmp_path):
    with pytest.raises(InputError, match=rf"truth\.json: .*{words}.*dataset {NAME}"):
        from_model(tmp_path, write(tmp_path, "truth", truth), own)


def test_a_prediction_files_own_classes_count(tmp_path):
    truth, prediction = write(tmp_path, "truth", TRUTH), write(tmp_path, "pred", OWN)
    files = (prediction["json"], prediction["dir"], truth["json"], truth["dir"])
    is_perfect(evaluate_files(*files, FileOptions(workers=1)))
    # A file that names no classes speaks in the truth's ids, as ever.
    write(tmp_path, "pred", TRUTH, lambda c: c.pop("categories"))
    is_perfect(evaluate_files(*files, FileOptions(workers=1)))
    # One that does not say what is a thing is right where the names are.
    write(tmp_path, "pred", OWN, lambda c: [x.pop("isthing") for x in c["categories"]])
    is_perfect(evaluate_files(*files, FileOptions(workers=1)))


def things_and_stuff_apart(content: dict) -> None:
    """Detectron2's raw segments: things count from 0, stuff from 1 ("things" is 0)."""
    del content["categories"]
    numbers = {"cow": 0, "dog": 1, "grass": 1}
    for segment in content["annotations"][0]["segments_info"]:
        name = SEGMENTS[segment["id"]]
        segment.update(category_id=numbers[name], isthing=bool(ISTHING[name]))


def test_raw_segments_are_refused_where_every_number_is_a_class(tmp_path):
    """A truth that counts from 0: things 0 and 1, and raw grass has the number of dogs, 1."""
    names = ["cow", "dog", "grass"]

    def from_zero(content: dict) -> None:
        for entry in content["categories"]:
            entry["id"] -= 1
        for segment in content["annotations"][0]["segments_info"]:
            segment["category_id"] -= 1

    truth = write(tmp_path, "truth", names, from_zero)
    prediction = write(tmp_path, "pred", names, things_and_stuff_apart)
    files = (prediction["json"], prediction["dir"], truth["json"], truth["dir"])
    with pytest.raises(InputError, match=r"pred\.json: .*segment 1: isthing is 0"):
        evaluate_files(*files, FileOptions(workers=1))


def without_cows(content: dict) -> None:
    """A file of a model that does not know the class."""
    content["categories"] = content["categories"][1:]
    content["annotations"][0]["segments_info"].pop(1)


FAULTS = {
    "another name": (
        "pred", lambda c: c["categories"][0].update(name="bull"), 'lack "cow", a class of',
    ),
    "one class less": ("pred", without_cows, 'its 2 categories lack "cow"'),
    "another kind": (
        "pred", lambda c: c["categories"][1].update(isthing=1),
        '"grass" is a thing (isthing 1), in',
    ),
    "classes without a list": ("pred", lambda c: c.update(categories={}), "expected at least one"),
    "raw segments": ("pred", things_and_stuff_apart, "isthing is 0, and category_id 1 is a thing"),
    "segment of another kind": (
        "pred",
        lambda c: c["annotations"][0]["segments_info"][0].update(isthing=1),
        "isthing is 1, and category_id 2 is stuff",
    ),
    "segment's kind is a word": (
        "pred",
        lambda c: c["annotations"][0]["segments_info"][1].update(isthing="thing"),
        "isthing is 'thing'; expected 0 or 1",
    ),
    "crowd is a word": (
        "truth", lambda c: c["annotations"][0]["segments_info"][1].update(iscrowd="0"),
        "iscrowd is '0'; expected 0 or 1",
    ),
    "truth without isthing": (
        "truth", lambda c: [x.pop("isthing") for x in c["categories"]], "isthing is missing",
    ),
    "truth's isthing is a word": (
        "truth", lambda c: c["categories"][1].update(isthing="0"), "isthing is '0'; expected 1",
    ),
    "truth without classes": ("truth", lambda c: c.pop("categories"), '"categories" is empty'),
    "one name twice": ("truth", lambda c: c["categories"][1].update(name="cow"), "used twice"),
}  # fmt: skip


@pytest.mark.parametrize("name", FAULTS)
def test_contradictions_in_files_are_one_line(name, tmp_path, capsys):
    stem, change, words = FAULTS[name]
    paths = {s: write(tmp_path, s, OWN, change if s == stem else None) for s in ("pred", "truth")}
    argv = ["--pred-json", str(paths["pred"]["json"]), "--pred-dir", str(paths["pred"]["dir"]),
            "--gt-json", str(paths["truth"]["json"]), "--gt-dir", str(paths["truth"]["dir"]),
            "--workers", "1"]  # fmt: skip
    with pytest.raises(SystemExit) as end:
        main_with_errors(load_tool("evaluate_panoptic").main, argv)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"{stem}.json" in line and words in line


def test_a_file_may_be_read_in_classes_twice(tmp_path):
    file = PanopticFile(*write(tmp_path, "truth", TRUTH).values())
    one, two = (parse_categories(categories(n), "x") for n in (OWN, ["grass", "cow", "dog"]))
    assert [s["category_id"] for s in file.segments("7")] == [2, 3, 1, 1]
    assert [s["category_id"] for s in file.in_classes(one).segments("7")] == [2, 1, 3, 3]
    assert [s["category_id"] for s in file.in_classes(one).in_classes(two).segments("7")] == [
        1, 2, 3, 3,
    ]  # fmt: skip
    assert [s["category_id"] for s in file.segments("7")] == [2, 3, 1, 1]


def label_store(path: Path, names: list[str], called: dict[str, str] | None = None) -> LabelStore:
    """A store that is right about the scene; ``called`` renames classes."""
    called = called or {}
    classes = [{**c, "name": called.get(c["name"], c["name"])} for c in categories(names)]
    store = LabelStore.create(path, {"made": "by hand"}, classes)
    segments = [{"id": k, "category_id": names.index(n)} for k, n in SEGMENTS.items()]
    table = np.array([0, *(s["category_id"] for s in segments)], np.uint8)
    record = {"image_id": 7, "file_name": "0.jpg", "height": 20, "width": 30}
    store.write(record, table[IDS], IDS, segments)
    store.finish()
    return store


def test_label_quality_compares_names(tmp_path):
    truth = write(tmp_path, "truth", TRUTH)
    found = evaluate_store(label_store(tmp_path / "store", OWN), truth["json"], truth["dir"])
    assert found["summary"]["mIoU"] == found["summary"]["PQ"] == 100
    assert found["classes"]["dog"]["IoU"] == found["objects"]["cow"]["all"]["IoU"] == 100
    assert found["classes"]["dog"]["truth_pixels"] == 6 * 6 + 6 * 12
    # Labels of "horse" are none of "dog", though their ids are the same.
    other = label_store(tmp_path / "horse", TRUTH, {"dog": "horse"})
    with pytest.raises(InputError, match=r'truth\.json: .*lack "horse".*horse/manifest\.json'):
        evaluate_store(other, truth["json"], truth["dir"])


def test_a_submission_is_in_the_servers_classes(tmp_path):
    """A model whose list begins with the background of VOC at its end."""
    ids = {c["name"]: c["id"] for c in VOC_CATEGORIES}
    order = [c["name"] for c in VOC_CATEGORIES][::-1]
    own = [
        {"id": k, "name": c["name"], "isthing": c["isthing"]}
        for k, c in enumerate(VOC_CATEGORIES[::-1], start=1)
    ]
    if NAME in MetadataCatalog.list():
        MetadataCatalog.remove(NAME)
    MetadataCatalog.get(NAME).set(
        categories=own, image_root=str(tmp_path), evaluator_type="wsis_panoptic"
    )
    cfg = get_cfg()
    add_wsis_config(cfg)
    evaluator = build_evaluator(cfg, NAME, tmp_path / "inference")
    evaluator.reset()
    labels = np.random.default_rng(0).integers(0, 21, (6, 8))
    logits = torch.nn.functional.one_hot(torch.from_numpy(labels), 21).permute(2, 0, 1).float()
    segments = [{"id": k + 1, "category_id": k} for k in np.unique(labels).tolist()]
    evaluator.process(
        [{"image_id": 1, "file_name": str(tmp_path / "2008_000009.jpg")}],
        [{"panoptic_seg": (torch.from_numpy(labels + 1), segments), "sem_seg": logits}],
    )
    evaluator.evaluate()
    right = np.array([ids[name] for name in order])[labels]
    inside = "results/VOC2012/Segmentation/comp6_test_cls/2008_000009.png"
    for source in ("semantic", "panoptic"):
        write_submission(tmp_path / "inference", tmp_path / source, "voc", source=source)
        np.testing.assert_array_equal(np.array(Image.open(tmp_path / source / inside)), right)
