"""Keys derived from a seed and counters, and the noise that a key generates."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from conftest import make_key

import vae_fused as vf

N = 40_000


def philox(seed: int, counter: int) -> list[int]:
    """Philox4x32-10 in Python integers, from the paper (Salmon et al., SC 2011, section 3.3)."""
    low = 0xFFFFFFFF
    k, c = [seed & low, seed >> 32], [counter & low, counter >> 32, 0, 0]
    for _ in range(10):
        a, b = 0xD2511F53 * c[0], 0xCD9E8D57 * c[2]
        c = [(b >> 32) ^ c[1] ^ k[0], b & low, (a >> 32) ^ c[3] ^ k[1], a & low]
        k = [(k[0] + 0x9E3779B9) & low, (k[1] + 0xBB67AE85) & low]
    return c


def by_hand(seed: int, *counters: int) -> list[int]:
    mask = 2**64 - 1
    state, offset = (seed & mask) ^ int.from_bytes(b"vae-key.", "big"), 0
    for counter in (len(counters), *counters):
        w = philox(state, (offset + counter) & mask)
        state, offset = w[0] | w[1] << 32, w[2] | w[3] << 32
    return [state, offset]


ARGUMENTS = [(0,), (0, 0), (0, 0, 0), (1, 2, 3), (-1, 5), (2**64 - 1, 2**63), (7, -(2**63))]


@pytest.mark.parametrize("arguments", ARGUMENTS, ids=str)
def test_a_key_is_its_formula(arguments, device):
    want = by_hand(*arguments)
    signed = torch.tensor(want, dtype=torch.uint64).view(torch.int64)
    key = vf.key(*arguments, device=device)
    assert key.dtype == torch.int64 and key.device.type == torch.device(device).type
    assert torch.equal(key.cpu(), signed)
    numpy = vf.key(*(np.uint64(a) if a >= 2**63 else np.int64(a) for a in arguments), device=device)
    assert torch.equal(numpy, key)
    tensors = [torch.tensor(a, device=device) for a in arguments if -(2**63) <= a < 2**63]
    if len(tensors) == len(arguments):
        assert torch.equal(vf.key(*tensors), key)


def test_the_philox_of_this_file_has_the_known_answers():
    """The first test vector in Random123's kat_vectors."""
    assert philox(0, 0) == [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]


def test_all_keys_differ():
    keys = [
        tuple(vf.key(*arguments).tolist())
        for n in range(4)
        for arguments in itertools.product(range(5), repeat=n + 1)
    ]
    assert len({*keys}) == len(keys)


def correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).mean())


def test_steps_have_independent_noise_which_a_counted_key_has_not():
    bound = 5 / N**0.5
    noise = [vf.normal(vf.key(3, step), N, dtype=torch.float64) for step in range(4)]
    for a, b in itertools.combinations(noise, 2):
        for shift in range(-8, 9):
            assert abs(correlation(a[8:-8], b[8 + shift : N - 8 + shift])) < bound
    shifted = [vf.normal(torch.tensor([3, step]), N) for step in range(2)]
    assert torch.equal(shifted[0][4:], shifted[1][:-4])  # the overlap that `vf.key` avoids


@pytest.mark.parametrize("module", [vf, vf.reference], ids=["compiled", "eager"])
@pytest.mark.parametrize(
    "dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str
)
def test_the_noise_of_a_key_is_that_of_a_call(dtype, module, device):
    key = vf.key(1, 2, device=device)
    eps = vf.normal(key, (3, 5), dtype=dtype)
    assert eps.shape == (3, 5) and eps.dtype == dtype and eps.is_contiguous()
    zeros = torch.zeros(3, 5, dtype=dtype, device=device)
    z = module.reparameterize(zeros, zeros, key=key)
    tolerance = {torch.float64: 1e-12, torch.bfloat16: 1e-2, torch.float16: 2e-3}.get(dtype, 2e-6)
    torch.testing.assert_close(eps, z, rtol=tolerance, atol=tolerance)
    want = vf.reference.normal(key, (3, 5), dtype=dtype)
    torch.testing.assert_close(eps, want, rtol=tolerance, atol=tolerance)
    _, kl = module.reparameterize_kl(zeros, zeros, key=key, sample_shape=2)
    assert kl == 0
    pair = module.reparameterize(zeros, zeros, key=key, sample_shape=2)
    torch.testing.assert_close(
        vf.normal(key, (2, 3, 5), dtype=dtype), pair, rtol=tolerance, atol=tolerance
    )


