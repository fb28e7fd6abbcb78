# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Proposals of others: published MCG files of both versions, COCO result files."""

import json

import cv2
import numpy as np
import pytest
from detectron2.config import get_cfg
from pycocotools import mask as coco_mask
from scipy.io import savemat

from wsis_d2.config import add_wsis_config
from wsis_d2.utils.errors import InputError
from wsis_d2.weak_labels.box_labels import make_box_store
from wsis_d2.weak_labels.driver import LabelRun
from wsis_d2.weak_labels.proposals import CocoJsonSource, MatSource, NoSource, select_proposal
from wsis_d2.weak_labels.store import LabelStore

SUPERPIXELS = np.kron(np.arange(1, 13).reshape(3, 4), np.ones((5, 6), int))
MEMBERS = [[1], [1, 2, 5, 6], [12], [3, 4, 7, 8, 11, 12], list(range(1, 13))]
IMAGE = np.zeros((15, 24, 3), np.uint8)


def write_mat(path, version):
    """A file as im2mcg writes it; ``bboxes`` belongs to other rows, as in the published files."""
    if version == "5":
        labels = np.empty((len(MEMBERS), 1), object)
        for k, members in enumerate(MEMBERS):
            labels[k, 0] = np.array(members, np.uint16)[:, None]
        wrong = np.array([[1, 1, 2, 2]] * 3)
        savemat(path, {"superpixels": SUPERPIXELS.astype(np.uint16), "labels": labels,
                       "bboxes": wrong, "scores": np.zeros((5, 1))})  # fmt: skip
        return
    h5py = pytest.importorskip("h5py")
    with h5py.File(path, "w") as file:
        file["superpixels"] = SUPERPIXELS.T.astype(np.uint16)
        cells = file.create_dataset("labels", (1, len(MEMBERS)), dtype=h5py.ref_dtype)
        for k, members in enumerate(MEMBERS):
            file[f"#refs#/{k}"] = np.array(members, np.uint16)[None]
            cells[0, k] = file[f"#refs#/{k}"].ref


def check(proposals):
    assert len(proposals) == 5
    for k, members in enumerate(MEMBERS):
        mask = np.isin(SUPERPIXELS, members)
        np.testing.assert_array_equal(proposals.mask(k), mask)
        rows, columns = np.nonzero(mask)
        assert proposals.areas[k] == mask.sum()
        assert proposals.boxes[k].tolist() == [
            columns.min(), rows.min(), columns.max() + 1, rows.max() + 1,
        ]  # fmt: skip
        assert proposals.intersections((3, 2, 20, 9))[k] == mask[2:9, 3:20].sum()
        other = np.indices(SUPERPIXELS.shape).sum(axis=0) % 3 == 0
        assert proposals.mask_intersections(other)[k] == (mask & other).sum()
    assert select_proposal(proposals, (0, 0, 12, 10)) == 1


@pytest.mark.parametrize("version", ["5", "7.3"])
@pytest.mark.parametrize(
    ("name", "image_id", "file_name"),
    [
        ("2007_000033.mat", "2007_000033", "x/2007_000033.jpg"),
        ("COCO_val2014_00/COCO_val2014_000000000042.mat", 42, "COCO_val2014_000000000042.jpg"),
        ("mat/COCO_val2014_000000000042.mat", 42, "renamed.jpg"),
        ("000000000042.mat", 42, "renamed.jpg"),
    ],
)
def test_published_files(tmp_path, version, name, image_id, file_name):
    (tmp_path / name).parent.mkdir(exist_ok=True)
    write_mat(tmp_path / name, version)
    check(MatSource(str(tmp_path))(IMAGE, {"image_id": image_id, "file_name": file_name}))


def test_bad_mat_files_are_named(tmp_path):
    source = MatSource(str(tmp_path))
    (tmp_path / "a.mat").write_bytes(b"no MATLAB file" * 20)
    with pytest.raises(InputError, match="a.mat"):
        source(IMAGE, {"image_id": "a", "file_name": "a.jpg"})
    with pytest.raises(InputError, match="no proposals of image 'b'.*b.mat"):
        source(IMAGE, {"image_id": "b", "file_name": "b.jpg"})
    (tmp_path / "more").mkdir()
    write_mat(tmp_path / "more" / "c.mat", "5")
    other = MatSource(str(tmp_path / "more"))
    with pytest.raises(InputError, match="c.mat.*24 x 15.*10 x 10"):
        other(np.zeros((10, 10, 3), np.uint8), {"image_id": "c", "file_name": "c.jpg"})


