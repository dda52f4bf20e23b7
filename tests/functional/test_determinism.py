"""Results are bitwise reproducible.

Calls do not keep or share memory needlessly, and draw no more noise than they need.
"""

from __future__ import annotations

import pytest
import torch
from conftest import DTYPES, REDUCTIONS, make_key, native, normal, posterior, random
from torch.utils.checkpoint import checkpoint

import vae_fused as vf

# Rows shorter and longer than the tile of 2048 elements, and enough tiles for several threads.
SHAPES = [(128, 20), (3, 2048), (5000, 7), (70, 2049), (2, 100_003), (1, 300_000), (300_000, 1)]


def step(mu, logvar, key, **kwargs):
    """Returns all outputs and gradients of one training step."""
    m, x = mu.detach().requires_grad_(), logvar.detach().requires_grad_()
    z, kl = vf.reparameterize_kl(m, x, key=key, **kwargs)
    return (z.detach(), kl.detach(), *torch.autograd.grad((z.sin().sum(), kl.sum()), (m, x)))


def assert_same_bits(got, want):
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)


# --------------------------------------------------------------------------------------------------
# Bits
# --------------------------------------------------------------------------------------------------


@native
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_do_not_depend_on_the_threads(shape, dtype, threads):
    mu, logvar = posterior(shape, dtype=dtype)
    for reduction in ("batchmean", "sample"):
        threads(1)
        want = step(mu, logvar, make_key(1), reduction=reduction)
        for n in (2, 4):
            threads(n)
            assert_same_bits(step(mu, logvar, make_key(1), reduction=reduction), want)


@native
@pytest.mark.parametrize("extreme", [87.5, -87.5, 150.0, -150.0, 1e30, float("inf"), float("nan")])
def test_bits_of_an_element_do_not_depend_on_its_neighbours(extreme, device):
    """If one element leaves the ordinary range, its whole SIMD vector takes another code path."""
    mu, logvar = posterior((7, 61), device=device)
    logvar[0, :5] = torch.tensor([86.999, -86.999, 0.35, -0.35, 1e-6])
    want = step(mu, logvar, make_key(1, device=device), reduction="none")
    others = torch.arange(logvar.numel(), device=device).view_as(logvar) % 11 != 0
    got = step(mu, logvar.where(others, extreme), make_key(1, device=device), reduction="none")
    assert_same_bits((t[others] for t in got), (t[others] for t in want))


@native
@pytest.mark.parametrize("dim", [0, (0, 2), (1, 3), (0, 1, 2, 3)])
def test_bits_of_strided_sums_do_not_depend_on_the_threads(dim, threads):
    mu, logvar = (t.transpose(1, 3) for t in posterior((40, 30, 20, 10)))
    threads(1)
    want = step(mu, logvar, make_key(1), dim=dim)
    for n in (2, 4):
        threads(n)
        assert_same_bits(step(mu, logvar, make_key(1), dim=dim), want)


@native
def test_bits_of_a_list_do_not_depend_on_the_threads(threads):
    """Some tasks begin or end within a tensor, and others at its boundaries."""
    sizes = [5000 * k % 29_989 for k in range(1, 40)]
    mus, raws = ([random(n, seed=s + n) for n in sizes] for s in (0, 1))
    mus, raws = ([t.requires_grad_() for t in ts] for ts in (mus, raws))

    def results():
        zs, kl = vf.reparameterize_kl_multi(mus, raws, key=make_key(1))
        gradients = torch.autograd.grad(sum(z.sin().sum() for z in zs) + kl, [*mus, *raws])
        return [*zs, kl, *gradients]

    threads(1)
    want = results()
    for n in (2, 4):
        threads(n)
        assert_same_bits(results(), want)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_bits_are_the_same_from_run_to_run(shape, device):
    mu, logvar = posterior(shape, device=device)
    want = step(mu, logvar, make_key(1, device=device))
    for _ in range(3):
        assert_same_bits(step(mu, logvar, make_key(1, device=device)), want)


@native
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_bits_of_the_kl_do_not_depend_on_the_sample(reduction, device):
    mu, logvar = posterior((50, 3001), device=device)
    _, kl = vf.reparameterize_kl(mu, logvar, reduction=reduction)
    assert torch.equal(kl, vf.gaussian_kl(mu, logvar, reduction=reduction))


@native
def test_bits_of_a_sample_do_not_depend_on_its_batch(device):
    """A row's summation order depends only on the row, not on batching, slicing or sharding."""
    for cols in (20, 257, 5000):
        mu, logvar = posterior((64, cols), device=device)
        whole = vf.gaussian_kl(mu, logvar, reduction="sample")
        for rows in (slice(0, 1), slice(5, 14), slice(63, 64)):
            part = vf.gaussian_kl(mu[rows], logvar[rows], reduction="sample")
            assert torch.equal(part, whole[rows])


