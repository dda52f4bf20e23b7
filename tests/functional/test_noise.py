"""The noise is PyTorch's stateless stream, and that stream is standard normal.

The known answers detect errors in the words, such as a wrong round or a wrong constant. Statistical
tests of this size cannot detect such errors, because even seven rounds of Philox pass them. The
statistical tests detect errors in the mapping from words to normals. The last test plants errors in
this mapping, and requires that the statistics detect them.
"""

from __future__ import annotations

import math

import pytest
import torch
from conftest import AVAILABLE, DTYPES, LAYOUTS, make_key, native, normal
from torch import Tensor

import vae_fused as vf

try:
    import torch.func._random as stateless

    stateless.normal(make_key(0), 1)
except (ImportError, NotImplementedError):  # torch 2.13 has the names, but not the CPU kernel
    stateless = None

TOP = 2**64 - 1
KEYS = [
    (0, 0),
    (42, 0),
    (1, 7),
    (2**32 + 5, 2**33 + 7),
    (2**63 + 11, 2**32 - 1),
    (7, 2**63),
    (3, TOP - 100),  # the counter wraps within the tensor
    (TOP, TOP),
]
TOLERANCE = {torch.float32: 2e-6, torch.float64: 1e-12}
COARSE = {"cpu": 4e-6, "cuda": 1e-5}  # the error of 16-bit noise before rounding

# Words and normals of the first two blocks of a key, recorded from torch 2.15's stateless stream.
GOLDEN = {
    (0, 0): (
        "6627e8d5 e169c58d bc57ac4c 9b00dbd8 f8e4cca4 5cb200db b1a574eb 097eff67",
        "0.991137743 -0.924662411 -0.617608845 -0.482068747 "
        "-0.153638184 0.1808258 0.831735075 0.1974397",
        "-0.12151797595308224 -1.350032659857655 -0.08187420991589159 -0.22270905893902698",
    ),
    (42, 0): (
        "9ceaf053 77f5493b 12bf50ad 5742b3d7 fcdb2127 53ba6cfd 838f5a6e 744e06fb",
        "-0.97018981 0.194018871 -1.23562121 1.92392659 "
        "-0.0731815323 0.139137551 -1.10666513 0.326682925",
        "0.886497505901441 0.4393560694379269 -0.15660962291201724 -0.013718678830210487",
    ),
    (2**32 + 5, 2**33 + 7): (
        "011a25c9 804e950f 0db21676 cb658603 4ba59dfd 44e59c44 2508bcba ab281346",
        "-3.30079246 -0.0248690192 0.668104172 -2.32590485 "
        "-0.187219739 1.55020952 -0.96264714 -1.71463871",
        "3.1161495521767697 1.088788789404524 0.9596365991413984 1.2317866919037976",
    ),
    (TOP, TOP): (
        "4d18d7d2 430ac65a bd2fa22a 0afae10d 72a47709 15474739 9f41b01f 22799a5a",
        "-0.115567192 1.54494953 0.749677241 0.20706743 "
        "1.09859562 0.632302284 0.645859957 0.729511082",
        "-0.10691389307132906 -1.545572531416457 -0.9125069577680618 -0.8798009905815404",
    ),
}