def rle(members, compressed=True):
    mask = np.asfortranarray(np.isin(SUPERPIXELS, members).astype(np.uint8))
    if compressed:
        found = coco_mask.encode(mask)
        return {"size": list(found["size"]), "counts": found["counts"].decode()}
    flat, counts, value = mask.ravel(order="F"), [], 0
    at = 0
    while at < flat.size:
        run = np.argmax(flat[at:] != value) if (flat[at:] != value).any() else flat.size - at
        counts.append(int(run))
        at, value = at + run, 1 - value
    return {"size": list(mask.shape), "counts": counts}


@pytest.mark.parametrize("compressed", [True, False])
def test_coco_result_files(tmp_path, compressed):
    path = tmp_path / "sam.json"
    entries = [{"image_id": 7, "segmentation": rle(m, compressed), "score": 1} for m in MEMBERS]
    path.write_text(json.dumps([{"image_id": 6, "segmentation": rle([1])}, *entries]))
    check(CocoJsonSource(str(path))(IMAGE, {"image_id": 7}))
    with pytest.raises(InputError, match="no proposals of image 8"):
        CocoJsonSource(str(path))(IMAGE, {"image_id": 8})
    with pytest.raises(InputError, match="run-length mask of 4 x 4"):
        CocoJsonSource(str(path))(np.zeros((4, 4, 3), np.uint8), {"image_id": 7})


def test_bad_coco_file_is_named(tmp_path):
    path = tmp_path / "bad.json"
    path.write_text('[{"image_id": 1}]')
    with pytest.raises(InputError, match="bad.json"):
        CocoJsonSource(str(path))(IMAGE, {"image_id": 1})


def test_none_has_none():
    assert NoSource()(IMAGE, {}) is None


def coded(mask):
    found = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": found["size"], "counts": found["counts"].decode()}


def half_masks():
    left, right = np.zeros((15, 24), bool), np.zeros((15, 24), bool)
    left[2:9, 3:9], right[2:9, 3:20] = True, True
    return left, right


RECORD = {
    "image_id": "é1",
    "annotations": [{"id": 7, "category_id": 0}, {"id": 8, "category_id": 0}],
}


@pytest.mark.parametrize("key", ["annotation_id", "id"])
def test_coco_masks_belong_to_the_annotation_of_their_id(tmp_path, key):
    left, right = half_masks()
    entries = [
        {"image_id": "é1", key: 8, "segmentation": coded(left), "score": 0.25},
        {"image_id": "other", key: 9, "segmentation": coded(right), "score": 0.5},
        {"image_id": "é1", key: 7, "segmentation": coded(right), "score": 0.75},
    ]
    path = tmp_path / "masks.json"
    path.write_text(json.dumps({"images": [{"a": [1, {}]}], "annotations": entries, "x": 1}))
    found = CocoJsonSource(str(path))(IMAGE, RECORD)
    # The other mask fits the first one's box better.
    assert select_proposal(found, (3, 2, 9, 9)) == 0
    assert found.owned(0) == 1 and found.owned(1) == 0 and found.owned(2) is None
    assert found.scores.tolist() == [0.25, 0.75]


def test_coco_ids_of_another_file_pair_nothing(tmp_path):
    left, right = half_masks()
    path = tmp_path / "masks.json"
    numbered = [{"image_id": 1, "id": 7, "segmentation": coded(left)},
                {"image_id": 1, "id": 12, "segmentation": coded(right)}]  # fmt: skip
    path.write_text(json.dumps(numbered))
    found = CocoJsonSource(str(path))(IMAGE, {**RECORD, "image_id": 1})
    assert found.owned(0) is None and len(found) == 2


@pytest.mark.parametrize(
    "text", ['[{"image_id": 1, "segmentation": {', '{"annotations": 5}', "[1, "]
)
def test_a_broken_coco_file_is_named(tmp_path, text):
    path = tmp_path / "broken.json"
    path.write_text(text)
    with pytest.raises(InputError, match="broken.json"):
        CocoJsonSource(str(path))(IMAGE, RECORD)


