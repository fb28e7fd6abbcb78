# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The tags command: a classifier's activation maps, or a segmenter's regions, to cues."""

import json

import numpy as np
import pytest
import torch
from helpers.tag_networks import plain_config, tag_classifier_config
from PIL import Image

from wsis_d2.data.datasets.own.weak import load_weak_json
from wsis_d2.data.datasets.sample.dataset import CATEGORIES, prepare_sample
from wsis_d2.relabeling.first_labels import make_all_labels
from wsis_d2.relabeling.tag_classifier import classifier_config
from wsis_d2.relabeling.tag_cues import CueLabeller, build_labeller, make_tag_labels
from wsis_d2.structures.classes import parse_categories
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.cam_labels import cue_labels
from wsis_d2.weak_labels.driver import LabelRun
from wsis_d2.weak_labels.reliability import load_reliability
from wsis_d2.weak_labels.store import LabelStore

ALONE = LabelRun(workers=1)
THINGS = frozenset({0, 1, 2})


def classifier_cfg():
    return tag_classifier_config(7, "CAM.LAYER", "backbone.res3")


def test_maps_are_those_of_each_crop_alone_stitched(scenes, classifier):
    record = scenes[1][0]
    labeller = CueLabeller.from_config(classifier_cfg(), classifier, THINGS)
    (found,) = labeller.maps([record])
    image = np.array(Image.open(record["file_name"]))[:, :, ::-1].transpose(2, 0, 1).copy()
    tensor = labeller.classifier.normalize(torch.from_numpy(image))
    expected = {c: np.zeros((128, 160)) for c in set(record["image_tags"]) - THINGS}
    for crop in record["crop_tags"]:
        x, y, w, h = map(int, crop["box"])
        for class_id in set(crop["tags"]) - THINGS:
            alone = labeller.cam(tensor[None, :, y : y + h, x : x + w], [[class_id]])[0][0].numpy()
            window = expected[class_id][y : y + h, x : x + w]
            np.maximum(window, alone, out=window)
    assert set(found) == set(expected)
    for class_id, values in expected.items():
        np.testing.assert_allclose(found[class_id], values, atol=1e-5)
    assert any(values.max() > 0 for values in expected.values())


def test_tags_to_a_store_of_cues(scenes, classifier):
    root, records = scenes
    status = make_tag_labels(
        plain_config(), records, CATEGORIES, root / "tags", classifier=classifier, run=ALONE
    )
    assert status == 0
    store = LabelStore.open(root / "tags")
    labeller = CueLabeller.from_config(classifier_cfg(), classifier, THINGS)
    for record in records:
        semantic = store.semantic(record["image_id"])
        assert set(np.unique(semantic).tolist()) <= {*record["image_tags"], 255} - THINGS
        expected = cue_labels(labeller.maps([record])[0], semantic.shape, 0.5)
        np.testing.assert_array_equal(semantic, expected)
        assert store.instance(record["image_id"])[1] == []


def test_records_together_have_the_cues_of_each_alone(scenes, classifier, segmenter):
    """Of several sizes, with and without windows; a batch that fails loses the one bad image."""
    root, records = scenes
    # Tags of the right half alone; a window as large as those of the others, and none.
    half = {**records[1], "crop_tags": records[1]["crop_tags"][1::2]}
    whole = {**records[2], "crop_tags": None}
    given = [records[0], half, whole]
    labeller = CueLabeller.from_config(classifier_cfg(), classifier, THINGS)
    passes = []
    labeller.classifier.backbone.register_forward_pre_hook(lambda _, x: passes.append(len(x[0])))
    together = labeller.maps(given)
    windows = [len(record["crop_tags"]) for record in given[:2]]
    assert sorted(passes) == [1, sum(windows)]
    for record, maps in zip(given, together, strict=True):
        (alone,) = labeller.maps([record])
        assert set(maps) == set(alone) != set()
        for class_id, values in alone.items():
            np.testing.assert_allclose(maps[class_id], values, atol=1e-5)
    regions = build_labeller(classifier_config(plain_config(), segmenter, 7), segmenter, THINGS)
    for record, found in zip(given, regions.distributions(given), strict=True):
        np.testing.assert_allclose(found, regions.distribution(record), atol=1e-5)
    gone = {**records[1], "file_name": str(root / "gone.png")}
    for weights in (classifier, segmenter):
        output = root / f"together_{weights.parent.name}"
        status = make_tag_labels(
            plain_config("TEST.IMS_PER_BATCH", 3), [records[0], gone, records[2]], CATEGORIES,
            output, classifier=weights, run=ALONE,
        )  # fmt: skip
        store = LabelStore.open(output)
        assert status == 1 and list(store.failed) == [records[1]["image_id"]]
        assert len(store.image_ids()) == 2


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_a_classifier_with_the_classes_in_another_order_says_the_same(
    scenes, kind, request, tmp_path, caplog
):
    """Its last layer's rows and its ``metadata.json`` turned round: the same cues."""
    weights, records = request.getfixturevalue(kind), scenes[1]
    state = torch.load(weights)["model"]
    turned = {k: v.flip(0) if v.ndim and len(v) == 7 else v for k, v in state.items()}
    assert sum(not torch.equal(state[k], turned[k]) for k in state) >= 1
    torch.save({"model": turned}, tmp_path / "model_final.pth")
    # Ids in the turned order: 1 for the last class, 7 for the first.
    things = [{**c, "id": 7 - k} for k, c in enumerate(CATEGORIES)]
    config = (weights.parent / "config.yaml").read_text()
    config = config.replace("THING_IDS: [0, 1, 2]", "THING_IDS: [4, 5, 6]")
    (tmp_path / "config.yaml").write_text(config)
    metadata = parse_categories(things, "turned").metadata()
    (tmp_path / "metadata.json").write_text(json.dumps(metadata))
    for name, file in (("right", weights), ("turned", tmp_path / "model_final.pth")):
        caplog.clear()
        make_tag_labels(
            plain_config(), records, CATEGORIES, tmp_path / name, classifier=file, run=ALONE
        )
        # What tells no classes is taken for the data's order, aloud.
        assert (f"--classifier {file}: no metadata.json" in caplog.text) == (name == "right")
    right, other = (LabelStore.open(tmp_path / name) for name in ("right", "turned"))
    for record in records:
        semantic = right.semantic(record["image_id"])
        np.testing.assert_array_equal(other.semantic(record["image_id"]), semantic)
    if kind == "segmenter":
        names = right.classes.names
        np.testing.assert_allclose(
            load_reliability(other.path, names), load_reliability(right.path, names), atol=1e-5
        )
    # Where the classes are told only later, labels of the wrong ones do not stay.
    (tmp_path / "metadata.json").rename(tmp_path / "kept")
    arguments = (plain_config(), records, CATEGORIES, tmp_path / "late")
    make_tag_labels(*arguments, classifier=file, run=ALONE)
    (tmp_path / "kept").rename(tmp_path / "metadata.json")
    with pytest.raises(InputError, match=r"late: holds labels of .*class_places: None there, \[6"):
        make_tag_labels(*arguments, classifier=file, run=ALONE)
    things[0]["name"] = "whale"
    (tmp_path / "metadata.json").write_text(
        json.dumps(parse_categories(things, "turned").metadata())
    )
    with pytest.raises(InputError, match=r'metadata\.json: its 7 categories lack "fish"'):
        make_tag_labels(
            plain_config(), records, CATEGORIES, tmp_path / "none", classifier=file, run=ALONE
        )


