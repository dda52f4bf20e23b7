"""Training in two processes: calls with DTensors, DDP, FSDP2, and the examples in processes.md.

One group of two processes runs all checks, because a process takes many seconds to import torch.
Each check is a test that reads the reports of both ranks.
"""

from __future__ import annotations

import datetime
import gc
import itertools
import os
import re
import socket
import traceback
from pathlib import Path

import pytest
import torch
from conftest import AVAILABLE, random

import vae_fused as vf
from vae_fused import _spread
from vae_fused.likelihoods import Gaussian, NegativeBinomial

gloo = pytest.mark.skipif(
    not torch.distributed.is_available() or not torch.distributed.is_gloo_available(),
    reason="torch without gloo",
)
RANKS = 2
EXAMPLES = Path(__file__).resolve().parents[2] / "docs" / "processes.md"
KEY = torch.tensor([1234, 5])
CHECKS = {}


def check(function):
    """Register a function of the mesh, which both ranks run."""
    CHECKS[function.__name__] = function
    return function


# --------------------------------------------------------------------------------------------------
# Calls with DTensors, compared with the same calls with whole tensors
# --------------------------------------------------------------------------------------------------


class Given:
    """A call's tensor, and its placement on the mesh.

    The placement None stands for a plain tensor, which is the same on all ranks.
    """

    def __init__(self, value, placements="rows", grad=True):
        self.value, self.placements = value, placements
        self.grad = grad and value.is_floating_point()

    def whole(self):
        return self.value.clone().requires_grad_(self.grad)

    def placed(self, mesh):
        from torch.distributed.tensor import Replicate, Shard, distribute_tensor

        if self.placements is None:
            return self.whole()
        named = {"rows": [Shard(0)], "same": [Replicate()]}
        placements = named[self.placements] if self.placements in (*named,) else self.placements
        return distribute_tensor(self.value.clone(), mesh, placements).requires_grad_(self.grad)


def rows(*shape, seed=0, **more):
    return Given(random(*shape, seed=seed), **more)


def same(*shape, seed=0, **more):
    return Given(random(*shape, seed=seed), "same", **more)


def full(value):
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def assert_same(mesh, call, atol=2e-6, rtol=2e-5, **given):
    """Asserts that the outputs and gradients of ``call`` equal those with whole tensors."""
    whole = {name: g.whole() for name, g in given.items()}
    placed = {name: g.placed(mesh) for name, g in given.items()}
    expected, got = call(**whole), call(**placed)
    expected, got = ((out,) if isinstance(out, torch.Tensor) else out for out in (expected, got))
    assert len(expected) == len(got)
    for w, g in zip(expected, got, strict=True):
        assert type(g).__name__ == "DTensor" and g.shape == w.shape and g.dtype == w.dtype
        torch.testing.assert_close(g.full_tensor(), w, atol=atol, rtol=rtol)
    for outputs in (expected, got):
        parts = [out.square().sum() * (k + 1) for k, out in enumerate(outputs)]
        full(sum(parts[1:], parts[0])).backward()
    for name, g in given.items():
        if g.grad:
            assert (whole[name].grad != 0).any(), f"{name} has no gradient to compare"
            gradient = full(placed[name].grad)
            torch.testing.assert_close(gradient, whole[name].grad, atol=10 * atol, rtol=10 * rtol)
    return got


@check
def every_reduction_of_any_shards(mesh):
    from torch.distributed.tensor import Partial, Shard

    # Depending on the shape, the ranks have whole blocks of noise, partial blocks, unequal numbers
    # of rows, or no rows.
    for shape in ((8, 6), (6, 5), (5, 3), (3, 2, 2), (1, 3), (7,)):
        for reduction in ("batchmean", "sum", "mean", "sample", "none"):
            z, kl = assert_same(
                mesh,
                lambda mu, raw, r=reduction: vf.reparameterize_kl(mu, raw, key=KEY, reduction=r),
                mu=rows(*shape), raw=rows(*shape, seed=1),
            )  # fmt: skip
            assert z.placements == (Shard(0),)
            kept = reduction in ("sample", "none")
            assert kl.placements == ((Shard(0),) if kept else (Partial(),))
            assert_same(
                mesh,
                lambda mu, raw, r=reduction: vf.gaussian_kl(mu, raw, reduction=r),
                mu=rows(*shape), raw=rows(*shape, seed=1),
            )  # fmt: skip
        assert_same(
            mesh, lambda mu, raw: vf.reparameterize(mu, raw, key=KEY), mu=rows(*shape),
            raw=rows(*shape, seed=1),
        )  # fmt: skip
    for dim in (0, 1, -1, (0, 2), (-3, 1), (1, 2)):
        _, kl = assert_same(
            mesh, lambda mu, raw, d=dim: vf.reparameterize_kl(mu, raw, key=KEY, dim=d),
            mu=rows(6, 2, 3), raw=rows(6, 2, 3, seed=1),
        )  # fmt: skip


