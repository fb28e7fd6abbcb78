# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The dense CRF against brute force, pydensecrf, finite differences and its own invariants."""

import numpy as np
import pytest
import torch
from helpers.crf_inputs import picture, smooth, unary

from wsis_d2.layers import (
    CRFParameters,
    DenseCRF,
    dense_crf_refine,
    mean_field,
    mean_field_batch,
)
from wsis_d2.layers._extension import extension_error
from wsis_d2.utils.errors import InputError

native = pytest.mark.skipif(extension_error() is not None, reason="operators are not built")
LABELS = [1, 2, 5, 8, 9, 21, 31, 32, 33, 100, 257]
SMALL = dict(bilateral_xy=6.0, bilateral_rgb=20.0, gaussian_xy=3.0)


def dense_kernel(features):
    squared = ((features[:, None] - features[None]) ** 2).sum(-1)
    return np.exp(-0.5 * squared)


def test_exact_backend_is_the_formula():
    # An independent NumPy statement of two iterations, "after" and "symmetric".
    height, width, labels = 5, 7, 3
    image, scores = picture(height, width), unary(labels, height, width, dtype=torch.float64)
    ys, xs = np.mgrid[:height, :width]
    rgb = image.numpy().reshape(3, -1).T / 20.0
    xy = np.stack([xs.ravel(), ys.ravel()], 1)
    kernels = [dense_kernel(np.hstack([xy / 6.0, rgb])), dense_kernel(xy / 3.0)]
    for normalization in ("after", "symmetric"):
        u = start = scores.numpy().reshape(labels, -1)
        for _ in range(2):
            q = np.exp(u) / np.exp(u).sum(0)
            u = start.copy()
            for weight, kernel in zip((4.0, 3.0), kernels, strict=True):
                sums = kernel.sum(1)
                if normalization == "after":
                    u = u + weight * (q @ kernel.T) / sums
                else:
                    u = u + weight * ((q / np.sqrt(sums)) @ kernel.T) / np.sqrt(sums)
        found = mean_field(
            scores, image, iterations=2, normalization=normalization, backend="exact", **SMALL
        )
        np.testing.assert_allclose(found.numpy().reshape(labels, -1), u, rtol=1e-10, atol=1e-10)


@native
@pytest.mark.parametrize("normalization", ["after", "symmetric"])
@pytest.mark.parametrize(("spatial", "bound"), [("exact", 1e-5), ("auto", None)])
@pytest.mark.parametrize("sigma", [0.7, 1.0, 2.0, 2.5, 3.0, 5.0, 11.0])
def test_spatial_kernel_alone_against_brute_force(normalization, spatial, bound, sigma):
    image, scores = picture(41, 53), unary(6, 41, 53)
    options = dict(bilateral_weight=0.0, gaussian_weight=3.0, gaussian_xy=sigma, iterations=1)
    found = mean_field(scores, image, normalization=normalization, spatial=spatial, **options)
    exact = mean_field(scores, image, normalization=normalization, backend="exact", **options)
    difference = (found.softmax(0) - exact.softmax(0)).abs()
    if bound is not None:
        assert difference.max() <= bound
    else:
        assert difference.mean() <= 1e-3


@native
@pytest.mark.parametrize("labels", LABELS)
def test_any_label_count_agrees_with_its_labels_alone(labels):
    # Labels that nothing supports leave the others' marginals as they are; and the CRF does not
    # care about the labels' order. Together they tie every count to a small one.
    height, width = 35, 40
    image = picture(height, width)
    few = unary(min(labels, 5), height, width)
    scores = torch.full((labels, height, width), -200.0)
    where = torch.randperm(labels, generator=torch.Generator().manual_seed(labels))[: len(few)]
    scores[where] = few
    options = dict(iterations=3, **SMALL)
    small = mean_field(few, image, **options)
    large = mean_field(scores, image, **options)
    assert large.shape == scores.shape and large.dtype == torch.float32
    torch.testing.assert_close(large[where], small, atol=2e-4, rtol=1e-4)
    rest = torch.ones(labels, dtype=torch.bool)
    rest[where] = False
    torch.testing.assert_close(large[rest], scores[rest])


