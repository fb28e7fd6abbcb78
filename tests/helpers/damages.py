# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Damages that are done to files, for the tests of bad input.

Each takes the file and a folder; where the file holds code, running it makes ``folder/ran``.
"""

import json
import os
import pickle
import struct
import zlib

import numpy as np
import torch
from PIL import Image


class Payload:
    """Makes the folder ``ran`` when it is unpickled."""

    def __init__(self, root):
        self.target = str(root / "ran")

    def __reduce__(self):
        return os.mkdir, (self.target,)


def bomb_png(side=60000):
    """Return a PNG of a few kilobytes that unpacks to ``side`` squared pixels."""

    def chunk(kind, data):
        checksum = zlib.crc32(kind + data)
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", checksum)

    packer = zlib.compressobj(9)
    rows = packer.compress(bytes(1 << 20)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")
    )


# What is done to a file. Each returns nothing; ``ran`` must not appear.
def missing(path, root):
    path.unlink()


def empty(path, root):
    path.write_bytes(b"")


def truncated(path, root):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 2 // 3])


def text(path, root):
    path.write_text("these are no data: {]")


def json_list(path, root):
    path.write_text("[1, 2, 3]")


def folder(path, root):
    """A folder where a file was expected."""
    path.unlink()
    path.mkdir()


def deep_json(path, root):
    """Nested deeper than a parser's stack."""
    path.write_text("[" * 200_000)


def long_number(path, root):
    """A number of more digits than Python reads."""
    path.write_text('{"images": [' + "9" * 5000 + "]}")


def other_size(path, root):
    """A sound picture of another size than the file says."""
    Image.fromarray(np.zeros((9, 7, 3), np.uint8)).save(path)


def entity_bomb(path, root):
    """XML that unpacks to gigabytes, and reads a file of the machine."""
    names = "abcdefghij"
    bomb = "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip(names, names[1:], strict=False)
    )
    declared = f'<!DOCTYPE x [<!ENTITY a "boom">{bomb}<!ENTITY f SYSTEM "file:///etc/passwd">]>'
    path.write_text(f"<?xml version='1.0'?>{declared}<annotation>&j;&f;</annotation>")


def replaced(old, new):
    """Return a damage that replaces text; it must be there."""

    def damage(path, root):
        content = path.read_text()
        assert old in content
        path.write_text(content.replace(old, new))

    damage.__name__ = f"text_{new}".strip().replace("/", "-")[:30]
    return damage


def rewritten(name, content):
    """Return a damage that replaces all of a text file."""

    def damage(path, root):
        path.write_text(content)

    damage.__name__ = name
    return damage


def bomb(path, root):
    path.write_bytes(bomb_png())


def payload_pickle(path, root):
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps({"model": {"w": Payload(root)}}))
    else:
        torch.save({"model": {"w": Payload(root)}}, path)


def nan_weights(path, root):
    torch.save({"model": {"semantic.w": torch.tensor([1.0, float("nan")])}}, path)


def yaml_payload(path, root):
    path.write_text(f"OUTPUT_DIR: !!python/object/apply:os.mkdir ['{root / 'ran'}']\n")


def unknown_key(path, root):
    path.write_text("MODEL:\n  NO_SUCH_KEY: 1\n")


def changed(change):
    """Return a damage that changes a JSON file."""

    def damage(path, root):
        content = json.loads(path.read_text())
        change(content)
        path.write_text(json.dumps(content))

    damage.__name__ = f"json_{change.__name__}"
    return damage


def nan_box(content):
    content["annotations"][0]["bbox"][0] = float("nan")


def leaves_root(content):
    content["images"][0]["file_name"] = "../../../etc/passwd"


def huge_image(content):
    content["images"][0]["height"] = 10**12


def png_leaves_root(content):
    content["annotations"][0]["file_name"] = "../../../etc/passwd"


def unknown_category(content):
    content["annotations"][0]["segments_info"][0]["category_id"] = 4711


def huge_segment_id(content):
    content["annotations"][0]["segments_info"][0]["id"] = 2**40


def wrong_schema(content):
    content["schema"] = 99
