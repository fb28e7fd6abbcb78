# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The CUDA operators against the CPU's: every dtype, size, layout, iteration, gradient and stream.

Where there is no GPU, ``WSIS_D2_HOST_KERNELS`` names a library in which the same kernels are loops
on the CPU (tests/layers/test_crf_compiled.py makes one and runs this file with it). Loading it
replaces the CPU's operators, so the expected values are computed first, by one fixture.
"""

import itertools
import os

import pytest
import torch
from helpers.crf_inputs import picture, unary

from wsis_d2.layers import mean_field, native_crf, permutohedral_filter, spatial_filter
from wsis_d2.layers._extension import build_info, extension_error

HOST = os.environ.get("WSIS_D2_HOST_KERNELS", "")
LARGE = os.environ.get("WSIS_D2_HOST_KERNELS_LARGE", "") == "1"
on_gpu = torch.cuda.is_available() and bool(build_info().get("cuda"))
pytestmark = [
    pytest.mark.skipif(extension_error() is not None, reason="operators are not built"),
    pytest.mark.skipif(not HOST and not on_gpu, reason="no GPU, or operators built without CUDA"),
]
needs_gpu = pytest.mark.skipif(bool(HOST), reason="loops on the CPU have no streams or compilers")
DEVICE = "cpu" if HOST else "cuda"
DTYPES = (torch.float32, torch.float64)
# Largest relative norm of a difference. float32: kept marginals have 16 bits.
BOUNDS = {torch.float32: 1e-3, torch.float64: 1e-8}

SIZES = [(1, 1), (1, 90), (64, 1), (33, 70), (90, 97)]
if LARGE or not HOST:
    SIZES.append((375, 500))
KERNELS = [
    dict(bilateral_xy=49.0, bilateral_rgb=5.0, gaussian_xy=3.0),
    dict(bilateral_xy=80.0, bilateral_rgb=13.0, gaussian_xy=1.0),
    dict(bilateral_xy=1e5, bilateral_rgb=1e4, gaussian_xy=9.0),
    dict(bilateral_xy=2.0, bilateral_rgb=1.0, gaussian_xy=2.0, spatial="exact"),
]


def make_cases():
    """(height, width, labels, keywords): each pair of options meets, few large ones."""
    cases = []
    for number, ((height, width), labels, normalization) in enumerate(
        itertools.product(SIZES, (1, 2, 5, 21, 40), ("after", "symmetric"))
    ):
        if height > 200 and (labels not in (5, 21) or normalization != "after"):
            continue
        options = dict(
            KERNELS[number % 3 if height > 200 else number % 4],
            normalization=normalization,
            iterations=1 + number % 5,
            recompute=number % 3 == 0,
        )
        cases.append((height, width, labels, options))
    return cases


CASES = make_cases()
NAMES = ("scores", "gradient of the scores", "of bilateral_weight", "of gaussian_weight")


def run_case(case, device, dtype):
    height, width, labels, options = case
    leaf = unary(labels, height, width).to(device, dtype).requires_grad_()
    weights = [torch.tensor(w, dtype=dtype, device=device, requires_grad=True) for w in (4.0, 3.0)]
    out = mean_field(
        leaf, picture(height, width).to(device),
        bilateral_weight=weights[0], gaussian_weight=weights[1], **options,
    )  # fmt: skip
    goal = unary(labels, height, width, seed=9).cos().to(device, dtype)
    (out * goal).sum().backward()
    return [out.detach(), leaf.grad, weights[0].grad, weights[1].grad]


def run_filters(device, dtype, labels=4):
    values, image = unary(labels, 61, 83).to(device, dtype), picture(61, 83).to(device)
    found = []
    for normalization, transpose in itertools.product(
        ("none", "after", "symmetric"), (False, True)
    ):
        rest = dict(normalization=normalization, transpose=transpose)
        found.append(permutohedral_filter(values, image, sigma_xy=20, sigma_rgb=9, **rest))
        for sigma in (1.0, 3.0, 7.0, 30.0):
            found.append(spatial_filter(values, sigma=sigma, **rest))
    return found


def vertices(lattice) -> int:
    """How many vertices a lattice has; a GPU's header holds a bound."""
    header, _, index = lattice
    on_device = int(header[0]) % 2 == 0
    return int(index[header[13]]) if on_device else int(header[5])