def test_coco_files_are_read_in_pieces(tmp_path, monkeypatch):
    """Entries that lie across the pieces' ends, and long ones, come back as json.loads has them."""
    from wsis_d2.weak_labels.proposals import coco_index

    monkeypatch.setattr(coco_index, "_CHUNK", 16)
    rng = np.random.default_rng(1)
    entries = [
        {
            "image_id": int(rng.integers(0, 5)),
            "segmentation": "x" * int(rng.integers(0, 90)),
            "n": k,
        }
        for k in range(60)
    ]
    for indent, content in ((None, entries), (2, {"é": "ü", "annotations": entries, "z": []})):
        path = tmp_path / "pieces.json"
        path.write_text(json.dumps(content, indent=indent, ensure_ascii=False), encoding="utf-8")
        index = coco_index.CocoIndex(path)
        assert index.is_object == isinstance(content, dict)
        for image_id in range(5):
            assert index.entries(image_id) == [e for e in entries if e["image_id"] == image_id]
        assert index.entries(9) is None


@pytest.mark.parametrize("form", [str, float])
@pytest.mark.parametrize("key", ["annotation_id", "id"])
def test_ids_of_coco_masks_may_be_texts_and_floats(tmp_path, form, key):
    left, right = half_masks()
    path = tmp_path / "masks.json"
    path.write_text(json.dumps([{"image_id": form(1), key: form(k), "segmentation": coded(mask)}
                                for k, mask in ((8, left), (7, right))]))  # fmt: skip
    found = CocoJsonSource(str(path))(IMAGE, {**RECORD, "image_id": 1})
    assert found.owned(0) == 1 and found.owned(1) == 0


@pytest.mark.parametrize("last", [False, True])
def test_coco_masks_of_other_image_numbers_are_refused(tmp_path, last):
    left, _ = half_masks()
    content = {
        "images": [{"id": 1, "file_name": "b.jpg"}, {"id": 2, "file_name": "ü.jpg"}],
        "annotations": [{"image_id": 1, "segmentation": coded(left)}],
    }
    path = tmp_path / "masks.json"
    path.write_text(
        json.dumps(dict(reversed(content.items())) if last else content, ensure_ascii=False)
    )
    source = CocoJsonSource(str(path))
    assert len(source(IMAGE, {"image_id": 1, "file_name": "x/b.png"})) == 1
    assert len(source(IMAGE, {"image_id": 1, "file_name": "x/of_no_name_there.png"})) == 1
    with pytest.raises(InputError, match=r"id 1 is ü.jpg, whose id in .*masks.json is 2"):
        source(IMAGE, {"image_id": 1, "file_name": "x/ü.jpg"})


def test_a_changed_coco_file_is_read_again_and_is_another_recipe(tmp_path):
    path = tmp_path / "masks.json"
    path.write_text(json.dumps([{"image_id": k, "segmentation": rle(MEMBERS[k])} for k in (0, 2)]))
    source = CocoJsonSource(str(path))
    before = source.recipe()
    assert source(IMAGE, {"image_id": 0}).areas.tolist() == [30]
    size = path.stat().st_size
    path.write_text(json.dumps([{"image_id": k, "segmentation": rle(MEMBERS[2 - k])}
                                for k in (2, 0)]))  # fmt: skip
    assert path.stat().st_size == size
    np.testing.assert_array_equal(
        source(IMAGE, {"image_id": 0}).mask(0), np.isin(SUPERPIXELS, MEMBERS[2])
    )
    assert source.recipe() != before


def test_labels_of_a_mat_file_that_are_no_cells_are_refused(tmp_path):
    # As cells of one length written by a program that has none: four proposals, or two of two?
    savemat(tmp_path / "a.mat", {"superpixels": SUPERPIXELS, "labels": np.array([[1, 2], [3, 4]])})
    with pytest.raises(InputError, match="a.mat: .*labels are a matrix of .*, expected cells"):
        MatSource(str(tmp_path))(IMAGE, {"image_id": 1, "file_name": "a.jpg"})


def test_a_superpixel_that_a_mat_file_lists_twice_counts_once(tmp_path):
    labels = np.empty((1, 1), object)
    labels[0, 0] = np.array([[1, 2, 2]])
    savemat(tmp_path / "a.mat", {"superpixels": SUPERPIXELS, "labels": labels})
    found = MatSource(str(tmp_path))(IMAGE, {"image_id": 1, "file_name": "a.jpg"})
    assert found.areas.tolist() == [found.mask(0).sum()] == [60]


def test_an_empty_cell_of_version_7_3_is_no_proposal(tmp_path):
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "a.mat", "w") as file:
        file["superpixels"] = SUPERPIXELS.T
        file["one"], file["empty"] = np.array([[1.0], [2.0]]), np.array([0, 0], np.uint64)
        file["empty"].attrs["MATLAB_empty"] = np.uint8(1)  # what is stored are its sides
        refs = [file[name].ref for name in ("empty", "one")]
        file["labels"] = np.array([refs], h5py.ref_dtype)
    found = MatSource(str(tmp_path))(IMAGE, {"image_id": 1, "file_name": "a.jpg"})
    np.testing.assert_array_equal(found.mask(0), np.isin(SUPERPIXELS, [1, 2]))
    assert len(found) == 1


