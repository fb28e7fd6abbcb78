# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Cues of a tag segmenter: its surest classes, and how far tags vouch for them."""

import cv2
import numpy as np
import pytest
import torch
from helpers.tag_networks import plain_config
from PIL import Image

from wsis_d2.data.datasets.sample.dataset import CATEGORIES
from wsis_d2.relabeling.first_labels import make_all_labels
from wsis_d2.relabeling.region_cues import RegionCueLabeller
from wsis_d2.relabeling.tag_classifier import classifier_config
from wsis_d2.relabeling.tag_cues import build_labeller, make_tag_labels
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.appearance import weigh_by_appearance
from wsis_d2.weak_labels.driver import LabelRun
from wsis_d2.weak_labels.reliability import load_reliability, tag_reliability
from wsis_d2.weak_labels.store import LabelStore

ALONE = LabelRun(workers=1)
FIRST_TWO = LabelRun(workers=1, limit=2)
THINGS = frozenset({0, 1, 2})


def test_a_segmenters_cues_are_its_surest_classes_among_those_that_annotation_allows(
    scenes, segmenter
):
    root, records = scenes
    cfg = plain_config("CAM.THRESHOLD", 0.4)
    assert make_tag_labels(
        cfg, records, CATEGORIES, root / "regions", classifier=segmenter, run=ALONE
    ) == 0  # fmt: skip
    store = LabelStore.open(root / "regions")
    own = classifier_config(cfg, segmenter, 7)
    labeller = build_labeller(own, segmenter, THINGS)
    for record in records:
        distribution = labeller.distribution(record)
        semantic = store.semantic(record["image_id"])
        sums = distribution.sum(0)
        assert np.all((np.abs(sums - 1) < 1e-5) | (sums == 0))
        for crop in record["crop_tags"]:
            x, y, w, h = map(int, crop["box"])
            inside = set(np.unique(semantic[y : y + h, x : x + w]).tolist())
            assert inside <= {*crop["tags"], 255} - THINGS
        boxed = np.zeros(semantic.shape, bool)
        for annotation in record["annotations"]:
            x0, y0, x1, y1 = map(int, annotation["bbox"])
            boxed[y0:y1, x0:x1] = True
        assert not distribution[sorted(THINGS)][:, ~boxed].any() and boxed.any()
        labelled = semantic != 255
        best = np.take_along_axis(distribution, np.minimum(semantic, 6)[None].astype(int), 0)[0]
        assert labelled.any() and (best[labelled] >= 0.4).all()
        np.testing.assert_array_equal(best[labelled], distribution.max(0)[labelled])


def test_a_thing_that_only_a_point_tells_of_may_be_anywhere(scenes, segmenter):
    _, records = scenes
    labeller = build_labeller(classifier_config(plain_config(), segmenter, 7), segmenter, THINGS)
    plain = {**records[0], "annotations": []}
    assert not labeller.distribution(plain)[sorted(THINGS)].any()
    marked = labeller.distribution({**plain, "points": [{"category_id": 1, "xy": [3.5, 4.5]}]})
    assert marked[1].all() and not marked[[0, 2]].any()


def test_appearance_weighs_a_segmenters_distributions_and_no_activation_maps(
    scenes, classifier, segmenter
):
    root, records = scenes
    labellers = [
        build_labeller(classifier_config(cfg, segmenter, 7), segmenter, THINGS)
        for cfg in (plain_config("CAM.THRESHOLD", 0.4),
                    plain_config("CAM.THRESHOLD", 0.4, "CAM.APPEARANCE_WEIGHT", 0.5))
    ]  # fmt: skip
    for record in records:
        plain, weighed = (labeller.distribution(record) for labeller in labellers)
        image = np.array(Image.open(record["file_name"]))[:, :, ::-1]
        np.testing.assert_allclose(weighed, weigh_by_appearance(plain, image, 0.5), atol=1e-4)
        assert not np.allclose(plain, weighed, atol=0.05)
        assert not weighed[plain == 0].any()
    cfg = plain_config("CAM.APPEARANCE_WEIGHT", 0.5, "CAM.THRESHOLD", 0.4)
    make_tag_labels(
        cfg, records, CATEGORIES, root / "looks", classifier=segmenter, run=ALONE
    )  # fmt: skip
    assert LabelStore.open(root / "looks").recipe["appearance_weight"] == 0.5
    with pytest.raises(InputError, match="CAM.APPEARANCE_WEIGHT is 0.5; a TagClassifier"):
        make_tag_labels(cfg, records, CATEGORIES, root / "not", classifier=classifier)
    bad = plain_config("CAM.APPEARANCE_WEIGHT", -1.0)
    with pytest.raises(InputError, match="CAM.APPEARANCE_WEIGHT is -1.0"):
        make_tag_labels(bad, records, CATEGORIES, root / "not", classifier=segmenter)
    assert not (root / "not").exists()


