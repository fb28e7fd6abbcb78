# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""MATLAB files: those that scipy writes are read, those that unpack without end are not."""

import io
import struct
import zlib

import h5py
import numpy as np
import pytest
from scipy import sparse
from scipy.io import savemat

from wsis_d2.utils import matlab
from wsis_d2.utils.errors import InputError
from wsis_d2.utils.matlab import read_matlab
from wsis_d2.weak_labels.proposals import files
from wsis_d2.weak_labels.proposals.files import read_mat


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("version", ["4", "5"])
def test_variables_are_read(tmp_path, packed, version):
    array = np.arange(12.0).reshape(3, 4)
    savemat(tmp_path / "a.mat", {"a": array, "b": array + 1}, format=version,
            do_compression=packed and version == "5")  # fmt: skip
    found = read_matlab(tmp_path / "a.mat", ["b"])
    assert list(found) == ["b"]
    np.testing.assert_array_equal(found["b"], array + 1)


def test_a_file_that_unpacks_to_too_much_is_not_unpacked(tmp_path, monkeypatch):
    path = tmp_path / "a.mat"
    savemat(path, {"a": np.zeros(1 << 21)}, do_compression=True)
    assert path.stat().st_size < 1 << 17
    monkeypatch.setattr(matlab, "MOST_BYTES", 1 << 23)
    with pytest.raises(InputError, match="a.mat: .*unpacks to more than 8 MB"):
        read_matlab(path, ["a"])
    monkeypatch.setattr(matlab, "MOST_BYTES", 1 << 25)
    assert read_matlab(path, ["a"])["a"].size == 1 << 21


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("inner", [False, True])
def test_a_cell_array_of_more_cells_than_bytes_is_not_made(tmp_path, packed, inner):
    """scipy takes 20 GB for these few bytes, and the machine ends the process."""
    path = tmp_path / "a.mat"
    cell = np.empty((1, 3), object)
    cell[:] = 5.0
    if inner:
        outer = np.empty((1, 1), object)
        outer[0, 0] = cell
        cell = outer
    buffer = io.BytesIO()
    savemat(buffer, {"a": cell})
    sound = buffer.getvalue()
    sides = struct.pack("<ii", 1, 3)
    assert sound.count(sides) == 1
    content = sound.replace(sides, struct.pack("<ii", 7, 1 << 28))
    if packed:
        packed_part = zlib.compress(content[128:])
        content = content[:128] + struct.pack("<II", 15, len(packed_part)) + packed_part
    path.write_bytes(content)
    with pytest.raises(InputError, match="a.mat: .*more elements than it holds"):
        read_matlab(path, ["a"])


def element(kind, content):
    return struct.pack("<II", kind, len(content)) + content + b"\0" * (-len(content) % 8)


def version_5(*variables, order=b"IM"):
    return b"MATLAB 5.0".ljust(124) + b"\0\1" + order + b"".join(variables)


def array(name, flags, *parts, sides=(1, 1)):
    shape = struct.pack(f"<{len(sides)}i", *sides)
    return element(14, element(6, struct.pack("<II", flags, 0)) + element(5, shape)
                   + element(1, name) + b"".join(parts))  # fmt: skip


NUMBER = element(9, struct.pack("<d", 5.0))
A_CELL = array(b"", 6, NUMBER)


@pytest.mark.parametrize(
    "variable",
    [
        array(b"a", 6 | 0x800, NUMBER),  # complex, without a part of imaginary values
        array(b"a", 6, element(99, b"12345678")),
        array(b"a", 6, A_CELL),
        array(b"a", 6),
        array(b"a", 6, NUMBER, sides=(-1, -1)),
        array(b"a", 77, NUMBER),
        array(b"a", 1, A_CELL, NUMBER, sides=(1, 2)),
        array(b"a", 1, A_CELL, sides=(1, 2)),
        array(b"a", 1, array(b"", 6 | 0x800, NUMBER)),
        array(b"a", 2, element(5, struct.pack("<i", 2)), element(1, b"x\0y\0"), A_CELL),
        array(b"a", 5, element(5, bytes(4)), element(5, bytes(8))),
        array(b"a", 17, NUMBER),
        element(14, element(6, struct.pack("<II", 17, 0)) + element(1, b"a") + A_CELL),
    ],
    ids=range(13),
)
def test_an_array_that_would_lead_scipy_past_its_end_is_refused(tmp_path, variable):
    """scipy ends the process over the first few."""
    path = tmp_path / "a.mat"
    path.write_bytes(version_5(array(b"b", 6, NUMBER), variable))
    with pytest.raises(InputError, match=r"a\.mat: no MATLAB file with a"):
        read_matlab(path, ["a"])