# --------------------------------------------------------------------------------------------------
# Generators
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
def test_manual_seed_rules_all(dtype, device):
    mu, logvar = posterior((33, 21), dtype=dtype, device=device, requires_grad=True)

    def run(seed):
        torch.manual_seed(seed)
        z, kl = vf.reparameterize_kl(mu, logvar)
        more = vf.reparameterize(mu, logvar)
        loss = (z * more).float().sum() + kl
        return z, kl, more, *torch.autograd.grad(loss, (mu, logvar))

    first, second, other = run(3), run(3), run(4)
    assert_same_bits(first, second)
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[0], first[2])
    assert torch.equal(first[1], other[1])  # the KL does not depend on the noise


def test_each_call_draws_fresh_noise(device):
    zeros = torch.zeros(1000, device=device)
    drawn = torch.stack([vf.reparameterize(zeros, zeros) for _ in range(20)])
    correlation = torch.corrcoef(drawn) - torch.eye(20, device=device)
    assert correlation.abs().max() < 0.2


def test_a_generator_gives_fresh_noise_and_repeats_with_its_state(device):
    zeros = torch.zeros(500, device=device)
    generator = torch.Generator(device).manual_seed(5)
    state = generator.get_state()
    first = vf.reparameterize(zeros, zeros, generator=generator)
    second, _ = vf.reparameterize_kl(zeros, zeros, generator=generator)
    assert not torch.equal(first, second)
    generator.set_state(state)
    again = vf.reparameterize_kl(zeros, zeros, generator=generator)[0]
    assert torch.equal(first, again)
    assert torch.equal(second, vf.reparameterize(zeros, zeros, generator=generator))
    twin = torch.Generator(device).manual_seed(5)
    assert torch.equal(first, vf.reparameterize(zeros, zeros, generator=twin))


def test_only_the_generator_asked_for_moves(device):
    mu, logvar = posterior((5, 5), device=device)
    generator, bystander = torch.Generator(device), torch.Generator(device)
    default = torch.cuda.get_rng_state if device == "cuda" else torch.get_rng_state

    def states():
        return default(), generator.get_state(), bystander.get_state()

    def moved(**kwargs):
        before = states()
        vf.reparameterize_kl(mu, logvar, **kwargs)
        return [not torch.equal(a, b) for a, b in zip(before, states(), strict=True)]

    assert moved() == [True, False, False]
    assert moved(generator=generator) == [False, True, False]
    assert moved(key=make_key(1, device=device)) == [False, False, False]
    assert moved(eps=torch.ones_like(mu)) == [False, False, False]
    before = states()
    vf.gaussian_kl(mu, logvar)
    step(mu, logvar, make_key(1, device=device))
    assert all(torch.equal(a, b) for a, b in zip(before, states(), strict=True))


def test_backward_draws_nothing(device):
    mu, logvar = posterior((5, 5), device=device, requires_grad=True)
    z, kl = vf.reparameterize_kl(mu, logvar)
    default = torch.cuda.get_rng_state if device == "cuda" else torch.get_rng_state
    before = default()
    (z.sum() + kl).backward()
    assert torch.equal(before, default())


def test_the_next_draw_of_torch_does_not_repeat_the_noise(device):
    torch.manual_seed(0)
    z = normal_without_key(4096, device)
    after = torch.randn(4096, device=device)
    assert torch.corrcoef(torch.stack([z, after]))[0, 1].abs() < 0.1
    assert torch.isin(z, after).float().mean() < 0.01


def normal_without_key(n, device):
    zeros = torch.zeros(n, device=device)
    return vf.reparameterize(zeros, zeros)


# --------------------------------------------------------------------------------------------------
# Saved memory
# --------------------------------------------------------------------------------------------------


def saved_by(function):
    saved = []

    def pack(tensor):
        saved.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = function()
    return saved, outputs


def storage(tensor):
    return tensor.untyped_storage().data_ptr()


