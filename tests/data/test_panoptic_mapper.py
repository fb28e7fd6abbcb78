# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""One transform for image, boxes and maps, for weak and full records."""

import copy
import json
import os

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.data import transforms as T
from helpers.tiny_panoptic import HEIGHT, THING_IDS, WIDTH, TinyData, scene, tiny_cfg
from PIL import Image

from wsis_d2.data.loader import build_train_loader, compare_with_tests
from wsis_d2.data.mappers import PanopticMapper, build_mapper
from wsis_d2.data.records import load_records
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.store import LabelStore


@pytest.fixture
def data(tmp_path):
    tiny = TinyData(tmp_path / "data")
    yield tiny
    tiny.close()


def mapper(data, augmentations=(), **options) -> PanopticMapper:
    defaults = {
        "is_train": True, "augmentations": augmentations, "image_format": "BGR",
        "thing_ids": THING_IDS, "num_classes": 4, "label_stores": {"tiny_weak": str(data.store)},
    }  # fmt: skip
    return PanopticMapper(**{**defaults, **options})


def test_full_record_gives_the_truth(data):
    for index, record in enumerate(load_records(["tiny_full"])):
        image, ids, segments = scene(index)
        sample = mapper(data)(record)
        assert sample["supervision"] == "full"
        assert np.array_equal(sample["image"].numpy(), image[:, :, ::-1].transpose(2, 0, 1))
        for segment in segments:
            region = ids == segment["id"]
            assert (sample["sem_seg"].numpy()[region] == segment["category_id"]).all()
            found = sample["inst_seg"].numpy()[region]
            assert (found == found[0]).all()
            assert sample["inst_classes"][found[0]] == segment["category_id"]
            assert (sample["inst_seg"].numpy() == found[0]).sum() == region.sum()
        things = [s for s in segments if s["category_id"] in THING_IDS]
        classes = sample["instances"].gt_classes.tolist()
        assert [THING_IDS[k] for k in classes] == [s["category_id"] for s in things]


def test_weak_record_gives_the_stored_label(data):
    store = LabelStore.open(data.store)
    for record in load_records(["tiny_weak"]):
        sample = mapper(data)(record)
        semantic = store.semantic(record["image_id"])
        instance, segments = store.instance(record["image_id"])
        assert sample["supervision"] == "weak"
        assert np.array_equal(sample["sem_seg"].numpy(), semantic)
        for segment in segments:
            if segment["category_id"] in THING_IDS:
                found = np.unique(sample["inst_seg"].numpy()[instance == segment["id"]])
                assert (
                    len(found) == 1 and sample["inst_classes"][found[0]] == segment["category_id"]
                )
        assert (sample["inst_seg"].numpy()[semantic == 255] == -1).all()
        for category in (1, 3):
            found = np.unique(sample["inst_seg"].numpy()[semantic == category])
            assert [int(sample["inst_classes"][k]) for k in found] == [category] * len(found)


def test_image_boxes_and_maps_move_together(data):
    """Pixels are coloured by class, so the moved image itself tells where the maps should be."""
    record = load_records(["tiny_full"])[3]
    image, ids, segments = scene(3)
    flat = np.zeros_like(image)
    for segment in segments:
        flat[ids == segment["id"]] = 40 * segment["id"]
    Image.fromarray(flat).save(record["file_name"])
    augmentations = [
        T.ResizeScale(2.0, 2.0, HEIGHT, WIDTH, interp=Image.NEAREST),
        T.RandomCrop("absolute", (50, 70)),
        T.RandomFlip(prob=1.0),
    ]
    sample = mapper(data, augmentations)(record)
    painted = sample["image"][0].numpy()
    assert painted.shape == (50, 70)
    category = {40 * s["id"]: s["category_id"] for s in segments}
    wanted = np.vectorize(category.get)(painted)
    assert np.array_equal(sample["sem_seg"].numpy(), wanted)
    for value in np.unique(painted):
        assert len(np.unique(sample["inst_seg"].numpy()[painted == value])) == 1
    values = [40 * s["id"] for s in segments if s["category_id"] in THING_IDS]
    boxes = {tuple(b) for b in sample["instances"].gt_boxes.tensor.int().tolist()}
    for value in values:
        ys, xs = np.nonzero(painted == value)
        if len(ys) < 20:
            continue
        inside = [b for b in boxes if b[0] <= xs.min() and b[1] <= ys.min()
                  and b[2] >= xs.max() + 1 and b[3] >= ys.max() + 1]  # fmt: skip
        assert inside


