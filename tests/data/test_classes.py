# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Files meet by the names of their classes: registration, records, label stores, twins."""

import json

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from helpers.tiny_panoptic import CATEGORIES, TinyData, renumber, tiny_cfg
from PIL import Image

from wsis_d2.data.datasets.own.custom import (
    register_weak_panoptic,
    share_classes,
    unregister,
)
from wsis_d2.data.datasets.own.separated import register_separated
from wsis_d2.data.mappers import build_mapper
from wsis_d2.data.records import load_records
from wsis_d2.structures.classes import (
    match_classes,
    parse_categories,
    place_table,
    record_in_classes,
)
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.store import LabelStore

# The lists: the same three classes, numbered the other way round.
OWN = [("cow", 1), ("grass", 0), ("dog", 1)]
TRUTH = [("dog", 1), ("grass", 0), ("cow", 1)]
# tiny_panoptic's classes in another order: sea, dog, sky, cat.
OTHER_IDS = {"sea": 1, "dog": 2, "sky": 4, "cat": 7}


def table(rows, source="file.json"):
    categories = [{"id": k, "name": n, "isthing": t} for k, (n, t) in enumerate(rows, start=1)]
    return parse_categories(categories, source)


def test_classes_meet_by_name():
    assert match_classes(table(OWN), table(TRUTH)) == [2, 1, 0]
    assert match_classes(table(OWN), table(OWN)) == [0, 1, 2]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ([*TRUTH, ("sky", 0)], ['truth.json: its 4 categories hold "sky"', "own.json", "1 cow"]),
        (TRUTH[:2], ['truth.json: its 2 categories lack "cow"', "own.json", "1 dog, 2 grass"]),
        ([*TRUTH[:2], ("Cow", 1)], ['lack "cow"', "3 Cow"]),
        (
            [*TRUTH[:2], ("cow", 0)],
            ['truth.json: "cow" is stuff (isthing 0), in own.json it is a thing (isthing 1)'],
        ),
    ],
)
def test_a_missing_name_and_another_kind_are_named(other, words):
    with pytest.raises(InputError) as error:
        match_classes(table(OWN, "own.json"), table(other, "truth.json"))
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize("isthing", ["1", "thing", None, 2, [1]])
def test_a_class_says_in_a_number_whether_it_is_a_thing(isthing):
    category = {"id": 1, "name": "cow", "isthing": isthing}
    with pytest.raises(InputError, match=r"t\.json: categories\[0\] \(id 1\): isthing is"):
        parse_categories([{k: v for k, v in category.items() if v is not None}], "t.json")


def test_records_and_maps_are_moved():
    record = {
        "annotations": [{"bbox": [1, 2, 3, 4], "category_id": 0}],
        "segments_info": [{"id": 9, "category_id": 2}],
        "image_tags": [0, 1],
        "crop_tags": [{"box": [0, 0, 5, 5], "tags": [1]}],
        "file_name": "a.png",
    }
    moved = record_in_classes(record, [2, 0, 1])
    assert [a["category_id"] for a in moved["annotations"]] == [2]
    assert moved["segments_info"] == [{"id": 9, "category_id": 1}]
    assert moved["image_tags"] == [0, 2] and moved["crop_tags"][0]["tags"] == [0]
    assert record["image_tags"] == [0, 1] and record["annotations"][0]["category_id"] == 0
    labels = np.array([[0, 1, 2, 255]], np.uint8)
    assert place_table([2, 0, 1])[labels].tolist() == [[2, 0, 1, 255]]


@pytest.fixture
def data(tmp_path):
    opened = TinyData(tmp_path / "data")
    folder = opened.folder
    renumber(folder / "weak.json", folder / "other_weak.json", OTHER_IDS)
    renumber(folder / "panoptic.json", folder / "other_panoptic.json", OTHER_IDS)
    yield opened
    opened.close()
    for name in ("other_weak", "other_full", "other_weak_separated", "tiny_full_separated"):
        unregister(name)


def register_other(data, name="other_weak", truth="other_panoptic.json", **more):
    register_weak_panoptic(
        name,
        data.folder / "other_weak.json",
        data.folder / "images",
        panoptic_json=data.folder / truth,
        panoptic_dir=data.folder / "panoptic",
        **more,
    )


def named(record, classes):
    """A record's classes by name, whatever their numbers."""
    return {
        "boxes": [(a["bbox"], classes[a["category_id"]]) for a in record["annotations"]],
        "tags": sorted(classes[tag] for tag in record["image_tags"]),
        "truth": [(s["id"], classes[s["category_id"]]) for s in record.get("segments_info", ())],
    }