def lattice_facts(device, dtype):
    """Vertices and, pixel for pixel, the barycentric weights (in an order of their own)."""
    facts = []
    for height, width in ((61, 83), (150, 170)):
        lattice = native_crf.build_lattice(
            picture(height, width).to(device), 12.0, 4.0, "none", dtype
        )
        rows = lattice[1][:, :6].cpu()
        order = sorted(range(len(rows)), key=rows.tolist().__getitem__)
        facts.append((vertices(lattice), rows[order]))
    return facts


@pytest.fixture(scope="module")
def expected():
    """Everything by the CPU's operators; after this the kernels under test are in place."""
    results = {
        dtype: dict(
            cases=[run_case(case, "cpu", dtype) for case in CASES],
            filters=run_filters("cpu", dtype),
            filters_of_one=run_filters("cpu", dtype, labels=1),
            facts=lattice_facts("cpu", dtype),
        )
        for dtype in DTYPES
    }
    if HOST:
        torch.ops.load_library(HOST)
    return results


def gap(found, wanted) -> float:
    found, wanted = found.double().cpu(), wanted.double()
    return float((found - wanted).norm() / wanted.norm().clamp(min=1e-30))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mean_field_and_gradients_are_the_cpus(expected, dtype):
    for case, wanted in zip(CASES, expected[dtype]["cases"], strict=True):
        for name, a, b in zip(NAMES, run_case(case, DEVICE, dtype), wanted, strict=True):
            if b.abs().max() < 1e-4:  # one label: the gradients of the weights are rounding
                assert a.abs().max() < 1e-3, (case, name)
            else:
                assert gap(a, b) < BOUNDS[dtype], (case, name)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_filters_are_the_cpus(expected, dtype):
    bound = 1e-5 if dtype == torch.float32 else 1e-12
    for labels, key in ((4, "filters"), (1, "filters_of_one")):
        found = run_filters(DEVICE, dtype, labels)
        for a, b in zip(found, expected[dtype][key], strict=True):
            assert gap(a, b) < bound


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_lattices_are_the_cpus(expected, dtype):
    """The same vertices and bitwise the same weights: nothing is fused that the CPU rounds."""
    found = lattice_facts(DEVICE, dtype)
    for (count, rows), (wanted, wanted_rows) in zip(found, expected[dtype]["facts"], strict=True):
        assert count == wanted
        assert torch.equal(rows, wanted_rows)