def test_detector_boxes_are_brought_into_the_crop(data):
    record = load_records(["tiny_full"])[3]
    crop = [T.RandomFlip(prob=1.0), T.RandomCrop("absolute", (30, 40))]
    sample = mapper(data, crop, with_detector_image=True)(record)
    assert sample["detector_image"].shape == (3, HEIGHT, WIDTH)
    boxes = np.array([a["bbox"] for a in record["annotations"]], dtype=float)
    moved = sample["transforms"].apply_box(boxes).clip(0, [40, 30, 40, 30])
    kept = ((moved[:, 2:] - moved[:, :2]) > 0).all(1)
    assert np.allclose(moved[kept], sample["instances"].gt_boxes.tensor.numpy())


def test_weak_samples_bring_their_windows_and_boxes_into_the_crop(data):
    record = next(r for r in load_records(["tiny_weak"]) if len(r["annotations"]) > 1)
    record["crop_tags"] = [{"box": [0, 0, 20, HEIGHT], "tags": [1]},
                           {"box": [20, 10, 30, 20], "tags": [1, 3]}]  # fmt: skip
    crop = T.CropTransform(10, 5, 40, 30)
    sample = mapper(data, [T.RandomFlip(prob=1.0), crop], with_regions=True)(record)
    assert sample["image"].shape == (3, 30, 40)

    def moved(x0, y0, x1, y1):
        return (WIDTH - x1 - 10, y0 - 5, WIDTH - x0 - 10, y1 - 5)

    assert sample["crops"] == [moved(0, 0, 20, HEIGHT), moved(20, 10, 50, 30)]
    assert sample["crop_targets"].tolist() == [[0, 1, 0, 0], [0, 1, 0, 1]]
    assert sample["has_boxes"] is True
    wanted = [(moved(*a["bbox"]), a["category_id"], False) for a in record["annotations"]]
    assert sample["boxes"] == wanted
    del record["crop_tags"]  # tags of the whole image
    sample = mapper(data, with_regions=True)(record)
    assert sample["crops"] == [(0, 0, WIDTH, HEIGHT)]
    assert "crops" not in mapper(data)(record)
    full = load_records(["tiny_full"])[0]
    assert "crops" not in mapper(data, with_regions=True)(full)


def test_what_lies_outside_boxes_needs_no_tag(data, monkeypatch):
    record = load_records(["tiny_weak"])[0]
    monkeypatch.setitem(MetadataCatalog.get("tiny_weak").__dict__, "outside_boxes", 3)
    record["image_tags"] = [1]
    sample = mapper(data, with_regions=True)(record)
    assert sample["crop_targets"].tolist() == [[0, 1, 0, -1]]


def test_a_thing_that_only_a_point_tells_of_may_be_anywhere(data):
    record = load_records(["tiny_weak"])[0]
    thing = THING_IDS[0]
    record["annotations"] = [a for a in record["annotations"] if a["category_id"] != thing]
    boxes = mapper(data, with_regions=True)(record)["boxes"]
    record["points"] = [{"category_id": thing, "xy": [3.5, 4.5]}]
    marked = mapper(data, with_regions=True)(record)["boxes"]
    assert marked == [*boxes, ((0, 0, WIDTH, HEIGHT), thing, True)]


