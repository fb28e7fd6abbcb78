# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Small files that would take much memory, or end a program in a traceback, if taken at their word.

Each was read, or ended in a traceback, before it was refused.
"""

import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from wsis_d2.checkpoint.checkpointer import RunCheckpointer
from wsis_d2.checkpoint.names import read_weights
from wsis_d2.checkpoint.reader import load_file
from wsis_d2.utils.errors import InputError

MULTIARRAY = np._core.multiarray if hasattr(np, "_core") else np.core.multiarray


class Call:
    """Pickles as a call of a function, with a state."""

    def __init__(self, *reduced):
        self.reduced = reduced

    def __reduce__(self):
        return self.reduced


def saved(path, value):
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(value, protocol=2))
    else:
        torch.save(value, path, _use_new_zipfile_serialization="legacy" not in path.name)
    return path


HUGE_ARRAY = Call(MULTIARRAY._reconstruct, (np.ndarray, (1 << 34,), b"b"))
WRONG_DTYPE = Call(np.dtype, ("f8", False, True), (3, "<", None, None, None, 1 << 20, 1, 0))
ENTRIES = {
    "repeated.pth": torch.zeros(1).expand(10**12),
    "sparse.pth": torch.sparse_coo_tensor([[0], [1]], [1.0], (10**7, 10**7)),
    "meta.pth": torch.zeros(3, device="meta"),
    "complex.pth": torch.zeros(2, dtype=torch.complex64),
    "bytearray.pth": Call(bytearray, (1 << 34,)),
    "legacy_bytearray.pth": Call(bytearray, (1 << 34,)),
    "huge_tensor.pth": Call(torch.Tensor, (1 << 34,)),
    "text_array.pkl": np.array(["x"]),
    "objects.pkl": np.array([1, "x"], object),
    "dates.pkl": np.array(["2020"], "M8[s]"),
    "records.pkl": np.zeros(2, [("a", "f4")]),
    "dtype_alone.pkl": WRONG_DTYPE,
    "wrong_dtype.pkl": Call(
        MULTIARRAY._reconstruct, (np.ndarray, (0,), b"b"), (1, (4,), WRONG_DTYPE, False, b"x" * 32)
    ),
    "larger_than_content.pkl": Call(
        MULTIARRAY._reconstruct, (np.ndarray, (0,), b"b"),
        (1, (1 << 33,), np.dtype("f4"), False, b"x" * 32),
    ),
    "object_number.pkl": Call(MULTIARRAY.scalar, (np.dtype("O"), b"\x41" * 8)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ENTRIES)
def test_entries_that_are_no_array_of_a_network_are_named(tmp_path, name):
    path = saved(tmp_path / name, {"model": {"weight": ENTRIES[name]}})
    with pytest.raises(InputError, match=rf"^KEY: .*{name}: ") as told:
        read_weights(str(path), "KEY")
    assert str(told.value).isprintable() and len(str(told.value)) < 400 + len(str(path))


@pytest.mark.parametrize("name", ["a.pth", "legacy.pth", "a.pkl"])
@pytest.mark.parametrize(
    "content",
    [{1: np.zeros(2)}, {"model": {1: np.zeros(2)}}, {"blobs": [1]}, {"model": {"w": [1]}}, [1], 5],
    ids=str,
)
def test_structures_of_another_kind_end_in_one_line(tmp_path, name, content):
    path = saved(tmp_path / name, content)
    with pytest.raises(InputError, match=rf"KEY: .*{name}: "):
        read_weights(str(path), "KEY")


@pytest.mark.parametrize("kind", [np.float16, np.float32, ">f4", np.int64, np.uint8, bool])
def test_plain_arrays_still_come_out_as_they_went_in(tmp_path, kind):
    array = np.arange(6).reshape(2, 3).astype(kind)
    one = np.array(array[1, 1])
    columns = np.asfortranarray(array)
    content = {"model": {"rows": array, "columns": columns, "none": array[:0], "one": one}}
    for name in ("a.pkl", "a.pth"):
        found = load_file(str(saved(tmp_path / name, {**content, "__author__": "x"})))["model"]
        for key, wanted in content["model"].items():
            np.testing.assert_array_equal(found[key], wanted)
            assert found[key].dtype == wanted.dtype.newbyteorder("=")  # as NumPy reads it
    arrays = read_weights(str(tmp_path / "a.pth"), "KEY").arrays
    np.testing.assert_array_equal(arrays["columns"].numpy(), array)
    assert arrays["one"].shape == ()


def test_huge_array_without_content_is_not_made(tmp_path):
    path = saved(tmp_path / "a.pkl", {"model": {"weight": HUGE_ARRAY}, "__author__": "x"})
    assert load_file(str(path))["model"]["weight"].size == 0


def test_bytes_that_are_not_there_are_not_made(tmp_path):
    path = tmp_path / "bytes.pkl"
    path.write_bytes(b"\x80\x05\x96" + struct.pack("<Q", 1 << 40) + b"abc.")
    with pytest.raises(InputError, match="bytes.pkl: "):
        load_file(str(path))


def test_arrays_of_protocol_5_are_as_large_as_their_content(tmp_path):
    path = tmp_path / "a.pkl"
    numeric = np._core.numeric if hasattr(np, "_core") else np.core.numeric
    made = Call(numeric._frombuffer, (b"abcd", np.dtype("f4"), (1 << 33,), "C"))
    path.write_bytes(pickle.dumps({"model": {"weight": made}, "__author__": "x"}, protocol=5))
    with pytest.raises(InputError, match="a.pkl: .*another size than its content"):
        load_file(str(path))


def test_memo_of_a_thousand_million_places_is_not_made(tmp_path):
    """Python's own unpickler takes 8 GB for these eight bytes."""
    path = tmp_path / "memo.pkl"
    path.write_bytes(b"\x80\x02}r" + struct.pack("<I", 0x1FFFFFFF) + b".")
    with pytest.raises(InputError, match="holds no parameters"):
        read_weights(str(path), "KEY")