@native
@pytest.mark.parametrize("source", ["default", "generator", "key"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_forward_saves_its_inputs_and_a_16_byte_key_alone(dtype, source, device):
    mu, logvar = posterior((64, 40), dtype=dtype, device=device, requires_grad=True)
    key = make_key(1, device=device)
    kwargs = {
        "default": {},
        "generator": {"generator": torch.Generator(device)},
        "key": {"key": key},
    }[source]
    # If only z is computed, the backward pass does not read the mean.
    inputs = {vf.reparameterize_kl: [mu, logvar], vf.reparameterize: [logvar]}
    for function, kept in inputs.items():
        saved, _ = saved_by(lambda f=function: f(mu, logvar, **kwargs))
        *tensors, saved_key = saved
        assert [*map(storage, tensors)] == [*map(storage, kept)]
        assert saved_key.nbytes == 16 and saved_key.untyped_storage().nbytes() == 16
        assert source != "key" or storage(saved_key) == storage(key)


@native
def test_views_and_explicit_noise_are_saved_as_they_are(device):
    moments = random(8, 30, 4, device=device).requires_grad_()
    eps = random(8, 15, 4, seed=1, device=device)
    saved, _ = saved_by(lambda: vf.reparameterize_kl(*moments.chunk(2, dim=1), eps=eps))
    assert sorted(map(storage, saved)) == sorted([storage(moments), storage(moments), storage(eps)])
    saved, _ = saved_by(lambda: vf.gaussian_kl(*moments.chunk(2, dim=1)))
    assert {storage(t) for t in saved} == {storage(moments)}


@native
def test_the_saved_key_is_the_noise(device):
    mu, logvar = posterior((9, 11), device=device, requires_grad=True)
    saved, z = saved_by(lambda: vf.reparameterize(mu, logvar))
    assert torch.equal(z, vf.reparameterize(mu, logvar, key=saved[-1]))
    want = mu + torch.exp(logvar / 2) * normal(saved[-1], (9, 11))
    torch.testing.assert_close(z, want)


def test_nothing_is_saved_without_grad(device):
    mu, logvar = posterior((9, 11), device=device, requires_grad=True)

    def without_grad():
        with torch.no_grad():
            return vf.reparameterize_kl(mu, logvar)

    saved, (z, kl) = saved_by(without_grad)
    assert saved == [] and not z.requires_grad and not kl.requires_grad


@pytest.mark.parametrize("use_reentrant", [False, True])
@pytest.mark.parametrize("generator", [False, True])
def test_checkpoint_redraws_the_same_noise(use_reentrant, generator, device):
    """torch restores its default generators, but not the model's own generator.

    With the model's own generator, the backward pass draws new noise and computes the gradient for
    that noise, as with torch.randn.
    """
    x = random(6, 8, device=device).requires_grad_()
    weight = random(8, 8, seed=1, device=device).requires_grad_()
    own = torch.Generator(device).manual_seed(1) if generator else None
    drawn = []

    def model(x):
        mu, logvar = (x @ weight).chunk(2, dim=1)
        z, kl = vf.reparameterize_kl(mu, logvar, generator=own)
        drawn.append(z.detach())
        return z.square().sum() + kl

    def gradients(function):
        torch.manual_seed(11)
        x.grad = weight.grad = None
        function(x).backward()
        return x.grad, weight.grad

    want = gradients(model)
    got = gradients(lambda x: checkpoint(model, x, use_reentrant=use_reentrant))
    assert len(drawn) == 3 and torch.equal(drawn[1], drawn[2]) != generator
    if not generator:
        assert torch.equal(drawn[0], drawn[1])
        assert_same_bits(got, want)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_checkpoint_with_a_key_needs_no_generator(use_reentrant, device):
    mu, logvar = posterior((6, 8), device=device, requires_grad=True)
    key = make_key(2, device=device)

    def model(mu, logvar):
        z, kl = vf.reparameterize_kl(mu, logvar, key=key)
        return z.square().sum() + kl

    loss = checkpoint(model, mu, logvar, use_reentrant=use_reentrant, preserve_rng_state=False)
    got = torch.autograd.grad(loss, (mu, logvar)) if not use_reentrant else None
    if use_reentrant:
        loss.backward()
        got = (mu.grad, logvar.grad)
    assert_same_bits(got, torch.autograd.grad(model(mu, logvar), (mu, logvar)))


# --------------------------------------------------------------------------------------------------
# Shared memory
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_outputs_share_no_memory_with_inputs_or_each_other(reduction, dtype, device):
    for shape in ((4, 5), (1, 1), (3,)):
        mu, logvar = posterior(shape, dtype=dtype, device=device)
        eps, key = torch.ones_like(mu), make_key(1, device=device)
        for noise in ({"eps": eps}, {"key": key}, {}):
            inputs = [mu.clone(), logvar.clone(), eps.clone(), key.clone()]
            z, kl = vf.reparameterize_kl(mu, logvar, reduction=reduction, **noise)
            places = [storage(t) for t in (z, kl, mu, logvar, eps, key)]
            assert len(set(places)) == len(places)
            z.zero_()
            kl.zero_()
            assert_same_bits([mu, logvar, eps, key], inputs)


@native
def test_z_may_be_changed_in_place(device):
    """z is not saved, so a decoder may overwrite it."""
    mu, logvar = posterior((4, 5), device=device, requires_grad=True)
    z, kl = vf.reparameterize_kl(mu, logvar)
    kept = z.detach().clone()
    z.mul_(2)
    (z.sum() + kl).backward()
    want = kept - mu.detach() + 0.5 * torch.expm1(logvar.detach()) / 4
    torch.testing.assert_close(logvar.grad, want)


def test_gradients_share_no_memory_with_each_other(device):
    mu, logvar = posterior((4, 5), device=device, requires_grad=True)
    z, kl = vf.reparameterize_kl(mu, logvar)
    grads = torch.autograd.grad(z.sum() + kl, (mu, logvar))
    assert len({storage(t) for t in (*grads, mu, logvar, z)}) == 5
