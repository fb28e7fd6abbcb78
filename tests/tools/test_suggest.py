# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Which images to annotate next: gains by hand, the choice, and the tool with its files."""

import json

import numpy as np
import pytest
from helpers.load_tool import load_tool
from PIL import Image

from wsis_d2.data.datasets.own.full_images import mark_full
from wsis_d2.data.datasets.own.weak import read_weak_file
from wsis_d2.planning.suggest import ImageGain, image_gain, suggest
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.store import LabelStore

HEIGHT, WIDTH = 10, 20
BY_GAIN = ["--suggest-by", "gain"]
CATEGORIES = [
    {"id": 1, "name": "cow", "isthing": 1}, {"id": 2, "name": "dog", "isthing": 1},
    {"id": 5, "name": "sky", "isthing": 0},
]  # fmt: skip


def record(*boxes, image_id=1):
    annotations = [
        {"bbox": list(map(float, b)), "bbox_mode": 0, "category_id": c, "iscrowd": g}
        for c, g, b in boxes
    ]
    return {"image_id": image_id, "file_name": f"{image_id}.png", "height": HEIGHT, "width": WIDTH,
            "annotations": annotations}  # fmt: skip


def test_the_gain_of_an_image_by_hand():
    labels = np.full((HEIGHT, WIDTH), 2, np.uint8)
    labels[0:4, 0:10] = 255  # 20 of the box's 50 pixels, 20 of the 150 outside
    labels[4:10, 0:5] = 0
    predicted = np.full((HEIGHT, WIDTH), 2, np.uint8)
    predicted[2:10, 0:2] = 0
    confidence = np.full((HEIGHT, WIDTH), 0.75, np.float32)
    box = (0, 0, (0, 0, 5, 10))
    group = (1, 1, (10, 0, 20, 10))
    gain = image_gain(record(box, group), labels, predicted, confidence)
    # Labelled as the class: 30; both: rows 4 to 9 of two columns, 12 of a union of 30.
    assert gain.ignored == pytest.approx(20 / 50)
    assert gain.disagreement == pytest.approx(1 - 12 / 30)
    assert gain.uncertainty == pytest.approx(0.25)
    assert gain.objects == {0: pytest.approx((0.4 + 0.6 + 0.25) / 3)} and gain.count == {0: 1}
    assert gain.rest == pytest.approx((20 / 150 + 0) / 2 * 150 / 200)
    alone = image_gain(record(box), labels)
    assert alone.objects == {0: pytest.approx(0.4)} and alone.disagreement is None


def gain_of(image_id, objects, rest=0.0):
    return ImageGain(image_id, f"{image_id}.png", {c: v for c, (_, v) in objects.items()},
                     {c: n for c, (n, _) in objects.items()}, rest, None, None, None)  # fmt: skip


def test_the_choice_balances_classes_and_puts_marked_images_first():
    gains = [
        gain_of("a", {0: (2, 1.8)}), gain_of("b", {0: (2, 1.6)}), gain_of("c", {1: (1, 1.0)}),
        gain_of("d", {}, 0.1),
    ]  # fmt: skip
    # After a: b has 1.6 / sqrt(3) = 0.92, less than c.
    assert [g.image_id for g, _ in suggest(gains, 3)] == ["a", "c", "b"]
    assert suggest(gains, 3)[2][1] == pytest.approx(1.6 / 3**0.5)
    assert [g.image_id for g, _ in suggest(gains, 9, ["d", "c"])] == ["c", "d", "a", "b"]
    assert suggest([], 3) == []


