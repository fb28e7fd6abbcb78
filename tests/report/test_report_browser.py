# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The report in a real browser: toggling, sorting, keyboard, nothing leaves the disk.

Needs Chromium with its driver (Debian: ``apt-get install chromium chromium-driver``); skipped with
the reason elsewhere.
"""

import json

import cv2
import numpy as np
import pytest
from helpers.browser import find, keys, names, open_browser, wait_for

from wsis_d2.report.html import write_report
from wsis_d2.visualization.layers import AnnotationLayer, LabelLayer
from wsis_d2.visualization.palette import class_list

pytestmark = pytest.mark.long

COUNT = 500
CLASSES = class_list(
    [
        {"id": 1, "name": "cow", "isthing": 1, "color": [200, 30, 30]},
        {"id": 2, "name": "grass", "isthing": 0, "color": [30, 160, 60]},
        {"id": 3, "name": "sky", "isthing": 0, "color": [90, 140, 220]},
    ]
)


def scene(index):
    """Return a picture and its label map; no two are alike."""
    rng = np.random.default_rng(index)
    semantic = np.full((90, 120), 2, np.uint8)
    semantic[50:] = 1
    instance = np.zeros((90, 120), np.int32)
    x, y = rng.integers(0, 80), rng.integers(20, 60)
    semantic[y : y + 25, x : x + 35], instance[y : y + 25, x : x + 35] = 0, 1
    colors = np.array([c["color"] for c in CLASSES])[semantic]
    picture = np.clip(colors + rng.normal(0, 25, colors.shape), 0, 255).astype(np.uint8)
    return (
        picture,
        LabelLayer(semantic, instance),
        AnnotationLayer([[x, y, x + 35, y + 25]], [0], tags=[1]),
    )


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    def items():
        for index in range(COUNT):
            picture, labels, boxes = scene(index % 20)
            layers = {"image": picture, "annotation": boxes, "pseudo label": labels,
                      "truth": labels}  # fmt: skip
            yield {
                "name": f"img_{index:03d}.png",
                "layers": layers,
                "scores": {"IoU": (index * 37 % COUNT) / COUNT, "coverage": index / COUNT},
                "classes": ["cow"] if index % 5 else ["sky"],
                "caption": "</script><script>document.title='hacked'</script>" if not index else "",
            }

    x = list(range(20))
    return write_report(
        tmp_path_factory.mktemp("browser") / "report.html",
        "Test report",
        items(),
        classes=CLASSES,
        tables=[{"title": "Results", "columns": ["run", "PQ"], "rows": [["weak", 61.2]]}],
        bars=[{"title": "IoU", "labels": ["cow", "sky"], "series": [
            {"name": "weak", "values": [50, 70]}, {"name": "full", "values": [55, 75]}]}],
        curves=[{"title": "loss", "x_label": "iteration",
                 "series": [{"name": "total", "x": x, "y": [1 / (i + 1) for i in x]}]}],
        sort="IoU",
    )  # fmt: skip


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    yield from open_browser(tmp_path_factory.mktemp("profile"))


@pytest.fixture
def opened(browser, page):
    """The page, freshly opened."""
    browser.get(page.as_uri())
    wait_for(browser, "return document.querySelectorAll('.pile img').length > 0")
    return browser


def panels(browser):
    """Captions of the first card's panels."""
    script = "return [...document.querySelectorAll('.card')[0].querySelectorAll('figcaption')]"
    return browser.execute_script(script + ".map(e => e.textContent)")


def test_layers_toggle_by_mouse_and_key(opened):
    assert panels(opened) == ["image", "annotation", "pseudo label", "truth"]
    button = find(opened, "#layers [data-layer='truth']")
    button.click()
    assert button.get_attribute("aria-pressed") == "false"
    assert panels(opened) == ["image", "annotation", "pseudo label"]
    keys(opened, "4", "2")
    assert panels(opened) == ["image", "pseudo label", "truth"]
    keys(opened, "m")  # stacked: one label map at a time over the image
    assert panels(opened) == ["image + pseudo label"]
    assert wait_for(
        opened, "return document.querySelector('.card .pile').querySelectorAll('img').length == 2"
    )
    keys(opened, "m")
    assert panels(opened) == ["image", "pseudo label", "truth"]


def test_every_shown_picture_is_loaded(opened):
    assert wait_for(
        opened,
        "const all = [...document.querySelectorAll('.card')[0].querySelectorAll('img')];"
        "return all.length >= 7 && all.every(i => i.complete && i.naturalWidth > 0)",
    )


