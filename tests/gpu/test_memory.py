"""GPU memory: what calls allocate and keep, full and reused memory, and more than 2^31 elements."""

from __future__ import annotations

import gc
import math

import pytest
import torch
from conftest import REDUCTIONS, exact_kl
from test_streams import DEVICE, LONG, Case, assert_same_bits, key_of, pytestmark

import vae_fused as vf

__all__ = ["pytestmark"]  # skips these tests without a GPU, as in test_streams

GB, MIB = 10**9, 2**20


@pytest.fixture(autouse=True)
def clean_cache():
    gc.collect()
    torch.cuda.empty_cache()
    yield
    gc.collect()
    torch.cuda.empty_cache()


def requested(when="current"):
    """Returns the number of bytes requested from torch's allocator, before it rounds them."""
    return torch.cuda.memory_stats()[f"requested_bytes.all.{when}"]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_a_step_allocates_its_results_and_keeps_16_bytes(reduction, dtype):
    case = Case((1000, 2500), reduction, dtype=dtype)
    case.step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = requested()
    z, kl = case.forward()
    assert requested() - before == z.nbytes + kl.nbytes + 16
    grads = case.backward(z, kl)
    results = z.nbytes + kl.nbytes + sum(g.nbytes for g in grads)
    assert requested("peak") - before <= results + 16


def test_results_are_written_entirely():
    """Before the call, the memory that the results will occupy is full of NaN."""
    for shape, strides in [(LONG, "contiguous"), ((64, 4, 33, 30), "chunked")]:
        for dtype in (torch.float32, torch.bfloat16):
            case, key = Case(shape, strides=strides, dtype=dtype), key_of(3)
            want = case.step(key=key)
            for _ in range(3):
                for _ in range(2):
                    used = [torch.full_like(t, math.nan) for t in want for _ in range(4)]
                    used += [torch.full((n,), math.nan, device=DEVICE) for n in (1, 128, 600, 5000)]
                    del used
                assert_same_bits(case.step(key=key), want)


def allocates(size):
    try:
        torch.empty(size, dtype=torch.uint8, device=DEVICE)
    except torch.cuda.OutOfMemoryError:
        return False
    finally:
        torch.cuda.empty_cache()
    return True


def limit(room):
    """Limits this process to `room` more bytes. Returns False if no limit is that exact."""
    for total in (torch.cuda.mem_get_info()[1], torch.cuda.get_device_properties(0).total_memory):
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + room) / total)
        if allocates(room) and not allocates(room + 8 * MIB):
            return True
    return False


def test_a_step_fits_where_its_results_fit():
    """The limit leaves room for z, two gradients and 16 MiB.

    A second call therefore fails, and it draws no noise.
    """
    tensor = 64 * MIB
    case, key = Case((2048, tensor // 4 // 2048), "sum"), key_of(1)
    want = [t.double().sum() for t in case.step(key=key)]
    state = torch.cuda.get_rng_state()
    torch.cuda.synchronize()
    try:
        if not limit(3 * tensor + 16 * MIB):
            pytest.skip("torch's memory fraction is not exact on this machine")
        outputs = case.step(key=key)
        with pytest.raises(torch.cuda.OutOfMemoryError):
            case.forward()
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert torch.equal(state, torch.cuda.get_rng_state())
    assert_same_bits([t.double().sum() for t in outputs], want)
    assert_same_bits([t.double().sum() for t in case.step(key=key)], want)


# --------------------------------------------------------------------------------------------------
# More elements than a 32-bit integer can count
# --------------------------------------------------------------------------------------------------


def needs(gigabytes):
    if torch.cuda.mem_get_info()[0] < gigabytes * GB:
        pytest.skip(f"less than {gigabytes} GB of GPU memory are free")


def large(rows, cols):
    """Returns a bfloat16 posterior that is filled with random values in place."""
    generator = torch.Generator(DEVICE).manual_seed(0)
    return [
        torch.empty(rows, cols, dtype=torch.bfloat16, device=DEVICE)
        .normal_(generator=generator)
        .requires_grad_()
        for _ in range(2)
    ]


def exact_sum(mu, logvar):
    parts = zip(mu.detach().split(2**25), logvar.detach().split(2**25), strict=True)
    return sum(exact_kl(m, x).sum() for m, x in parts)


@pytest.mark.parametrize("reduction", ["sum", "sample"])
def test_more_than_2_to_the_31_elements_in_long_rows(reduction):
    needs(40)
    rows, cols = 2, 2**30 + 4104
    mu, logvar = large(rows, cols)
    seed, offset = 9, 2**33
    z, kl = vf.reparameterize_kl(mu, logvar, reduction=reduction, key=key_of(seed, offset))
    exact = torch.stack([exact_sum(mu[r], logvar[r]) for r in range(rows)])
    torch.testing.assert_close(
        kl.double(), exact.sum() if kl.dim() == 0 else exact, rtol=1e-6, atol=0
    )
    grad_kl = torch.full_like(kl, 0.5)
    grads = torch.autograd.grad((z, kl), (mu, logvar), (mu.detach(), grad_kl))

    # The slice that straddles 2^31, and the very last elements.
    for start in (2**31 - 2**16, rows * cols - 2**16):
        part = slice(start, start + 2**16)
        flat = [t.detach().view(-1)[part].clone().requires_grad_() for t in (mu, logvar)]
        z_part, kl_part = vf.reparameterize_kl(
            *flat, reduction="sum", key=key_of(seed, offset + start // 4)
        )
        grads_part = torch.autograd.grad(
            (z_part, kl_part), flat, (flat[0].detach(), torch.full_like(kl_part, 0.5))
        )
        got = [t.detach().view(-1)[part] for t in (z, *grads)]
        assert_same_bits(got, [z_part.detach(), *grads_part])


def test_more_than_2_to_the_30_rows():
    needs(40)
    rows, cols = 2**30 + 1026, 2
    mu, logvar = large(rows, cols)
    z, kl = vf.reparameterize_kl(mu, logvar, reduction="sample", key=key_of(9))
    grad_mu, grad_logvar = torch.autograd.grad(
        (z, kl), (mu, logvar), (mu.detach(), torch.ones_like(kl))
    )
    for start in (2**30 - 2**15, rows - 2**15):
        part = slice(start, start + 2**15)
        flat = [t.detach()[part].clone().requires_grad_() for t in (mu, logvar)]
        want = vf.reparameterize_kl(*flat, reduction="sample", key=key_of(9, start * cols // 4))
        want_grads = torch.autograd.grad(want, flat, (flat[0].detach(), torch.ones_like(want[1])))
        got = [t.detach()[part] for t in (z, kl, grad_mu, grad_logvar)]
        assert_same_bits(got, [*(t.detach() for t in want), *want_grads])
