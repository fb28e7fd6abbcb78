# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""How fluid a report of many images is: frames while scrolling, milliseconds to sort and to toggle.

Needs selenium, Chromium and its driver; headless, drawn by the processor, so a screen does better.

Example:
    python tests/benchmarks/bm_report.py --images 500
"""

import argparse
import shutil
import statistics
import tempfile
from pathlib import Path

import cv2
import numpy as np
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from wsis_d2.report.html import write_report
from wsis_d2.visualization.layers import AnnotationLayer, LabelLayer
from wsis_d2.visualization.palette import class_list

CLASSES = class_list(
    [{"id": 1, "name": "cow", "isthing": 1}, {"id": 2, "name": "grass", "isthing": 0}]
)
FLAGS = "--headless --no-sandbox --disable-gpu --window-size=1300,1000 --hide-scrollbars"
STEPS = 300  # frames from the top of the page to its end
SCROLL = """const done = arguments[0], times = [], steps = arguments[1];
const end = document.documentElement.scrollHeight - innerHeight;
let last = performance.now();
function frame(now) {
  times.push(now - last); last = now; scrollTo(0, end * times.length / steps);
  times.length < steps ? requestAnimationFrame(frame) : done(times.slice(1));
}
requestAnimationFrame(frame);"""
# From the click to the frame that shows it.
ACT = """const done = arguments[0], start = performance.now();
document.querySelector(arguments[1]).click();
requestAnimationFrame(() => setTimeout(() => done(performance.now() - start)));"""


def items(count: int, width: int, height: int):
    """Pictures of noise over two classes, an object in each; no two are alike."""
    for index in range(count):
        rng = np.random.default_rng(index)
        semantic = np.ones((height, width), np.uint8)
        instance = np.zeros((height, width), np.int32)
        x, y = rng.integers(0, width // 2), rng.integers(0, height // 2)
        semantic[y : y + height // 3, x : x + width // 3] = 0
        instance[semantic == 0] = 1
        picture = cv2.resize(rng.integers(0, 256, (12, 16, 3), np.uint8), (width, height))
        labels = LabelLayer(semantic, instance)
        box = [x, y, x + width // 3, y + height // 3]
        yield {
            "name": f"image {index}",
            "layers": {"image": picture, "annotation": AnnotationLayer([box], [0], tags=[1]),
                       "pseudo label": labels, "truth": labels},
            "scores": {"IoU": float(rng.random())},
        }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=500)
    parser.add_argument("--size", default="320x240", metavar="WxH", help="of the pictures")
    args = parser.parse_args()
    width, height = map(int, args.size.split("x"))
    with tempfile.TemporaryDirectory() as folder:
        page = write_report(
            Path(folder) / "report.html", "Benchmark", items(args.images, width, height),
            classes=CLASSES, sort="IoU",
        )  # fmt: skip
        print(f"{args.images} images of {args.size}: {page.stat().st_size / 2**20:.1f} MiB")
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium") or shutil.which("google-chrome")
        for flag in [*FLAGS.split(), f"--user-data-dir={folder}/profile"]:
            options.add_argument(flag)
        browser = webdriver.Chrome(options, Service(shutil.which("chromedriver")))
        try:
            browser.get(page.as_uri())
            shown = "return document.querySelectorAll('.pile img').length > 0"
            WebDriverWait(browser, 60, 0.05).until(lambda b: b.execute_script(shown))
            loaded = browser.execute_script("return performance.now()")
            frames = browser.execute_async_script(SCROLL.replace("arguments[1]", str(STEPS)))
            browser.execute_script("scrollTo(0, 0)")
            sort = browser.execute_async_script(ACT.replace("arguments[1]", "'#direction'"))
            layer = '"#layers [data-layer=truth]"'
            toggle = browser.execute_async_script(ACT.replace("arguments[1]", layer))
        finally:
            browser.quit()
    print(f"first pictures after {loaded:.0f} ms")
    pace, late = 1000 / statistics.mean(frames), np.percentile(frames, 95)
    print(f"scrolling: {pace:.0f} frames a second, 95 % in {late:.0f} ms, worst {max(frames):.0f}")
    print(f"sort {sort:.0f} ms, toggle a layer {toggle:.0f} ms")


if __name__ == "__main__":
    main()
