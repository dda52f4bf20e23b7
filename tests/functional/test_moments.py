"""Packed moments are read in place, get a packed gradient, and give the results of their halves."""

from __future__ import annotations

import pytest
import torch
from conftest import AVAILABLE, BACKEND, DTYPES, REDUCTIONS, Calls, make_key, native, random

import vae_fused as vf

KEY = make_key(11, 3)
# The shape of h, the packed dimension, and the memory format.
LAYOUTS = {
    "images": ((2, 6, 4, 5), 1, torch.contiguous_format),
    "channels_last": ((2, 16, 4, 6), 1, torch.channels_last),
    "one channel, channels_last": ((2, 2, 4, 6), 1, torch.channels_last),
    "last": ((7, 5, 12), -1, torch.contiguous_format),
    "first": ((4, 300), 0, torch.contiguous_format),
    "video": ((2, 8, 3, 4, 5), 1, torch.contiguous_format),
    "video, channels_last": ((2, 8, 3, 4, 5), 1, torch.channels_last_3d),
    "long": ((2, 2, 50, 60), 1, torch.contiguous_format),
    "vector": ((10,), 0, torch.contiguous_format),
}


def moments(layout: str, dtype: torch.dtype = torch.float32, device: str = "cpu"):
    shape, dim, memory_format = LAYOUTS[layout]
    h = random(*shape, dtype=dtype, device=device)
    return h.contiguous(memory_format=memory_format).requires_grad_(), dim


def run(function, h, seed=5):
    """Returns z, kl and the gradient of a function of z and kl."""
    z, kl = function(h)
    weight = random(*z.shape, seed=seed, dtype=z.dtype).to(z.device)
    (grad,) = torch.autograd.grad((z * weight).sum() + kl.sum(), h)
    return z, kl, grad


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_same_as_from_the_halves(layout, dtype, reduction, device):
    h, dim = moments(layout, dtype, device)
    key = KEY.to(device)
    got = run(lambda h: vf.reparameterize_kl_moments(h, dim=dim, reduction=reduction, key=key), h)
    want = run(lambda h: vf.reparameterize_kl(*h.chunk(2, dim), reduction=reduction, key=key), h)
    for a, b in zip(got, want, strict=True):
        assert a.dtype == b.dtype and torch.equal(a, b)
    if AVAILABLE:
        assert got[2].stride() == h.stride()


@pytest.mark.parametrize("layout", ["images", "channels_last", "last", "video"])
def test_the_reference_agrees(layout, device):
    h, dim = moments(layout, torch.float64, device)
    key = KEY.to(device)
    got = run(lambda h: vf.reparameterize_kl_moments(h, dim=dim, key=key), h)
    want = run(lambda h: vf.reference.reparameterize_kl_moments(h, dim=dim, key=key), h)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kl_dim", [0, -1, (1, 2, 3), (0, 2)])
def test_kl_dim_sums_those_dimensions(kl_dim, device):
    h, dim = moments("images", device=device)
    _, kl = vf.reparameterize_kl_moments(h, dim=dim, kl_dim=kl_dim)
    _, every = vf.reparameterize_kl_moments(h, dim=dim, reduction="none")
    torch.testing.assert_close(kl, every.sum(kl_dim))


def test_noise_is_drawn_as_for_the_halves(device):
    h, dim = moments("images", device=device)
    torch.manual_seed(3)
    z, _ = vf.reparameterize_kl_moments(h, dim=dim)
    torch.manual_seed(3)
    assert torch.equal(z, vf.reparameterize(*h.chunk(2, dim)))
    generator = torch.Generator(device).manual_seed(3)
    assert torch.equal(z, vf.reparameterize_kl_moments(h, dim=dim, generator=generator)[0])
    eps = random(*z.shape, device=device).requires_grad_()
    z, _ = vf.reparameterize_kl_moments(h, dim=dim, eps=eps)
    z.sum().backward()
    sigma = torch.exp(0.5 * h.detach().chunk(2, dim)[1])
    torch.testing.assert_close(eps.grad, sigma)


@native
@pytest.mark.parametrize("layout", ["images", "channels_last", "last"])
def test_backward_is_one_operator_and_packs_nothing(layout, device):
    h, dim = moments(layout, device=device)
    z, kl = vf.reparameterize_kl_moments(h, dim=dim)
    grads = [torch.ones_like(z), torch.ones_like(kl)]
    with Calls() as calls:
        torch.autograd.grad([z, kl], h, grads)
    operators = [name for name in calls.names if name != "aten::detach"]
    assert operators == ["vae_fused::reparameterize_kl_moments_backward"]


@native
@pytest.mark.parametrize("layout", ["images", "channels_last", "last"])
def test_forward_makes_no_view(layout, device):
    h, dim = moments(layout, device=device)
    with torch.autograd.profiler.profile() as profile:
        vf.reparameterize_kl_moments(
            h, dim=dim, scale=vf.Scale(clamp=(-30, 20)), reduction="sample"
        )
    called = [event.name for event in profile.function_events if event.cpu_parent is None]
    assert called == ["vae_fused::reparameterize_kl_moments"]


