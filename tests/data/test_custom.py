# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Registration of own data: weak, full, mixed; label stores; no way for a mask into a weak set."""

import copy
import json
from types import SimpleNamespace

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from wsis_d2.data.datasets.own.custom import (
    register_own_datasets,
    register_weak_panoptic,
    set_label_store,
    unregister,
)
from wsis_d2.data.datasets.own.weak import WEAK_RECORD_FIELDS
from wsis_d2.data.datasets.sample.dataset import prepare_sample
from wsis_d2.utils.errors import InputError


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "wsis_sample"
    prepare_sample(folder, train=3, val=1)
    return folder


@pytest.fixture(autouse=True)
def forget():
    yield
    for name in list(DatasetCatalog.list()):
        if name.startswith("own_"):
            unregister(name)


def keywords(sample, **more):
    return {"json": sample / "weak_train.json", "images": sample / "images/train", **more}


def truth(sample):
    return {"panoptic_json": sample / "panoptic_train.json",
            "panoptic_dir": sample / "panoptic_train"}  # fmt: skip


def test_weak_set_with_truth_for_evaluation_holds_no_mask(sample):
    register_weak_panoptic("own_weak", **keywords(sample, labels="store", **truth(sample)))
    records = DatasetCatalog.get("own_weak")
    assert len(records) == 3
    assert all(set(r) <= WEAK_RECORD_FIELDS and r["supervision"] == "weak" for r in records)
    assert "panoptic" not in json.dumps(records)
    metadata = MetadataCatalog.get("own_weak")
    assert metadata.label_store == "store" and metadata.supervision == "weak"
    assert metadata.panoptic_root == str(sample / "panoptic_train")
    assert metadata.evaluator_type == "wsis_panoptic" and metadata.outside_boxes == "ignore"
    assert metadata.stuff_dataset_id_to_contiguous_id == dict(
        zip((1, 2, 3, 11, 12, 13, 14), range(7), strict=True)
    )
    assert metadata.thing_dataset_id_to_contiguous_id == {1: 0, 2: 1, 3: 2}
    assert len(metadata.thing_colors) == 7 and metadata.label_divisor == 1000


def test_weak_set_loads_after_every_mask_is_deleted(tmp_path):
    prepare_sample(tmp_path, train=2, val=1)
    register_weak_panoptic("own_weak", tmp_path / "weak_train.json", tmp_path / "images/train",
                           **truth(tmp_path))  # fmt: skip
    before = DatasetCatalog.get("own_weak")
    for png in (tmp_path / "panoptic_train").iterdir():
        png.unlink()
    (tmp_path / "panoptic_train.json").unlink()
    (tmp_path / "full_train.json").unlink()
    assert DatasetCatalog.get("own_weak") == before


def test_full_twin_has_truth_in_contiguous_ids(sample):
    register_weak_panoptic("own_full", **keywords(sample, supervision="full", **truth(sample)))
    raw = json.loads((sample / "panoptic_train.json").read_text())
    to_contiguous = {1: 0, 2: 1, 3: 2, 11: 3, 12: 4, 13: 5, 14: 6}
    for record, annotation in zip(DatasetCatalog.get("own_full"), raw["annotations"], strict=True):
        assert record["supervision"] == "full"
        ids = np.asarray(Image.open(record["pan_seg_file_name"])).astype(int) @ [1, 256, 65536]
        assert set(np.unique(ids)) == {s["id"] for s in record["segments_info"]}
        for mine, theirs in zip(record["segments_info"], annotation["segments_info"], strict=True):
            assert mine["category_id"] == to_contiguous[theirs["category_id"]]
            assert mine["isthing"] == (theirs["category_id"] < 10)


def test_mixture_within_one_file(sample, tmp_path):
    content = json.loads((sample / "weak_train.json").read_text())
    content["images"][1]["supervision"] = "full"
    (tmp_path / "mixed.json").write_text(json.dumps(content))
    options = keywords(sample, supervision="mixed", **truth(sample))
    register_weak_panoptic("own_mixed", **{**options, "json": tmp_path / "mixed.json"})
    records = DatasetCatalog.get("own_mixed")
    assert [r["supervision"] for r in records] == ["weak", "full", "weak"]
    assert ["pan_seg_file_name" in r for r in records] == [False, True, False]
    register_weak_panoptic("own_weak", tmp_path / "mixed.json", sample / "images/train")
    with pytest.raises(InputError, match="mixed"):
        DatasetCatalog.get("own_weak")