@pytest.mark.parametrize("truth", ["panoptic.json", "other_panoptic.json"])
def test_truth_is_read_by_name(data, truth):
    """A true cow must not train as a dog: the truth's ids are the truth's own."""
    register_other(data, "other_full", truth, supervision="full")
    ours = MetadataCatalog.get("other_full").thing_classes
    assert ours == ["sea", "dog", "sky", "cat"]
    theirs = [c["name"] for c in CATEGORIES]
    for mine, other in zip(
        DatasetCatalog.get("other_full"), DatasetCatalog.get("tiny_full"), strict=True
    ):
        assert named(mine, ours) == named(other, theirs)
        assert [s["isthing"] for s in mine["segments_info"]] == [
            s["isthing"] for s in other["segments_info"]
        ]


def test_truth_of_other_classes_is_refused(data):
    content = json.loads((data.folder / "panoptic.json").read_text())
    content["categories"].insert(0, {"id": 1, "name": "grass", "isthing": 0})
    (data.folder / "more.json").write_text(json.dumps(content))
    register_other(data, "other_full", "more.json", supervision="full")
    with pytest.raises(InputError, match=r'more\.json: .*"grass".*dataset other_full'):
        DatasetCatalog.get("other_full")
    unregister("other_full")
    del content["categories"]
    (data.folder / "none.json").write_text(json.dumps(content))
    register_other(data, "other_full", "none.json", supervision="full")
    with pytest.raises(InputError, match=r'none\.json: "categories"'):
        DatasetCatalog.get("other_full")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"isthing": 0}, r"segment \d+: isthing is 0, and category_id 3 is a thing"),
        ({"isthing": "yes"}, "isthing is 'yes'; expected 0 or 1"),
        ({"iscrowd": "0"}, "iscrowd is '0'; expected 0 or 1"),
    ],
)
def test_a_true_segment_must_be_what_its_class_is(data, change, message):
    content = json.loads((data.folder / "panoptic.json").read_text())
    for annotation in content["annotations"]:
        annotation["segments_info"].sort(key=lambda s: s["category_id"])
        for segment in annotation["segments_info"]:
            if segment["category_id"] == 3:
                segment.update(change)
    (data.folder / "raw.json").write_text(json.dumps(content))
    register_other(data, "other_full", "raw.json", supervision="full")
    with pytest.raises(InputError, match=message):
        DatasetCatalog.get("other_full")


def test_annotation_meets_the_classes_it_was_registered_with(data):
    register_weak_panoptic(
        "other_weak", classes=CATEGORIES, json=data.folder / "other_weak.json",
        images=data.folder / "images",
    )  # fmt: skip
    assert DatasetCatalog.get("other_weak") == DatasetCatalog.get("tiny_weak")
    unregister("other_weak")
    fewer = [{**c, "isthing": 0} if c["name"] == "dog" else c for c in CATEGORIES]
    register_weak_panoptic(
        "other_weak", data.folder / "weak.json", data.folder / "images", classes=fewer
    )
    with pytest.raises(InputError, match=r'weak\.json: "dog" is a thing.*dataset other_weak'):
        DatasetCatalog.get("other_weak")


def test_sets_that_train_together_share_one_order(data, tmp_path):
    """Weak labels of one order, a set of another one: samples speak of the same classes."""
    register_other(data, labels=data.store, outside_boxes=0)  # sea; contiguous 3 of tiny_weak
    cfg = tiny_cfg(
        tmp_path, "DATASETS.TRAIN", "('tiny_weak', 'other_weak')", "MODEL.WSIS.STAGE", "semantic"
    )
    assert MetadataCatalog.get("other_weak").thing_classes == ["cat", "sky", "dog", "sea"]
    assert MetadataCatalog.get("other_weak").outside_boxes == 3
    first, second = (load_records([name]) for name in cfg.DATASETS.TRAIN)
    mapper = build_mapper(cfg, True)
    mapper.check([*first, *second])
    mapper.augmentations = type(mapper.augmentations)([])
    for one, two in zip(first, second, strict=True):
        a, b = mapper(one), mapper(two)
        assert a["sem_seg"].equal(b["sem_seg"]) and a["inst_classes"].equal(b["inst_classes"])
        assert a["instances"].gt_classes.equal(b["instances"].gt_classes)


