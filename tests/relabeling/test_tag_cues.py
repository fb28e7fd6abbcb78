# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The tags and all commands: a classifier's activation maps to stores of labels."""

import json

import cv2
import numpy as np
import pytest
import torch
from detectron2.config import get_cfg
from detectron2.modeling import build_model
from helpers.tag_networks import tag_classifier_config
from PIL import Image

from wsis_d2.config import add_wsis_config
from wsis_d2.data.datasets.own.weak import load_weak_json
from wsis_d2.data.datasets.sample.dataset import CATEGORIES, prepare_sample
from wsis_d2.relabeling.first_labels import make_all_labels
from wsis_d2.relabeling.region_cues import RegionCueLabeller
from wsis_d2.relabeling.tag_classifier import classifier_config
from wsis_d2.relabeling.tag_cues import CueLabeller, build_labeller, make_tag_labels
from wsis_d2.structures.classes import parse_categories
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.appearance import weigh_by_appearance
from wsis_d2.weak_labels.cam_labels import cue_labels
from wsis_d2.weak_labels.driver import LabelRun
from wsis_d2.weak_labels.reliability import load_reliability, tag_reliability
from wsis_d2.weak_labels.store import LabelStore

ALONE = LabelRun(workers=1)
FIRST_TWO = LabelRun(workers=1, limit=2)
THINGS = frozenset({0, 1, 2})


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    root = tmp_path_factory.mktemp("tag_labels")
    prepare_sample(root / "data", 3, 1)
    return root, load_weak_json(root / "data/weak_train.json", root / "data/images/train")


def classifier_cfg():
    return tag_classifier_config(7, "CAM.LAYER", "backbone.res3")