def test_sorting_filtering_finding(opened):
    from selenium.webdriver.support.ui import Select

    by_iou = sorted(range(COUNT), key=lambda i: i * 37 % COUNT)
    assert names(opened) == [f"img_{i:03d}.png" for i in by_iou]
    find(opened, "#direction").click()
    assert names(opened) == [f"img_{i:03d}.png" for i in reversed(by_iou)]
    Select(find(opened, "#sort")).select_by_visible_text("coverage")
    assert names(opened)[0] == f"img_{COUNT - 1:03d}.png"
    find(opened, "body").click()
    keys(opened, "ESCAPE", "r")
    assert names(opened)[:2] == ["img_000.png", "img_001.png"]
    Select(find(opened, "#class")).select_by_visible_text("sky")
    assert names(opened) == [f"img_{i:03d}.png" for i in range(0, COUNT, 5)]
    assert find(opened, "#count").text == f"{COUNT // 5} of {COUNT}"
    find(opened, "#find").send_keys("img_01")
    assert names(opened) == ["img_010.png", "img_015.png"]
    find(opened, "#find").send_keys("x")
    assert names(opened) == [] and find(opened, "#nothing").is_displayed()


def test_keyboard_opens_zooms_moves_and_returns(opened):
    focused = "return document.activeElement.querySelector('h3')?.textContent"
    first = names(opened)
    find(opened, ".card").click()
    assert find(opened, "#zoom-title").text == first[0]
    keys(opened, "+", "+")
    assert find(opened, "#zoom-level").text == "225 %"
    transform = "return document.querySelector('#stage .pile').style.transform"
    before = opened.execute_script(transform)
    keys(opened, "ARROW_RIGHT")
    assert opened.execute_script(transform) != before
    together = "return new Set([...document.querySelectorAll('#stage .pile')].map("
    assert opened.execute_script(together + "p => p.style.transform)).size") == 1
    keys(opened, "0")
    assert find(opened, "#zoom-level").text == "100 %"
    keys(opened, "n")
    assert find(opened, "#zoom-title").text == first[1]
    keys(opened, "ESCAPE")
    assert not opened.execute_script("return document.getElementById('zoom').open")
    assert opened.execute_script(focused) == first[1]
    keys(opened, "j", "j", "k")
    assert opened.execute_script(focused) == first[2]
    keys(opened, "ENTER")
    assert find(opened, "#zoom-title").text == first[2]
    keys(opened, "ESCAPE", "?")
    assert opened.execute_script("return document.getElementById('help').open")


def test_safe_colours(opened, page):
    script = "return [...document.querySelectorAll('.card')[0].querySelectorAll('.pile')[2]"
    script += ".querySelectorAll('img')].pop().getAttribute('src')"
    before = opened.execute_script(script)
    keys(opened, "p")
    after = opened.execute_script(script)
    assert before != after
    both = [cv2.imread(str(page.parent / name), cv2.IMREAD_UNCHANGED) for name in (before, after)]
    assert both[0].shape == both[1].shape and (both[0] != both[1]).any()
    background = "return getComputedStyle(document.querySelector('.swatch')).backgroundImage"
    assert "data:image/png" in opened.execute_script(background)


def test_pictures_are_held_only_near_the_view(opened):
    count = "return document.querySelectorAll('.pile img').length"
    most = 0
    for part in range(1, 11):
        opened.execute_script(
            f"window.scrollTo(0, document.documentElement.scrollHeight * {part / 10})"
        )
        wait_for(
            opened,
            "return [...document.querySelectorAll('.card')].some(c => {"
            "const r = c.getBoundingClientRect();"
            "return r.bottom > 0 && r.top < innerHeight && c.querySelector('img')})",
        )
        most = max(most, opened.execute_script(count))
    # All 500 images with 4 layers would be 3500 pictures.
    assert 0 < most < 350


def test_no_error_and_no_request_leaves_the_disk(opened):
    keys(opened, "m", "p", "1", "2")
    opened.execute_script("window.scrollTo(0, 3000)")
    wait_for(opened, "return document.querySelectorAll('.pile img').length > 0")
    assert opened.title == "Test report"
    assert [e for e in opened.get_log("browser") if e["level"] in ("SEVERE", "WARNING")] == []
    asked = []
    for entry in opened.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        if message["method"] == "Network.requestWillBeSent":
            # The browser's own start page asks for its own parts; only the report's count.
            if message["params"]["documentURL"].startswith("file://"):
                asked.append(message["params"]["request"]["url"])
    assert asked and all(url.startswith(("file://", "data:")) for url in asked)
    assert opened.execute_script("return document.querySelectorAll('.failed').length") == 0


def test_screen_readers_get_a_name_for_everything(opened):
    nodes = opened.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    roles = {}
    for node in nodes:
        if not node.get("ignored"):
            role = node["role"].get("value")
            roles.setdefault(role, []).append(node.get("name", {}).get("value", ""))
    for role in ("button", "combobox", "searchbox", "slider", "toolbar", "list", "listitem"):
        assert roles.get(role), f"no {role}"
        assert all(roles[role]), f"a {role} without a name"
    charts = [n for n in roles.get("image", []) + roles.get("img", []) if n.startswith("loss")]
    assert charts and "from 1 to 0.05" in charts[0]
    assert any("IoU" in n and "Press Enter" in n for n in roles["listitem"])
    assert opened.execute_script("return document.documentElement.lang") == "en"


def test_narrow_screens_do_not_scroll_sideways(opened):
    opened.set_window_size(500, 900)
    try:
        wide = "return document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert wait_for(opened, wide)
    finally:
        opened.set_window_size(1300, 1000)
