# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""Time the dense CRF against its rivals: paired, interleaved runs; medians of ratios.

Sets of parameters, 10 iterations, Potts, symmetric normalisation:
    A  bilateral 80 px, 13 levels, weight 10; spatial 3 px, weight 3 (pydensecrf's README)
    B  bilateral 67 px, 3 levels, weight 4; spatial 3 px, weight 3 (DeepLab's)

pydensecrf   total time (build and 10 iterations) of pydensecrf over ours
threads      our time on one thread over our time on two
rebuild      forward + backward of an operator that builds its lattice anew for every filter call
             over ours: our own filters, forced to, or with --crfasrnn a built checkout of
             github.com/sadeepj/crfasrnn_pytorch (its extension compiled in place; weights get
             gradients too, row normalisation)
backward     our backward over our forward
labels       time by the number of labels, for the instance head's 40 to 100
gpu          our CPU time over our CUDA time; milliseconds an iteration (only where there is a GPU)

Examples:
    OMP_NUM_THREADS=1 python tests/benchmarks/bm_dense_crf.py pydensecrf --image street.jpg
    python tests/benchmarks/bm_dense_crf.py threads --cases 375x500x21xA --repeat 7
"""

import argparse
import os
import platform
import statistics
import sys
import time

import cv2
import numpy as np
import torch

from wsis_d2.layers import CRFParameters, DenseCRF, mean_field, permutohedral_filter, spatial_filter
from wsis_d2.layers.native_crf import build_lattice
from wsis_d2.utils.image_io import read_picture

SETS = {
    "A": dict(bilateral_weight=10.0, bilateral_xy=80.0, bilateral_rgb=13.0),
    "B": dict(bilateral_weight=4.0, bilateral_xy=67.0, bilateral_rgb=3.0),
}
SPATIAL = dict(gaussian_weight=3.0, gaussian_xy=3.0)
ITERATIONS = 10
CASES = ["375x500x21xA", "375x500x21xB", "375x500x5xA", "375x500x5xB"]


def processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            name = next(line.split(":", 1)[1].strip() for line in lines if "model name" in line)
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return f"{name}, {os.cpu_count()} cores"


def make_picture(paths: list, height: int, width: int) -> torch.Tensor:
    """One picture resized to cover the size; several as a mosaic; none: a synthetic scene."""
    if not paths:
        field = torch.randn(1, 3, 12, 16, generator=torch.Generator().manual_seed(0))
        scene = torch.nn.functional.interpolate(field, (height, width), mode="bicubic")[0]
        grain = torch.randn(3, height, width, generator=torch.Generator().manual_seed(1))
        return (scene * 60 + 128 + grain * 3).clamp(0, 255).to(torch.uint8)
    side = 2 if len(paths) >= 4 and height > 720 else 1
    tiles = []
    for path in paths[: side * side]:
        tile = read_picture(path, "BGR")
        tall, wide = -(-height // side), -(-width // side)
        scale = max(tall / tile.shape[0], wide / tile.shape[1])
        if scale != 1:
            how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
            size = (
                max(wide, round(tile.shape[1] * scale)),
                max(tall, round(tile.shape[0] * scale)),
            )
            tile = cv2.resize(tile, size, interpolation=how)
        tiles.append(tile[:tall, :wide, ::-1])
    rows = [np.concatenate(tiles[i * side : (i + 1) * side], 1) for i in range(side)]
    return torch.from_numpy(np.concatenate(rows, 0)[:height, :width].copy()).permute(2, 0, 1)


def make_scores(labels: int, height: int, width: int) -> torch.Tensor:
    """Log-softmax of a smooth field and pixel noise, seeded."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.randn(1, labels, height // 25 + 2, width // 25 + 2, generator=generator) * 3
    field = torch.nn.functional.interpolate(coarse, (height, width), mode="bicubic")[0]
    noise = torch.randn(labels, height, width, generator=generator)
    return (field + 0.5 * noise).log_softmax(0).contiguous()


def now() -> float:
    """On one thread the processor's time, so that a busy machine counts less; else the clock's."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def timed(function, clock=now) -> float:
    start = clock()
    function()
    return clock() - start


def interleaved(first, second, repeat: int, clock=now):
    """Medians of both times and of the paired ratios first / second."""
    second()
    pairs = [(timed(first, clock), timed(second, clock)) for _ in range(repeat)]
    return (
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(a / b for a, b in pairs),
    )


class RebuiltFilter(torch.autograd.Function):
    """The bilateral filter with a lattice of its own for every call, backward too."""

    @staticmethod
    def forward(ctx, values, image, options):
        ctx.image, ctx.options = image, options
        return permutohedral_filter(values, image, normalization="symmetric", **options)

    @staticmethod
    def backward(ctx, grad):
        back = permutohedral_filter(
            grad, ctx.image, normalization="symmetric", transpose=True, **ctx.options
        )
        return back, None, None


def rebuilt_mean_field(scores, image, kernels):
    options = dict(sigma_xy=kernels["bilateral_xy"], sigma_rgb=kernels["bilateral_rgb"])
    current = scores
    for _ in range(ITERATIONS):
        q = current.softmax(0)
        bilateral = RebuiltFilter.apply(q, image, options)
        spatial = spatial_filter(q, sigma=SPATIAL["gaussian_xy"], normalization="symmetric")
        current = (
            scores + kernels["bilateral_weight"] * bilateral + SPATIAL["gaussian_weight"] * spatial
        )
    return current


def forward(scores, image, kernels):
    return mean_field(
        scores, image, iterations=ITERATIONS, normalization="symmetric", **SPATIAL, **kernels
    )


def run_pydensecrf(scores, image, kernels):
    from pydensecrf import densecrf

    labels, height, width = scores.shape
    crf = densecrf.DenseCRF2D(width, height, labels)
    crf.setUnaryEnergy(np.ascontiguousarray(-scores.reshape(labels, -1).numpy()))
    crf.addPairwiseGaussian(sxy=SPATIAL["gaussian_xy"], compat=SPATIAL["gaussian_weight"])
    crf.addPairwiseBilateral(
        sxy=kernels["bilateral_xy"],
        srgb=kernels["bilateral_rgb"],
        rgbim=np.ascontiguousarray(image.permute(1, 2, 0).numpy()),
        compat=kernels["bilateral_weight"],
    )
    return torch.from_numpy(np.array(crf.inference(ITERATIONS))).reshape(scores.shape)


def crfasrnn_pair(checkout: str, scores, image, kernels):
    """Forward + backward of crfasrnn_pytorch's CrfRnn and of ours on the same input."""
    sys.path[:0] = [checkout, os.path.join(checkout, "crfasrnn")]
    from crfasrnn.crfrnn import CrfRnn
    from crfasrnn.params import DenseCRFParams

    bilateral, spatial = kernels["bilateral_weight"], SPATIAL["gaussian_weight"]
    params = DenseCRFParams(
        kernels["bilateral_xy"], kernels["bilateral_rgb"], SPATIAL["gaussian_xy"], spatial,
        bilateral,
    )  # fmt: skip
    rival = CrfRnn(scores.shape[0], ITERATIONS, params)
    mine = DenseCRF(CRFParameters(iterations=ITERATIONS, **SPATIAL, **kernels))
    goal = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1))

    def run(function):
        leaf = scores.clone().requires_grad_()
        function(leaf).mul(goal).sum().backward()

    floating = image.float()[None]
    return (
        lambda: run(lambda leaf: rival(floating, leaf[None])[0]),
        lambda: run(lambda leaf: mine(leaf, image)),
    )