def interrupt(*_):
    raise KeyboardInterrupt


def test_the_labels_know_how_far_tags_vouch_for_a_segmenters_classes(
    scenes, classifier, segmenter, monkeypatch
):
    root, records = scenes
    cfg = plain_config("CAM.THRESHOLD", 0.4, "WEAK_LABELS.MASKS", "box")
    arguments = dict(classifier=segmenter, run=ALONE)
    make_all_labels(cfg, records, CATEGORIES, root / "vouched", **arguments)
    names = [c["name"] for c in CATEGORIES]
    found = load_reliability(root / "vouched", names)
    # The same from the segmenter's cells as they are, stretched to pixels by another library.
    labeller = build_labeller(classifier_config(cfg, segmenter, 7), segmenter, THINGS)
    model = labeller.segmenter
    shares, tagged, places = [], [], []
    for record in records:
        image = np.array(Image.open(record["file_name"]))[:, :, ::-1].transpose(2, 0, 1).copy()
        with torch.no_grad():
            cells = model.probabilities([torch.from_numpy(image)])[0].numpy()
        pixels = cv2.resize(cells.transpose(1, 2, 0), image.shape[:0:-1])
        for place, crop in enumerate(record["crop_tags"]):
            x, y, w, h = map(int, crop["box"])
            shares.append(pixels[y : y + h, x : x + w].mean((0, 1)))
            tagged.append([c in crop["tags"] for c in range(7)])
            places.append(place)
    wanted = tag_reliability(np.array(shares), np.array(tagged), np.array(places))
    wanted[sorted(THINGS)] = 1.0
    np.testing.assert_allclose(found, wanted, atol=2e-3)
    assert np.array_equal(load_reliability(root / "vouched/parts/tags", names), found)
    # What cannot be read or has no tags tells nothing; of very many images some do.
    gone = {**records[0], "file_name": str(root / "gone.png")}
    untagged = {**records[0], "image_tags": [], "crop_tags": None}
    things_only = [{**crop, "tags": [min(THINGS)]} for crop in records[0]["crop_tags"]]
    silent = [gone, untagged, {**records[0], "image_tags": [0], "crop_tags": things_only}]
    windows = []

    def counting(shares, *rest):
        windows.append(len(shares))
        return tag_reliability(shares, *rest)

    monkeypatch.setattr("wsis_d2.relabeling.region_cues.tag_reliability", counting)
    np.testing.assert_allclose(labeller.reliability([*silent, *records]), found, atol=1e-6)
    assert windows == [len(tagged)]
    assert (labeller.reliability([gone]) == 1).all()
    monkeypatch.setattr("wsis_d2.relabeling.region_cues._MOST_RECORDS", 2)
    thinned = labeller.reliability([records[0], records[2]])
    np.testing.assert_array_equal(labeller.reliability(records), thinned)
    monkeypatch.undo()
    # Written when it is missing, and left where labels stay; a classifier's maps have none.
    (root / "vouched/parts/tags/reliability.json").unlink()
    (root / "vouched/reliability.json").unlink()
    make_all_labels(cfg, records, CATEGORIES, root / "vouched", **arguments)
    assert np.array_equal(load_reliability(root / "vouched", names), found)
    before = (root / "vouched/parts/tags/reliability.json").stat().st_mtime_ns
    make_all_labels(cfg, records, CATEGORIES, root / "vouched", **arguments)
    assert (root / "vouched/parts/tags/reliability.json").stat().st_mtime_ns == before
    # Of two images first; stopped before that of all is known, it is not taken for theirs.
    first = arguments | {"run": FIRST_TWO}
    make_all_labels(cfg, records, CATEGORIES, root / "partly", **first)
    assert not np.array_equal(load_reliability(root / "partly", names), found)
    with monkeypatch.context() as patch:
        patch.setattr(RegionCueLabeller, "reliability", interrupt)
        with pytest.raises(KeyboardInterrupt):
            make_all_labels(cfg, records, CATEGORIES, root / "partly", **arguments)
    assert len(LabelStore.open(root / "partly/parts/tags").image_ids()) == 3
    make_all_labels(cfg, records, CATEGORIES, root / "partly", **arguments)
    assert np.array_equal(load_reliability(root / "partly", names), found)
    make_tag_labels(
        plain_config(), records, CATEGORIES, root / "maps", classifier=classifier, run=ALONE
    )
    assert not (root / "maps/reliability.json").exists()