@check
def every_dtype(mesh):
    for dtype, atol in ((torch.float64, 1e-12), (torch.bfloat16, 0.04)):
        for shape in ((8, 6), (5, 3)):
            mu, raw = (Given(random(*shape, seed=k, dtype=dtype)) for k in range(2))
            assert_same(
                mesh, lambda mu, raw: vf.reparameterize_kl(mu, raw, key=KEY),
                atol=atol, rtol=atol, mu=mu, raw=raw,
            )  # fmt: skip


@check
def meshes_of_two_dimensions(mesh):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Replicate, Shard

    def call(mu, raw):
        return vf.reparameterize_kl(mu, raw, key=KEY)

    for sizes in ((1, 2), (2, 1)):
        both = init_device_mesh("cpu", sizes)
        for placements in (
            [Replicate(), Shard(0)], [Shard(0), Replicate()], [Shard(0), Shard(0)],
            [Replicate(), Replicate()],
        ):  # fmt: skip
            mu, raw = (Given(random(5, 3, seed=k), placements) for k in range(2))
            z, _ = assert_same(both, call, mu=mu, raw=raw)
            assert z.placements == tuple(placements)


@check
def tensors_that_are_placed_otherwise(mesh):
    def call(mu, raw):
        return vf.reparameterize_kl(mu, raw, key=KEY)

    assert_same(mesh, call, mu=same(5, 3), raw=same(5, 3, seed=1))
    assert_same(mesh, call, mu=rows(5, 3), raw=same(5, 3, seed=1))
    assert_same(mesh, call, mu=same(5, 3), raw=rows(5, 3, seed=1))
    assert_same(mesh, call, mu=rows(5, 3), raw=same(3, seed=1))
    assert_same(mesh, call, mu=rows(5, 3), raw=rows(3, seed=1))
    assert_same(mesh, call, mu=rows(5, 3), raw=same(1, 3, seed=1))
    assert_same(mesh, call, mu=rows(5, 3), raw=same(seed=1))
    for shape in ((5, 3), (3,), ()):  # a plain tensor is equal on all ranks
        assert_same(mesh, call, mu=rows(5, 3), raw=rows(*shape, seed=1, placements=None))


@check
def images_in_channels_last(mesh):
    from torch.distributed.tensor import DTensor, Shard

    rank = torch.distributed.get_rank()
    whole = [random(4, 3, 2, 2, seed=k).to(memory_format=torch.channels_last) for k in range(2)]
    local = [t[2 * rank : 2 * rank + 2] for t in whole]
    z = vf.reparameterize(*(DTensor.from_local(t, mesh, [Shard(0)]) for t in local), key=KEY)
    expected = vf.reparameterize(*whole, key=KEY)
    torch.testing.assert_close(z.full_tensor(), expected)
    assert z.stride() == expected.stride() != expected.contiguous().stride()
    assert z.to_local().is_contiguous(memory_format=torch.channels_last)


