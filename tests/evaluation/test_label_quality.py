# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Quality of labels, against numbers worked out by hand."""

import json
import math

import numpy as np
import pytest
from PIL import Image

from wsis_d2.evaluation.label_quality import evaluate_store, oracle_overlaps
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.proposals.files import SuperpixelProposals
from wsis_d2.weak_labels.store import LabelStore

CATEGORIES = [
    {"id": 10, "name": "sky", "isthing": 0},
    {"id": 20, "name": "cow", "isthing": 1},
    {"id": 30, "name": "dog", "isthing": 1},
]


def write_truth(folder, ids, segments, categories=CATEGORIES):
    (folder / "truth").mkdir()
    rgb = np.stack([ids % 256, ids // 256, np.zeros_like(ids)], axis=-1).astype(np.uint8)
    Image.fromarray(rgb).save(folder / "truth" / "1.png")
    annotation = {"image_id": 1, "file_name": "1.png", "segments_info": segments}
    content = {"images": [{"id": 1}], "annotations": [annotation], "categories": categories}
    (folder / "truth.json").write_text(json.dumps(content))
    return folder / "truth.json", folder / "truth"


def make_case(folder):
    """A 40 x 100 image: sky, a cow labelled in part and beyond, a cow and a dog without labels."""
    ids = np.full((40, 100), 1)
    ids[:, 90:] = 0  # void
    ids[0:20, 0:20] = 300  # cow of 400 pixels: small
    ids[20:40, 20:80] = 301  # cow of 1200 pixels: medium
    ids[0:10, 60:70] = 302  # dog
    ids[30:40, 0:10] = 303  # crowd of cows: never an object
    segments = [
        {"id": 1, "category_id": 10}, {"id": 300, "category_id": 20},
        {"id": 301, "category_id": 20}, {"id": 302, "category_id": 30},
        {"id": 303, "category_id": 20, "iscrowd": 1},
    ]  # fmt: skip
    truth = write_truth(folder, ids, segments)
    semantic = np.full((40, 100), 255, np.uint8)
    semantic[0:20, 0:10] = 1  # half of the first cow
    semantic[0:20, 20:25] = 1  # and 100 pixels of sky, one segment with it
    semantic[0:5, 95:] = 1  # on void: counts for nobody
    semantic[:10, 30:50] = 0  # 200 pixels of sky
    instance = np.where(semantic == 1, 1, -1)
    record = {"image_id": 1, "file_name": "1.jpg", "height": 40, "width": 100}
    store = LabelStore.create(folder / "store", {}, CATEGORIES)
    store.write(record, semantic, instance, [{"id": 1, "category_id": 1}], {})
    return store, truth


def test_by_hand(tmp_path):
    store, truth = make_case(tmp_path)
    found = evaluate_store(store, *truth)
    cows = found["objects"]["cow"]
    # Segment: 200 of 400 right, 100 wrong, 25 on void.
    assert cows["small"] == pytest.approx(
        {
            "precision": 200 / 3, "recall": 50, "IoU": 40, "empty": 0, "coverage": 50,
            "ignored": 50, "count": 1,
        }
    )  # fmt: skip
    assert cows["medium"]["empty"] == 100 and cows["medium"]["IoU"] == 0
    assert math.isnan(cows["medium"]["precision"]) and cows["medium"]["count"] == 1
    assert found["objects"]["dog"]["all"]["empty"] == 100
    everything = found["objects"]["all"]["all"]
    assert everything == pytest.approx(
        {
            "precision": 200 / 3, "recall": 50 / 3, "IoU": 40 / 3, "empty": 200 / 3,
            "coverage": 50 / 3, "ignored": 250 / 3, "count": 3,
        }
    )  # fmt: skip
    assert cows["not small"] == cows["medium"] | {"precision": pytest.approx(math.nan, nan_ok=True)}
    valid = 40 * 90
    sky = valid - 400 - 1200 - 100 - 100
    summary = found["summary"]
    assert summary["coverage"] == pytest.approx(100 * 500 / valid)
    assert summary["ignored"] == pytest.approx(100 - 100 * 500 / valid)
    assert summary["pixel_precision"] == pytest.approx(100 * 400 / 500)
    assert found["classes"]["cow"]["IoU"] == pytest.approx(100 * 200 / (1700 + 300 - 200))
    assert found["classes"]["cow"]["recall"] == pytest.approx(100 * 200 / 1700)
    assert found["classes"]["cow"]["coverage"] == pytest.approx(100 * 200 / 1700)
    assert found["classes"]["sky"]["coverage"] == pytest.approx(100 * 300 / sky)
    assert found["classes"]["sky"]["ignored"] == pytest.approx(100 - 100 * 300 / sky)
    assert found["classes"]["sky"]["IoU"] == pytest.approx(100 * 200 / sky)
    assert math.isnan(found["classes"]["dog"]["precision"])
    assert summary["mIoU"] == pytest.approx(
        (found["classes"]["cow"]["IoU"] + found["classes"]["sky"]["IoU"] + 0) / 3
    )
    assert summary["PQ_th"] == 0


def test_other_classes_and_other_images_are_refused(tmp_path):
    store, (truth, folder) = make_case(tmp_path)
    content = json.loads(truth.read_text())
    content["annotations"][0]["image_id"] = 2
    (tmp_path / "other.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="none of its images"):
        evaluate_store(store, tmp_path / "other.json", folder)
    content["categories"] = [*CATEGORIES, {"id": 40, "name": "cat", "isthing": 1}]
    (tmp_path / "more.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="must share classes"):
        evaluate_store(tmp_path / "store", tmp_path / "more.json", folder)


def test_oracle_is_the_best_overlap_at_each_budget():
    superpixels = np.kron(np.arange(4).reshape(2, 2), np.ones((5, 5), int))
    proposals = SuperpixelProposals(superpixels, [np.array(m) for m in ([0], [0, 1], [1, 3], [2])])
    masks = [superpixels <= 1, (superpixels == 3) | (superpixels == 1), superpixels == 2]
    found = oracle_overlaps(proposals, masks, budgets=(1, 2, 3))
    np.testing.assert_allclose(found, [[0.5, 1, 1, 1], [0, 1 / 3, 1, 1], [0, 0, 0, 1]])
