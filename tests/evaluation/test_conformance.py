# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Published panoptic cases with stated numbers: deeplab2, bdd100k, torchmetrics, panopticapi."""

import json
from pathlib import Path

import numpy as np
import pytest
from helpers.shared_data import shared_data
from PIL import Image

from wsis_d2.evaluation import InstanceAP, Matcher, PanopticQuality
from wsis_d2.evaluation.from_files import FileOptions, evaluate_files
from wsis_d2.structures.classes import ClassTable, parse_categories

STRIDE = 1 << 10


def classes_of(ids, things=()) -> ClassTable:
    """Return classes named by their id."""
    return parse_categories(
        [{"id": int(i), "name": str(i), "isthing": int(i in things)} for i in ids], "test"
    )


def encode(category: np.ndarray, instance: np.ndarray, void=None) -> tuple:
    """Return (ids, segments) of two maps; ids are category * STRIDE + instance + 1, void 0."""
    ids = category.astype(np.int64) * STRIDE + instance + 1
    if void is not None:
        ids = np.where(category == void, 0, ids)
    segments = [
        {"id": int(i), "category_id": int((i - 1) // STRIDE), "iscrowd": 0}
        for i in np.unique(ids) if i
    ]  # fmt: skip
    return ids, segments


def gray(path: Path) -> np.ndarray:
    """Return the first channel."""
    array = np.array(Image.open(path))
    return array if array.ndim == 2 else array[..., 0]


def deeplab2_image(folder: Path, expected: dict, name: str) -> tuple:
    """Return the four arguments of a Matcher for one picture of the suite."""
    gt_name = {"team": "team_gt_instance.png"}.get(name, f"{name}_gt.png")
    levels = gray(folder / gt_name)
    gt_class = np.zeros(levels.shape, np.int64)
    for level, category in expected["gt_gray_to_class"][gt_name].items():
        gt_class[levels == int(level)] = category
    color = np.array(Image.open(folder / f"{name}_pred_class.png"))[..., :3]
    pred_class = np.full(color.shape[:2], -1, np.int64)
    for text, category in expected["pred_class_colours"].items():
        pred_class[(color == np.array([int(v) for v in text.split(",")])).all(-1)] = category
    assert (pred_class >= 0).all()
    void = expected["void_class"]
    truth = encode(gt_class, levels.astype(np.int64), void)
    return (*truth, *encode(pred_class, gray(folder / f"{name}_pred_instance.png"), void))


@pytest.mark.parametrize(
    "case, names", [("team_only", ["team"]), ("bird+cat+team", ["bird", "cat", "team"])]
)
def test_deeplab2(case: str, names: list[str]) -> None:
    root = shared_data("deeplab2_pq_testdata")
    expected = json.loads((root / "EXPECTED.json").read_text())
    classes = classes_of(range(7))
    matcher, quality = Matcher(classes), PanopticQuality(classes)
    for name in names:
        quality.update(matcher(*deeplab2_image(root / "testdata", expected, name)))
    result, stated = quality.results(), expected[case]
    tolerance = 100 * expected["tolerance"]
    for ours, theirs in (("PQ", "PQ"), ("SQ", "SQ"), ("DQ", "RQ")):
        assert result[ours] == pytest.approx(100 * stated[theirs], abs=tolerance)
    occurring = (quality.tp + quality.fp + quality.fn) > 0
    for ours, theirs in (("tp", "TP_mean"), ("fp", "FP_mean"), ("fn", "FN_mean")):
        assert getattr(quality, ours)[occurring].mean() == pytest.approx(stated[theirs])


def test_deeplab2_tiny_case_gives_panopticapis_value() -> None:
    """That project states 2/9 by a quirk of its own; all void pixels leave the union here."""
    root = shared_data("deeplab2_pq_testdata")
    case = json.loads((root / "EXPECTED.json").read_text())["tiny_case"]
    maps = {k: np.array(v) for k, v in case.items() if isinstance(v, list)}
    classes = classes_of(range(case["num_classes"]))
    void = case["void_class"]
    truth = encode(maps["gt_class"], maps["gt_instance"], void)
    predicted = encode(maps["pred_class"], maps["pred_instance"], void)
    quality = PanopticQuality(classes)
    quality.update(Matcher(classes)(*truth, *predicted))
    assert quality.results()["PQ"] == pytest.approx(100 * case["PQ_panopticapi_rule"])


def test_deeplab2_instance_ap_is_cocos() -> None:
    """All scores are 1 there, so only numbers that no order of equals can change are compared."""
    root = shared_data("deeplab2_pq_testdata")
    expected = json.loads((root / "EXPECTED.json").read_text())
    classes = classes_of(range(7), things=(1, 2))
    precision = InstanceAP(classes)
    precision.update(Matcher(classes)(*deeplab2_image(root / "testdata", expected, "team")))
    result = precision.results()
    stated = expected["instance_ap_team (COCO AP, all scores 1)"]
    assert result["AP50"] == pytest.approx(100 * stated[1], abs=0.02)
    assert result["APl"] == pytest.approx(100 * stated[5], abs=0.02)
    assert np.isnan(result["APs"]) and stated[3] == -1


def bdd_maps(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return (category, instance), category 0 where unlabelled or marked to be ignored."""
    rgba = np.array(Image.open(path)).astype(np.int64)
    category, attributes = rgba[..., 0], rgba[..., 1]
    instance = rgba[..., 2] * 256 + rgba[..., 3]
    ignored = (instance == 0) | ((attributes & 3) > 0)
    return np.where(ignored, 0, category), np.where(ignored, 0, instance)


def bdd_quality(names: list[str], truth: str) -> PanopticQuality:
    """Return the sums over a suite's pictures; a missing prediction is empty."""
    folder = shared_data("bdd100k_eval_cases") / "pan_seg"
    classes = classes_of(range(1, 41), things=range(31, 41))
    matcher, quality = Matcher(classes), PanopticQuality(classes)
    for name in names:
        gt = encode(*bdd_maps(folder / truth / name), void=0)
        path = folder / "pred" / name
        pred = encode(*bdd_maps(path), void=0) if path.exists() else (np.zeros_like(gt[0]), [])
        quality.update(matcher(*gt, *pred))
    return quality


def test_bdd100k_counts_of_one_image() -> None:
    expected = json.loads((shared_data("bdd100k_eval_cases") / "EXPECTED.json").read_text())
    quality = bdd_quality(["a.png"], "gt")
    stated = expected["pan_seg_a.png per category [tp,fp,fn,iou_sum]"]
    seen = set()
    for category, (tp, fp, fn, iou) in stated.items():
        index = quality.classes.contiguous[int(category)]
        assert (quality.tp[index], quality.fp[index], quality.fn[index]) == (tp, fp, fn)
        assert quality.iou[index] == pytest.approx(iou, abs=1e-12)
        seen.add(index)
    rest = [i for i in range(len(quality.classes)) if i not in seen]
    assert not (quality.tp + quality.fp + quality.fn)[rest].any()


def test_bdd100k_totals() -> None:
    expected = json.loads((shared_data("bdd100k_eval_cases") / "EXPECTED.json").read_text())
    quality = bdd_quality(["a.png", "b.png"], "gt")
    key = next(k for k in expected if k.startswith("pan_seg a+b, panopticapi rule"))
    result = quality.results()
    for ours, theirs in (("PQ", "PQ"), ("SQ", "SQ"), ("DQ", "RQ"), ("N", "N")):
        assert result[ours] == pytest.approx(expected[key][theirs], abs=1e-7)
    # The repository's own total keeps void pixels in the union, which moves it by 2e-4.
    theirs = expected[next(k for k in expected if k.startswith("pan_seg a+b, repo"))]
    assert result["PQ_st"] == pytest.approx(theirs["PQ_stuff"], abs=1e-3)
    assert result["PQ_th"] == pytest.approx(theirs["PQ_thing"], abs=1e-3)


def test_bdd100k_image_without_prediction_counts_as_missed() -> None:
    expected = json.loads((shared_data("bdd100k_eval_cases") / "EXPECTED.json").read_text())
    stated = expected[next(k for k in expected if k.startswith("pan_seg gt+"))]
    result = bdd_quality(["a.png", "b.png", "c.png"], "gt+").results()
    assert result["DQ"] == pytest.approx(stated["RQ"], abs=1e-7)
    assert result["PQ"] == pytest.approx(stated["PQ"], abs=1e-3)
    assert result["N"] == stated["N"]


@pytest.mark.parametrize("case", ["case0", "case1"])
def test_torchmetrics(case: str) -> None:
    root = shared_data("torchmetrics_pq_facts")
    facts = json.loads((root / "EXPECTED.json").read_text())[case]
    classes = classes_of((*facts["things"], *facts["stuffs"]), things=facts["things"])
    stuff = np.array(facts["stuffs"])

    def load(name: str) -> tuple:
        pairs = np.atleast_3d(np.array(facts[name])).reshape(-1, 2)
        instance = np.where(np.isin(pairs[:, 0], stuff), 0, pairs[:, 1])
        return encode(pairs[None, :, 0], instance[None])

    quality = PanopticQuality(classes)
    quality.update(Matcher(classes)(*load("target"), *load("preds")))
    # That library averages over all given classes that occur.
    assert quality.results()["PQ"] == pytest.approx(100 * facts["PQ"], abs=0.006)


def sample_truth(tmp_path: Path) -> tuple[Path, Path, dict]:
    """Return (JSON with the class list, folder of PNGs, content) of the COCO sample."""
    root = shared_data("coco_panopticapi_sample")
    data = json.loads((root / "panoptic_examples.json").read_text())
    data["categories"] = json.loads((root / "panoptic_coco_categories.json").read_text())
    path = tmp_path / "truth.json"
    path.write_text(json.dumps(data))
    return path, root / "panoptic_examples", data


def test_coco_sample_against_itself_is_perfect(tmp_path: Path) -> None:
    path, folder, data = sample_truth(tmp_path)
    crowds = sum(s["iscrowd"] for a in data["annotations"] for s in a["segments_info"])
    assert crowds > 0
    results = evaluate_files(path, folder, path, folder)
    # Predictions on crowds are excused in PQ; in AP^r they lie wholly in ignore and are wrong, so
    # only the best ranking is perfect.
    assert results["panoptic_seg"]["PQ"] == 100
    assert results["sem_seg"]["mIoU"] == 100
    assert results["apr"]["APr_vol_all-by-oracle"] == 100
    paper = evaluate_files(path, folder, path, folder, FileOptions(pq="paper"))
    assert paper["panoptic_seg"]["SQ"] <= 100
    assert paper["panoptic_seg"]["PQ"] < 100


def test_coco_sample_shifted_equals_panopticapi(tmp_path: Path) -> None:
    evaluation = pytest.importorskip("panopticapi.evaluation")
    gt, truth_dir, data = sample_truth(tmp_path)
    folder = tmp_path / "pred"
    folder.mkdir()
    for annotation in data["annotations"]:
        picture = np.array(Image.open(truth_dir / annotation["file_name"]))
        picture = np.roll(picture, (6, 9), axis=(0, 1))
        Image.fromarray(picture).save(folder / annotation["file_name"])
    pred = tmp_path / "pred.json"
    pred.write_text(json.dumps(data))
    expected = evaluation.pq_compute(str(gt), str(pred), str(truth_dir), str(folder))
    found = evaluate_files(pred, folder, gt, truth_dir)["panoptic_seg"]
    assert found["PQ"] == pytest.approx(100 * expected["All"]["pq"], abs=1e-10)
    assert 20 < found["PQ"] < 95
