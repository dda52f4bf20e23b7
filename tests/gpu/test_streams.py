"""Streams, threads, devices and graphs, which exist only on a GPU.

The rest of the suite also runs on the GPU, through its `device` fixture. Every test here has rows
longer than a tile (2048 elements), because the thread blocks of such a row share a ticket.
"""

from __future__ import annotations

import itertools
import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import DEVICES, make_key, posterior, random

import vae_fused as vf

DEVICE = "cuda"
GPU = torch.cuda.is_available()
pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(
        DEVICE not in DEVICES, reason="the compiled part has no CUDA" if GPU else "no GPU"
    ),
]

SHORT, LONG = (3000, 20), (4, 60_001)
SHAPES = [SHORT, LONG, (1, 300_000), (70, 2049)]


def layout(name, shape, seed, dtype=torch.float32):
    """Returns leaves `(mu, logvar)` of this `shape`, with the layout called `name`."""
    if name == "chunked":
        moments = random(shape[0], 2 * shape[1], *shape[2:], seed=seed, dtype=dtype, device=DEVICE)
        pair = moments.chunk(2, dim=1)
    else:
        pair = posterior(shape, seed=seed, dtype=dtype, device=DEVICE)
    if name == "channels last":
        pair = [t.contiguous(memory_format=torch.channels_last) for t in pair]
    return tuple(t.detach().requires_grad_() for t in pair)


class Case:
    """The inputs of a training step, including the gradients of its outputs.

    A step therefore launches only its forward and backward kernels.
    """

    def __init__(self, shape, reduction="sample", *, strides="contiguous", seed=0, **kwargs):
        self.reduction = reduction
        self.mu, self.logvar = layout(strides, shape, seed, **kwargs)
        self.grad_z = torch.empty_like(self.mu).copy_(random(*shape, seed=seed + 100))
        kl = vf.gaussian_kl(self.mu.detach(), self.logvar.detach(), reduction=reduction)
        self.grad_kl = random(*kl.shape, seed=seed + 200, dtype=kl.dtype, device=DEVICE)

    def forward(self, **noise):
        return vf.reparameterize_kl(self.mu, self.logvar, reduction=self.reduction, **noise)

    def backward(self, z, kl):
        inputs, grads = (self.mu, self.logvar), (self.grad_z, self.grad_kl)
        return torch.autograd.grad((z, kl), inputs, grads)

    def step(self, **noise):
        z, kl = self.forward(**noise)
        return z.detach(), kl.detach(), *self.backward(z, kl)

    def step_and_key(self):
        """Runs a step with the default generator by the operator, as only it returns the key."""
        z, kl, key = torch.ops.vae_fused.reparameterize_kl.generator(
            self.mu, self.logvar, generator=None, reduction=self.reduction, dim=None
        )
        return z.detach(), kl.detach(), *self.backward(z, kl), key


def assert_same_bits(got, want):
    for g, w in zip(got, want, strict=True):
        assert torch.equal(g, w)


def key_of(seed, offset=0):
    return make_key(seed, offset, device=DEVICE)


# --------------------------------------------------------------------------------------------------
# Streams
# --------------------------------------------------------------------------------------------------

# Each stream uses different inputs from call to call. Otherwise, a sum that is computed too early,
# from partial sums that an earlier call left in the same memory, would be correct by chance.


def work(shape):
    cases = [Case(shape, seed=seed) for seed in range(3)]
    return [(case, key_of(i, 1000 * i)) for i, case in enumerate(cases)]


def test_bits_do_not_depend_on_the_stream():
    for shape in SHAPES:
        for case, key in work(shape):
            want = case.step(key=key)
            torch.cuda.synchronize()
            with torch.cuda.stream(torch.cuda.Stream()):
                got = case.step(key=key)
            torch.cuda.synchronize()
            assert_same_bits(got, want)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_streams_do_not_disturb_each_other(shape):
    cases = work(shape)
    want = [case.step(key=key) for case, key in cases]
    streams = [torch.cuda.Stream() for _ in range(8)]
    torch.cuda.synchronize()
    for stream in streams:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(10_000_000)  # 5 ms, during which all streams receive work
    got = []
    for turn, (s, stream) in itertools.product(range(9), enumerate(streams)):
        case, key = cases[(turn + s) % 3]
        with torch.cuda.stream(stream):
            got.append(((turn + s) % 3, case.step(key=key)))
    torch.cuda.synchronize()
    for i, outputs in got:
        assert_same_bits(outputs, want[i])


