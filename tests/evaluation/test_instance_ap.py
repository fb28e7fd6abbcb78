# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""AP of things against pycocotools and cityscapesscripts."""

import contextlib
import io
from pathlib import Path

import numpy as np
import pytest
from helpers.panoptic_scenes import CLASSES, random_image
from PIL import Image

from wsis_d2.evaluation import InstanceAP, Matcher
from wsis_d2.structures.classes import parse_categories


def coco_eval(scenes: list[tuple]) -> tuple[list[float], np.ndarray]:
    """Return pycocotools' first six numbers and its precision, from masks alone."""
    mask_api = pytest.importorskip("pycocotools.mask")
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def rle(mask: np.ndarray) -> dict:
        return mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))

    things = [c for c, thing in zip(CLASSES.ids, CLASSES.isthing, strict=True) if thing]
    truths, results = [], []
    for image, (gt, gt_segments, pred, pred_segments) in enumerate(scenes, start=1):
        for segment in gt_segments:
            if segment["category_id"] in things:
                mask = gt == segment["id"]
                truths.append(
                    {
                        "id": len(truths) + 1,
                        "image_id": image,
                        "category_id": segment["category_id"],
                        "iscrowd": segment["iscrowd"],
                        "area": int(mask.sum()),
                        "bbox": [0, 0, 1, 1],
                        "segmentation": rle(mask),
                    }
                )
        for segment in pred_segments:
            if segment["category_id"] in things:
                results.append(
                    {
                        "image_id": image,
                        "category_id": segment["category_id"],
                        "score": segment["score"],
                        "segmentation": rle(pred == segment["id"]),
                    }
                )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "info": {},
            "images": [
                {"id": i, "height": scene[0].shape[0], "width": scene[0].shape[1]}
                for i, scene in enumerate(scenes, start=1)
            ],
            "annotations": truths,
            "categories": [{"id": c} for c in things],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats[:6].tolist(), evaluation.eval["precision"]


@pytest.mark.parametrize("seed", range(6))
def test_equals_pycocotools(seed: int) -> None:
    rng = np.random.default_rng(seed + 900)
    # Big enough that all three area ranges occur.
    scenes = [random_image(rng, 160, 200, blobs=14) for _ in range(5)]
    matcher, precision = Matcher(CLASSES), InstanceAP(CLASSES, "coco")
    for key, scene in enumerate(scenes):
        precision.update(matcher(*scene, key=key))
    stats, table = coco_eval(scenes)
    result = precision.results()
    found = [result[key] for key in ("AP", "AP50", "AP75", "APs", "APm", "APl")]
    wanted = [np.nan if value < 0 else 100 * value for value in stats]
    np.testing.assert_allclose(found, wanted, rtol=1e-9)
    per_class = table[:, :, :, 0, 2].mean(1).T
    np.testing.assert_allclose(
        precision.per_class(), np.where(per_class < 0, np.nan, per_class), rtol=1e-9
    )


def cityscapes_scene(rng: np.random.Generator, height: int = 128, width: int = 256) -> tuple:
    """Return a scene in Cityscapes' instanceIds (truth) and segments (prediction)."""
    gt = np.full((height, width), 7, np.int64)
    gt[: height // 3] = 23
    gt[-height // 8 :] = 1
    for class_id in (24, 26, 28, 33):
        for number in range(int(rng.integers(1, 4))):
            y, x = rng.integers(0, height - 30), rng.integers(0, width - 40)
            h, w = rng.integers(5, 40), rng.integers(5, 60)
            gt[y : y + h, x : x + w] = class_id * 1000 + number
        if rng.random() < 0.5:
            y, x = rng.integers(0, height - 30), rng.integers(0, width - 40)
            gt[y : y + 25, x : x + 30] = class_id
    pred = np.roll(gt, rng.integers(-3, 4, size=2), axis=(0, 1))
    y, x = rng.integers(10, height - 10), rng.integers(10, width - 10)
    block = pred[y:, x:]
    block[block >= 1000] += 500
    return gt, pred


def cityscapes_segments(ids: np.ndarray, rng: np.random.Generator | None) -> list[dict]:
    """Return segments of an instanceIds picture; scored when ``rng`` is given."""
    segments = []
    for value in np.unique(ids).tolist():
        if value <= 1:
            continue
        class_id = value // 1000 if value >= 1000 else value
        segment = {"id": value, "category_id": class_id}
        if rng is None:
            segment["iscrowd"] = int(24 <= value <= 33)
        else:
            segment["score"] = float(rng.integers(1, 12) / 12)
        segments.append(segment)
    return segments


@pytest.mark.parametrize("seed", range(4))
def test_equals_cityscapesscripts(seed: int, tmp_path: Path, monkeypatch) -> None:
    pytest.importorskip("cityscapesscripts")
    monkeypatch.setenv("CITYSCAPES_DATASET", str(tmp_path))
    from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling as official
    from cityscapesscripts.helpers.labels import labels

    if not hasattr(np, "in1d"):  # NumPy 2.4 dropped the name the scripts use.
        monkeypatch.setattr(np, "in1d", np.isin, raising=False)
    evaluated = [label for label in labels if not label.ignoreInEval]
    classes = parse_categories(
        [{"id": x.id, "name": x.name, "isthing": int(x.hasInstances)} for x in evaluated], "test"
    )
    rng = np.random.default_rng(seed)
    matcher, precision = Matcher(classes), InstanceAP(classes, "cityscapes")
    truths, predictions = [], []
    for number in range(3):
        gt, pred = cityscapes_scene(rng)
        segments = cityscapes_segments(pred, rng)
        stem = tmp_path / "aachen" / f"aachen_00000{number}_000019"
        stem.parent.mkdir(exist_ok=True)
        Image.fromarray(gt.astype(np.uint16)).save(f"{stem}_gtFine_instanceIds.png")
        lines = []
        for segment in segments:
            if 24 <= segment["category_id"] <= 33:
                mask = Path(f"{stem}_{segment['id']}.png")
                picture = (pred == segment["id"]).astype(np.uint8) * 255
                Image.fromarray(picture).save(mask)
                lines.append(f"{mask.name} {segment['category_id']} {segment['score']}")
        Path(f"{stem}_pred.txt").write_text("\n".join(lines))
        truths.append(f"{stem}_gtFine_instanceIds.png")
        predictions.append(f"{stem}_pred.txt")
        void_gt, void_pred = np.where(gt <= 1, 0, gt), np.where(pred <= 1, 0, pred)
        precision.update(
            matcher(void_gt, cityscapes_segments(gt, None), void_pred, segments, key=number)
        )
    # Debug files of the scripts, which cannot write NumPy 2's integers.
    monkeypatch.setattr(official, "writeDict2JSON", lambda *_: None)
    args = official.args
    args.predictionPath = str(tmp_path)
    args.gtInstancesFile = str(tmp_path / "gtInstances.json")
    args.JSONOutput = False
    args.quiet = True
    monkeypatch.chdir(tmp_path)
    with contextlib.redirect_stdout(io.StringIO()), np.errstate(all="ignore"):
        expected = official.evaluateImgLists(predictions, truths, args)
    theirs = np.array(expected["resultApMatrix"])[0]
    names = [x.name for x in sorted(evaluated, key=lambda x: x.id) if x.hasInstances]
    order = [args.instLabels.index(name) for name in names]
    np.testing.assert_allclose(precision.per_class(), theirs[order], rtol=1e-9)
    result = precision.results()
    assert result["AP"] == pytest.approx(100 * expected["averages"]["allAp"])
    assert result["AP50"] == pytest.approx(100 * float(expected["averages"]["allAp50%"]))