@pytest.fixture
def data(tmp_path):
    """Four images; what is labelled of the cow falls from the first to the last."""
    (tmp_path / "images").mkdir()
    (tmp_path / "pred").mkdir()
    images, boxes, predictions = [], [], []
    for k in range(4):
        name = f"photo{k}.png"
        Image.new("RGB", (WIDTH, HEIGHT)).save(tmp_path / "images" / name)
        images.append({"id": k + 1, "file_name": name, "height": HEIGHT, "width": WIDTH,
                       "image_tags": [5]})  # fmt: skip
        boxes.append({"id": k + 1, "image_id": k + 1, "category_id": 1, "bbox": [0, 0, 10, 10]})
        ids = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
        ids[..., 0] = 2
        ids[:, :10, 0] = 1
        Image.fromarray(ids).save(tmp_path / "pred" / name)
        predictions.append(
            {
                "image_id": 100 + k,
                "file_name": name,
                "segments_info": [
                    {"id": 1, "category_id": 1, "score": 0.9},
                    {"id": 2, "category_id": 5, "score": 1.0},
                ],
            }
        )
    weak = {"images": images, "categories": CATEGORIES, "annotations": boxes}
    (tmp_path / "weak.json").write_text(json.dumps(weak))
    # As tools/demo.py writes them, which numbers its pictures itself.
    named = [{**image, "id": 100 + k} for k, image in enumerate(images)]
    content = {"images": named, "annotations": predictions, "categories": CATEGORIES}
    (tmp_path / "pred.json").write_text(json.dumps(content))
    store = LabelStore.create(tmp_path / "store", {"kind": "test"}, CATEGORIES)
    for k, own in enumerate(read_weak_file(tmp_path / "weak.json", tmp_path / "images").records):
        semantic = np.full((HEIGHT, WIDTH), 255, np.uint8)
        semantic[: 10 - 2 * k, :10], semantic[:, 10:] = 0, 2
        instance = np.where(semantic == 0, 1, -1).astype(np.int32)
        store.write(own, semantic, instance, [{"id": 1, "category_id": 0}], {})
    store.finish()
    return tmp_path


def run(data, *options):
    output = data / "budget.json"
    arguments = ["--annotations", str(data / "weak.json"), "--images", str(data / "images"),
                 "--store", str(data / "store"), "--output", str(output), *options]  # fmt: skip
    assert load_tool("annotation_budget").main(arguments) == 0
    return json.loads(output.read_text())["suggestions"]


def test_the_tool_names_images_and_writes_what_training_reads(data):
    page, names = data / "next.html", data / "next.txt"
    predictions = ["--pred-json", str(data / "pred.json"), "--pred-dir", str(data / "pred")]
    found = run(data, "--suggest", "2", *BY_GAIN, *predictions, "--suggest-report", str(page),
                "--suggest-list", str(names))  # fmt: skip
    assert [entry["image_id"] for entry in found] == [4, 3]
    assert found[0]["ignored"] == pytest.approx(0.6) and found[0]["disagreement"] == 0
    assert found[0]["uncertainty"] == pytest.approx(0.1)
    text = page.read_text()
    assert "1. photo3.png" in text and "2. photo2.png" in text and "prediction" in text
    given = {"json": data / "weak.json", "images": data / "images"}
    weak = read_weak_file(given["json"], given["images"], supervision="mixed").records
    records = mark_full(weak, str(names), str(given["images"]), "the set")
    assert [r["supervision"] for r in records] == ["weak", "weak", "full", "full"]


def test_a_picture_without_prediction_does_not_take_that_of_another(data):
    """tools/demo.py numbers what it could read, whatever the annotation's ids are."""
    content = json.loads((data / "pred.json").read_text())
    for key, name in (("images", "id"), ("annotations", "image_id")):
        content[key] = [{**e, name: e[name] - 98} for e in content[key][:2]]  # photo0, 1: id 2, 3
    (data / "pred.json").write_text(json.dumps(content))
    predictions = ["--pred-json", str(data / "pred.json"), "--pred-dir", str(data / "pred")]
    found = {e["image_id"]: e for e in run(data, "--suggest", "4", *predictions)}
    assert found[1]["uncertainty"] is not None and found[2]["uncertainty"] is not None
    assert found[3]["uncertainty"] is None and found[4]["uncertainty"] is None