@pytest.mark.parametrize("shape", [SHORT, LONG], ids=str)
def test_threads_with_a_stream_each_do_not_disturb_each_other(shape):
    cases = work(shape)
    want = [case.step(key=key) for case, key in cases]
    torch.cuda.synchronize()

    def run(thread):
        with torch.cuda.stream(torch.cuda.Stream()):
            results = []
            for turn in range(20):
                i = (thread + turn) % 3
                results.append((i, cases[i][0].step(key=cases[i][1])))
            torch.cuda.current_stream().synchronize()
            return results

    with ThreadPoolExecutor(6) as pool:
        for results in pool.map(run, range(6)):
            for i, outputs in results:
                assert_same_bits(outputs, want[i])


def test_the_current_stream_is_used():
    """Work on a stream runs in order, and earlier work on this stream computes the inputs."""
    case, key = Case(LONG), key_of(1)
    want = case.step(key=key)
    values = case.mu.detach().clone()
    torch.cuda.synchronize()
    with torch.cuda.stream(torch.cuda.Stream()), torch.no_grad():
        case.mu.fill_(math.nan)
        torch.cuda._sleep(20_000_000)
        case.mu.copy_(values)
        with torch.enable_grad():
            got = case.step(key=key)
    torch.cuda.synchronize()
    assert_same_bits(got, want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one GPU")
def test_a_second_gpu_gives_the_same_while_the_first_is_current():
    case, key = Case(LONG), key_of(1)
    want = [t.cpu() for t in case.step(key=key)]
    for name in ("mu", "logvar", "grad_z", "grad_kl"):
        moved = getattr(case, name).detach().to("cuda:1")
        setattr(case, name, moved.requires_grad_(name in ("mu", "logvar")))
    got = case.step(key=key.to("cuda:1"))
    assert all(t.device == torch.device("cuda:1") for t in got) and torch.cuda.current_device() == 0
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g.cpu(), w, rtol=1e-5, atol=1e-5)
    twin = torch.Generator("cuda:1").manual_seed(3)
    z = vf.reparameterize(case.mu, case.logvar, generator=twin)
    assert torch.equal(z, vf.reparameterize(case.mu, case.logvar, generator=twin.manual_seed(3)))


# --------------------------------------------------------------------------------------------------
# Graphs
# --------------------------------------------------------------------------------------------------