@check
def every_option(mesh):
    shape = (5, 3)
    mask = random(*shape, seed=7) > -0.3

    def latent(**options):
        def call(mu, raw, prior_mean=None, prior_raw=None, mask=None):
            more = dict(options)
            if prior_mean is not None:
                more["prior"] = vf.Prior(prior_mean, prior_raw)
            return vf.reparameterize_kl(mu, raw, key=KEY, mask=mask, **more)

        return call

    def both():
        return {"mu": rows(*shape), "raw": rows(*shape, seed=1)}

    for scale in ("logstd", "softplus", "sigmoid2", vf.Scale("softplus", std_floor=0.1)):
        assert_same(mesh, latent(scale=scale), **both())
    for options in (
        {"mu_soft_clamp": 1.5}, {"free_bits": 0.2}, {"free_bits": torch.tensor(0.2)},
        {"temperature": 0.5}, {"temperature": torch.tensor(0.5)}, {"sample_shape": 2},
        {"sample_shape": (2, 3)}, {"sample_shape": (1,)}, {"estimator": "sample"},
        {"estimator": "sample", "sample_shape": 2, "reduction": "sample"},
        {"estimator": "sample", "sample_shape": 2, "dim": 1},
        {"estimator": "sample", "sample_shape": 2},
        {"estimator": "sample", "stop_q": True, "reduction": "none"},
    ):  # fmt: skip
        assert_same(mesh, latent(**options), **both())
    # The prior's tensors have the shape of mu, the shape of its last dimension, or no dimensions.
    # Some are plain tensors.
    for mean, raw in (
        (rows(*shape, seed=2), rows(*shape, seed=3)), (same(3, seed=2), same(3, seed=3)),
        (rows(3, seed=2), same(seed=3)), (rows(3, seed=2, placements=None), rows(*shape, seed=3)),
    ):  # fmt: skip
        for options in ({}, {"balance": (0.2, 0.8)}, {"balance": (torch.tensor(0.2), 0.8)}):
            assert_same(mesh, latent(**options), **both(), prior_mean=mean, prior_raw=raw)
    for given in (
        Given(mask), Given(mask, "same"), Given(mask, None), Given(mask[0], "same"),
        Given(mask[:, :1]), Given(mask[0], None),
    ):  # fmt: skip
        for reduction in ("batchmean", "mean", "none"):
            assert_same(mesh, latent(reduction=reduction), **both(), mask=given)


@check
def a_wider_prior_draws_the_noise_of_its_dtype(mesh):
    def call(mu, raw, mean):
        return vf.reparameterize_kl(mu, raw, key=KEY, prior=vf.Prior(mean))

    mean = Given(random(3, seed=2, dtype=torch.float64), "same")
    assert_same(mesh, call, mu=rows(6, 3), raw=rows(6, 3, seed=1), mean=mean)


@check
def explicit_noise(mesh):
    def call(mu, raw, eps):
        return vf.reparameterize_kl(mu, raw, eps=eps)

    for placements in ("rows", "same", None):
        eps = rows(5, 3, seed=2, placements=placements)
        assert_same(mesh, call, mu=rows(5, 3), raw=rows(5, 3, seed=1), eps=eps)
    assert_same(
        mesh, lambda mu, raw, eps: vf.reparameterize(mu, raw, eps=eps, sample_shape=2),
        mu=rows(5, 3), raw=rows(5, 3, seed=1), eps=rows(2, 5, 3, seed=2, placements=None),
    )  # fmt: skip


@check
def ranks_seeded_alike_draw_the_noise_of_one_call(mesh):
    """Shards draw different noise, whereas replicas draw the same noise."""
    from torch.distributed.tensor import Replicate, Shard, distribute_tensor

    mu, raw = torch.zeros(4, 4), torch.zeros(4, 4)
    for generator in (None, torch.Generator()):
        source = torch.manual_seed if generator is None else generator.manual_seed
        state = torch.get_rng_state if generator is None else generator.get_state
        for placement in (Shard(0), Replicate()):
            placed = [distribute_tensor(t, mesh, [placement]) for t in (mu, raw)]
            source(3)
            z = vf.reparameterize(*placed, generator=generator).full_tensor()
            after = state()
            assert not torch.equal(z[:2], z[2:])
            if AVAILABLE:  # without a key, eager PyTorch draws with torch.randn
                source(3)
                assert torch.equal(z, vf.reparameterize(mu, raw, generator=generator))
                assert torch.equal(after, state())


@check
def packed_moments(mesh):
    for shape, dim in (((5, 6), 1), ((4, 6, 2), 1), ((4, 3, 2), -1)):
        for reduction in ("batchmean", "mean", "sample"):
            assert_same(
                mesh,
                lambda h, d=dim, r=reduction: vf.reparameterize_kl_moments(
                    h, dim=d, reduction=r, key=KEY
                ),
                h=rows(*shape),
            )  # fmt: skip
    assert_same(
        mesh, lambda h: vf.reparameterize_kl_moments(h, kl_dim=(1, 2), key=KEY), h=rows(4, 6, 2)
    )
    assert_same(mesh, lambda h: vf.reparameterize_kl_moments(h, dim=0, key=KEY), h=same(4, 3))