@native
@pytest.mark.parametrize("labels", LABELS)
def test_float32_and_float64_agree_and_recompute_changes_nothing(labels):
    image, scores = picture(20, 37), unary(labels, 20, 37)
    single = scores.clone().requires_grad_()
    double = scores.double().requires_grad_()
    again = scores.clone().requires_grad_()
    weight = torch.randn(scores.shape, generator=torch.Generator().manual_seed(0))
    a = mean_field(single, image, iterations=4, **SMALL)
    b = mean_field(double, image, iterations=4, **SMALL)
    c = mean_field(again, image, iterations=4, recompute=True, **SMALL)
    # On the mean: rounding may add a lattice vertex of weight 1e-7, through which blur then flows.
    assert (a.double() - b).abs().mean() <= 1e-3 * b.abs().mean()
    (a * weight).sum().backward()
    (b * weight.double()).sum().backward()
    (c * weight).sum().backward()
    assert torch.equal(a, c)
    torch.testing.assert_close(single.grad, again.grad, atol=1e-6, rtol=1e-5)
    assert (single.grad - double.grad).abs().mean() <= 2e-3 * double.grad.abs().mean()


def mean_difference(a, b):
    return (a - b).abs().mean().item()


@native
@pytest.mark.parametrize("labels", [5, 21])
@pytest.mark.parametrize(
    "kernels",
    [
        dict(bilateral_weight=10.0, bilateral_xy=80.0, bilateral_rgb=13.0),
        dict(bilateral_weight=4.0, bilateral_xy=67.0, bilateral_rgb=3.0),
    ],
    ids=["A", "B"],
)
@pytest.mark.parametrize("iterations", [1, 10])
def test_error_is_that_of_pydensecrf(labels, kernels, iterations):
    pytest.importorskip("pydensecrf")
    options = dict(iterations=iterations, gaussian_weight=3.0, gaussian_xy=3.0, **kernels)
    our_error = their_error = 0.0
    for seed in range(4):  # ten iterations magnify single pixels' chances: four pictures
        image = picture(36, 44, seed=seed)
        probabilities = unary(labels, 36, 44, seed=seed + 10).softmax(0)
        ours, theirs, exact = (
            dense_crf_refine(probabilities, image, CRFParameters(**options), backend=backend)
            for backend in ("native", "pydensecrf", "exact")
        )
        our_error += mean_difference(ours, exact)
        their_error += mean_difference(theirs, exact)
    assert our_error <= 1.1 * their_error


@native
@pytest.mark.parametrize(
    "kernels",
    [
        dict(bilateral_weight=10.0, bilateral_xy=80.0, bilateral_rgb=13.0),
        dict(bilateral_weight=4.0, bilateral_xy=67.0, bilateral_rgb=3.0),
    ],
    ids=["A", "B"],
)
def test_labels_are_those_of_pydensecrf_at_a_real_size(kernels):
    pytest.importorskip("pydensecrf")
    image = picture(375, 500, seed=5)
    probabilities = smooth(21, 375, 500, seed=6, cell=25).mul(3).softmax(0)
    options = CRFParameters(iterations=10, gaussian_weight=3.0, gaussian_xy=3.0, **kernels)
    ours = dense_crf_refine(probabilities, image, options, backend="native")
    theirs = dense_crf_refine(probabilities, image, options, backend="pydensecrf")
    assert (ours.argmax(0) == theirs.argmax(0)).double().mean() >= 0.995
    torch.testing.assert_close(ours.sum(0), torch.ones(375, 500), atol=1e-5, rtol=0)