def test_two_mat_files_of_an_image_are_refused(tmp_path):
    for folder in ("mcg", "scg"):
        (tmp_path / folder).mkdir()
        write_mat(tmp_path / folder / "a.mat", "5")
    with pytest.raises(InputError, match=r"two files of image 1, .*mcg/a.mat and .*scg/a.mat"):
        MatSource(str(tmp_path))(IMAGE, {"image_id": 1, "file_name": "a.jpg"})


def test_mat_files_of_one_name_lie_in_the_folders_of_their_images(tmp_path):
    """Frames of two videos; either has the numbers that the other has."""
    for k, video in enumerate(("v1", "v2")):
        (tmp_path / "mcg" / video).mkdir(parents=True)
        labels = np.empty((1, 1), object)
        labels[0, 0] = np.array([MEMBERS[k]])
        savemat(tmp_path / "mcg" / video / "01.mat", {"superpixels": SUPERPIXELS, "labels": labels})
    for k, video in enumerate(("v1", "v2")):
        record = {"image_id": 8 + k, "file_name": f"/photos/{video}/01.jpg"}
        found = MatSource(str(tmp_path / "mcg"))(IMAGE, record)
        np.testing.assert_array_equal(found.mask(0), np.isin(SUPERPIXELS, MEMBERS[k]))


def test_boxes_are_labelled_again_where_their_proposals_have_changed(tmp_path):
    """In a file of the same name and size; the recipe holds the folder's name."""
    cfg = get_cfg()
    add_wsis_config(cfg)
    cfg.WEAK_LABELS.MASKS, cfg.WEAK_LABELS.PROPOSALS.NAME = "mcg", "mcg_mat"
    cfg.WEAK_LABELS.PROPOSALS.PATH = str(tmp_path / "mats")
    (tmp_path / "mats").mkdir()
    cv2.imwrite(str(tmp_path / "a.png"), IMAGE)
    box = {"bbox": [0, 0, 12, 10], "bbox_mode": 0, "category_id": 0}
    record = {"image_id": 1, "file_name": str(tmp_path / "a.png"), "height": 15, "width": 24,
              "annotations": [box]}  # fmt: skip
    sizes = set()
    for members in ([1, 2], [5, 6], [5, 6]):
        labels = np.empty((1, 1), object)
        labels[0, 0] = np.array([members], np.uint16)
        savemat(tmp_path / "mats/a.mat", {"superpixels": SUPERPIXELS, "labels": labels})
        sizes.add((tmp_path / "mats/a.mat").stat().st_size)
        categories = [{"id": 1, "name": "cow", "isthing": 1}]
        run = LabelRun(workers=1)
        assert make_box_store(cfg, [record], categories, tmp_path / "store", run=run) == 0
        found = LabelStore.open(tmp_path / "store").semantic(1) == 0
        np.testing.assert_array_equal(found, np.isin(SUPERPIXELS, members))
    assert len(sizes) == 1


def test_boxes_are_labelled_again_where_ids_give_them_other_masks(tmp_path):
    left, right = half_masks()
    path = tmp_path / "masks.json"
    path.write_text(json.dumps([{"image_id": 1, "annotation_id": k, "segmentation": coded(mask)}
                                for k, mask in ((7, left), (8, right))]))  # fmt: skip
    cfg = get_cfg()
    add_wsis_config(cfg)
    cfg.WEAK_LABELS.MASKS, cfg.WEAK_LABELS.PROPOSALS.NAME = "mcg", "coco_json"
    cfg.WEAK_LABELS.PROPOSALS.PATH = str(path)
    cv2.imwrite(str(tmp_path / "a.png"), IMAGE)
    for number, mask in ((7, left), (8, right)):
        box = {"bbox": [3, 2, 20, 9], "bbox_mode": 0, "category_id": 0, "id": number}
        record = {"image_id": 1, "file_name": str(tmp_path / "a.png"), "height": 15, "width": 24,
                  "annotations": [box]}  # fmt: skip
        categories, run = [{"id": 1, "name": "cow", "isthing": 1}], LabelRun(workers=1)
        assert make_box_store(cfg, [record], categories, tmp_path / "store", run=run) == 0
        np.testing.assert_array_equal(LabelStore.open(tmp_path / "store").semantic(1) == 0, mask)