@check
def other_functions_of_the_latent(mesh):
    value, mu, raw = rows(5, 3), rows(5, 3, seed=1), rows(5, 3, seed=2)
    for how in ({}, {"reduction": "batchmean"}, {"dim": 1}, {"scale": "softplus", "dim": 0}):
        assert_same(
            mesh, lambda value, mu, raw, h=how: vf.gaussian_log_prob(value, mu, raw, **h),
            value=value, mu=mu, raw=raw,
        )  # fmt: skip
    assert_same(mesh, lambda z, raw: vf.sampled_kl(z, raw), z=value, raw=raw)

    def distribution(mu, raw):
        q = vf.DiagonalGaussian(mu, raw)
        return q.kl(reduction="sample")

    assert_same(mesh, distribution, mu=mu, raw=raw)


@check
def the_twins_in_plain_pytorch(mesh):
    def call(mu, raw, target):
        z, kl = vf.reference.reparameterize_kl(mu, raw, key=KEY, reduction="sample")
        return vf.reference.elbo_loss(z, target, kl=kl, likelihood="bernoulli")

    target = Given(random(5, 3, seed=2).sigmoid(), grad=False)
    assert_same(mesh, call, mu=rows(5, 3), raw=rows(5, 3, seed=1), target=target)


@check
def likelihoods(mesh):
    shape = (5, 4)
    logits, target = rows(*shape), Given(random(*shape, seed=1).sigmoid(), grad=False)
    mask = random(*shape, seed=7) > -0.3
    weight = Given(random(4, seed=8).exp(), "same", grad=False)
    counts = Given(torch.arange(20.0).reshape(shape) % 5, grad=False)
    for how in (
        {}, {"reduction": "sum"}, {"reduction": "mean"}, {"reduction": "sample"},
        {"reduction": "none"}, {"dim": 0}, {"dim": -1}, {"grad": "forward"},
        {"grad": "forward", "reduction": "mean"},
    ):  # fmt: skip

        def bernoulli(output, target, h=how, **more):
            return vf.nll(output, target, "bernoulli", **h, **more)

        assert_same(mesh, bernoulli, output=logits, target=target)
        for m in (Given(mask), Given(mask, None), Given(mask[0], "same")):
            assert_same(mesh, bernoulli, output=logits, target=target, mask=m, weight=weight)

    def gaussian(mean, raw, target):
        return vf.nll((mean, raw), target, Gaussian("softplus"))

    for raw in (rows(*shape, seed=2), same(4, seed=2), rows(4, seed=2, placements=None)):
        assert_same(mesh, gaussian, mean=logits, raw=raw, target=rows(*shape, seed=3))

    def negative_binomial(output, theta, target, library):
        kind = NegativeBinomial(mean="softmax", dispersion="softplus")
        return vf.nll((output, theta), target, kind, library=library)

    library = Given(random(5, 1, seed=9) + 2.0)
    assert_same(
        mesh, negative_binomial, atol=1e-5, output=logits, theta=same(4, seed=2), target=counts,
        library=library,
    )  # fmt: skip


@check
def evidence_lower_bounds(mesh):
    shape = (5, 4)
    output, target = rows(*shape), Given(random(*shape, seed=1).sigmoid(), grad=False)
    latent = {"mu": rows(5, 3, seed=2), "raw": rows(5, 3, seed=3)}
    mask = Given(random(*shape, seed=7) > -0.3)

    def loss(**how):
        def call(output, target, **given):
            return vf.elbo_loss(output, target, likelihood="bernoulli", **how, **given)

        return call

    for how in (
        {}, {"reduction": "sum"}, {"reduction": "mean"}, {"reduction": "sample"}, {"beta": 0.3},
        {"capacity": 2.0}, {"capacity": torch.tensor(0.5)}, {"capacity": 2.0, "reduction": "sum"},
        {"capacity": 0.5, "reduction": "sample"}, {"free_bits": 0.3},
        {"free_bits": 1.4, "free_bits_per": "sample"}, {"grad": "forward"},
        {"free_bits": 0.45, "free_bits_per": "dimension"},
        {"free_bits": torch.tensor(0.45), "free_bits_per": "dimension", "reduction": "mean"},
        {"free_bits": 1.4, "free_bits_per": "sample", "capacity": 1.0},
    ):  # fmt: skip
        assert_same(mesh, loss(**how), output=output, target=target, **latent)
        assert_same(mesh, loss(**how), output=output, target=target, target_mask=mask, **latent)
    # The next calls receive a KL, as if the launch of the sample had computed it.
    kls = (
        Given(torch.tensor(1.3), "same"), Given(torch.tensor(1.3), None), rows(5, seed=4),
        rows(5, 2, seed=4), rows(5, 2, seed=4, placements=None),
    )  # fmt: skip
    for kl in kls:
        for how in ({}, {"reduction": "sum"}, {"capacity": 0.5}):
            assert_same(mesh, loss(**how), output=output, target=target, kl=kl)
    for per in ("element", "dimension"):
        assert_same(
            mesh, loss(free_bits=0.1, free_bits_per=per), output=output, target=target, kl=kls[3]
        )
    for beta in (Given(torch.tensor(0.7), None), Given(torch.tensor(0.7), "same")):
        assert_same(mesh, loss(), output=output, target=target, kl=kls[2], beta=beta)

    def step(mu, raw, target):
        z, kl = vf.reparameterize_kl(mu, raw, key=KEY)
        return vf.elbo_loss(z, target, kl=kl, likelihood="bernoulli", beta=0.5)

    assert_same(mesh, step, mu=rows(*shape, seed=2), raw=rows(*shape, seed=3), target=target)