@native
@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("normalization", ["after", "symmetric"])
@pytest.mark.parametrize("iterations", [1, 2, 3])
def test_gradients_match_finite_differences(iterations, normalization, recompute):
    image = picture(6, 7)
    scores = unary(3, 6, 7, dtype=torch.float64).requires_grad_()
    weights = [torch.tensor(w, dtype=torch.float64, requires_grad=True) for w in (1.3, 0.7)]

    def run(scores, bilateral, gaussian):
        return mean_field(
            scores,
            image,
            bilateral_weight=bilateral,
            gaussian_weight=gaussian,
            iterations=iterations,
            normalization=normalization,
            recompute=recompute,
            **SMALL,
        )

    assert torch.autograd.gradcheck(run, (scores, *weights))


def test_gradients_of_the_exact_backend():
    image = picture(4, 5)
    scores = unary(2, 4, 5, dtype=torch.float64).requires_grad_()
    weight = torch.tensor(1.3, dtype=torch.float64, requires_grad=True)

    def run(scores, weight):
        return mean_field(
            scores, image, bilateral_weight=weight, iterations=2, backend="exact", **SMALL
        )

    assert torch.autograd.gradcheck(run, (scores, weight))


@native
def test_weights_of_zero_still_get_gradients():
    image, scores = picture(9, 11), unary(3, 9, 11, dtype=torch.float64)
    goal = torch.randn(scores.shape, generator=torch.Generator().manual_seed(2)).double()
    zero = [torch.tensor(0.0, dtype=torch.float64, requires_grad=True) for _ in range(2)]

    def loss(bilateral, gaussian):
        out = mean_field(
            scores, image, bilateral_weight=bilateral, gaussian_weight=gaussian, iterations=2,
            **SMALL,
        )  # fmt: skip
        return (out * goal).sum()

    assert torch.autograd.gradcheck(loss, zero)


@native
@pytest.mark.parametrize("size", [(1, 1), (1, 77), (77, 1), (2, 3), (33, 31), (32, 64)])
@pytest.mark.parametrize("kind", ["constant", "noise"])
def test_odd_sizes_and_pictures(size, kind):
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(0, 256, (3, *size), dtype=torch.uint8, generator=generator)
    if kind == "constant":
        image = torch.full((3, *size), 90, dtype=torch.uint8)
    scores = torch.randn(4, *size, generator=generator).requires_grad_()
    for normalization in ("after", "symmetric"):
        out = mean_field(scores, image, iterations=3, normalization=normalization)
        assert torch.isfinite(out).all()
        if kind == "noise":  # every pixel is alone in colour: the bilateral kernel is the identity
            near = dict(bilateral_rgb=1.0, iterations=1, normalization=normalization)
            exact = mean_field(scores, image, backend="exact", **near)
            found = mean_field(scores, image, spatial="exact", **near)
            assert (found - exact).abs().mean() < 0.3
    out.sum().backward()
    assert torch.isfinite(scores.grad).all()


@native
def test_constant_picture_keeps_a_uniform_field():
    # All pixels alike: messages of a uniform marginal are that marginal, exactly normalised.
    image = torch.full((3, 50, 70), 17, dtype=torch.uint8)
    scores = torch.tensor([0.0, 1.0, -1.0]).reshape(3, 1, 1).expand(3, 50, 70)
    out = mean_field(scores, image, iterations=1, bilateral_weight=4.0, gaussian_weight=3.0)
    expected = scores + 7.0 * scores.softmax(0)
    torch.testing.assert_close(out, expected, atol=1e-5, rtol=1e-5)


@native
def test_huge_weights_do_not_overflow():
    image, scores = picture(30, 30), unary(4, 30, 30)
    single = mean_field(scores, image, bilateral_weight=300.0, gaussian_weight=-200.0, iterations=3)
    double = mean_field(
        scores.double(), image, bilateral_weight=300.0, gaussian_weight=-200.0, iterations=1
    )
    assert torch.isfinite(single).all()
    first = mean_field(scores, image, bilateral_weight=300.0, gaussian_weight=-200.0, iterations=1)
    torch.testing.assert_close(first.double(), double, atol=2e-2, rtol=1e-4)