def test_sides_without_a_sign_are_read(tmp_path):
    """Some programs write them so, and scipy takes it."""
    path = tmp_path / "a.mat"
    sound = array(b"a", 6, NUMBER)
    path.write_bytes(version_5(sound.replace(element(5, bytes([1, 0, 0, 0] * 2)),
                                             element(6, bytes([1, 0, 0, 0] * 2)))))  # fmt: skip
    assert read_matlab(path, ["a"])["a"].item() == 5


def test_what_nobody_asks_for_may_be_anything(tmp_path):
    """Options beside the labels, which hold functions and strings of MATLAB."""
    handle = array(b"", 16, A_CELL)
    options = array(b"o", 2, element(5, struct.pack("<i", 2)), element(1, b"f\0"), handle)
    path = tmp_path / "a.mat"
    path.write_bytes(version_5(options, array(b"c", 1, handle), array(b"a", 6, NUMBER)))
    assert read_matlab(path, ["a"])["a"].item() == 5
    for name in ("o", "c"):
        with pytest.raises(InputError, match="unknown class"):
            read_matlab(path, [name])


def test_a_name_that_is_read_otherwise_by_scipy_hides_nothing(tmp_path):
    """scipy takes sixteen bytes for the flags, whatever they say of their length."""
    content = array(b"a", 6, element(99, b"12345678"))
    content = content.replace(struct.pack("<II", 6, 8), struct.pack("<II", 6 | 0x79000000, 8), 1)
    path = tmp_path / "a.mat"
    path.write_bytes(version_5(content))
    with pytest.raises(InputError, match="does not begin with its flags"):
        read_matlab(path, ["a"])


def test_arrays_made_by_hand_are_read_beside_objects_of_matlab(tmp_path):
    path = tmp_path / "a.mat"
    table = element(14, element(6, struct.pack("<II", 17, 0)) + element(1, b"t")
                    + element(1, b"MCOS") + element(1, b"table") + A_CELL)  # fmt: skip
    pair = array(b"a", 1, A_CELL, A_CELL, sides=(1, 2))
    path.write_bytes(version_5(table, pair, array(b"c", 6 | 0x800, NUMBER, NUMBER)))
    found = read_matlab(path, ["a", "c"])
    assert [part.item() for part in found["a"].ravel()] == [5, 5] and found["c"].item() == 5 + 5j


def test_sparse_and_empty_arrays_are_read(tmp_path):
    """A sparse array has more places than bytes."""
    path = tmp_path / "a.mat"
    wanted = {
        "a": sparse.csc_matrix(([True], ([5], [7])), shape=(5000, 4000)),
        "b": np.zeros((0, 3)),
        "c": "text",
        "d": {"x": np.arange(3.0), "y": "z"},
        "e": np.ones((2, 3, 4), bool),
    }
    for packed in (False, True):
        savemat(path, wanted, do_compression=packed)
        found = read_matlab(path, list(wanted))
        assert found["a"].shape == (5000, 4000) and found["a"].nnz == 1
        assert found["b"].shape == (0, 3) and found["c"] == ["text"]
        np.testing.assert_array_equal(found["e"], wanted["e"])


@pytest.mark.parametrize(
    "content",
    [b"", b"text", b"\0" * 200, b"\0" * 124 + b"\0\1IM" + b"\x0f\0\0\0\xff\xff\xff\x7f" + b"x" * 9,
     b"\0" * 124 + b"\0\1IM" + b"\x0f\0\0\0\x10\0\0\0" + zlib.compress(b"x" * 8)],
    ids=range(5),
)  # fmt: skip
def test_what_is_no_such_file_ends_in_one_line(tmp_path, content):
    path = tmp_path / "a.mat"
    path.write_bytes(content)
    with pytest.raises(InputError, match="a.mat: ") as error:
        read_matlab(path, ["a"])
    assert "\n" not in str(error.value) and len(str(error.value)) < 300 + len(str(path))