def capture(function, graph=None):
    """Returns the graph of a call, and its results, which each replay of the graph overwrites."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(2):
            function()
    torch.cuda.current_stream().wait_stream(side)
    torch.cuda.synchronize()
    graph = graph or torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = function()
    return graph, outputs


def change(case, factor):
    with torch.no_grad():
        case.mu.mul_(factor)
        case.logvar.mul_(factor)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("shape", [SHORT, LONG], ids=str)
def test_each_replay_draws_fresh_noise_and_its_backward_follows(shape, dtype):
    case = Case(shape, dtype=dtype)
    graph, (*outputs, key) = capture(case.step_and_key)
    drawn, keys = [], set()
    for _ in range(4):
        graph.replay()
        got = [t.clone() for t in outputs]
        assert_same_bits(got, case.step(key=key.clone()))
        drawn.append(got[0].flatten().float() - case.mu.detach().flatten().float())
        keys.add(tuple(key.view(torch.int64).tolist()))
    assert len(keys) == 4
    correlation = torch.corrcoef(torch.stack(drawn)) - torch.eye(4, device=DEVICE)
    assert correlation.abs().max() < 0.05


@pytest.mark.parametrize("shape", [SHORT, LONG], ids=str)
def test_a_seed_repeats_replays_and_they_draw_what_eager_calls_draw(shape):
    case = Case(shape)
    graph, outputs = capture(case.step)

    def replay():
        graph.replay()
        return [t.clone() for t in outputs]

    def seeded(function):
        torch.manual_seed(7)
        return [*function(), *function()]

    first = seeded(replay)
    assert not torch.equal(first[0], first[4])
    assert_same_bits(seeded(replay), first)
    assert_same_bits(seeded(case.step), first)


def test_a_generator_registered_with_a_graph_draws_afresh():
    mu, logvar = posterior(SHORT, device=DEVICE)
    generator = torch.Generator(DEVICE)
    graph = torch.cuda.CUDAGraph()
    graph.register_generator_state(generator)
    graph, z = capture(lambda: vf.reparameterize(mu, logvar, generator=generator), graph)

    def replays():
        generator.manual_seed(3)
        drawn = []
        for _ in range(2):
            graph.replay()
            drawn.append(z.clone())
        return drawn

    first = replays()
    assert not torch.equal(*first)
    assert_same_bits(replays(), first)


@pytest.mark.parametrize("shape", [SHORT, LONG], ids=str)
def test_graphs_replay_concurrently(shape):
    """The calls use keys, because torch does not support concurrent graphs with one generator."""
    cases = work(shape)
    captured = [capture(lambda c=case, k=key: c.step(key=k)) for case, key in cases]
    streams = [torch.cuda.Stream() for _ in captured]
    for _ in range(8):
        for (case, _), (_, outputs) in zip(cases, captured, strict=True):
            change(case, 0.9)
            for t in outputs:
                t.fill_(math.nan)
        want = [case.step(key=key) for case, key in cases]
        torch.cuda.synchronize()
        for _ in range(3):
            for (graph, _), stream in zip(captured, streams, strict=True):
                with torch.cuda.stream(stream):
                    graph.replay()
        eager = [case.step(key=key) for case, key in cases]  # concurrent with the replays
        torch.cuda.synchronize()
        for (_, outputs), e, w in zip(captured, eager, want, strict=True):
            assert_same_bits(outputs, w)
            assert_same_bits(e, w)


def test_branches_of_a_graph_do_not_disturb_each_other():
    cases = work(LONG)
    side = [torch.cuda.Stream() for _ in cases]

    def branches():
        here, results = torch.cuda.current_stream(), []
        for (case, key), stream in zip(cases, side, strict=True):
            stream.wait_stream(here)
            with torch.cuda.stream(stream):
                results += case.step(key=key)
        for stream in side:
            here.wait_stream(stream)
        return results

    graph, outputs = capture(branches)
    for _ in range(5):
        for case, _ in cases:
            change(case, 0.9)
        want = [t for case, key in cases for t in case.step(key=key)]
        graph.replay()
        assert_same_bits(outputs, want)


def test_reduce_overhead_draws_fresh_noise_and_its_backward_follows():
    """In this mode, torch.compile uses CUDA graphs."""
    pytest.importorskip("triton")
    mu, logvar = posterior((64, 3000), device=DEVICE, requires_grad=True)
    grad_z = random(64, 3000, seed=5, device=DEVICE)

    @torch.compile(mode="reduce-overhead", dynamic=False)
    def model(mu, logvar):
        z, kl = vf.reparameterize_kl(mu, logvar, reduction="sum")
        return z, kl

    drawn = []
    for _ in range(6):
        torch.compiler.cudagraph_mark_step_begin()
        z, kl = model(mu, logvar)
        noise = (z.detach() - mu.detach()).clone()
        grads = torch.autograd.grad((z, kl), (mu, logvar), (grad_z, torch.ones_like(kl)))
        want = 0.5 * (grad_z * noise + torch.expm1(logvar.detach()))
        torch.testing.assert_close(grads[1], want, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(grads[0], grad_z + mu.detach(), rtol=1e-5, atol=1e-5)
        drawn.append(noise)
    assert all(not torch.equal(a, b) for a, b in itertools.combinations(drawn, 2))