def measure(mode: str, case: str, paths: list, repeat: int, checkout: str | None = None) -> str:
    height, width, labels, name = case.split("x")
    height, width, labels, kernels = int(height), int(width), int(labels), SETS[name]
    image = make_picture(paths, height, width)
    scores = make_scores(labels, height, width)

    def ours():
        forward(scores, image, kernels)

    if mode == "pydensecrf":
        results = {}

        def rival():
            results["pydensecrf"] = run_pydensecrf(scores, image, kernels)

        def ours_to_marginals():
            results["native"] = forward(scores, image, kernels).softmax(0)

        a, b, ratio = interleaved(rival, ours_to_marginals, repeat)
        same = results["native"].argmax(0) == results["pydensecrf"].argmax(0)
        build = statistics.median(
            timed(lambda: build_lattice(image, kernels["bilateral_xy"], kernels["bilateral_rgb"]))
            for _ in range(repeat)
        )
        return (
            f"| {case} | {ratio:.2f} | {a * 1e3:.0f} | {b * 1e3:.0f} | {build * 1e3:.0f} | "
            f"{100 * same.double().mean():.2f} |"
        )
    if mode == "threads":

        def on(threads):
            torch.set_num_threads(threads)
            ours()

        a, b, ratio = interleaved(lambda: on(1), lambda: on(2), repeat, time.perf_counter)
        return f"| {case} | {ratio:.2f} | {a * 1e3:.0f} | {b * 1e3:.0f} |"
    if mode in ("rebuild", "backward"):
        leaf = scores.clone().requires_grad_()
        goal = torch.randn(scores.shape, generator=torch.Generator().manual_seed(1))

        def both(function):
            function(leaf, image, kernels).mul(goal).sum().backward()
            leaf.grad = None

        if mode == "rebuild":
            pair = (lambda: both(rebuilt_mean_field), lambda: both(forward))
            if checkout is not None:
                pair = crfasrnn_pair(checkout, scores, image, kernels)
            a, b, ratio = interleaved(*pair, repeat)
            return f"| {case} | {ratio:.2f} | {a * 1e3:.0f} | {b * 1e3:.0f} |"
        ratios = []
        for turn in range(repeat + 1):
            start = now()
            out = forward(leaf, image, kernels).mul(goal).sum()
            middle = now()
            out.backward()
            end = now()
            if turn:
                ratios.append((end - middle) / (middle - start))
        return f"| {case} | {statistics.median(ratios):.2f} |"
    if mode == "labels":
        base, more = scores[:1], scores
        a, b, ratio = interleaved(
            lambda: forward(more, image, kernels), lambda: forward(base, image, kernels), repeat
        )
        return f"| {case} | {a * 1e3:.0f} | {ratio:.1f} |"
    if not torch.cuda.is_available():
        raise SystemExit("gpu: not measured, there is no GPU")
    there = scores.cuda(), image.cuda()

    def on_gpu():
        forward(*there, kernels)
        torch.cuda.synchronize()

    a, b, ratio = interleaved(ours, on_gpu, repeat, time.perf_counter)
    return f"| {case} | {ratio:.1f} | {a * 1e3:.0f} | {b * 1e3:.1f} | {b / ITERATIONS * 1e3:.2f} |"


HEADS = {
    "pydensecrf": "case | ratio | pydensecrf ms | ours ms | of it build ms | same label %",
    "threads": "case | ratio | one thread ms | two threads ms",
    "rebuild": "case | ratio | rebuilt ms | ours ms",
    "backward": "case | backward / forward",
    "labels": "case | ms | times one label",
    "gpu": "case | CPU / GPU | CPU ms | GPU ms | GPU ms an iteration with build",
}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("mode", choices=HEADS)
    parser.add_argument("--cases", nargs="+", default=CASES, help="HEIGHTxWIDTHxLABELSxSET")
    parser.add_argument("--image", nargs="*", default=[], help="pictures; four make a mosaic")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--crfasrnn", metavar="CHECKOUT", help="see mode rebuild")
    args = parser.parse_args()
    kernels = torch.ops.wsis_d2.cpu_kernels()
    print(f"{processor()}; {torch.get_num_threads()} threads; kernels {kernels}")
    columns = HEADS[args.mode]
    print(f"| {columns} |\n|{'---|' * (columns.count('|') + 1)}")
    for case in args.cases:
        print(measure(args.mode, case, args.image, args.repeat, args.crfasrnn), flush=True)


if __name__ == "__main__":
    main()