# The philox4x32-10 test vectors in Random123's kat_vectors: counter, key, words.
KNOWN_ANSWERS = [
    ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


def philox_by_the_paper(counter: list[int], key: list[int]) -> list[int]:
    """Salmon et al. 2011, section 4.3, in Python integers, with all four words of the counter."""
    (c0, c1, c2, c3), (k0, k1) = counter, key
    for _ in range(10):
        a, b = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (b >> 32) ^ c1 ^ k0, b % 2**32, (a >> 32) ^ c3 ^ k1, a % 2**32
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return [c0, c1, c2, c3]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def reference_words(seed: int, offset: int, blocks: int) -> Tensor:
    """Returns the words that vae_fused.reference generates, of shape [blocks, 4]."""
    s, o = make_key(seed, offset).view(torch.int64)
    return torch.stack(vf.reference.philox(s, o + torch.arange(blocks)), dim=1)


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_the_judge_of_philox_gives_the_known_answers(counter, key, answer):
    assert philox_by_the_paper(words(counter), words(key)) == words(answer)


@pytest.mark.parametrize("key", KEYS)
def test_reference_words_are_philox(key):
    seed, offset = key
    got = reference_words(seed, offset, 130).tolist()
    for block in (0, 1, 99, 100, 101, 129):
        c = (offset + block) % 2**64
        counter = [c % 2**32, c >> 32, 0, 0]
        assert got[block] == philox_by_the_paper(counter, [seed % 2**32, seed >> 32])


@pytest.mark.parametrize("key", GOLDEN)
def test_noise_is_the_recorded_one(key, device):
    want_words, want_32, want_64 = GOLDEN[key]
    assert reference_words(*key, 2).flatten().tolist() == words(want_words)
    for dtype, want in ((torch.float32, want_32), (torch.float64, want_64)):
        expected = torch.tensor([float(v) for v in want.split()], dtype=dtype)
        got = normal(make_key(*key, device=device), tuple(expected.shape), dtype).cpu()
        torch.testing.assert_close(got, expected, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.skipif(stateless is None, reason="torch.func._random on CPU came with torch 2.14")
@pytest.mark.parametrize("shape", [(1,), (7,), (1000,), (3, 5, 7), (3, 2049), (2, 3, 0)])
@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_noise_is_the_stateless_stream_of_torch(key, shape, dtype, device):
    k = make_key(*key, device=device)
    want = stateless.normal(make_key(*key), *shape, dtype=dtype)
    assert want.dtype == dtype
    torch.testing.assert_close(normal(k, shape, dtype).cpu(), want, rtol=0, atol=TOLERANCE[dtype])
    got = vf.reference.normal(k, shape, dtype=dtype).cpu()
    torch.testing.assert_close(got, want, rtol=0, atol=TOLERANCE[dtype])


@pytest.mark.skipif(stateless is None, reason="torch.func._random on CPU came with torch 2.14")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_noise_is_the_stateless_stream_of_torch(dtype, device):
    """The normals agree to 2e-6 before they are rounded, so a few round differently."""
    want = stateless.normal(make_key(42), 20000, dtype=dtype)
    got = normal(make_key(42, device=device), (20000,), dtype).cpu()
    assert (got != want).float().mean() < (3e-2 if device == "cuda" else 2e-3)
    torch.testing.assert_close(got, want, rtol=torch.finfo(dtype).eps, atol=COARSE[device])


@pytest.mark.skipif(stateless is None, reason="torch.func._random on CPU came with torch 2.14")
def test_sample_is_mu_plus_sigma_times_the_stream(device):
    mu, logvar = torch.linspace(-3, 3, 999, device=device), torch.linspace(2, -9, 999).to(device)
    z = vf.reparameterize(mu, logvar, key=make_key(5, 6, device))
    want = mu.cpu() + torch.exp(logvar.cpu() / 2) * stateless.normal(make_key(5, 6), 999)
    torch.testing.assert_close(z.cpu(), want, rtol=1e-6, atol=6e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("key", KEYS)
def test_noise_is_the_reference_stream(key, dtype, device):
    k = make_key(*key, device=device)
    for shape in ((1,), (5003,), (9, 2050)):
        want = vf.reference.normal(k, shape, dtype=dtype)
        torch.testing.assert_close(
            normal(k, shape, dtype), want, rtol=0, atol=TOLERANCE[dtype], msg=str(shape)
        )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_same_key_same_noise_in_every_dtype(dtype, device):
    key = make_key(9, 9, device)
    got, want = normal(key, (777,), dtype), normal(key, (777,)).to(dtype)
    if device == "cpu":
        assert torch.equal(got, want)
    torch.testing.assert_close(got, want, rtol=torch.finfo(dtype).eps, atol=COARSE[device])


def test_int64_and_uint64_keys_are_the_same(device):
    key = make_key(2**63 + 1, TOP, device)
    assert torch.equal(normal(key, (50,)), normal(key.view(torch.int64), (50,)))


@pytest.mark.parametrize("shape", [(7200,), (2, 3600), (20, 6, 60), (2, 3, 4, 5, 60), (7200, 1)])
def test_noise_does_not_depend_on_the_shape(shape, device):
    key = make_key(1, 2, device)
    assert torch.equal(normal(key, shape).flatten(), normal(key, (7200,)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_noise_does_not_depend_on_the_strides(layout, dtype, device):
    """Element i in row-major order gets normal i, for any strides."""
    key, zeros = make_key(3, 4, device), torch.zeros(6, 5, 37, 3, dtype=dtype, device=device)
    strided = LAYOUTS[layout](zeros)
    want = normal(key, zeros.shape, dtype)
    for mu, logvar in ((strided, strided), (zeros, strided), (strided, zeros)):
        assert torch.equal(vf.reparameterize(mu, logvar, key=key), want)


@pytest.mark.parametrize("dim", [0, 1, (0, 2), (1, 2), (0, 1, 2)])
def test_noise_does_not_depend_on_the_reduction(dim, device):
    key, zeros = make_key(3, 4, device), torch.zeros(6, 50, 9, device=device)
    z, _ = vf.reparameterize_kl(zeros, zeros, key=key, dim=dim)
    assert torch.equal(z, normal(key, zeros.shape))


def test_noise_does_not_depend_on_the_threads(threads):
    drawn = []
    for n in (1, 2, 4):
        threads(n)
        drawn.append(normal(make_key(8), (300, 1001)))
    assert torch.equal(drawn[0], drawn[1]) and torch.equal(drawn[0], drawn[2])


@pytest.mark.parametrize(("dtype", "per_block"), [(torch.float32, 4), (torch.float64, 2)])
@pytest.mark.parametrize("first", [4, 2048, 5000])
def test_a_shard_draws_the_noise_of_the_whole(first, dtype, per_block, device):
    whole = normal(make_key(6, TOP - 700, device), (8000,), dtype)
    offset = (TOP - 700 + first // per_block) % 2**64
    shard = normal(make_key(6, offset, device), (8000 - first,), dtype)
    assert torch.equal(shard, whole[first:])


# --------------------------------------------------------------------------------------------------
# Statistics
# --------------------------------------------------------------------------------------------------

CHUNK = 2**21
DRAWS = 2**26 if AVAILABLE else 2**22
BINS = 2**16


class Statistics:
    """Statistics of a noise stream, which are accumulated chunk by chunk."""

    def __init__(self):
        self.n = 0
        self.counts = torch.zeros(BINS, dtype=torch.int64)
        self.moments = torch.zeros(4, 4, dtype=torch.float64)  # [position in the block, power]
        self.lags = torch.zeros(2, 8, dtype=torch.float64)
        self.tail = torch.zeros(2, dtype=torch.int64)
        self.extreme = 0.0

    def add(self, x: Tensor) -> None:
        self.n += x.numel()
        u = torch.special.ndtr(x)
        self.counts += torch.bincount((u * BINS).int().clamp_(max=BINS - 1), minlength=BINS).cpu()
        square = x * x
        powers = torch.stack([x, square, x * square, square * square]).view(4, -1, 4)
        self.moments += powers.mean(1, dtype=torch.float64).T.cpu() * x.numel()
        for row, v in enumerate((x, square - 1)):
            for lag in range(1, 9):
                self.lags[row, lag - 1] += torch.dot(v[lag:], v[:-lag]).double().cpu()
        magnitude = x.abs()
        self.tail += torch.stack([(magnitude > 4).sum(), (magnitude > 5).sum()]).cpu()
        self.extreme = max(self.extreme, magnitude.max().item())

    def deviations(self) -> dict[str, float]:
        """Returns each statistic in units of its standard deviation under the null hypothesis.

        Kolmogorov's statistic is in units of a fifth of its upper 1e-4 quantile, so that the same
        limit, 5, applies to all statistics.
        """
        n, root = self.n, math.sqrt(self.n)
        cdf = self.counts.cumsum(0).double() / n
        edges = torch.arange(1, BINS + 1, dtype=torch.float64) / BINS
        out = {"kolmogorov": (cdf - edges).abs().max().item() * root / 2.2253 * 5}
        mean = self.moments / n
        truth = torch.tensor([0.0, 1.0, 0.0, 3.0]), torch.tensor([1.0, 2.0, 15.0, 96.0]).sqrt()
        score = (mean - truth[0]) / truth[1] * (root / 2)
        for power in range(4):
            out[f"moment {power + 1}"] = score[:, power].abs().max().item()
        out["correlation"] = self.lags[0].abs().max().item() / root
        out["correlation of squares"] = self.lags[1].abs().max().item() / (2 * root)
        for i, limit in enumerate((4, 5)):
            expected = n * math.erfc(limit / math.sqrt(2))
            out[f"tail {limit}"] = abs(self.tail[i].item() - expected) / math.sqrt(expected)
        return out


@pytest.mark.parametrize("seed", [20261123])
def test_noise_is_standard_normal(seed, device):
    statistics = Statistics()
    zeros = torch.zeros(CHUNK, device=device)
    for first in range(0, DRAWS, CHUNK):
        key = make_key(seed, first // 4, device)
        statistics.add(vf.reparameterize(zeros, zeros, key=key))
    for name, deviation in statistics.deviations().items():
        assert deviation < 5, name
    assert statistics.extreme <= math.sqrt(66 * math.log(2))
    assert statistics.extreme > 5.2 or DRAWS < 2**26  # 13 normals are expected beyond 5.2


@native
def test_double_precision_noise_is_standard_normal(device):
    statistics = Statistics()
    zeros = torch.zeros(CHUNK, device=device, dtype=torch.float64)
    statistics.add(vf.reparameterize(zeros, zeros, key=make_key(11, 0, device)))
    for name, deviation in statistics.deviations().items():
        assert deviation < 5, name


def test_keys_are_independent_of_each_other(device):
    """The keys have adjacent seeds, seeds that differ in one bit, or different offsets."""
    n = 2**18
    keys = [(0, 0), (1, 0), (2, 0), (2**31, 0), (2**32, 0), (2**63, 0), (0, n), (0, 2**32), (1, n)]
    drawn = torch.stack([normal(make_key(*key, device=device), (n,)) for key in keys])
    for x in (drawn, drawn.square() - 1, drawn.abs().log()):
        correlation = torch.corrcoef(x.double()) - torch.eye(len(keys), device=x.device)
        assert correlation.abs().max() < 5 / math.sqrt(n)


def mutant(w: Tensor, what: str) -> Tensor:
    """Applies the reference mapping with one subtle mistake."""
    u = w.float() * 2.0**-32 + 2.0**-33
    if what == "coarse radius":  # 10 bits reach 3.9 and 16 bits 4.9, both below 5.2
        u[:, ::2] = (w[:, ::2] >> 22).float() * 2.0**-10 + 2.0**-11
    elif what == "shared radius":
        u[:, 2] = u[:, 0]
    elif what == "shared angle":
        u[:, 3] = u[:, 1]
    elif what == "float rounding to 1":  # like a division by the largest word
        u = (w >> 20).float() / (2**12 - 1)
        u[:, ::2].clamp_(min=2.0**-33)
    elif what == "words overlap":
        u[:, 2] = u[:, 1]
    radius, angle = torch.sqrt(-2 * torch.log(u[:, ::2])), 2 * math.pi * u[:, 1::2]
    if what == "short turn":
        angle = angle * (3.12 / math.pi)
    x = torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2).flatten()
    return 1.005 * x if what == "scale" else x


@pytest.mark.parametrize(
    ("what", "finder"),
    [
        ("nothing", None),
        ("coarse radius", "tail 4"),
        ("shared radius", "correlation of squares"),
        ("shared angle", "correlation"),
        ("words overlap", "correlation of squares"),
        ("float rounding to 1", "moment 4"),
        ("short turn", "kolmogorov"),
        ("scale", "moment 2"),
    ],
)
def test_the_statistics_find_a_subtle_mistake(what, finder):
    statistics = Statistics()
    statistics.add(mutant(reference_words(5, 0, CHUNK // 4), what))
    deviations = statistics.deviations()
    assert deviations[finder] > 5 if finder else max(deviations.values()) < 5