def test_compressed_records_are_refused(tmp_path):
    plain = saved(tmp_path / "plain.pth", {"model": {"weight": torch.zeros(1 << 22)}})
    packed = tmp_path / "packed.pth"
    with zipfile.ZipFile(plain) as old, zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert packed.stat().st_size < plain.stat().st_size / 100
    assert torch.load(packed)["model"]["weight"].numel() == 1 << 22  # torch itself unpacks it
    with pytest.raises(InputError, match="packed.pth: .*compressed"):
        read_weights(str(packed), "KEY")


@pytest.mark.parametrize("name", ["../other/model_final.pth", "/etc/passwd", "..", "a\0b"])
def test_a_last_checkpoint_outside_the_run_is_refused(tmp_path, name):
    (tmp_path / "other").mkdir()
    run = tmp_path / "run"
    run.mkdir()
    saved(tmp_path / "other" / "model_final.pth", {"model": {}, "trainer": {}})
    (run / "last_checkpoint").write_text(name)
    with pytest.raises(InputError, match="last_checkpoint: names .*expected a file of this folder"):
        RunCheckpointer(torch.nn.Linear(1, 1), str(run)).find_last()


def test_no_flipped_bit_makes_other_weights(tmp_path):
    """torch does not look at the checksums that it writes."""
    path = tmp_path / "a.pth"
    weight = torch.arange(64.0).reshape(8, 8)
    torch.save({"model": {"layer.weight": weight}}, path)
    sound = path.read_bytes()
    first = sound.index(weight.numpy().tobytes())
    for bit in range(8 * first, 8 * (first + 256), 5):
        broken = bytearray(sound)
        broken[bit // 8] ^= 1 << bit % 8
        path.write_bytes(broken)
        with pytest.raises(InputError, match=r"a\.pth: .*checksum of its record .*data/0 is wrong"):
            read_weights(str(path), "KEY")
    path.write_bytes(sound)
    assert torch.equal(read_weights(str(path), "KEY").arrays["layer.weight"], weight)


@pytest.mark.skipif(
    not hasattr(torch.serialization, "set_crc32_options"), reason="torch always computes checksums"
)
def test_a_checkpoint_without_checksums_is_read(tmp_path):
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"model": {"layer.weight": torch.ones(3)}}, tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert read_weights(str(tmp_path / "a.pth"), "KEY").arrays["layer.weight"].sum() == 3
