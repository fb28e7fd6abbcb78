# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Names of images as tools write them: the one image that they fit, or an error."""

import unicodedata

import pytest
from helpers.annotation_writers import (
    draw_pictures,
    write_labelme,
    write_voc,
    write_yolo,
)
from PIL import Image

from wsis_d2.data.importers.image_index import ImageIndex
from wsis_d2.data.importers.import_log import ImportLog
from wsis_d2.data.importers.per_image import read_labelme, read_voc
from wsis_d2.data.importers.yolo import read_yolo
from wsis_d2.utils.errors import InputError


def whys(entries):
    return sorted(entry["why"] for entry in entries)


@pytest.mark.parametrize("tool", ["voc", "labelme"])
def test_a_stale_name_inside_sends_boxes_nowhere(tool, photos, tmp_path):
    """b's file still says a.png: both images are there, so nothing tells whose boxes they are."""
    truth = {"b.png": (100, 80, [("cow", 10, 8, 20, 16)])}
    folder = write_voc(tmp_path, truth, True) if tool == "voc" else write_labelme(tmp_path, truth)
    (file,) = folder.iterdir()
    text = file.read_text()
    read = read_voc if tool == "voc" else read_labelme
    for stale in ("a.png", "a.JPEG"):
        file.write_text(text.replace("b.png", stale))
        with pytest.raises(InputError, match=r"a\.png, and has the name of b\.png"):
            read(folder, photos, ImportLog())
    # A name that leads nowhere is passed over, and counted.
    file.write_text(text.replace("b.png", "gone.png"))
    log = ImportLog()
    (picture,) = read(folder, photos, log)
    assert picture.file_name == "b.png"
    assert "the image it names does not exist; matched by its own file name" in whys(log.changed)


def test_names_are_relative_to_the_files_folder_first(tmp_path):
    photos = draw_pictures(tmp_path / "photos", "a.png", "sub/a.png")
    folder = write_voc(tmp_path, {"sub/a.png": (100, 80, [("cow", 10, 8, 20, 16)])}, True)
    (picture,) = read_voc(folder, photos, ImportLog())
    assert picture.file_name == "sub/a.png"


def test_two_images_of_one_stem_are_asked_for(tmp_path):
    photos = draw_pictures(tmp_path / "photos", "a.png", "a.bmp")
    truth = {"a.png": (100, 80, [("cow", 10, 8, 20, 16)])}
    with pytest.raises(InputError, match=r"may belong to a\.bmp or a\.png"):
        read_yolo(write_yolo(tmp_path, truth, ["cow"]), photos, ImportLog(), classes={0: "cow"})
    (picture,) = read_voc(write_voc(tmp_path, truth, True), photos, ImportLog())
    assert picture.file_name == "a.png"  # which it names


NAMES = {  # written -> the file that is there
    "my%20cow.png": "my cow.png",
    "/data/local-files/?d=herd/my%20cow.png": "herd/my cow.png",
    "/data/local-files/?d=herd/a+b.png": "herd/a+b.png",
    "https://host/herd/my%20cow.png?token=1": "my cow.png",
    "s3://bucket/herd/cow.png": "herd/cow.png",
    "herd\\cow.png": "herd/cow.png",
    "COW.PNG": "cow.png",
    "Herd/Cow.png": "herd/cow.png",
    unicodedata.normalize("NFD", "Kühe.png"): unicodedata.normalize("NFC", "Kühe.png"),
    unicodedata.normalize("NFC", "herd/Kühe.png"): unicodedata.normalize("NFD", "herd/Kühe.png"),
    "100%.png": "100%.png",
    "what?.png": "what?.png",
}


@pytest.mark.parametrize("written", NAMES)
def test_spellings_of_file_names(written, tmp_path):
    index = draw_pictures(tmp_path / "photos", NAMES[written], "other.png")
    log = ImportLog()
    assert index.find(written, "test", log) == NAMES[written]
    literal = written.replace("\\", "/") == NAMES[written]
    assert len(log.changed) == (0 if literal else 1) and not log.dropped


def test_spellings_that_fit_two_files(tmp_path):
    index = draw_pictures(tmp_path / "photos", "a.png", "A.png", "my cow.png", "my%20cow.png")
    assert index.find("a.png", "test", ImportLog()) == "a.png"
    assert index.find("my%20cow.png", "test", ImportLog()) == "my%20cow.png"
    with pytest.raises(InputError, match=r"may be A\.png or a\.png"):
        index.find("a.PNG", "test", ImportLog())


@pytest.mark.parametrize("suffix", [".gif", ".jfif", ".JPG", ".webp"])
def test_suffixes_of_pictures(suffix, tmp_path):
    (tmp_path / "photos").mkdir()
    Image.new("RGB", (100, 80)).save(
        tmp_path / "photos" / f"a{suffix}", "JPEG" if suffix == ".jfif" else None
    )
    index = ImageIndex(tmp_path / "photos")
    name = index.find(f"a{suffix}", "test", ImportLog())
    picture = index.picture(name, "test", ImportLog(), (100, 80))
    assert (picture.width, picture.height) == (100, 80)


def test_a_file_of_another_suffix_is_not_said_to_be_missing(photos, tmp_path):
    (tmp_path / "photos" / "a.heic").write_bytes(b"")
    log = ImportLog()
    assert photos.find("a.heic", "test", log) is None
    assert "no suffix of a picture" in log.dropped[0]["why"]


def test_a_size_that_exif_exchanged_is_said_to_be_exifs(tmp_path):
    (tmp_path / "photos").mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 80)).save(tmp_path / "photos" / "a.jpg", exif=exif)
    index = ImageIndex(tmp_path / "photos")
    with pytest.raises(InputError, match="EXIF orientation 6"):
        index.picture("a.jpg", "coco.json: images[0]", ImportLog(), (100, 80))
    assert index.picture("a.jpg", "test", ImportLog(), (80, 100)).width == 80


def test_frames_of_cvat_have_no_suffix(tmp_path):
    """Exported from a video as images, whose files have one; a caption is no image's name."""
    index = draw_pictures(tmp_path / "photos", "frame_000001.PNG", "v1.2/frame.7.jpg", "x/b.png",
                          "y/b.png")  # fmt: skip
    for written, file in (("frame_000001", "frame_000001.PNG"), ("frame.7", "v1.2/frame.7.jpg")):
        log = ImportLog()
        assert index.find(written, "test", log) == file and len(log.changed) == 1
        assert index.find(written, "test", log, stems=False) is None
    for written in ("frame_000001.jpg", "frame_000002", "frame"):
        assert index.find(written, "test", ImportLog()) is None
    with pytest.raises(InputError, match=r"test: \"b\" may be x/b\.png or y/b\.png"):
        index.find("b", "test", ImportLog())


@pytest.mark.parametrize("tool", ["voc", "yolo"])
def test_label_studio_puts_a_prefix_before_names_of_files(tool, photos, tmp_path):
    """Its exports without images, read beside the photographs that were uploaded."""
    truth = {"0123abcd-a.png": (100, 80, [("cow", 10, 8, 20, 16)])}
    if tool == "yolo":
        folder = write_yolo(tmp_path, truth, ["cow"])
        (picture,) = read_yolo(folder, photos, ImportLog(), classes={0: "cow"})
    else:
        folder = write_voc(tmp_path, truth, False)
        (file,) = folder.glob("*.xml")
        file.write_text(file.read_text().replace("-a.png<", "-a<"))
        (picture,) = read_voc(folder, photos, ImportLog())
    assert (picture.file_name, picture.boxes) == ("a.png", [("cow", 10, 8, 20, 16, False)])
