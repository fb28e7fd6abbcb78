# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Box masks and cues to labels of round 0, as arrays and from store to store."""

import numpy as np
import pytest
from detectron2.config import get_cfg

from wsis_d2.config import add_wsis_config
from wsis_d2.structures.annotation import AnnotatedClasses, touched_boxes
from wsis_d2.structures.boxes import Box
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.driver import LabelRun
from wsis_d2.weak_labels.merge import (
    clean_options,
    clean_record,
    make_merged_labels,
    merge_record,
    record_possible_classes,
)
from wsis_d2.weak_labels.store import LabelStore

ALONE = LabelRun(workers=1)

# File ids are not contiguous and a thing comes first: 0 fish (thing), 1 cow (thing), 2 sky, 3 mud.
CATEGORIES = [
    {"id": 4, "name": "fish", "isthing": 1},
    {"id": 9, "name": "cow", "isthing": 1},
    {"id": 20, "name": "sky", "isthing": 0},
    {"id": 31, "name": "mud", "isthing": 0},
]
N = 255


def config():
    cfg = get_cfg()
    add_wsis_config(cfg)
    return cfg


def record(**changes):
    return {
        "file_name": "a.png",
        "image_id": 7,
        "height": 2,
        "width": 6,
        "annotations": [
            {"bbox": [0, 0, 2.2, 2], "bbox_mode": 0, "category_id": 0, "iscrowd": 0},
            {"bbox": [2, 0, 2, 2], "bbox_mode": 1, "category_id": 0, "iscrowd": 0},
        ],
        "image_tags": [2, 3],
        "supervision": "weak",
        **changes,
    }


CUES = np.array([[2, 2, 2, 2, 2, 1], [3, 3, N, N, 3, N]], np.uint8)
MASKS = np.array([[0, 0, 0, N, N, N], [0, 0, 0, 0, N, N]], np.uint8)


def test_boxes_cover_every_pixel_they_touch():
    assert touched_boxes(record()) == [Box(0, 0, 0, 2, 1, False), Box(0, 2, 0, 3, 1, False)]
    with pytest.raises(InputError, match="bbox_mode 4"):
        touched_boxes(record(annotations=[{"bbox": [0] * 4, "bbox_mode": 4, "category_id": 0}]))


def test_masks_win_and_stuff_fills_the_rest():
    annotation = AnnotatedClasses.of(CATEGORIES)
    labels = merge_record(record(), CUES, MASKS, annotation, clean_options(config(), annotation))
    # Class 0 is a thing here and wins; the cow cue has no box; column 2 is in both boxes.
    assert labels.semantic.tolist() == [[0, 0, 0, 2, 2, N], [0, 0, 0, 0, 3, N]]
    assert labels.instance.tolist() == [[3, 3, -1, 1, 1, -1], [3, 3, -1, 4, 2, -1]]
    assert labels.segments == [
        {"id": 1, "category_id": 2},
        {"id": 2, "category_id": 3},
        {"id": 3, "category_id": 0},
        {"id": 4, "category_id": 0},
    ]
    assert labels.counters["thing_pixels"] == 7
    assert labels.counters["stuff_pixels"] == 3
    assert labels.counters["ambiguous_thing_pixels"] == 2


def test_instances_from_masks_settle_what_boxes_cannot():
    annotation = AnnotatedClasses.of(CATEGORIES)
    masks = (
        np.array([[1, 1, 1, -1, -1, -1], [1, 1, 2, 2, -1, -1]], np.int32),
        [{"id": 1, "category_id": 0}, {"id": 2, "category_id": 0}],
    )
    options = clean_options(config(), annotation)
    labels = merge_record(record(), CUES, MASKS, annotation, options, masks)
    assert labels.instance.tolist() == [[3, 3, 3, 1, 1, -1], [3, 3, 4, 4, 2, -1]]
    assert [s["category_id"] for s in labels.segments] == [2, 3, 0, 0]


