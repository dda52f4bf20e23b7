"""Tracing and compiling: make_fx, opcheck, torch.compile, checkpoints and memory budgets."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import torch._functorch.config as functorch_config
from torch._dynamo import compiled_autograd
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.checkpoint import checkpoint

import vae_fused as vf

AVAILABLE = vf.functional._ext.available
native = pytest.mark.skipif(not AVAILABLE, reason="no compiled part")
KEY = torch.tensor([3, 5], dtype=torch.uint64)


@pytest.fixture(autouse=True)
def fresh_compiler():
    """Disable caches, because a cached graph would hide the tracer's current behaviour."""
    torch._dynamo.reset()
    with torch._inductor.config.patch(force_disable_caches=True):
        yield


def posterior(rows=6, cols=5, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(rows, cols, generator=generator, dtype=dtype, requires_grad=True)
        for _ in range(2)
    )


def model(x, weight):
    """An encoder, a latent and a decoder. Backward needs z, which a memory budget may recompute."""
    mu, logvar = (x @ weight).chunk(2, dim=1)
    z, kl = vf.reparameterize_kl(mu, logvar)
    return torch.tanh(torch.sin(2 * z) @ weight[: z.shape[1]]).square().sum() + kl


def model_inputs(rows=64):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(rows, 10, generator=generator)
    return x, torch.randn(10, 10, generator=generator, requires_grad=True)


def assert_same(got, want):
    """Require equality up to rounding, because compiled code fuses differently.

    With different noise, the results differ by 10 or more.
    """
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w, rtol=1e-4, atol=1e-3)


def loss_and_grad(function, x, weight, seed=7):
    torch.manual_seed(seed)
    loss = function(x, weight)
    (grad,) = torch.autograd.grad(loss, weight)
    return loss.detach(), grad


@native
class TestOpcheck:
    """Tests the schema, autograd registration, fake kernel and AOT dispatch of every operator."""

    OPS = torch.ops.vae_fused

    @pytest.mark.parametrize("reduction", ["batchmean", "none", "sample"])
    @pytest.mark.parametrize("noise", ["key", "eps"])
    def test_pure(self, reduction, noise):
        mu, logvar = posterior()
        kwargs = (
            {"eps": None, "key": KEY} if noise == "key" else {"eps": torch.ones(6, 5), "key": None}
        )
        torch.library.opcheck(
            self.OPS.reparameterize_kl.default,
            (mu, logvar),
            {**kwargs, "reduction": reduction, "dim": None},
        )
        torch.library.opcheck(self.OPS.reparameterize.default, (mu, logvar), kwargs)

    def test_random(self):
        mu, logvar = posterior()
        kwargs = {"generator": None, "reduction": "sum", "dim": [1]}
        torch.library.opcheck(self.OPS.reparameterize_kl.generator, (mu, logvar), kwargs)
        torch.library.opcheck(self.OPS.reparameterize.generator, (mu, logvar), {"generator": None})

    def test_kl(self):
        mu, logvar = posterior()
        torch.library.opcheck(
            self.OPS.gaussian_kl.default, (mu, logvar), {"reduction": "mean", "dim": None}
        )

    @pytest.mark.parametrize(
        "mask", [[True, True, False], [True, False, False], [False, True, True]]
    )
    def test_backward(self, mask):
        mu, logvar = (t.detach() for t in posterior())
        noise = {"eps": mu, "key": None} if mask[2] else {"eps": None, "key": KEY}
        torch.library.opcheck(
            self.OPS.reparameterize_kl_backward.default,
            (mu, torch.ones(6), mu, logvar),
            {**noise, "reduction": "sample", "dim": None, "output_mask": [*mask, False, False]},
        )

    @pytest.mark.parametrize("samples", [None, [2, 1]])
    @pytest.mark.parametrize("op", ["reparameterize_kl", "reparameterize_kl_moments"])
    def test_the_family(self, op, samples):
        mu, raw = posterior()
        family = {
            "prior_mean": mu.detach().clone().requires_grad_(),
            "prior_raw": torch.zeros_like(mu[:1]).expand_as(mu),
            "mask": mu.detach() > -0.5,
            "options": vf.options.Options(vf.Scale("softplus", std_floor=0.1)).packed(),
            "reduction": "sample",
            "dim": None,
        }
        key, seeded = {"eps": None, "key": KEY}, {"generator": None}
        packed = op == "reparameterize_kl_moments"
        args = (torch.cat([mu, raw], 1).detach().requires_grad_(),) if packed else (mu, raw)
        where = {"packed_dim": 1} if packed else {}
        forward, backward = getattr(self.OPS, op), getattr(self.OPS, f"{op}_backward").default
        for overload, noise in ((forward.default, key), (forward.generator, seeded)):
            torch.library.opcheck(
                overload, args, {**where, **noise, **family, "sample_shape": samples}
            )
        grad_z = torch.randn(*(samples or []), *mu.shape)
        args = tuple(t.detach() for t in args)
        family = {k: v.detach() if isinstance(v, torch.Tensor) else v for k, v in family.items()}
        output_mask = [True, *([True] * (not packed)), False, True, True]
        torch.library.opcheck(
            backward,
            (grad_z, torch.ones(6), *args),
            {**where, **key, **family, "output_mask": output_mask},
        )

    @pytest.mark.parametrize("view", ["chunk", "channels_last", "transposed"])
    def test_fake_kernels_know_the_strides(self, view):
        x = torch.randn(4, 6, 2, 3)
        mu = {
            "chunk": x.chunk(2, 1)[1],
            "channels_last": x.to(memory_format=torch.channels_last),
            "transposed": x.transpose(0, 3),
        }[view]
        torch.library.opcheck(
            self.OPS.reparameterize_kl.default,
            (mu, mu),
            {"eps": None, "key": KEY, "reduction": "sum", "dim": [1]},
        )


