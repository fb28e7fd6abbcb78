# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Review in the label report, in a real browser; needs what test_report_browser.py needs."""

import time

import numpy as np
import pytest
from helpers.browser import find, keys, names, open_browser, wait_for

from wsis_d2.report.html import write_report
from wsis_d2.visualization.layers import LabelLayer
from wsis_d2.visualization.palette import class_list
from wsis_d2.weak_labels.review import read_review

pytestmark = pytest.mark.long

IDS = [7, 8, "c", 10]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    yield from open_browser(tmp_path_factory.mktemp("profile"))


def write_page(path, names, recipe):
    """Write a page of images, {id: name}; return its address."""
    picture = np.full((30, 40, 3), 120, np.uint8)
    labels = LabelLayer(np.zeros((30, 40), np.uint8), np.ones((30, 40), np.int32))
    items = [
        {"id": i, "name": name, "layers": {"image": picture, "pseudo label": labels}}
        for i, name in names.items()
    ]
    classes = class_list([{"id": 1, "name": "cow", "isthing": 1, "color": [200, 30, 30]}])
    return write_report(path, "Review", items, classes=classes, review=recipe)


@pytest.fixture
def reviewed(browser, tmp_path):
    """A page of four images, freshly opened, and the folder that downloads go to."""
    recipe = f"recipe of {tmp_path.name}"
    page = write_page(tmp_path / "r.html", {i: f"img_{i}" for i in IDS}, recipe)
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    browser.get(page.as_uri())
    wait_for(browser, "return document.querySelectorAll('.pile img').length > 0")
    return browser, tmp_path, recipe


def exported(folder):
    for _ in range(200):
        if (folder / "review.json").is_file() and (folder / "review.json").stat().st_size:
            return read_review(folder / "review.json")
        time.sleep(0.05)
    raise AssertionError(f"nothing was downloaded: {list(folder.iterdir())}")


def test_keys_give_verdicts_and_the_export_reads_them(reviewed):
    opened, folder, recipe = reviewed
    assert not find(opened, "#review-export").is_enabled()
    keys(opened, "j", "a")  # the first image; the focus goes on to the second
    keys(opened, "x")
    find(opened, ".card:nth-child(3)").click()  # enlarged
    keys(opened, "f")
    assert find(opened, "#zoom-title").text == "img_10"
    find(opened, "[data-verdict=refuse]").click()
    assert find(opened, "[data-verdict=refuse]").get_attribute("aria-pressed") == "true"
    keys(opened, "u", "ESCAPE")
    text = find(opened, "#review-count").text
    assert text == "3 of 4 reviewed: 1 accepted, 1 refused, 1 to annotate fully"
    badges = "return [...document.querySelectorAll('.verdict')].map(e => e.textContent)"
    assert opened.execute_script(badges) == ["accepted", "refused", "to annotate fully"]
    find(opened, "#review-export").click()
    review = exported(folder)
    assert review.verdicts == {7: "accept", 8: "refuse", "c": "full"} and review.recipe == recipe


def test_verdicts_survive_a_reload_and_filter(reviewed):
    from selenium.webdriver.support.ui import Select

    opened, _, _ = reviewed
    keys(opened, "j", "x", "x")
    opened.refresh()
    wait_for(opened, "return document.querySelectorAll('.verdict').length === 2")
    Select(find(opened, "#review-show")).select_by_visible_text("refused")
    assert names(opened) == ["img_7", "img_8"]
    Select(find(opened, "#review-show")).select_by_visible_text("not reviewed")
    assert names(opened) == ["img_c", "img_10"]
    assert [e for e in opened.get_log("browser") if e["level"] in ("SEVERE", "WARNING")] == []


def test_pages_of_one_recipe_keep_their_own_verdicts(reviewed):
    """Another data set has the same recipe and ids; a page of some images keeps the others'."""
    opened, folder, recipe = reviewed
    keys(opened, "j", "x", "x", "x")
    counts = []
    for name, images in (
        ("other", {i: f"photo_{i}" for i in IDS}), ("few", {8: "img_8", 10: "img_10"}),
        ("r", {i: f"img_{i}" for i in IDS}),
    ):  # fmt: skip
        opened.get(write_page(folder / f"{name}.html", images, recipe).as_uri())
        wait_for(opened, "return document.querySelectorAll('.pile img').length > 0")
        keys(opened, "j", "a")  # the first one
        counts.append(find(opened, "#review-count").text)
    assert counts == [
        "1 of 4 reviewed: 1 accepted, 0 refused, 0 to annotate fully",
        "1 of 2 reviewed: 1 accepted, 0 refused, 0 to annotate fully",
        "3 of 4 reviewed: 2 accepted, 1 refused, 0 to annotate fully",
    ]


def test_a_report_without_labels_to_review_has_no_review(browser, tmp_path):
    items = [{"name": "a", "layers": {"image": np.zeros((9, 9, 3), np.uint8)}}]
    page = write_report(tmp_path / "plain.html", "Plain", items)
    browser.get(page.as_uri())
    assert not find(browser, "#review").is_displayed()
    keys(browser, "j", "a")
    assert browser.execute_script("return document.querySelectorAll('.verdict').length") == 0
    help_lines = "return document.querySelectorAll('#help .review').length"
    assert browser.execute_script(help_lines) == 0