def test_tags_filter_by_image_where_there_are_no_crops():
    annotation = AnnotatedClasses.of(CATEGORIES)
    options = clean_options(config(), annotation)
    labels = merge_record(record(image_tags=[3]), CUES, MASKS, annotation, options)
    assert labels.semantic.tolist() == [[0, 0, 0, N, N, N], [0, 0, 0, 0, 3, N]]


def test_an_image_whose_tags_are_of_things_alone_keeps_any_stuff():
    """Things may be listed among tags; that tells nothing of stuff."""
    predicted = np.array([[0, 0, 0, 0, 2, 3], [0, 0, 0, 0, 1, 3]], np.uint8)
    annotation = AnnotatedClasses(frozenset({0, 1}))
    options = clean_options(config(), annotation, round_number=9)
    cow = {"category_id": 1, "points": [[4.5, 1.5, 1]]}
    for changes, wanted in (
        ({"image_tags": []}, [[2, 3], [N, 3]]),
        ({"image_tags": [0]}, [[2, 3], [N, 3]]),
        ({"image_tags": [0, 2]}, [[2, N], [N, N]]),
        ({"image_tags": [0, 1], "unboxed": [cow]}, [[2, 3], [1, 3]]),
        ({"crop_tags": [{"box": [0, 0, 6, 2], "tags": [0]}]}, [[2, 3], [N, 3]]),
        ({"crop_tags": [{"box": [0, 0, 5, 2], "tags": []},
                        {"box": [4, 0, 2, 2], "tags": [3]}]}, [[N, 3], [N, 3]]),
    ):  # fmt: skip
        given = record(**changes)
        found = clean_record(given, predicted, annotation, options).semantic
        np.testing.assert_array_equal(found[:, 4:], wanted, err_msg=str(changes))
        assert (found[:, :4] == 0).all()
        possible = record_possible_classes(given, (2, 6), 4, annotation, options)
        kept = np.take_along_axis(possible, predicted[None].astype(int), 0)[0]
        np.testing.assert_array_equal(kept, found != N)


def test_background_outside_boxes_needs_no_cue_and_no_tag():
    # Pascal VOC: class 0 is background, the only stuff; 1 is a thing.
    categories = [{"id": 0, "name": "background", "isthing": 0}, {"id": 1, "name": "cat"}]
    annotation = AnnotatedClasses.of(categories, outside_boxes=0)
    cat = record(
        annotations=[{"bbox": [0, 0, 3, 2], "bbox_mode": 0, "category_id": 1}], image_tags=[1]
    )
    masks = np.array([[1, 1, N, 0, 0, 0], [N, N, N, 0, 0, 0]], np.uint8)
    labels = merge_record(cat, None, masks, annotation, clean_options(config(), annotation))
    assert labels.semantic.tolist() == masks.tolist()
    assert labels.instance.tolist() == [[2, 2, -1, 1, 1, 1], [-1, -1, -1, 1, 1, 1]]
    assert labels.segments == [{"id": 1, "category_id": 0}, {"id": 2, "category_id": 1}]
    assert clean_options(config(), annotation).outside_label == 0


def test_unreliable_boxes_switch_tags_prior_and_instances_off():
    cfg = config()
    annotation = AnnotatedClasses.of(CATEGORIES, has_boxes=False)
    labels = merge_record(
        record(annotations=[], image_tags=[]),
        CUES,
        MASKS,
        annotation,
        clean_options(cfg, annotation),
    )
    assert labels.semantic.tolist() == [[0, 0, 0, 2, 2, N], [0, 0, 0, 0, 3, N]]
    assert (labels.instance == -1).all() and labels.segments == []


def test_steps_by_round():
    cfg = config()
    cfg.CLEAN.SCORE_THRESHOLD = 0.99
    annotation = AnnotatedClasses.of(CATEGORIES)
    rounds = {k: clean_options(cfg, annotation, k) for k in (0, 1, 5, 6)}
    assert [o.score_threshold for o in rounds.values()] == [None, 0.99, 0.99, 0.99]
    assert [o.merge for o in rounds.values()] == [True, True, True, False]