def test_full_images_by_name_and_by_share(sample, tmp_path):
    names = [i["file_name"] for i in json.loads((sample / "weak_train.json").read_text())["images"]]
    chosen = tmp_path / "chosen.txt"

    def full(full_images):
        options = keywords(sample, supervision="mixed", **truth(sample), full_images=full_images)
        register_weak_panoptic("own_mixed", **options)
        records = DatasetCatalog.get("own_mixed")
        unregister("own_mixed")
        assert all(("pan_seg_file_name" in r) == (r["supervision"] == "full") for r in records)
        return [r["file_name"].rsplit("/", 1)[1] for r in records if "pan_seg_file_name" in r]

    chosen.write_text(f"{names[2]}\n\n{names[0]}\n")
    assert full(str(chosen)) == [names[0], names[2]]
    assert full(0.0) == [] and full(1.0) == names
    one, two = full(1 / 3), full(0.67)
    assert len(one) == 1 and len(two) == 2 and set(one) < set(two)
    chosen.write_text("other.png\n")
    with pytest.raises(InputError, match=r"chosen\.txt: line 1: 'other\.png' is no image of"):
        full(str(chosen))
    unregister("own_mixed")
    for content, message in ((b"\n", "names no image"), (b"\xff\n", "chosen.txt: .*decode")):
        chosen.write_bytes(content)
        unregister("own_mixed")
        with pytest.raises(InputError, match=message):
            full(str(chosen))
    for share in (1.5, True):
        unregister("own_mixed")
        with pytest.raises(InputError, match="share of 0 to 1"):
            full(share)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"full_images": 0.5}, "full_images is for mixed sets"),
        ({"supervision": "strong"}, "weak, full, mixed"),
        ({"supervision": "full"}, "panoptic_json"),
        ({"panoptic_json": "x.json"}, "both"),
        ({"outside_boxes": 7}, "outside_boxes is 7"),
        ({"outside_boxes": True}, "outside_boxes is True"),
        ({"outside_boxes": "background"}, "outside_boxes is 'background'; expected .* sky \\(3\\)"),
        ({"outside_boxes": 0}, 'outside_boxes is 0; expected "ignore" or a stuff class: sky'),
        ({"json": "nowhere.json"}, r"nowhere\.json: no such file"),
    ],
)
def test_contradictory_arguments(sample, change, expected):
    with pytest.raises(InputError, match=expected):
        register_weak_panoptic("own_bad", **{**keywords(sample), **change})
    assert "own_bad" not in DatasetCatalog.list()


def test_the_class_outside_boxes_by_name_or_position(sample):
    for name, outside in (("own_named", "water"), ("own_numbered", 5)):
        register_weak_panoptic(name, **keywords(sample, outside_boxes=outside))
        assert MetadataCatalog.get(name).outside_boxes == 5
        assert MetadataCatalog.get(name).stuff_classes[5] == "water"


def test_full_set_takes_no_labels(sample):
    with pytest.raises(InputError, match="remove it"):
        register_weak_panoptic(
            "own_bad", **keywords(sample, supervision="full", labels="s", **truth(sample))
        )


def test_files_may_come_later(tmp_path):
    classes = [{"id": 1, "name": "cow", "isthing": 1}]
    register_weak_panoptic("own_later", tmp_path / "a.json", tmp_path, classes=classes,
                           prepare_command="make cows")  # fmt: skip
    with pytest.raises(InputError, match=r"own_later.*a\.json.*make cows"):
        DatasetCatalog.get("own_later")


def damage(sample, tmp_path, change):
    content = json.loads((sample / "panoptic_train.json").read_text())
    change(content)
    (tmp_path / "p.json").write_text(json.dumps(content))
    register_weak_panoptic(
        "own_damaged",
        **keywords(sample, supervision="full", panoptic_json=tmp_path / "p.json",
                   panoptic_dir=sample / "panoptic_train"),
    )  # fmt: skip
    return DatasetCatalog.get("own_damaged")


