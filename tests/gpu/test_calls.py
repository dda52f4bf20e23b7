"""Calls on a GPU: agreement with the CPU, launches, errors, and the generator's state."""

from __future__ import annotations

import ctypes
import math

import pytest
import torch
from conftest import DTYPES, REDUCTIONS, make_key, normal
from test_streams import DEVICE, LONG, Case, key_of, pytestmark
from torch.profiler import ProfilerActivity, profile

import vae_fused as vf

__all__ = ["pytestmark"]  # skips these tests without a GPU, as in test_streams

# --------------------------------------------------------------------------------------------------
# Side effects of a call
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_nothing_waits_for_the_device(reduction):
    case, key = Case(LONG, reduction), key_of(1)
    eps, generator = torch.ones_like(case.mu), torch.Generator(DEVICE)
    case.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for noise in ({}, {"key": key}, {"eps": eps}, {"generator": generator}):
            case.step(**noise)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def scalars(temperature, free_bits, wq, wp):
    return {"temperature": temperature, "free_bits": free_bits, "balance": (wq, wp)}


@pytest.mark.parametrize("device", [DEVICE, "cpu"])
def test_options_on_the_device_are_not_waited_for(device):
    tensors = scalars(*(torch.tensor(value, device=device) for value in (0.7, 0.3, 0.2, 0.8)))
    leaves = [torch.randn(33, 70, device=DEVICE, requires_grad=True) for _ in range(2)]
    key = key_of(1)

    def step(**options):
        z, kl = vf.reparameterize_kl(*leaves, key=key, **options)
        return z, kl, *torch.autograd.grad((z * z).sum() + kl, leaves)

    want = step(**scalars(0.7, 0.3, 0.2, 0.8))
    torch.cuda.set_sync_debug_mode("error")
    try:
        got = step(**tensors)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for g, w in zip(got, want, strict=True):
        torch.testing.assert_close(g, w)


def test_a_replay_reads_options_on_the_device():
    temperature = torch.ones((), device=DEVICE)
    mu, key, graph = torch.randn(33, 70, device=DEVICE), key_of(1), torch.cuda.CUDAGraph()
    vf.reparameterize(mu, mu, key=key, temperature=temperature)
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        z = vf.reparameterize(mu, mu, key=key, temperature=temperature)
    for value in (0.25, 2.0):
        temperature.fill_(value)
        graph.replay()
        torch.testing.assert_close(z, vf.reparameterize(mu, mu, key=key, temperature=value))


def test_an_error_that_an_unrelated_call_left_behind_is_not_ours():
    """For example, a failed allocation leaves an error that no code has cleared."""
    version = torch.version.cuda.partition(".")[0]
    runtime = ctypes.CDLL(f"libcudart.so.{version}")
    case = Case(LONG, "sum")
    case.step()
    pointer = ctypes.c_void_p()
    assert runtime.cudaMalloc(ctypes.byref(pointer), ctypes.c_size_t(1 << 60)) != 0
    try:
        case.step(key=key_of(1))
    finally:
        runtime.cudaGetLastError()


NO_WORK = ("Sync", "Wait", "Buffer", "Lazy")  # other device activities that CUPTI may report
SPINS = 20


def launches(function):
    """Returns the names of the kernels, and of the copies and fills, that `function` launches.

    CUPTI may lose the first kernels of a session (pytorch issue 192021), so other kernels run
    first. If the last of these are recorded, all later kernels are recorded as well.
    """
    function()  # loads modules that are loaded at first use
    for _ in range(5):
        with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
            for _ in range(SPINS):
                torch.cuda._sleep(1000)
            torch.cuda.synchronize()
            function()
            torch.cuda.synchronize()
        events = profiler.events()
        names = [e.name for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
        spins = sum("spin_kernel" in name for name in names)
        kernels = [n for n in names if not any(word in n for word in (*NO_WORK, "spin_kernel"))]
        if spins > SPINS // 2 and kernels:
            moves = ("memcpy", "memset")
            return kernels, [e.name for e in events if any(m in e.name.lower() for m in moves)]
    pytest.skip("torch.profiler loses kernels on this machine")


LAYOUTS = [
    ("contiguous", (128, 20)),
    ("contiguous", (4096, 2048)),
    ("contiguous", LONG),
    ("chunked", (64, 4, 33, 30)),
]
LAUNCHES = [
    *((*layout, reduction, torch.float32) for layout in LAYOUTS for reduction in REDUCTIONS),
    ("contiguous", LONG, "sum", torch.bfloat16),
    ("contiguous", LONG, "sum", torch.float64),
    ("channels last", (8, 16, 20, 20), "sample", torch.float32),
]


@pytest.mark.parametrize(("strides", "shape", "reduction", "dtype"), LAUNCHES)
def test_forward_is_one_launch_and_backward_is_one(strides, shape, reduction, dtype):
    case, key = Case(shape, reduction, strides=strides, dtype=dtype), key_of(1)
    for noise in ({}, {"key": key}):
        outputs = case.forward(**noise)
        kernels, moved = launches(lambda n=noise: case.forward(**n))
        assert len(kernels) == 1 and "forward_kernel" in kernels[0] and not moved
        kernels, moved = launches(
            lambda o=outputs: torch.autograd.grad(
                o, (case.mu, case.logvar), (case.grad_z, case.grad_kl), retain_graph=True
            )
        )
        assert len(kernels) == 1 and "backward_kernel" in kernels[0] and not moved


def offset_of_default_generator():
    return int(torch.cuda.get_rng_state().view(torch.int64)[1])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("numel", [1, 5, 4096, 100_001])
def test_the_generator_advances_over_all_noise_of_a_call(numel, dtype):
    """The offset counts words of subsequence 0, four per block. torch.randn continues from it."""
    zeros = torch.zeros(numel, dtype=dtype, device=DEVICE)
    blocks = math.ceil(numel / (2 if dtype == torch.float64 else 4))
    torch.manual_seed(1)
    for calls in range(1, 4):
        vf.reparameterize_kl(zeros, zeros)
        assert offset_of_default_generator() == calls * 4 * blocks
    torch.randn(5, device=DEVICE)
    start = offset_of_default_generator()
    *_, key = torch.ops.vae_fused.reparameterize.generator(zeros, zeros, generator=None)
    assert key.view(torch.int64).tolist() == [1, start // 4] and start % 4 == 0


# --------------------------------------------------------------------------------------------------
# The CPU
# --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", [(0, 0), (42, 7), (2**63 + 11, 2**32 - 9), (3, 2**64 - 100)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 2e-6), (torch.float64, 1e-12)])
def test_noise_is_that_of_the_cpu(dtype, bound, key):
    shape = (1_000_003,)
    got, want = (normal(make_key(*key, device=d), shape, dtype).cpu() for d in (DEVICE, "cpu"))
    assert (got - want).abs().max() <= bound


@pytest.mark.parametrize("strides", ["contiguous", "chunked", "channels last"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_results_are_those_of_the_cpu(dtype, strides):
    case = Case((6, 5, 31, 30), strides=strides, dtype=dtype)
    got = [t.cpu() for t in case.step(key=key_of(5))]
    for name in ("mu", "logvar", "grad_z", "grad_kl"):
        moved = getattr(case, name).detach().cpu()
        setattr(case, name, moved.requires_grad_(name in ("mu", "logvar")))
    want = case.step(key=make_key(5))
    rtol = {torch.float64: 1e-12, torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
    for g, w in zip(got, want, strict=True):
        assert g.stride() == w.stride()
        torch.testing.assert_close(g, w, rtol=rtol[dtype], atol=rtol[dtype])