def test_the_commands_cam_keys_win_over_the_classifiers_config(scenes, classifier):
    root, records = scenes
    opts = ("CAM.THRESHOLD", 0.9, "CAM.LAYER", "backbone.res2")
    make_tag_labels(
        plain_config(*opts), records, CATEGORIES, root / "high", classifier=classifier, run=ALONE
    )
    recipe = LabelStore.open(root / "high").recipe
    assert (recipe["threshold"], recipe["layer"]) == (0.9, "backbone.res2")


def test_what_is_missing_or_unfit_is_told(scenes, classifier, tmp_path):
    root, records = scenes
    with pytest.raises(InputError, match="--classifier W.pth is missing, and images have tags"):
        make_all_labels(plain_config(), records, CATEGORIES, tmp_path / "a")
    with pytest.raises(InputError, match="no such file; train one with"):
        make_tag_labels(
            plain_config(), records, CATEGORIES, tmp_path / "a", classifier=tmp_path / "no.pth"
        )
    with pytest.raises(InputError, match="none has image_tags or crop_tags"):
        untagged = [{**r, "image_tags": [], "crop_tags": None} for r in records]
        make_tag_labels(plain_config(), untagged, CATEGORIES, tmp_path / "a", classifier=classifier)
    more = [*CATEGORIES, {"id": 99, "name": "mud", "isthing": 0}]
    with pytest.raises(
        InputError, match="in another shape: classifier.weight .*the dataset's classes"
    ):
        make_tag_labels(plain_config(), records, more, tmp_path / "a", classifier=classifier)
    with pytest.raises(InputError, match="CAM.LAYER 'backbone.res9' is not in the network"):
        make_tag_labels(
            plain_config("CAM.LAYER", "backbone.res9"), records, CATEGORIES, tmp_path / "a",
            classifier=classifier,
        )  # fmt: skip
    alone = tmp_path / "model_final.pth"
    alone.write_bytes(classifier.read_bytes())
    with pytest.raises(InputError, match="no config.yaml beside it"):
        make_tag_labels(plain_config(), records, CATEGORIES, tmp_path / "a", classifier=alone)
    assert not (tmp_path / "a").exists()


def test_no_mask_is_read(scenes, classifier, tmp_path):
    """The labels of tags are the same when every mask file is gone."""
    root, records = scenes
    data = tmp_path / "data"
    prepare_sample(data, 3, 1)
    for name in ("panoptic_train", "panoptic_val"):
        for path in (data / name).iterdir():
            path.unlink()
    for name in ("panoptic_train.json", "full_train.json", "panoptic_val.json"):
        (data / name).unlink()
    own = load_weak_json(data / "weak_train.json", data / "images/train")
    make_tag_labels(
        plain_config(), own, CATEGORIES, tmp_path / "tags", classifier=classifier, run=ALONE
    )
    make_tag_labels(
        plain_config(), records, CATEGORIES, tmp_path / "tags2", classifier=classifier, run=ALONE
    )
    for record in own:
        np.testing.assert_array_equal(
            LabelStore.open(tmp_path / "tags").semantic(record["image_id"]),
            LabelStore.open(tmp_path / "tags2").semantic(record["image_id"]),
        )
    manifest = json.loads((tmp_path / "tags" / "manifest.json").read_text())
    assert manifest["summary"]["failed"] == 0