@check
def a_partial_loss_starts_backward(mesh):
    from torch.distributed.tensor import Shard, distribute_tensor

    mu, raw, target = random(5, 3), random(5, 3, seed=1), random(5, 3, seed=2).sigmoid()
    grads = []
    for place in (torch.clone, lambda t: distribute_tensor(t, mesh, [Shard(0)])):
        leaves = [place(t).requires_grad_() for t in (mu, raw)]
        z, kl = vf.reparameterize_kl(*leaves, key=KEY)
        vf.elbo_loss(z, place(target), kl=kl, likelihood="bernoulli", beta=0.5).loss.backward()
        grads.append([full(leaf.grad) for leaf in leaves])
    torch.testing.assert_close(grads[1], grads[0])


@check
def compiled_without_graph_breaks(mesh):
    """Noise from a key or from the generator equals the noise of eager code."""
    from torch.distributed.tensor import Shard, distribute_tensor

    leaves = [
        distribute_tensor(random(5, 3, seed=k), mesh, [Shard(0)]).requires_grad_() for k in range(2)
    ]
    for key in (KEY, None):
        results = []
        for wrap in (lambda f: f, lambda f: torch.compile(f, backend="aot_eager", fullgraph=True)):
            torch.manual_seed(2)
            z, kl = wrap(lambda mu, raw, k=key: vf.reparameterize_kl(mu, raw, key=k))(*leaves)
            (z.square().sum() + kl).full_tensor().backward()
            grads = [leaf.grad.full_tensor() for leaf in leaves]
            results.append([z.full_tensor(), kl.full_tensor(), *grads])
            for leaf in leaves:
                leaf.grad = None
        torch.testing.assert_close(results[1], results[0])