@pytest.fixture(scope="module")
def classifier(scenes):
    """A network of random weights, stored as training would."""
    folder = scenes[0] / "classifier"
    folder.mkdir()
    torch.manual_seed(0)
    cfg = classifier_cfg()
    model = build_model(cfg)
    torch.save({"model": model.state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "model_final.pth"


def plain_cfg(*opts):
    cfg = get_cfg()
    add_wsis_config(cfg)
    cfg.merge_from_list(list(opts))
    return cfg


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
        plain_cfg(), records, CATEGORIES, root / "tags", classifier=classifier, run=ALONE
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
    regions = build_labeller(classifier_config(plain_cfg(), segmenter, 7), segmenter, THINGS)
    for record, found in zip(given, regions.distributions(given), strict=True):
        np.testing.assert_allclose(found, regions.distribution(record), atol=1e-5)
    gone = {**records[1], "file_name": str(root / "gone.png")}
    for weights in (classifier, segmenter):
        output = root / f"together_{weights.parent.name}"
        status = make_tag_labels(
            plain_cfg("TEST.IMS_PER_BATCH", 3), [records[0], gone, records[2]], CATEGORIES, output,
            classifier=weights, run=ALONE,
        )  # fmt: skip
        store = LabelStore.open(output)
        assert status == 1 and list(store.failed) == [records[1]["image_id"]]
        assert len(store.image_ids()) == 2


def files_of(store):
    """The labels' files by name; the processes' own folder and the manifest's order left out."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and ".tmp" not in path.parts
    }


def test_all_commands_leave_the_same_bytes_with_two_processes(scenes, classifier, tmp_path):
    for workers in (1, 2):
        status = make_all_labels(
            plain_cfg("WEAK_LABELS.MASKS", "box"), scenes[1], CATEGORIES, tmp_path / str(workers),
            classifier=classifier, run=LabelRun(workers=workers),
        )  # fmt: skip
        assert status == 0
    one, two = files_of(tmp_path / "1"), files_of(tmp_path / "2")
    assert len(one) >= 3 * (3 * 3 + 2) and one == two


def test_all_commands_leave_the_same_bytes_on_two_ray_nodes(scenes, classifier, tmp_path):
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    cluster.add_node(num_cpus=1)
    try:
        cluster.wait_for_nodes()
        ray.init(address=cluster.address)
        for name, options in (("ray", {"ray_address": "auto"}), ("here", {"workers": 1})):
            status = make_all_labels(
                plain_cfg("WEAK_LABELS.MASKS", "box"), scenes[1], CATEGORIES, tmp_path / name,
                classifier=classifier, run=LabelRun(**options),
            )  # fmt: skip
            assert status == 0
        assert files_of(tmp_path / "ray") == files_of(tmp_path / "here")
    finally:
        ray.shutdown()
        cluster.shutdown()


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_a_classifier_with_the_classes_in_another_order_says_the_same(
    scenes, kind, request, tmp_path
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
        make_tag_labels(
            plain_cfg(), records, CATEGORIES, tmp_path / name, classifier=file, run=ALONE
        )
    right, other = (LabelStore.open(tmp_path / name) for name in ("right", "turned"))
    for record in records:
        semantic = right.semantic(record["image_id"])
        np.testing.assert_array_equal(other.semantic(record["image_id"]), semantic)
    if kind == "segmenter":
        names = right.classes.names
        np.testing.assert_allclose(
            load_reliability(other.path, names), load_reliability(right.path, names), atol=1e-5
        )
    things[0]["name"] = "whale"
    (tmp_path / "metadata.json").write_text(
        json.dumps(parse_categories(things, "turned").metadata())
    )
    with pytest.raises(InputError, match=r'metadata\.json: its 7 categories lack "fish"'):
        make_tag_labels(
            plain_cfg(), records, CATEGORIES, tmp_path / "none", classifier=file, run=ALONE
        )


def test_the_commands_cam_keys_win_over_the_classifiers_config(scenes, classifier):
    root, records = scenes
    opts = ("CAM.THRESHOLD", 0.9, "CAM.LAYER", "backbone.res2")
    make_tag_labels(
        plain_cfg(*opts), records, CATEGORIES, root / "high", classifier=classifier, run=ALONE
    )
    recipe = LabelStore.open(root / "high").recipe
    assert (recipe["threshold"], recipe["layer"]) == (0.9, "backbone.res2")


def test_all_keeps_its_parts_and_continues(scenes, classifier):
    root, records = scenes
    cfg = plain_cfg("WEAK_LABELS.MASKS", "grabcut")
    arguments = (cfg, records, CATEGORIES, root / "all")
    assert make_all_labels(*arguments, classifier=classifier, run=FIRST_TWO) == 0
    assert make_all_labels(*arguments, classifier=classifier, run=ALONE) == 0
    store = LabelStore.open(root / "all")
    boxes = LabelStore.open(root / "all" / "parts" / "boxes")
    tags = LabelStore.open(root / "all" / "parts" / "tags")
    assert len(store.image_ids()) == 3
    assert store.recipe["boxes"] == boxes.recipe and store.recipe["tags"] == tags.recipe
    for record in records:
        merged = store.semantic(record["image_id"])
        masks, cues = boxes.semantic(record["image_id"]), tags.semantic(record["image_id"])
        is_mask = np.isin(masks, list(THINGS))
        np.testing.assert_array_equal(merged[is_mask], masks[is_mask])
        kept = ~is_mask & (merged != 255)
        np.testing.assert_array_equal(merged[kept], cues[kept])


@pytest.fixture(scope="module")
def segmenter(scenes):
    """A segmenter of random weights, stored as training would."""
    folder = scenes[0] / "segmenter"
    folder.mkdir()
    cfg = plain_cfg(
        "MODEL.META_ARCHITECTURE", "TagSegmenter", "MODEL.DEVICE", "cpu",
        "MODEL.SEM_SEG_HEAD.NUM_CLASSES", 7, "MODEL.WSIS.THING_IDS", sorted(THINGS),
    )  # fmt: skip
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())
    return folder / "model_final.pth"


def test_a_segmenters_cues_are_its_surest_classes_among_those_that_annotation_allows(
    scenes, segmenter
):
    root, records = scenes
    cfg = plain_cfg("CAM.THRESHOLD", 0.4)
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


def test_appearance_weighs_a_segmenters_distributions_and_no_activation_maps(
    scenes, classifier, segmenter
):
    root, records = scenes
    labellers = [
        build_labeller(classifier_config(cfg, segmenter, 7), segmenter, THINGS)
        for cfg in (plain_cfg("CAM.THRESHOLD", 0.4),
                    plain_cfg("CAM.THRESHOLD", 0.4, "CAM.APPEARANCE_WEIGHT", 0.5))
    ]  # fmt: skip
    for record in records:
        plain, weighed = (labeller.distribution(record) for labeller in labellers)
        image = np.array(Image.open(record["file_name"]))[:, :, ::-1]
        np.testing.assert_allclose(weighed, weigh_by_appearance(plain, image, 0.5), atol=1e-4)
        assert not np.allclose(plain, weighed, atol=0.05)
        assert not weighed[plain == 0].any()
    cfg = plain_cfg("CAM.APPEARANCE_WEIGHT", 0.5, "CAM.THRESHOLD", 0.4)
    make_tag_labels(
        cfg, records, CATEGORIES, root / "looks", classifier=segmenter, run=ALONE
    )  # fmt: skip
    assert LabelStore.open(root / "looks").recipe["appearance_weight"] == 0.5
    with pytest.raises(InputError, match="CAM.APPEARANCE_WEIGHT is 0.5; a TagClassifier"):
        make_tag_labels(cfg, records, CATEGORIES, root / "not", classifier=classifier)
    bad = plain_cfg("CAM.APPEARANCE_WEIGHT", -1.0)
    with pytest.raises(InputError, match="CAM.APPEARANCE_WEIGHT is -1.0"):
        make_tag_labels(bad, records, CATEGORIES, root / "not", classifier=segmenter)
    assert not (root / "not").exists()


def interrupt(*_):
    raise KeyboardInterrupt


def test_the_labels_know_how_far_tags_vouch_for_a_segmenters_classes(
    scenes, classifier, segmenter, monkeypatch
):
    root, records = scenes
    cfg = plain_cfg("CAM.THRESHOLD", 0.4, "WEAK_LABELS.MASKS", "box")
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
    np.testing.assert_allclose(labeller.reliability([gone, untagged, *records]), found, atol=1e-6)
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
        plain_cfg(), records, CATEGORIES, root / "maps", classifier=classifier, run=ALONE
    )
    assert not (root / "maps/reliability.json").exists()


def test_what_is_missing_or_unfit_is_told(scenes, classifier, tmp_path):
    root, records = scenes
    with pytest.raises(InputError, match="--classifier W.pth is missing, and images have tags"):
        make_all_labels(plain_cfg(), records, CATEGORIES, tmp_path / "a")
    with pytest.raises(InputError, match="no such file; train one with"):
        make_tag_labels(
            plain_cfg(), records, CATEGORIES, tmp_path / "a", classifier=tmp_path / "no.pth"
        )
    with pytest.raises(InputError, match="none has image_tags or crop_tags"):
        untagged = [{**r, "image_tags": [], "crop_tags": None} for r in records]
        make_tag_labels(plain_cfg(), untagged, CATEGORIES, tmp_path / "a", classifier=classifier)
    more = [*CATEGORIES, {"id": 99, "name": "mud", "isthing": 0}]
    with pytest.raises(
        InputError, match="in another shape: classifier.weight .*the dataset's classes"
    ):
        make_tag_labels(plain_cfg(), records, more, tmp_path / "a", classifier=classifier)
    alone = tmp_path / "model_final.pth"
    alone.write_bytes(classifier.read_bytes())
    with pytest.raises(InputError, match="no config.yaml beside it"):
        make_tag_labels(plain_cfg(), records, CATEGORIES, tmp_path / "a", classifier=alone)
    assert not (tmp_path / "a").exists()


def test_dry_run_writes_nothing(scenes, classifier, tmp_path):
    status = make_all_labels(
        plain_cfg(),
        scenes[1],
        CATEGORIES,
        tmp_path / "a",
        classifier=classifier,
        run=LabelRun(workers=1, dry_run=True),
    )
    assert status == 0 and not (tmp_path / "a").exists()


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
        plain_cfg(), own, CATEGORIES, tmp_path / "tags", classifier=classifier, run=ALONE
    )
    make_tag_labels(
        plain_cfg(), records, CATEGORIES, tmp_path / "tags2", classifier=classifier, run=ALONE
    )
    for record in own:
        np.testing.assert_array_equal(
            LabelStore.open(tmp_path / "tags").semantic(record["image_id"]),
            LabelStore.open(tmp_path / "tags2").semantic(record["image_id"]),
        )
    manifest = json.loads((tmp_path / "tags" / "manifest.json").read_text())
    assert manifest["summary"]["failed"] == 0