def test_a_number_is_a_shape_and_a_shape_may_be_empty():
    key = make_key(1)
    assert vf.normal(key, 4).shape == (4,)
    assert vf.normal(key, ()).shape == ()
    assert vf.normal(key, (0, 3)).shape == (0, 3)


def test_a_resumed_run_repeats_its_noise():
    def run(first: int, last: int) -> list[torch.Tensor]:
        mu = torch.zeros(4, 3)
        return [vf.reparameterize(mu, mu, key=vf.key(11, s)) for s in range(first, last)]

    whole = run(0, 6)
    for a, b in zip(whole[3:], run(3, 6), strict=True):
        assert torch.equal(a, b)


def test_a_step_on_the_device_compiles_once(device):
    calls = []

    def backend(module, _):
        calls.append(1)
        return module.forward

    def draw(step: torch.Tensor, mu: torch.Tensor) -> torch.Tensor:
        return vf.reparameterize(mu, mu, key=vf.key(5, step))

    compiled = torch.compile(draw, fullgraph=True, backend=backend)
    step, mu = torch.zeros((), dtype=torch.int64, device=device), torch.zeros(8, device=device)
    for _ in range(3):
        assert torch.equal(compiled(step, mu), draw(step, mu))
        step += 1
    assert len(calls) == 1


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((1.0,), TypeError, "seed must be an integer, got float"),
        ((True,), TypeError, "seed must be an integer, got bool"),
        ((1, "2"), TypeError, "counter must be an integer, got str"),
        ((2**64,), ValueError, "seed must be between"),
        ((0, -(2**63) - 1), ValueError, "counter must be between"),
        ((torch.zeros(()),), TypeError, "seed must be an integer tensor, got torch.float32"),
        ((0, torch.zeros(1, dtype=torch.int64)), ValueError, r"counter must be a 0-d tensor, got"),
    ],
)
def test_bad_keys(arguments, error, message):
    with pytest.raises(error, match=message):
        vf.key(*arguments)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((5, 3), TypeError, "key must be a Tensor, got int"),
        ((torch.zeros(2), 3), TypeError, "key must be uint64 or int64, got torch.float32"),
        (
            (torch.zeros(3, dtype=torch.int64), 3),
            ValueError,
            r"key must have shape \(2,\), .* got \(3,\)",
        ),
        ((make_key(1), 1.5), TypeError, "shape must be an int or a sequence of ints"),
        ((make_key(1), -1), ValueError, "shape"),
        ((make_key(1), 2, torch.int32), TypeError, "dtype must be one of"),
    ],
)
def test_bad_noise(arguments, error, message):
    key, shape, *dtype = arguments
    with pytest.raises(error, match=message):
        vf.normal(key, shape, **({"dtype": dtype[0]} if dtype else {}))


def test_a_number_that_changes_compiles_twice(device):
    calls = []

    def backend(module, _):
        calls.append(1)
        return module.forward

    def draw(mu: torch.Tensor, step: int) -> torch.Tensor:
        return vf.reparameterize(mu, mu, key=vf.key(5, step, device=device))

    compiled, mu = torch.compile(draw, fullgraph=True, backend=backend), torch.zeros(8).to(device)
    for step in range(5):
        assert torch.equal(compiled(mu, step), draw(mu, step))
    assert len(calls) <= 2


def test_integers_are_computed_without_operators():
    class Counter(torch.utils._python_dispatch.TorchDispatchMode):
        count = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            self.count += 1
            return func(*args, **(kwargs or {}))

    with Counter() as counter:
        vf.key(1, 2, 3)
    assert counter.count <= 4


def test_fx_records_a_key_as_one_node():
    def draw(mu, step):
        return vf.reparameterize(mu, mu, key=vf.key(5, step))

    graph = torch.fx.symbolic_trace(draw)
    assert [n.target for n in graph.graph.nodes if n.op == "call_function"] == [
        vf.key, vf.reparameterize,
    ]  # fmt: skip
    step = torch.tensor(3)
    assert torch.equal(graph(torch.zeros(4), step), draw(torch.zeros(4), step))