def test_what_is_full_already_is_not_named(data):
    content = json.loads((data / "weak.json").read_text())
    content["images"][3]["supervision"] = "full"
    (data / "weak.json").write_text(json.dumps(content))
    assert {entry["image_id"] for entry in run(data, "--suggest", "4")} == {1, 2, 3}


def test_a_review_is_heard_and_chance_is_repeatable(data):
    verdicts = [{"image_id": 1, "verdict": "full"}, {"image_id": 4, "verdict": "accept"}]
    review = {"kind": "wsis_d2 review", "images": verdicts}
    (data / "review.json").write_text(json.dumps(review))
    found = run(data, "--suggest", "3", *BY_GAIN, "--review", str(data / "review.json"))
    assert [entry["image_id"] for entry in found] == [1, 3, 2]
    chance = [
        [e["image_id"] for e in run(data, "--suggest", "2", "--suggest-by", "random", "--seed", s)]
        for s in ("1", "1", "2", "3", "4")
    ]
    assert chance[0] == chance[1] and any(c != chance[0] for c in chance[2:])
    for seed in "1234":  # marked first and accepted never, by chance too
        ids = [e["image_id"] for e in run(data, "--suggest", "3", "--suggest-by", "random",
               "--seed", seed, "--review", str(data / "review.json"))]  # fmt: skip
        assert ids[0] == 1 and sorted(ids) == [1, 2, 3]


@pytest.mark.parametrize(
    ("change", "message"),
    [({"recipe": "f" * 64}, "review of labels of recipe ffff"),
     ({"images": [{"image_id": 77, "verdict": "accept"}]}, "image 77 has no labels")],
)  # fmt: skip
def test_a_review_of_other_labels_is_refused(data, change, message):
    verdicts = [{"image_id": 4, "verdict": "accept"}]
    review = {"kind": "wsis_d2 review", "images": verdicts, **change}
    (data / "review.json").write_text(json.dumps(review))
    with pytest.raises(InputError, match=message):
        run(data, "--suggest", "3", "--review", str(data / "review.json"))


def test_predictions_of_other_pictures_are_refused_and_missing_ones_told(data, caplog):
    content = json.loads((data / "pred.json").read_text())
    predictions = ["--pred-json", str(data / "pred.json"), "--pred-dir", str(data / "pred")]
    content["annotations"] = content["annotations"][:1]
    (data / "pred.json").write_text(json.dumps(content))
    run(data, "--suggest", "1", *predictions)
    assert "lacks 3 of the 4 images" in caplog.text
    for image in content["images"]:
        image["file_name"] = f"other_{image['file_name']}"
    (data / "pred.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"pred\.json: holds predictions of none"):
        run(data, "--suggest", "1", *predictions)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suggest", "0"], "--suggest 0"),
        (["--suggest", "1", "--pred-json", "p.json"], "--pred-dir"),
        (["--review", "r.json"], "is for --suggest"),
    ],
)
def test_bad_arguments_are_named(data, options, message):
    with pytest.raises(InputError, match=message):
        run(data, *options)


def test_marks_cost_what_clicks_and_strokes_take():
    from wsis_d2.planning.annotation_cost import AnnotationTimes, count_records, supervision_cost

    marked = {
        **record((0, 0, (0, 0, 5, 5))), "image_tags": [1, 2],
        "points": [{"category_id": 2, "xy": [1, 1]}],
        "unboxed": [{"category_id": 0, "scribbles": [[[1, 1], [2, 2]]], "points": [[1, 1, 1]]}],
    }  # fmt: skip
    counts = count_records([marked], [0, 1])
    assert (counts.boxes, counts.tags, counts.masks) == (1, 0, 3)
    assert (counts.points, counts.scribbles) == (2, 1)
    times = AnnotationTimes()
    hours = supervision_cost(counts, times).hours
    assert hours == pytest.approx((7 + 2 * times.point + times.scribble) / 3600)