def bits(dtype):
    return [t for case in CASES[::3] for t in run_case(case, DEVICE, dtype)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_same_bits_again_in_any_order_and_on_poisoned_memory(expected, dtype, monkeypatch):
    wanted = bits(dtype)
    for found, w in zip(bits(dtype), wanted, strict=True):
        assert torch.equal(found, w)
    torch.use_deterministic_algorithms(True)  # fills empty tensors with NaN
    monkeypatch.setenv("WSIS_CRF_HOST_REVERSED", "1")  # loops: from the last element to the first
    try:
        for found, w in zip(bits(dtype), wanted, strict=True):
            assert torch.equal(found, w)
    finally:
        torch.use_deterministic_algorithms(False)


def test_transpose_is_the_adjoint(expected):
    generator = torch.Generator().manual_seed(0)
    image = picture(61, 83).to(DEVICE)
    for normalization in ("none", "after", "symmetric"):
        u, v = (
            torch.randn(5, 61, 83, dtype=torch.float64, generator=generator).to(DEVICE)
            for _ in range(2)
        )
        rest = dict(sigma_xy=20, sigma_rgb=9, normalization=normalization)
        left = (v * permutohedral_filter(u, image, **rest)).sum()
        right = (permutohedral_filter(v, image, transpose=True, **rest) * u).sum()
        assert abs(left - right) < 1e-10 * v.norm() * u.norm()


@pytest.mark.parametrize("recompute", [False, True])
def test_gradients_match_finite_differences(expected, recompute):
    scores = unary(3, 5, 6, dtype=torch.float64).to(DEVICE).requires_grad_()
    weights = [
        torch.tensor(w, dtype=torch.float64, device=DEVICE, requires_grad=True) for w in (1.5, 0.5)
    ]

    def run(scores, bilateral, gaussian):
        return mean_field(
            scores, picture(5, 6).to(DEVICE), bilateral_weight=bilateral, gaussian_weight=gaussian,
            iterations=3, bilateral_xy=6.0, bilateral_rgb=20.0, recompute=recompute,
        )  # fmt: skip

    assert torch.autograd.gradcheck(run, (scores, *weights))


def test_layouts(expected):
    base, image = unary(8, 40, 48).to(DEVICE), picture(40, 48).to(DEVICE)
    wanted = mean_field(base, image)
    views = {
        "channels last": base.permute(1, 2, 0).contiguous().permute(2, 0, 1),
        "sliced": torch.cat([base, base], 2)[..., :48],
        "offset": torch.cat([base.flatten()[:1], base.flatten()])[1:].view_as(base),
    }
    for name, view in views.items():
        assert torch.equal(mean_field(view, image), wanted), name
    turned = image.permute(1, 2, 0).contiguous().permute(2, 0, 1)
    assert torch.equal(mean_field(base, turned), wanted)
    one = base[:1].expand(8, 40, 48)
    assert torch.equal(mean_field(one, image), mean_field(one.contiguous(), image))


@pytest.mark.parametrize("shape", [(1, 7, 9), (3, 1, 1), (3, 7, 9)])
def test_no_iteration_returns_a_copy(expected, shape):
    scores = unary(*shape).to(DEVICE)
    out = mean_field(scores, picture(*shape[1:]).to(DEVICE), iterations=0)
    assert torch.equal(out, scores) and out.data_ptr() != scores.data_ptr()


def test_huge_weights_do_not_overflow(expected):
    scores, image = unary(5, 30, 31).to(DEVICE), picture(30, 31).to(DEVICE)
    rest = dict(bilateral_weight=300.0, gaussian_weight=-200.0, iterations=1)
    found = mean_field(scores, image, **rest)
    assert gap(found, mean_field(scores.double(), image, **rest).cpu()) < 1e-4
    assert torch.isfinite(mean_field(scores, image, **dict(rest, iterations=4))).all()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_refused(expected, bad):
    scores, image = unary(3, 8, 9).to(DEVICE), picture(8, 9).to(DEVICE)
    broken = scores.clone()
    broken[1, 2, 3] = bad
    with pytest.raises(ValueError, match="scores: .*NaN"):
        mean_field(broken, image)
    broken = image.float()
    broken[1, 2, 3] = bad
    with pytest.raises(ValueError, match="image: .*NaN"):
        mean_field(scores, broken)
    with pytest.raises(ValueError, match="gaussian_weight"):
        mean_field(scores, image, gaussian_weight=torch.tensor(bad, device=DEVICE))


def test_filters_refuse_what_is_not_finite(expected):
    values, image = unary(3, 8, 9).to(DEVICE), picture(8, 9).to(DEVICE)
    values[1, 2, 3] = float("inf")
    with pytest.raises(ValueError, match="values: .*NaN"):
        spatial_filter(values, sigma=3.0)
    with pytest.raises(ValueError, match="values: .*NaN"):
        permutohedral_filter(values, image, sigma_xy=6.0, sigma_rgb=20.0)


@pytest.mark.parametrize("recompute", [False, True])
def test_a_pixel_whose_scores_are_all_very_low_has_marginals(expected, recompute):
    """Adding a number to all of a pixel's scores changes nothing elsewhere: (-2, -1) x 1e31 are
    (-1, 0) x 1e31, where one label has it all."""
    image, results = picture(9, 11).to(DEVICE), []
    for low, high in ((-2e31, -1e31), (-1e31, 0.0)):
        scores = unary(5, 9, 11).to(DEVICE)
        scores[:, 4, 5] = low
        scores[2, 4, 5] = high
        scores.requires_grad_()
        rest = dict(bilateral_xy=9.0, bilateral_rgb=40.0, iterations=3, recompute=recompute)
        out = mean_field(scores, image, **rest)
        elsewhere = torch.ones(9, 11, dtype=torch.bool, device=DEVICE)
        elsewhere[4, 5] = False
        (out[:, elsewhere].cos().sum()).backward()
        results.append((out.detach()[:, elsewhere], scores.grad[:, elsewhere]))
    for a, b in zip(*results, strict=True):
        assert torch.equal(a, b)


def test_views_that_packs_cannot_be_loaded_from_are_refused(expected):
    ops = torch.ops.wsis_d2
    scores = unary(5, 8, 9).to(DEVICE)
    header, records, index = native_crf.build_lattice(picture(8, 9).to(DEVICE), 6.0, 20.0)
    weights = [torch.tensor(w) for w in (4.0, 3.0)]
    rest = (*weights, 3.0, False, 2, 1)

    def moved(t):
        return torch.cat([t.flatten()[:1], t.flatten()])[1:].view_as(t)

    with pytest.raises(ValueError, match="records: .* offset"):
        ops.mean_field(scores, header, moved(records), index, *rest)
    with pytest.raises(ValueError, match="index: .* offset"):
        ops.lattice_filter(scores, header, records, moved(index), False)
    out, saved = ops.mean_field(scores, header, records, index, *rest)
    with pytest.raises(ValueError, match="saved: .* offset"):
        ops.mean_field_backward(out, moved(saved), scores, header, records, index, *rest)


def test_keys_that_do_not_fit_are_refused(expected):
    scores, image = unary(3, 8, 9).to(DEVICE), picture(8, 9).to(DEVICE)
    with pytest.raises(ValueError, match="64-bit keys"):
        mean_field(scores, image, bilateral_xy=1e-4, bilateral_rgb=1e-4)


@needs_gpu
def test_opcheck():
    image = picture(12, 14).cuda().float()
    scores = unary(3, 12, 14).cuda().requires_grad_()
    lattice = native_crf.build_lattice(image, 6.0, 20.0, "after")
    weights = [torch.tensor(w, device="cuda", requires_grad=True) for w in (1.5, 0.5)]
    check, ops = torch.library.opcheck, torch.ops.wsis_d2
    check(ops.build_lattice.default, (image, 6.0, 20.0, 1, [], []))
    check(ops.mean_field.default, (scores, *lattice, *weights, 3.0, False, 3, 1))
    check(ops.lattice_filter.default, (scores, *lattice, False))
    check(ops.spatial_filter.default, (scores, 3.0, False, 1, False))


@needs_gpu
def test_devices_meet_or_are_refused():
    scores, image = unary(3, 8, 9).cuda(), picture(8, 9)
    for a, b in ((scores, image), (scores.cpu(), image.cuda())):
        with pytest.raises(ValueError, match="image: it is on"):
            mean_field(a, b)
    weight = torch.tensor(4.0, requires_grad=True)  # on the CPU
    mean_field(scores, image.cuda(), bilateral_weight=weight).square().sum().backward()
    assert weight.grad.device.type == "cpu" and weight.grad.abs() > 0


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_computes_in_float32(dtype):
    with torch.autocast("cuda", dtype=dtype):
        out = mean_field(unary(3, 30, 31).cuda().to(dtype), picture(30, 31).cuda())
    assert out.dtype == torch.float32


@needs_gpu
def test_streams():
    image, scores = picture(200, 300).cuda(), unary(21, 200, 300).cuda()
    wanted = mean_field(scores, image, iterations=3)
    streams = [torch.cuda.Stream() for _ in range(4)]
    torch.cuda.synchronize()
    found = []
    for turn in range(40):  # the allocator's blocks change hands under way
        with torch.cuda.stream(streams[turn % 4]):
            found.append(mean_field(scores, image, iterations=3))
    torch.cuda.synchronize()
    assert all(torch.equal(f, wanted) for f in found)


@needs_gpu
def test_one_synchronisation_in_the_build_and_none_after():
    image, scores = picture(60, 70).cuda(), unary(7, 60, 70).cuda().requires_grad_()
    weights = [torch.tensor(w, device="cuda", requires_grad=True) for w in (4.0, 3.0)]
    goal = torch.ones_like(scores)
    lattice = native_crf.build_lattice(image, 49.0, 5.0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        out, _ = torch.ops.wsis_d2.mean_field(scores, *lattice, *weights, 3.0, False, 3, 1)
        out.backward(goal)
        number = torch.tensor(3.0)
        torch.ops.wsis_d2.mean_field(scores.detach(), *lattice, number, number, 3.0, False, 3, 0)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_gpu
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles(backend):
    def loss(scores, image):
        return mean_field(scores, image, iterations=2).square().sum()

    one, image = unary(5, 33, 40).cuda().requires_grad_(), picture(33, 40).cuda()
    two = one.detach().clone().requires_grad_()
    torch.compile(loss, backend=backend, fullgraph=True)(one, image).backward()
    loss(two, image).backward()
    assert gap(one.grad, two.grad.cpu()) < 1e-4
