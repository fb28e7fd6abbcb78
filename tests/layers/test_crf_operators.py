# Copyright (c) wsis_d2 contributors. Licensed under the Apache License, Version 2.0.
"""The operators themselves: adjoints, registrations, compiling, exporting."""

import os
import subprocess
import sys

import pytest
import torch
from helpers.crf_inputs import picture, unary

from wsis_d2.layers import mean_field, native_crf, permutohedral_filter, spatial_filter
from wsis_d2.layers._extension import extension_error
from wsis_d2.layers.exact_crf import bilateral_features, exact_filter, gaussian_features

pytestmark = pytest.mark.skipif(extension_error() is not None, reason="operators are not built")
NORMALIZATIONS = ["none", "after", "symmetric"]


def filters(image, normalization):
    return {
        "lattice": lambda v, t: permutohedral_filter(
            v, image, sigma_xy=20, sigma_rgb=9, normalization=normalization, transpose=t
        ),
        "half resolution": lambda v, t: spatial_filter(
            v, sigma=3, normalization=normalization, transpose=t
        ),
        "full resolution": lambda v, t: spatial_filter(
            v, sigma=1.3, spatial="exact", normalization=normalization, transpose=t
        ),
    }


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
@pytest.mark.parametrize("normalization", NORMALIZATIONS)
@pytest.mark.parametrize("name", ["lattice", "half resolution", "full resolution"])
def test_transpose_is_the_adjoint(dtype, bound, normalization, name):
    apply = filters(picture(61, 83), normalization)[name]
    generator = torch.Generator().manual_seed(0)
    u, v = (torch.randn(5, 61, 83, dtype=dtype, generator=generator) for _ in range(2))
    left = (v.double() * apply(u, False).double()).sum()
    right = (apply(v, True).double() * u.double()).sum()
    scale = v.double().norm() * apply(u, False).double().norm()
    assert abs(left - right) <= bound * scale


def test_forward_order_is_not_the_adjoint():
    # What makes the reversed blur necessary, and the test above able to fail.
    apply = filters(picture(61, 83), "after")["lattice"]
    u = torch.randn(2, 61, 83, generator=torch.Generator().manual_seed(0))
    assert (apply(u, False) - apply(u, True)).abs().mean() > 1e-3


@pytest.mark.parametrize("normalization", ["after", "symmetric"])
def test_lattice_approximates_the_gaussian(normalization):
    image, values = picture(40, 50), unary(4, 40, 50, dtype=torch.float64).softmax(0)
    found = permutohedral_filter(
        values, image, sigma_xy=30, sigma_rgb=40, normalization=normalization
    )
    exact = exact_filter(values.reshape(4, -1), bilateral_features(image, 30, 40), normalization)
    assert (found.reshape(4, -1) - exact).abs().mean() < 0.02
    assert (values - found).abs().mean() > 0.05


def test_after_normalisation_keeps_constants():
    ones = torch.ones(3, 45, 39, dtype=torch.float64)
    for apply in filters(picture(45, 39), "after").values():
        torch.testing.assert_close(apply(ones, False), ones, atol=1e-12, rtol=0)


@pytest.mark.parametrize("normalization", NORMALIZATIONS)
def test_filters_have_gradients(normalization):
    values = torch.randn(
        2, 5, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0)
    ).requires_grad_()
    for apply in filters(picture(5, 6), normalization).values():
        for transpose in (False, True):
            assert torch.autograd.gradcheck(lambda v, a=apply, t=transpose: a(v, t), values)


def operator_inputs(dtype=torch.float32, labels=3):
    image = picture(12, 14).to(dtype)
    scores = unary(labels, 12, 14, dtype=dtype).requires_grad_()
    lattice = native_crf.build_lattice(image, 6.0, 20.0, "after", dtype)
    weights = [torch.tensor(w, dtype=dtype, requires_grad=True) for w in (1.5, 0.5)]
    return image, scores, lattice, weights


def test_operators_pass_opcheck():
    ops = torch.ops.wsis_d2
    image, scores, lattice, weights = operator_inputs()
    check = torch.library.opcheck
    check(ops.build_lattice.default, (image, 6.0, 20.0, 1, [], []))
    check(ops.mean_field.default, (scores, *lattice, *weights, 3.0, False, 3, 1))
    check(ops.mean_field.default, (scores, *lattice, *weights, 1.0, True, 4, 2))
    check(ops.lattice_filter.default, (scores, *lattice, False))
    check(ops.lattice_filter.default, (scores, *lattice, True))
    check(ops.spatial_filter.default, (scores, 3.0, False, 1, False))
    _, saved = ops.mean_field(scores, *lattice, *weights, 3.0, False, 3, 1)
    plain = [t.detach() for t in (scores, *lattice, *weights)]
    check(
        ops.mean_field_backward.default,
        (plain[0], saved.detach(), *plain, 3.0, False, 3, 1),
    )


def test_results_are_contiguous_where_arguments_are_not_also_for_the_compiler():
    ops, check = torch.ops.wsis_d2, torch.library.opcheck
    _, scores, lattice, weights = operator_inputs()
    turned = scores.detach().transpose(1, 2).contiguous().transpose(1, 2)
    check(ops.mean_field.default, (turned, *lattice, *weights, 3.0, False, 2, 1))
    check(ops.lattice_filter.default, (turned, *lattice, False))
    check(ops.spatial_filter.default, (turned, 3.0, False, 1, False))
    plain = [t.detach() for t in (*lattice, *weights)]
    for iterations in (0, 2):
        rest = (*plain, 3.0, False, iterations, 1)
        _, saved = ops.mean_field(turned, *rest)
        check(ops.mean_field_backward.default, (turned, saved, turned, *rest))