@pytest.mark.parametrize("tracing_mode", ["real", "fake", "symbolic"])
def test_make_fx(tracing_mode):
    x, weight = model_inputs()
    expected = loss_and_grad(model, x, weight)
    traced = make_fx(lambda x, w: loss_and_grad(model, x, w), tracing_mode=tracing_mode)(x, weight)
    for got, want in zip(traced(x, weight), expected, strict=True):
        assert got.shape == want.shape
    if tracing_mode != "symbolic":
        return
    x2, _ = model_inputs(rows=33)
    assert traced(x2, weight)[1].shape == weight.shape


@native
def test_traced_graph_has_one_operator_forward_and_one_backward():
    traced = make_fx(lambda x, w: loss_and_grad(model, x, w))(*model_inputs())
    names = [str(n.target) for n in traced.graph.nodes if "vae_fused" in str(n.target)]
    assert names == [
        "vae_fused.reparameterize_kl.generator",
        "vae_fused.reparameterize_kl_backward.default",
    ]


@native
@pytest.mark.parametrize("dynamic", [False, True])
def test_fullgraph_compile_equals_eager(dynamic):
    compiled = torch.compile(model, fullgraph=True, dynamic=dynamic)
    for rows in (64, 33) if dynamic else (64,):
        x, weight = model_inputs(rows)
        assert_same(loss_and_grad(compiled, x, weight), loss_and_grad(model, x, weight))


# In eager PyTorch, inductor compiles hundreds of operators, which takes 16 s for each dtype.
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.bfloat16] if AVAILABLE else [torch.float32]
)
def test_fullgraph_compile_with_key(dtype):
    def function(mu, logvar):
        return vf.reparameterize_kl(mu, logvar, key=KEY, reduction="sample")

    inputs = posterior(dtype=dtype)
    got = torch.compile(function, fullgraph=True)(*inputs)
    want = function(*inputs)
    grads = [torch.autograd.grad([o.float().sum() for o in out], inputs) for out in (got, want)]
    tolerance = {"atol": 2e-2, "rtol": 2e-2} if dtype == torch.bfloat16 else {}
    torch.testing.assert_close(got, want, **tolerance)
    torch.testing.assert_close(grads[0], grads[1], **tolerance)


@pytest.mark.slow
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("use_reentrant", [False, True])
def test_activation_checkpoint_redraws_the_same_noise(compiled, use_reentrant):
    if compiled and use_reentrant:
        pytest.skip("torch.compile traces checkpoints without reentry")

    def checkpointed(x, weight):
        return checkpoint(model, x, weight, use_reentrant=use_reentrant)

    x, weight = model_inputs()
    function = torch.compile(checkpointed, fullgraph=True) if compiled else checkpointed
    torch.manual_seed(7)
    loss = function(x, weight)
    loss.backward()
    want_loss, want_grad = loss_and_grad(model, x, weight)
    if AVAILABLE or not compiled:  # inductor implements torch.randn differently
        assert_same((loss.detach(), weight.grad), (want_loss, want_grad))


@pytest.mark.slow
@native
@pytest.mark.parametrize("budget", [0.5, 0.1, 0.01])
def test_memory_budget_does_not_corrupt_gradients(budget):
    x, weight = model_inputs()
    with functorch_config.patch(activation_memory_budget=budget):
        got = loss_and_grad(torch.compile(model, fullgraph=True), x, weight)
    assert_same(got, loss_and_grad(model, x, weight))


@pytest.mark.slow
@native
def test_memory_budget_would_corrupt_gradients_without_the_mark():
    """This test shows that the recompute mark is necessary.

    If torch fixes its partitioner, this test fails and the mark can be removed.
    """
    x, weight = model_inputs()
    _, want_grad = loss_and_grad(model, x, weight)

    def unmark(graph: torch.fx.Graph) -> None:
        for node in graph.nodes:
            node.meta.pop("recompute", None)

    with (
        functorch_config.patch(activation_memory_budget=0.1),
        torch._inductor.config.patch(joint_custom_pre_pass=unmark),
    ):
        _, grad = loss_and_grad(torch.compile(model, fullgraph=True), x, weight)
    assert (grad - want_grad).abs().max() > 1