@native
def test_the_gradients_of_halves_are_joined_once(device):
    h, dim = moments("images", device=device)
    q = vf.DiagonalGaussian.from_moments(h, dim)
    with Calls() as calls:
        q.rsample().sum().backward()
    joins = [name for name in calls.names if "cat" in name or "slice" in name or "pad" in name]
    assert joins == ["aten::cat"]


@native
def test_a_distribution_of_moments_keeps_them_packed(device):
    h, dim = moments("images", device=device)
    q = vf.DiagonalGaussian.from_moments(h, dim)
    got = run(lambda h: q.rsample_kl(key=KEY.to(device), dim=(1, 2, 3)), h)
    options = {"dim": dim, "kl_dim": (1, 2, 3), "key": KEY.to(device)}
    want = run(lambda h: vf.reparameterize_kl_moments(h, **options), h)
    for a, b in zip(got, want, strict=True):
        assert torch.equal(a, b)
    z, _ = q.rsample_kl()
    with Calls() as calls:
        z.backward(torch.ones_like(z))
    assert not any("cat" in name or "slice" in name for name in calls.names)
    assert q.expand(q.batch_shape).rsample_kl(key=KEY.to(device), dim=0)[0].equal(got[0])


@native
def test_h_and_the_key_are_all_that_is_kept(device):
    h, dim = moments("images", device=device)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        vf.reparameterize_kl_moments(h, dim=dim)
    assert sorted(t.numel() for t in kept) == [2, h.numel()]


def test_gradcheck_to_second_order(device):
    key = KEY.to(device)
    for layout in ("last", "vector", "images"):
        h, dim = moments(layout, torch.float64, device)
        h = h.detach()[..., :4].clone().requires_grad_() if layout == "images" else h

        def call(h, dim=dim):
            return vf.reparameterize_kl_moments(h, dim=dim, key=key, reduction="none")

        torch.autograd.gradcheck(call, h)
        torch.autograd.gradgradcheck(call, h)


@native
@pytest.mark.parametrize("overload", ["default", "generator"])
def test_opcheck(overload, device):
    h, dim = moments("images", device=device)
    options = {"packed_dim": dim, "reduction": "sample", "dim": None}
    operator = torch.ops.vae_fused.reparameterize_kl_moments
    if overload == "default":
        torch.library.opcheck(
            operator.default, (h,), {**options, "eps": None, "key": KEY.to(device)}
        )
    else:
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(
            operator.generator, (h,), {**options, "generator": None}, test_utils=tests
        )


@pytest.mark.parametrize("dynamic", [False, True])
def test_compiles_whole(dynamic, device):
    h, dim = moments("channels_last", device=device)
    key = KEY.to(device)

    def call(h):
        return vf.reparameterize_kl_moments(h, dim=dim, key=key)

    compiled = torch.compile(call, fullgraph=True, dynamic=dynamic, backend=BACKEND)
    got, want = run(compiled, h), run(call, h)
    for a, b in zip(got, want, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("module", [vf, vf.reference], ids=["vf", "reference"])
@pytest.mark.parametrize(
    ("h", "kwargs", "error", "message"),
    [
        ([1.0], {}, TypeError, "h must be a Tensor, got list"),
        (
            torch.ones(2, 4).long(),
            {},
            TypeError,
            "h must be a floating-point tensor .* got torch.int64",
        ),
        (
            torch.ones(2, 4).to_sparse(),
            {},
            TypeError,
            r"h must be a strided tensor, got torch\.sparse_coo; pass its \.to_dense",
        ),
        (
            torch.ones(2, 3),
            {},
            ValueError,
            r"h must have an even size in dimension 1, .* got shape \(2, 3\)",
        ),
        (
            torch.ones(2, 4),
            {"dim": 2},
            ValueError,
            "dim must be a dimension of h, of shape .*, got 2",
        ),
        (
            torch.ones(()),
            {"dim": 0},
            ValueError,
            r"dim must be a dimension of h, of shape \(\), got 0",
        ),
        (torch.ones(2, 4), {"dim": 1.0}, TypeError, "dim must be an int, got float"),
        (torch.ones(2, 4), {"kl_dim": 2}, ValueError, "kl_dim must be a dimension of .*, got 2"),
        (
            torch.ones(2, 4),
            {"kl_dim": 1, "reduction": "sum"},
            ValueError,
            "reduction must .* where kl_dim is given",
        ),
        (
            torch.ones(2, 4),
            {"eps": torch.ones(2, 4)},
            ValueError,
            r"the shape of z, \(2, 2\), got \(2, 4\)",
        ),
        (
            torch.ones(2, 4),
            {"reduction": "all"},
            ValueError,
            "reduction must be one of .*, got 'all'",
        ),
    ],
)
def test_bad_calls_are_named(module, h, kwargs, error, message):
    state = torch.get_rng_state()
    with pytest.raises(error, match=message):
        module.reparameterize_kl_moments(h, **kwargs)
    assert torch.equal(state, torch.get_rng_state())