@native
def test_same_bits_on_every_run_and_every_thread_count():
    image, scores = picture(200, 260), unary(7, 200, 260)
    before = torch.get_num_threads()
    outs, grads = [], []
    try:
        for threads in (1, 1, 2, 3):
            torch.set_num_threads(threads)
            leaf = scores.clone().requires_grad_()
            out = mean_field(leaf, image, iterations=3)
            out.square().sum().backward()
            outs.append(out.detach())
            grads.append(leaf.grad)
    finally:
        torch.set_num_threads(before)
    for out, grad in zip(outs[1:], grads[1:], strict=True):
        assert torch.equal(out, outs[0])
        assert torch.equal(grad, grads[0])


@native
def test_dtypes_layouts_batches_and_modules():
    image, scores = picture(24, 30), unary(5, 24, 30)
    expected = mean_field(scores, image)
    assert torch.equal(mean_field(scores, image.float()), expected)
    turned = scores.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert not turned.is_contiguous() and torch.equal(mean_field(turned, image), expected)
    half = mean_field(scores.half(), image)
    assert half.dtype == torch.float32
    torch.testing.assert_close(half, mean_field(scores.half().float(), image))
    batch = mean_field(torch.stack([scores, scores + 1]), torch.stack([image, image]))
    assert torch.equal(batch[0], expected) and batch.shape == (2, 5, 24, 30)
    ragged = mean_field_batch([scores, scores[:2, :9]], [image, image[:, :9]])
    assert torch.equal(ragged[0], expected) and ragged[1].shape == (2, 9, 30)
    module = DenseCRF()
    out = module([scores, scores[:3]], [image, image])
    assert torch.equal(out[0], expected) and out[1].shape == (3, 24, 30)
    (out[0] * scores).sum().backward()
    assert module.bilateral_weight.grad.abs() > 0 and module.gaussian_weight.grad.abs() > 0
    assert torch.equal(mean_field(scores, image, iterations=0), scores)


@native
@pytest.mark.parametrize("backend", ["native", "exact"])
def test_errors_name_the_argument(backend):
    image, scores = picture(8, 9), unary(3, 8, 9)

    def refuse(match, scores=scores, image=image, **options):
        with pytest.raises(ValueError, match=match):
            mean_field(scores, image, backend=backend, **options)

    refuse("scores: expected a tensor", scores=[1])
    refuse("scores: expected shape", scores=scores[0])
    refuse("scores: there are no labels", scores=scores[:0])
    refuse("scores: it is empty", scores=scores[:, :0], image=image[:, :0])
    refuse("scores: expected a floating", scores=scores.long())
    refuse("image: expected shape", image=image[:2])
    refuse("image: its size", image=image[:, :5])
    refuse("image: expected uint8", image=image.int())
    refuse("image: it requires grad", image=image.float().requires_grad_())
    for bad in (float("nan"), float("inf"), float("-inf")):
        broken = scores.clone()
        broken[1, 3, 4] = bad
        refuse("scores: .*NaN", scores=broken)
        picture_broken = image.float()
        picture_broken[0, 0, 0] = bad
        refuse("image: .*NaN", image=picture_broken)
    for name in ("bilateral_xy", "bilateral_rgb", "gaussian_xy"):
        for bad in (0.0, -1.0, float("nan"), float("inf"), "x"):
            refuse(name, **{name: bad})
    for name in ("bilateral_weight", "gaussian_weight"):
        refuse(name, **{name: float("nan")})
        refuse(name, **{name: torch.ones(2)})
    refuse("iterations", iterations=-1)
    refuse("iterations", iterations=1.5)
    refuse("normalization", normalization="before")
    refuse("spatial", spatial="fast")
    if backend == "native":
        refuse("64-bit keys", bilateral_xy=1e-4, bilateral_rgb=1e-4)
    with pytest.raises(InputError, match="backend"):
        mean_field(scores, image, backend="cuda")
    with pytest.raises(InputError, match="image: scores are a batch"):
        mean_field(scores[None], image)
    with pytest.raises(InputError, match="probabilities"):
        dense_crf_refine(-scores.abs(), image)