@check
def what_is_refused(mesh):
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
    from torch.distributed.tensor.placement_types import _StridedShard

    whole = random(4, 6)
    sharded, replica = (distribute_tensor(whole, mesh, [p]) for p in (Shard(0), Replicate()))
    message = (
        r"must be sharded on dimension 0 or replicated, got {}.*pass .*redistribute\(placement"
    )
    columns = distribute_tensor(whole, mesh, [Shard(1)])
    partial = DTensor.from_local(whole, mesh, [Partial()])
    strided = DTensor.from_local(whole[:2], mesh, [_StridedShard(0, split_factor=2)])
    for bad, shown in ((columns, "S"), (partial, "P"), (strided, "_S")):
        with pytest.raises(ValueError, match="mu " + message.format(shown)):
            vf.reparameterize_kl(bad, bad)
        with pytest.raises(ValueError, match="raw " + message.format(shown)):
            vf.gaussian_kl(sharded, bad)
        with pytest.raises(ValueError, match="target " + message.format(shown)):
            vf.nll(sharded, bad, "bernoulli")
        with pytest.raises(ValueError, match="output " + message.format(shown)):
            vf.elbo_loss(bad, sharded, sharded, sharded, likelihood="bernoulli")
    # This is the remedy that the message names.
    mended = columns.redistribute(placements=[Shard(0)])
    torch.testing.assert_close(
        vf.gaussian_kl(mended, mended).full_tensor(), vf.gaussian_kl(whole, whole)
    )
    with pytest.raises(ValueError, match=r"packed.*dim=0"):
        vf.reparameterize_kl_moments(sharded, dim=0)
    other = distribute_tensor(whole, init_device_mesh("cpu", (1, 2)), [Replicate(), Shard(0)])
    with pytest.raises(ValueError, match="raw must be on the mesh of mu"):
        vf.gaussian_kl(sharded, other)
    for function in (vf.gaussian_kl, vf.reparameterize_kl):
        with pytest.raises(TypeError, match=r"mu must be a DTensor like prior.mean"):
            function(whole, whole, prior=vf.Prior(replica))
    with pytest.raises(TypeError, match="mu must be a DTensor like"):
        vf.reparameterize(whole, whole, eps=sharded)
    for name in ("target", "mu"):
        given = {"target": whole, "mu": whole, "raw": whole, name: sharded}
        with pytest.raises(TypeError, match=f"output must be a DTensor like {name}"):
            vf.elbo_loss(whole, **given, likelihood="bernoulli")
    with pytest.raises(ValueError, match=r"must broadcast.*whole"):
        vf.gaussian_kl(sharded, whole[:2])
    with pytest.raises(TypeError, match=r"plain tensors, got a DTensor.*to_local"):
        vf.reparameterize_kl_multi([sharded], [sharded])
    with pytest.raises(TypeError, match=r"plain tensors, got a DTensor.*to_local"):
        vf.gaussian_kl_multi([sharded], [sharded])
    with pytest.raises(TypeError, match=r"plain tensors, got a DTensor.*to_local"):
        vf.latent_stats(sharded, sharded)
    flat = distribute_tensor(whole[0], mesh, [Shard(0)])
    kind = NegativeBinomial(mean="softmax", dispersion="softplus")
    with pytest.raises(ValueError, match="softmax"):
        vf.nll((flat, flat), flat.detach().abs(), kind)
    # These calls are also invalid with ordinary tensors.
    for error, how in (
        (ValueError, {"reduction": "median"}), (ValueError, {"dim": 2}), (TypeError, {"scal": 1}),
        (ValueError, {"eps": sharded, "key": KEY}), (TypeError, {"key": KEY.float()}),
        (ValueError, {"generator": torch.Generator(), "key": KEY}),
        (TypeError, {"mask": sharded}), (ValueError, {"mask": torch.ones(3, 6).bool()}),
    ):  # fmt: skip
        with pytest.raises(error):
            vf.reparameterize_kl(sharded, sharded, **how)


# --------------------------------------------------------------------------------------------------
# Data-parallel training
# --------------------------------------------------------------------------------------------------