TRUTH_DAMAGE = {
    "image without truth": (lambda c: c["annotations"].pop(0), r"image id 1 .*0001\.png"),
    "twice": (lambda c: c["annotations"].append(c["annotations"][0]), "two annotations"),
    "instances file": (lambda c: c["annotations"][0].pop("segments_info"), "not instances"),
    "no list": (lambda c: c.update(annotations=3), "no 'annotations' list"),
    "no png": (lambda c: c["annotations"][0].update(file_name="none.png"), r"no file .*none\.png"),
    "leaves": (lambda c: c["annotations"][0].update(file_name="../x.png"), "leaves"),
    "class": (
        lambda c: c["annotations"][0]["segments_info"][0].update(category_id=99),
        "category_id 99, expected one of the 7 category ids",
    ),
    "id twice": (
        lambda c: c["annotations"][0]["segments_info"].append(
            dict(c["annotations"][0]["segments_info"][0])
        ),
        "given twice",
    ),
    "id zero": (
        lambda c: c["annotations"][0]["segments_info"][0].update(id=0),
        "expected 1 to 16777215",
    ),
}


@pytest.mark.parametrize("case", TRUTH_DAMAGE)
def test_bad_truth_is_named(sample, tmp_path, case):
    change, expected = TRUTH_DAMAGE[case]
    with pytest.raises(InputError, match=expected):
        damage(sample, tmp_path, change)


def config(own=(), stores=()):
    return SimpleNamespace(DATASETS=SimpleNamespace(OWN=list(own), LABEL_STORES=list(stores)))


def test_register_from_config_is_idempotent(sample, tmp_path):
    entry = {k: str(v) for k, v in {"name": "own_a", **keywords(sample)}.items()}
    cfg = config([entry], [["own_a", "labels/a"]])
    register_own_datasets(cfg)
    register_own_datasets(copy.deepcopy(cfg))
    assert len(DatasetCatalog.get("own_a")) == 3
    assert MetadataCatalog.get("own_a").label_store == "labels/a"
    register_own_datasets(config([], [["own_a", "labels/b"]]))
    assert MetadataCatalog.get("own_a").label_store == "labels/b"
    # the same name with other arguments replaces it
    changed = {**entry, "json": str(sample / "weak_val.json"), "images": str(sample / "images/val")}
    register_own_datasets(config([changed]))
    assert len(DatasetCatalog.get("own_a")) == 1


@pytest.mark.parametrize(
    ("own", "stores", "expected"),
    [
        (["a"], [], r"OWN\[0\]"),
        ([{"name": "own_a", "images": "x"}], [], "json is missing"),
        ([{"name": "own_a", "json": "a", "images": "x", "mask": "m"}], [], "unknown keyword mask"),
        ([{"name": "own_a", "json": "none.json", "images": "x"}], [], r"OWN\[0\]: none\.json"),
        ([], [["own_none", "s"]], 'no dataset "own_none"'),
        ([{"name": ["a"], "json": "a", "images": "x"}], [], r"name is \['a'\]; expected a text"),
        (
            [{"name": "own_a", "json": 5, "images": "x"}],
            [],
            r"OWN\[0\]: json is 5; expected a text",
        ),
        ([{"name": "own_a", "json": "a", "images": "x", 5: 1, "b": 2}], [], "unknown keyword 5"),
        ([], ["own_none"], r"LABEL_STORES\[0\]"),
        ([], [["own_none", 5]], r"LABEL_STORES\[0\]: is \['own_none', 5\]"),
        ([], [["sample_val_full", "s"]], "weak twin"),
    ],
)
def test_bad_config_is_named(own, stores, expected):
    with pytest.raises(InputError, match=expected):
        register_own_datasets(config(own, stores))


def test_null_in_a_config_is_the_default(sample):
    nothing = dict.fromkeys(("labels", "panoptic_json", "panoptic_dir", "apr_thresholds"))
    register_own_datasets(config([{"name": "own_a", **keywords(sample), **nothing}]))
    assert MetadataCatalog.get("own_a").apr_thresholds == "0.1:0.9:0.1"


def test_built_in_names_are_protected(sample):
    with pytest.raises(InputError, match="registered already"):
        register_own_datasets(config([{"name": "sample_train_weak", **keywords(sample)}]))
    with pytest.raises(InputError, match="no dataset"):
        set_label_store("own_none", "store")