@pytest.fixture
def parts(tmp_path):
    """A boxes store and a tags store of one image."""
    for kind, semantic in (("boxes", MASKS), ("tags", CUES)):
        store = LabelStore.create(tmp_path / kind, {"kind": kind}, CATEGORIES)
        instance = np.where(semantic == 0, 1, -1).astype(np.int32) if kind == "boxes" else None
        if instance is None:
            store.write(record(), semantic, np.full(semantic.shape, -1, np.int32), [], {})
        else:
            store.write(record(), semantic, instance, [{"id": 1, "category_id": 0}], {})
        store.finish()
    return tmp_path


def test_from_store_to_store(parts):
    status = make_merged_labels(
        config(),
        [record()],
        CATEGORIES,
        parts / "merged",
        boxes=parts / "boxes",
        tags=parts / "tags",
        run=ALONE,
    )
    assert status == 0
    store = LabelStore.open(parts / "merged")
    assert store.semantic(7).tolist() == [[0, 0, 0, 2, 2, N], [0, 0, 0, 0, 3, N]]
    instance, segments = store.instance(7)
    assert instance.tolist() == [[3, 3, -1, 1, 1, -1], [3, 3, -1, 4, 2, -1]]
    assert len(segments) == 4
    assert store.recipe["boxes"] == {"kind": "boxes"}


def test_labels_of_a_part_that_were_refused_are_merged_anew(parts):
    def merge():
        make_merged_labels(
            config(), [record()], CATEGORIES, parts / "merged", boxes=parts / "boxes", run=ALONE
        )
        return LabelStore.open(parts / "merged")

    store = merge()
    assert (store.semantic(7) == 0).any()
    made = (parts / "merged/status/000000000007.json").stat().st_mtime_ns
    merge()
    assert (parts / "merged/status/000000000007.json").stat().st_mtime_ns == made  # kept
    LabelStore.open(parts / "boxes", writable=True).refuse(7)
    assert not (merge().semantic(7) == 0).any()
    store.check(record())  # a training, which knows no parts, takes it


def test_another_recipe_of_a_part_is_not_merged_into_an_old_store(parts):
    arguments = dict(boxes=parts / "boxes", tags=parts / "tags", run=ALONE)
    make_merged_labels(config(), [record()], CATEGORIES, parts / "merged", **arguments)
    cfg = config()
    cfg.CLEAN.FILL = True
    with pytest.raises(InputError, match="clean.fill: False there, True asked for"):
        make_merged_labels(cfg, [record()], CATEGORIES, parts / "merged", **arguments)
    forced = arguments | {"run": LabelRun(workers=1, force=True)}
    make_merged_labels(cfg, [record()], CATEGORIES, parts / "merged", **forced)


def test_a_part_that_is_missing_or_stale_is_an_error(parts):
    with pytest.raises(InputError, match="--boxes STORE is missing"):
        make_merged_labels(config(), [record()], CATEGORIES, parts / "m", boxes=None)
    with pytest.raises(InputError, match="store of tags, not of boxes"):
        make_merged_labels(config(), [record()], CATEGORIES, parts / "m", boxes=parts / "tags")
    other = [{**c, "name": c["name"] + "s"} for c in CATEGORIES]
    with pytest.raises(InputError, match=r'boxes/manifest.json: its 4 categories lack "fishs"'):
        make_merged_labels(config(), [record()], other, parts / "m", boxes=parts / "boxes")
    changed = record(image_tags=[2])
    status = make_merged_labels(
        config(), [changed], CATEGORIES, parts / "m", boxes=parts / "boxes", run=ALONE
    )
    assert status == 1
    assert "is stale" in LabelStore.open(parts / "m").failed[7]