@pytest.mark.slow
@native
def test_memory_budget_of_zero_is_refused_and_a_key_lifts_it():
    x, weight = model_inputs()
    with functorch_config.patch(activation_memory_budget=0):
        with pytest.raises(Exception, match="activation_memory_budget must be above 0"):
            torch.compile(model, fullgraph=True)(x, weight)

        def pure(x, weight):
            mu, logvar = (x @ weight).chunk(2, dim=1)
            z, kl = vf.reparameterize_kl(mu, logvar, key=KEY)
            return torch.sin(z).square().sum() + kl

        got = loss_and_grad(torch.compile(pure, fullgraph=True), x, weight)
    assert_same(got, loss_and_grad(pure, x, weight))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_mixes_dtypes_as_torch_promotes(dtype):
    x, weight = model_inputs()
    with torch.autocast("cpu", dtype=dtype):
        mu, logvar = (x @ weight).chunk(2, dim=1)
        z, kl = vf.reparameterize_kl(mu, logvar.float())
        assert mu.dtype == dtype and z.dtype == torch.float32 and kl.dtype == torch.float32
        z, kl = vf.reparameterize_kl(mu, logvar)
        assert z.dtype == dtype and kl.dtype == torch.float32
    (z.float().sum() + kl).backward()
    assert weight.grad is not None and weight.grad.isfinite().all()


@pytest.mark.parametrize(
    ("mu", "logvar"),
    [
        (torch.ones(6, 4, dtype=torch.float16), torch.ones(6, 4)),
        (torch.ones(6, 4, dtype=torch.bfloat16), torch.ones(4, dtype=torch.float16)),
        (torch.ones(6, 4, dtype=torch.float16), torch.ones((), dtype=torch.float64)),
    ],
    ids=["half and float", "bfloat16 and half", "half and a double scalar"],
)
def test_mixed_dtypes_and_shapes_compile_whole(mu, logvar):
    z, kl = torch.compile(vf.reparameterize_kl, fullgraph=True)(mu, logvar, eps=torch.ones_like(mu))
    expected_z, expected_kl = vf.reparameterize_kl(mu, logvar, eps=torch.ones_like(mu))
    assert z.dtype == torch.result_type(mu, logvar) == expected_z.dtype
    torch.testing.assert_close(z, expected_z)
    torch.testing.assert_close(kl, expected_kl)


def drawn(mu, logvar):
    return vf.reparameterize_kl(mu, logvar)


def drawn_as_list(mu, logvar):
    (z,), kl = vf.reparameterize_kl_multi([mu], [logvar])
    return z, kl


@native
@pytest.mark.parametrize("call", [drawn, drawn_as_list])
def test_compiled_autograd_takes_the_nodes(call):
    """Compiled autograd rejects a node that marks an output as non-differentiable.

    A node whose output is a key needs no such mark.
    """
    gradients = []
    for context in (nullcontext(), compiled_autograd._enable(lambda module: module)):
        mu, logvar = posterior()
        torch.manual_seed(0)
        with context:
            z, kl = call(mu, logvar)
            (z.square().sum() + kl).backward()
        gradients.append((mu.grad, logvar.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)


def test_meta_tensors_give_shapes_without_data():
    mu = torch.empty(4, 3, 2, device="meta")
    z, kl = vf.reparameterize_kl(mu, mu, dim=(0, 2))
    assert z.shape == (4, 3, 2) and kl.shape == (3,) and z.is_meta and kl.is_meta


@native
def test_operators_refuse_forward_mode_which_they_would_drop():
    """The functions support forward mode: see test_func.py."""
    mu, logvar = (t.detach() for t in posterior())
    ops, reduction = torch.ops.vae_fused, {"reduction": "sum", "dim": None}
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(mu, torch.ones_like(mu))
        for inputs in ((dual, logvar), (mu, dual)):
            for call in (
                lambda *x: ops.reparameterize_kl(*x, generator=None, **reduction),
                lambda *x: ops.reparameterize(*x, generator=None),
                lambda *x: ops.gaussian_kl(*x, **reduction),
            ):
                with pytest.raises(RuntimeError, match="jvp is not implemented"):
                    call(*inputs)


@native
@pytest.mark.parametrize("call", [drawn, drawn_as_list])
def test_compiled_autograd_takes_second_derivatives(call):
    gradients = []
    for context in (nullcontext(), compiled_autograd._enable(lambda module: module)):
        mu, logvar = posterior()
        torch.manual_seed(0)
        z, kl = call(mu, logvar)
        loss = z.square().sum() + kl.square()
        first = torch.autograd.grad(loss, (mu, logvar), create_graph=True)
        with context:
            sum(g.square().sum() for g in first).backward()
        gradients.append((mu.grad, logvar.grad))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=0)