class Model(torch.nn.Module):
    """A VAE with two layers."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = torch.nn.Linear(7, 12), torch.nn.Linear(6, 7)
        self.prior = vf.nn.LearnedPrior(6)

    def forward(self, x, key):
        z, kl = vf.reparameterize_kl_moments(self.encoder(x), prior=self.prior, key=key)
        return vf.elbo_loss(self.decoder(z), x, kl=kl, likelihood="bernoulli").loss


def trained(model, wrapped, part, key_of_step):
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    x = random(8, 7, seed=3).sigmoid()[part]
    for step in range(4):
        optimizer.zero_grad()
        wrapped(x, key_of_step(step)).backward()
        optimizer.step()
    return {name: full(p.detach()) for name, p in model.named_parameters()}


def is_as_in_one_process(wrap):
    """Four steps with half a batch on each rank equal four steps with the whole batch."""
    rank = torch.distributed.get_rank()

    def key(step, rank):  # 4 rows of 6 elements are 6 blocks of noise
        return vf.key(0, step) + torch.tensor([0, 6 * rank])

    torch.manual_seed(0)
    alone = Model()
    expected = trained(alone, alone, slice(None), lambda step: key(step, 0))
    torch.manual_seed(0)
    model = Model()
    part = slice(4 * rank, 4 * rank + 4)
    got = trained(model, wrap(model), part, lambda step: key(step, rank))
    torch.manual_seed(0)
    before = dict(Model().named_parameters())
    for name, value in expected.items():
        assert not torch.allclose(value, before[name], atol=0.05)
        torch.testing.assert_close(got[name], value, atol=1e-5, rtol=1e-4)
        first = got[name].clone()
        torch.distributed.broadcast(first, 0)
        assert torch.equal(first, got[name])


@check
def ddp_trains_as_one_process(mesh):
    is_as_in_one_process(torch.nn.parallel.DistributedDataParallel)


@check
def fsdp2_trains_as_one_process(mesh):
    from torch.distributed.fsdp import fully_shard

    def wrap(model):
        fully_shard(model.encoder, mesh=mesh)
        return fully_shard(model, mesh=mesh)

    is_as_in_one_process(wrap)


def of_all_ranks(value):
    values = [torch.empty_like(value) for _ in range(RANKS)]
    torch.distributed.all_gather(values, value)
    return values


@check
def plain_tensors_draw_as_torch_randn_does(mesh):
    """Ranks with equal seeds draw equal noise. With a key for each rank, the noise differs."""
    mu = torch.zeros(64)
    for draw in (lambda: torch.randn(64), lambda: vf.reparameterize(mu, mu)):
        torch.manual_seed(5)
        first, second = of_all_ranks(draw())
        assert torch.equal(first, second)
        torch.manual_seed(5 + torch.distributed.get_rank())
        first, second = of_all_ranks(draw())
        assert not torch.equal(first, second)
    rank = torch.distributed.get_rank()
    first, second = of_all_ranks(vf.reparameterize(mu, mu, key=vf.key(5, 0, rank)))
    assert (first != second).all()


# --------------------------------------------------------------------------------------------------
# The examples in the documentation, and the process group
# --------------------------------------------------------------------------------------------------


def examples():
    """Returns the name of each section and the code in it."""
    sections = re.split(r"^## ", EXAMPLES.read_text(), flags=re.MULTILINE)[1:]
    found = [
        (s.splitlines()[0], re.findall(r"^```python\n(.*?)^```", s, re.M | re.S)) for s in sections
    ]
    return [(title, code) for title, blocks in found for code in blocks]


def report_of(function, *arguments):
    try:
        function(*arguments)
    except BaseException:
        return traceback.format_exc()
    return None


def run_checks(rank, package, port, results):
    """Run all checks in this process, one of two. The first example creates the group."""
    assert vf.__file__ == package
    torch.set_num_threads(1)
    more = {"RANK": rank, "WORLD_SIZE": RANKS, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in more.items()})
    scope, reports = {}, {}
    for title, code in examples():
        reports[title] = reports.get(title) or report_of(exec, compile(code, title, "exec"), scope)
    torch.save(reports, f"{results}{rank}")
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (RANKS,))
    torch.distributed.distributed_c10d._set_pg_timeout(
        datetime.timedelta(seconds=60), torch.distributed.group.WORLD
    )
    for name, function in CHECKS.items():
        reports[name] = report_of(function, mesh)
        torch.save(reports, f"{results}{rank}")
    scope.clear()
    gc.collect()  # wrapped models in reference cycles hold the group: see test_parallel.py
    torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Returns each rank's report about each check."""
    results = str(tmp_path_factory.mktemp("distributed") / "reports")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(run_checks, (vf.__file__, port, results), nprocs=RANKS)
    return [torch.load(f"{results}{rank}") for rank in range(RANKS)]


class MeshOfSizes:
    """Stands in for the DeviceMesh in `_rows_of_rank`.

    It contains the sizes of a mesh, and this rank's position along each dimension.
    """

    def __init__(self, sizes, ranks):
        self.sizes, self.ranks = sizes, ranks

    def size(self, k):
        return self.sizes[k]

    def get_local_rank(self, k):
        return self.ranks[k]


@pytest.mark.parametrize("size", [0, 1, 5, 7, 12, 23])
def test_the_rows_of_a_rank_are_chunks_of_chunks(size):
    for ranks in itertools.product(range(2), range(3), range(4)):
        for is_sharded in itertools.product((False, True), repeat=3):
            expected = torch.arange(size)
            for n, k, sharded in zip((2, 3, 4), ranks, is_sharded, strict=True):
                if sharded:
                    chunks = [*expected.chunk(n), *[expected[:0]] * n]
                    expected = chunks[k]
            first, rows = _spread._rows_of_rank(MeshOfSizes((2, 3, 4), ranks), is_sharded, size)
            assert torch.equal(torch.arange(size)[first : first + rows], expected)


@gloo
@pytest.mark.parametrize("name", [*CHECKS, *dict(examples())])
def test_in_two_processes(reports, name):
    for rank, report in enumerate(reports):
        assert name in report, f"rank {rank} did not come to this check"
        assert report[name] is None, f"rank {rank}: {report[name]}"