def test_missing_label_names_image_and_command(data):
    records = load_records(["tiny_weak"])
    for status in (data.store / "status").glob("*4.json"):
        status.unlink()
    with pytest.raises(InputError, match=r"image 4 .*003\.png.*make_weak_labels\.py"):
        mapper(data).check(records)


def test_stale_label_names_image_and_command(data):
    records = load_records(["tiny_weak"])
    changed = copy.deepcopy(records)
    record = next(r for r in changed if r["annotations"])
    record["annotations"][0]["bbox"][0] += 1
    with pytest.raises(InputError, match="stale.*make_weak_labels"):
        mapper(data).check(changed)


def test_a_dataset_without_a_store_names_the_command(data):
    with pytest.raises(InputError, match="make_weak_labels.py all --dataset tiny_weak"):
        mapper(data, label_stores={"tiny_weak": None}).check(load_records(["tiny_weak"]))


@pytest.mark.parametrize("field", ["pan_seg_file_name", "segments_info", "sem_seg_file_name"])
def test_weak_records_with_masks_are_refused(data, field):
    record = {**load_records(["tiny_weak"])[1], field: "x"}
    with pytest.raises(InputError, match=f"mask field '{field}'"):
        mapper(data)(record)
    record = copy.deepcopy(load_records(["tiny_weak"])[1])
    record["annotations"][0]["segmentation"] = [[0, 0, 1, 1, 2, 2]]
    with pytest.raises(InputError, match="mask field 'segmentation'"):
        mapper(data)(record)


def test_weak_samples_need_no_mask_file(data):
    """All truth deleted: the weak samples stay the same."""
    records = load_records(["tiny_weak"])
    before = [mapper(data)(r) for r in records]
    for path in (data.folder / "panoptic").glob("*.png"):
        path.unlink()
    (data.folder / "panoptic.json").unlink()
    for record, old in zip(load_records(["tiny_weak"]), before, strict=True):
        new = mapper(data)(record)
        assert all(torch.equal(new[k], old[k]) for k in ("image", "sem_seg", "inst_seg"))


def test_detector_samples_need_no_label(data):
    record = load_records(["tiny_weak"])[3]
    sample = mapper(data, label_stores={}, with_maps=False)(record)
    assert "sem_seg" not in sample and len(sample["instances"]) == len(record["annotations"])


def test_testing_gives_the_image_alone(data):
    sample = build_mapper(tiny_cfg(data.folder), False)(load_records(["tiny_full"])[2])
    assert sample["image"].shape == (3, HEIGHT, WIDTH)
    assert not {"instances", "sem_seg", "annotations", "pan_seg_file_name"} & set(sample)


def test_more_segments_than_a_byte_holds(data):
    """More than 256 (class, instance) pairs take another path through interpolation."""
    record = dict(load_records(["tiny_full"])[0])
    ids = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) // 4 + 1
    rgb = np.stack([ids & 255, ids >> 8, ids >> 16], -1).astype(np.uint8)
    record["pan_seg_file_name"] = os.path.join(data.folder, "many.png")
    Image.fromarray(rgb).save(record["pan_seg_file_name"])
    record["segments_info"] = [{"id": int(i), "category_id": 2} for i in np.unique(ids)]
    sample = mapper(data, [T.RandomFlip(prob=1.0)])(record)
    assert np.array_equal(sample["inst_seg"].numpy(), (ids - 1)[:, ::-1])


def test_loader_counts_the_images_of_each_kind(data, caplog):
    cfg = tiny_cfg(
        data.folder, "DATASETS.TRAIN", "('tiny_weak', 'tiny_full')",
        "DATALOADER.FULL_FRACTION", 0.25, "MODEL.WSIS.STAGE", "semantic",
        "SOLVER.IMS_PER_BATCH", 8,
    )  # fmt: skip
    with caplog.at_level("INFO", logger="wsis_d2.data.loader"):
        loader = build_train_loader(cfg)
    assert "8 weak, 8 full" in caplog.text
    batches = iter(loader)
    kinds = [s["supervision"] for _ in range(4) for s in next(batches)]
    assert kinds.count("full") == 8 and kinds.count("weak") == 24