def mat_73(path, superpixels=None, labels=((1,), (2,)), **others):
    """A file of version 7.3 as MATLAB writes cells: references to arrays."""
    with h5py.File(path, "w") as file:
        shown = np.array([[1, 1, 2], [1, 2, 2]], np.float64)
        file["superpixels"] = shown.T if superpixels is None else superpixels
        group = file.create_group("#refs#")
        found = [
            group.create_dataset(str(k), data=np.array(v, float)) for k, v in enumerate(labels)
        ]
        file["labels"] = np.array([[f.ref for f in found]], h5py.ref_dtype)
        for make in others.values():
            make(file)
    return path


def test_a_sound_file_of_version_73_is_read(tmp_path):
    proposals = read_mat(mat_73(tmp_path / "a.mat"), (2, 3))
    assert [proposals.mask(k).sum() for k in range(2)] == [3, 3]


def huge(file):
    del file["superpixels"]
    file.create_dataset("superpixels", (3, 2), "f8")
    del file["labels"]
    file.create_dataset("labels", (1, 1 << 40), h5py.ref_dtype, chunks=(1, 1 << 10))


def huge_member(file):
    file["#refs#"].create_dataset("huge", (1 << 40,), "f8", chunks=(1 << 10,))
    del file["labels"]
    file["labels"] = np.array([[file["#refs#/huge"].ref]], h5py.ref_dtype)


def elsewhere(file):
    del file["superpixels"]
    file["superpixels"] = h5py.ExternalLink("/tmp/other.mat", "/superpixels")


def raw_file(file):
    del file["superpixels"]
    file.create_dataset("superpixels", (3, 2), "u1", external=[("/etc/passwd", 0, 6)])


@pytest.mark.parametrize(
    "change,told",
    [
        ({"make": huge}, "unpacks to more than"),
        ({"make": huge_member}, "unpacks to more than"),
        ({"make": elsewhere}, "not in the file"),
        ({"make": raw_file}, "not in the file"),
        ({"superpixels": np.full((3, 2), 1e9)}, "no more than pixels"),
        ({"superpixels": np.full((3, 2), np.nan)}, "superpixels"),
        ({"superpixels": np.full((3, 2), b"abc")}, "no MCG proposals"),
        ({"superpixels": np.ones((3, 2, 1))}, "the image is 3 x 2"),
        ({"superpixels": 5}, "the image is 3 x 2"),
        ({"labels": ((9,),)}, "outside 1..2"),
        ({"labels": ((0,),)}, "outside 1..2"),
    ],
    ids=range(11),
)
def test_hostile_files_of_version_73_end_in_one_line(tmp_path, change, told):
    path = mat_73(tmp_path / "a.mat", **change)
    assert path.stat().st_size < 1 << 16
    with np.errstate(all="ignore"), pytest.raises(InputError, match="a.mat: ") as error:
        read_mat(path, (2, 3))
    assert told in str(error.value) and "\n" not in str(error.value)


def test_a_result_file_of_masks_beyond_the_picture_is_refused(tmp_path):
    """pycocotools would write past the mask's memory."""
    path = tmp_path / "masks.json"
    source = files.CocoJsonSource(str(path))
    record = {"image_id": 1, "file_name": "a.png"}
    image = np.zeros((4, 5, 3), np.uint8)
    for counts in ([5, 10**6], [-5, 25], "0" * 9, "\\u0000", 7, None):
        files.coco_index.cache_clear()
        shown = f'"{counts}"' if isinstance(counts, str) else str(counts).replace("None", "null")
        path.write_text(
            f'[{{"image_id": 1, "segmentation": {{"size": [4, 5], "counts": {shown}}}}}]'
        )
        with pytest.raises(InputError, match="masks.json: a mask of image 1: "):
            source(image, record)