def test_sets_of_other_classes_do_not_train_together(data, tmp_path):
    content = json.loads((data.folder / "weak.json").read_text())
    for category in content["categories"]:
        category["name"] = {"cat": "cow"}.get(category["name"], category["name"])
    (data.folder / "other_weak.json").write_text(json.dumps(content))
    register_weak_panoptic("other_weak", data.folder / "other_weak.json", data.folder / "images")
    with pytest.raises(InputError, match='dataset other_weak: .*"cat", a class of dataset tiny'):
        tiny_cfg(tmp_path, "DATASETS.TRAIN", "('tiny_weak', 'other_weak')")


def test_a_set_with_its_own_loader_is_not_reordered(data):
    register_other(data)
    metadata = MetadataCatalog.get("other_weak")
    del metadata.classes_by_name
    with pytest.raises(InputError, match="another order than own"):
        share_classes("other_weak", parse_categories(CATEGORIES, "own"))


def test_a_label_store_is_read_by_name(data):
    store = LabelStore.open(data.store)
    other = parse_categories([{**c, "id": OTHER_IDS[c["name"]]} for c in CATEGORIES], "other")
    moved = store.in_classes(other)
    names = [c["name"] for c in CATEGORIES]
    register_other(data)
    for record in DatasetCatalog.get("other_weak"):
        moved.check(record)  # the annotation is the same, by name
        image_id = record["image_id"]
        before, after = store.semantic(image_id), moved.semantic(image_id)
        for k, name in enumerate(names):
            np.testing.assert_array_equal(before == k, after == other.names.index(name))
        np.testing.assert_array_equal(before == 255, after == 255)
        (_, segments), (_, new) = store.instance(image_id), moved.instance(image_id)
        assert [names[s["category_id"]] for s in segments] == [
            other.names[s["category_id"]] for s in new
        ]
    changed = {**record, "image_tags": []}
    assert not moved.done(record["image_id"], changed)
    with pytest.raises(InputError, match=r'manifest\.json: its 4 categories lack "cow"'):
        store.in_classes(table(OWN))


def test_a_twin_has_the_ids_of_its_truth(data):
    """Detectron2's evaluator writes and compares by the ids of the twin's metadata."""
    register_other(data, truth="panoptic.json", labels=data.store)
    register_separated("other_weak")
    twin = MetadataCatalog.get("other_weak_separated")
    ids = {**{c["name"]: c["id"] for c in CATEGORIES}}
    found = {twin.thing_classes[k]: i for i, k in twin.thing_dataset_id_to_contiguous_id.items()}
    found |= {twin.stuff_classes[k]: i for i, k in twin.stuff_dataset_id_to_contiguous_id.items()}
    assert found == ids
    register_separated("tiny_full", data.folder / "twin")
    true = {r["image_id"]: r for r in DatasetCatalog.get("tiny_full_separated")}
    share_classes("tiny_full", parse_categories(MetadataCatalog.get("other_weak").categories, "o"))
    for record in DatasetCatalog.get("tiny_full_separated"):
        before = true[record["image_id"]]
        assert record["annotations"] == before["annotations"]
    for record in DatasetCatalog.get("other_weak_separated"):
        weak = LabelStore.open(data.store).semantic(record["image_id"])
        stuff = np.asarray(Image.open(record["sem_seg_file_name"]))
        # things are 0; sea, sky of the other order are 1, 2; the store has sky 1, sea 3
        np.testing.assert_array_equal(stuff == 1, weak == 3)
        np.testing.assert_array_equal(stuff == 2, weak == 1)
        np.testing.assert_array_equal(stuff == 0, (weak == 0) | (weak == 2))


def test_a_twin_follows_the_classes_of_its_truth(data):
    """The pictures stay the same: a twin made before must not outlive the JSON it was made of."""
    register_separated("tiny_full", data.folder / "twin")
    before = DatasetCatalog.get("tiny_full_separated")
    content = json.loads((data.folder / "panoptic.json").read_text())
    for annotation in content["annotations"]:
        for segment in annotation["segments_info"]:
            segment["category_id"] = {3: 8, 8: 3}.get(
                segment["category_id"], segment["category_id"]
            )
    (data.folder / "panoptic.json").write_text(json.dumps(content))
    after = DatasetCatalog.get("tiny_full_separated")
    boxes = [[a["category_id"] for a in r["annotations"]] for r in before]
    assert any(boxes)
    assert [[a["category_id"] for a in r["annotations"]] for r in after] == [
        [1 - k for k in row] for row in boxes
    ]