def test_a_mixture_inside_one_file(data):
    """Per-image supervision in one JSON: full images train from truth, the others from labels."""
    import json

    from wsis_d2.data.datasets import register_weak_panoptic
    from wsis_d2.data.datasets.own.custom import unregister

    content = json.loads((data.folder / "weak.json").read_text())
    for image in content["images"][::2]:
        image["supervision"] = "full"
    (data.folder / "mixed.json").write_text(json.dumps(content))
    register_weak_panoptic(
        "tiny_mixed", data.folder / "mixed.json", data.folder / "images", labels=data.store,
        panoptic_json=data.folder / "panoptic.json", panoptic_dir=data.folder / "panoptic",
        supervision="mixed",
    )  # fmt: skip
    try:
        own = mapper(data, label_stores={"tiny_mixed": str(data.store)})
        truth = load_records(["tiny_full"])
        for index, record in enumerate(load_records(["tiny_mixed"])):
            sample = own(record)
            assert sample["supervision"] == ("full" if index % 2 == 0 else "weak")
            same = torch.equal(sample["sem_seg"], own(truth[index])["sem_seg"])
            assert same == (index % 2 == 0)
    finally:
        unregister("tiny_mixed")


def test_an_unknown_dataset_is_named(data):
    assert "nobody" not in DatasetCatalog.list()
    with pytest.raises(InputError, match="'nobody'"):
        load_records(["nobody"])


def test_labels_of_things_alone_are_refused(data):
    """A network that never sees anything else would give every pixel to a thing."""
    records = [{**r, "image_tags": []} for r in load_records(["tiny_weak"])]
    things = data.folder / "things"
    store = LabelStore.create(
        things, {"recipe": "things"}, MetadataCatalog.get("tiny_weak").categories
    )
    for record in records:
        semantic = np.full((HEIGHT, WIDTH), 255, np.uint8)
        semantic[:4] = THING_IDS[0]
        store.write(record, semantic, np.full((HEIGHT, WIDTH), -1, np.int32), [])
    own = mapper(data, label_stores={"tiny_weak": str(things)})
    with pytest.raises(InputError, match="tiny_weak: .*things everywhere.*--outside-boxes NAME"):
        own.check(records)
    semantic[-4:] = 1  # some stuff of one image, whoever labelled it
    store.write(records[-1], semantic, np.full((HEIGHT, WIDTH), -1, np.int32), [])
    own.check(records)
    mapper(data, with_maps=False).check(records)  # a detector needs none


def test_images_with_an_unboxed_tagged_thing_do_not_train_the_detector(data, tmp_path):
    """Its object would count as background."""
    path = data.folder / "weak.json"
    content = json.loads(path.read_text())
    boxed = {(a["image_id"], a["category_id"]) for a in content["annotations"]}
    thing = content["categories"][0]["id"]
    without = next(i for i in content["images"] if (i["id"], thing) not in boxed
                   and any(k == i["id"] for k, _ in boxed))  # fmt: skip
    without["image_tags"].append(thing)
    path.write_text(json.dumps(content))
    data.register()
    loader = build_train_loader(tiny_cfg(tmp_path, "MODEL.WSIS.STAGE", "detector"))
    kept = {loader.dataset[(0, k)]["image_id"] for k in range(len(loader.dataset))}
    assert without["id"] not in kept and kept <= {k for k, _ in boxed} and len(kept) > 1


def test_training_on_test_images_is_told(data, caplog):
    weak, full = load_records(["tiny_weak"]), load_records(["tiny_full"])
    compare_with_tests(weak[1:], {"tiny_full": [record["file_name"] for record in full]})
    assert "7 of 8 images of tiny_full are trained on too" in caplog.text