def test_autocast_computes_in_float32():
    _, scores, lattice, weights = operator_inputs()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = mean_field(scores.bfloat16(), picture(12, 14))
        assert out.dtype == torch.float32
        if hasattr(torch.library, "register_autocast"):  # torch 2.5
            raw, _ = torch.ops.wsis_d2.mean_field(
                scores.bfloat16(), *lattice, *weights, 3.0, False, 2, 0
            )
            assert raw.dtype == torch.float32


@pytest.mark.long
def test_compiles_without_graph_breaks_and_takes_any_label_count():
    weight = torch.tensor(3.0, requires_grad=True)

    def loss(scores, image):
        return mean_field(scores, image, bilateral_weight=weight, iterations=2).square().sum()

    compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
    for labels, height, width in ((4, 16, 20), (7, 18, 22), (21, 33, 9)):
        image = picture(height, width)
        one = unary(labels, height, width).requires_grad_()
        two = one.detach().clone().requires_grad_()
        expected, found = loss(one, image), compiled(two, image)
        torch.testing.assert_close(found, expected)
        expected.backward()
        found.backward()
        torch.testing.assert_close(two.grad, one.grad)


@pytest.mark.long
def test_exports():
    class Refine(torch.nn.Module):
        def forward(self, scores, image):
            return mean_field(scores, image, iterations=2)

    scores, image = unary(5, 16, 20), picture(16, 20)
    program = torch.export.export(Refine(), (scores, image))
    torch.testing.assert_close(program.module()(scores, image), Refine()(scores, image))


@pytest.mark.parametrize("sigma", [12.0, 30.0, 1e10])
def test_a_spatial_kernel_wider_than_the_image_has_its_height(sigma):
    values = unary(2, 4, 5, dtype=torch.float64)
    features = gaussian_features(4, 5, sigma)
    exact = exact_filter(values.reshape(2, -1), features).reshape(values.shape)
    found = spatial_filter(values, sigma=sigma)
    assert (found - exact).norm() < 0.05 * exact.norm()


def test_inconsistent_tensors_are_refused():
    ops = torch.ops.wsis_d2
    _, scores, (header, records, index), weights = operator_inputs()
    rest = (*weights, 3.0, False, 2, 0)
    with pytest.raises(ValueError, match="header"):
        ops.mean_field(scores, torch.zeros_like(header), records, index, *rest)
    with pytest.raises(ValueError, match="records"):
        ops.mean_field(scores, header, records[1:], index, *rest)
    with pytest.raises(ValueError, match="index"):
        ops.mean_field(scores, header, records, index[1:], *rest)
    with pytest.raises(ValueError, match="scores: its size"):
        ops.mean_field(scores[:, 1:], header, records, index, *rest)
    with pytest.raises(ValueError, match="64-bit"):
        ops.mean_field(scores.double(), header, records, index, *rest)


def test_backward_refuses_other_scores_and_marginals_than_the_forward_pass_had():
    ops = torch.ops.wsis_d2
    _, scores, lattice, weights = operator_inputs()
    scores, weights = scores.detach(), [w.detach() for w in weights]
    rest = (*lattice, *weights, 3.0, False, 4, 2)
    out, saved = ops.mean_field(scores, *rest)
    ops.mean_field_backward(out, saved, scores, *rest)
    for other in (scores[:2], scores[:, :7], scores.double()):
        with pytest.raises(ValueError, match="scores"):
            ops.mean_field_backward(out, saved, other, *rest)
    with pytest.raises(ValueError, match="saved"):
        ops.mean_field_backward(out, saved[:1], scores, *rest)


def test_second_derivatives_raise_and_the_exact_backend_has_them():
    image, scores, _, weights = operator_inputs(torch.float64)
    out = mean_field(scores, image, bilateral_weight=weights[0], iterations=2)
    (grad,) = torch.autograd.grad(out.square().sum(), scores, create_graph=True)
    with pytest.raises(NotImplementedError, match="second derivatives"):
        grad.square().sum().backward()
    small, tiny = picture(3, 4), unary(2, 3, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradgradcheck(
        lambda s: mean_field(s, small, iterations=1, backend="exact"), tiny
    )


def test_no_iteration_returns_a_copy():
    for shape in ((1, 7, 9), (3, 1, 1), (3, 7, 9)):
        scores = unary(*shape)
        for backend in ("native", "exact"):
            out = mean_field(scores, picture(*shape[1:]), iterations=0, backend=backend)
            assert torch.equal(out, scores) and out.data_ptr() != scores.data_ptr()


@pytest.mark.parametrize("capability", ["default", "avx2"])
def test_every_instruction_set_gives_the_same(capability, tmp_path):
    """In a process of its own, since the choice is made once."""
    script = (
        "import sys, torch\n"
        "from helpers.crf_inputs import picture, unary\n"
        "from wsis_d2.layers import mean_field\n"
        "out = []\n"
        "for labels in (1, 5, 21, 32, 40):\n"
        "    for dtype in (torch.float32, torch.float64):\n"
        "        scores = unary(labels, 50, 45, dtype=dtype).requires_grad_()\n"
        "        result = mean_field(scores, picture(50, 45), iterations=2)\n"
        "        result.square().mean().backward()\n"
        "        out += [result.detach(), scores.grad]\n"
        "torch.save(out, sys.argv[1])\n"
    )
    results = []
    for name in (capability, "avx512"):
        path = tmp_path / f"{name}.pt"
        environment = dict(os.environ, WSIS_D2_CPU_CAPABILITY=name)
        environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
        subprocess.run([sys.executable, "-c", script, str(path)], check=True, env=environment)
        results.append(torch.load(path))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5 * b.abs().max().item(), rtol=1e-4)
