"""Helpers that the tests share: devices, keys, layouts, and exact results to compare with."""

from __future__ import annotations

import importlib.util
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mpmath
import pytest
import torch
from progress import Progress
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import vae_fused as vf
from vae_fused import _ext


def _import_own(name: str) -> None:
    """Import a folder of the checkout by its path.

    The root is not on ``sys.path``, because there the sources would shadow the installed package.
    Another package may install a folder with the same name: Opacus installs ``benchmarks``.
    """
    path = Path(__file__).resolve().parents[1] / name / "__init__.py"
    spec = importlib.util.spec_from_file_location(
        name, path, submodule_search_locations=[str(path.parent)]
    )
    assert spec is not None and spec.loader is not None
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


for folder in ("build_support", "benchmarks", "tools"):
    _import_own(folder)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--few",
        type=int,
        metavar="N",
        help="outside tests/native, run at most N evenly spaced parametrizations of each function",
    )


@pytest.hookimpl(trylast=True)  # after -m and -k
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if (few := config.getoption("few")) is None:
        return
    if few < 2:
        raise pytest.UsageError(f"--few must be at least 2, got {few}")
    functions: dict[str, list[pytest.Item]] = {}
    for item in items:
        # A native test is a group of its own, because no other environment runs all of them.
        is_native = item.nodeid.startswith("tests/native/")
        name = item.nodeid if is_native else item.nodeid.partition("[")[0]
        functions.setdefault(name, []).append(item)
    # The first and the last are kept, so that parameters that vary fast have different values.
    kept = {of[i * (len(of) - 1) // (few - 1)] for of in functions.values() for i in range(few)}
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = [item for item in items if item in kept]


@pytest.hookimpl(trylast=True)  # after the terminal reporter exists
def pytest_configure(config: pytest.Config) -> None:
    # pytest-xdist workers have no terminal, and `-v` already prints a line for each test.
    if config.pluginmanager.has_plugin("terminalreporter") and config.get_verbosity() == 0:
        config.pluginmanager.register(Progress(config))


AVAILABLE = _ext.available
native = pytest.mark.skipif(
    not AVAILABLE, reason="eager PyTorch does not promise this, only the compiled part"
)

# The backend of tests that only check whether a call can be compiled. In eager PyTorch, a call is a
# graph of hundreds of operators, which inductor may take a minute to compile. Only the capture of
# that graph depends on this package: autograd of torch operators is tested in torch.
# test_compile.py always uses inductor.
BACKEND = "inductor" if AVAILABLE else "eager"

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
REDUCTIONS = ("batchmean", "sum", "mean", "sample", "none")
DEVICES = ("cpu", "cuda") if _ext.has_cuda and torch.cuda.is_available() else ("cpu",)


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> str:
    """Each device on this machine that the compiled part supports."""
    return str(request.param)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Yields `torch.set_num_threads`, and restores the number of threads after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def make_key(seed: int, offset: int = 0, device: str = "cpu") -> Tensor:
    return torch.tensor([seed, offset], dtype=torch.uint64).to(device)


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32, device: str = "cpu"):
    """Returns normals from a separate generator.

    The values are the same on every device, and no global state changes.
    """
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype).to(device)


class Calls(TorchDispatchMode):
    """Records the names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.append(func.name())
        return func(*args, **(kwargs or {}))


# --------------------------------------------------------------------------------------------------
# The truth
# --------------------------------------------------------------------------------------------------


def eager(mu: Tensor, logvar: Tensor, eps: Tensor) -> tuple[Tensor, Tensor]:
    """Computes the sample and the elementwise KL by the common formulas, in the inputs' dtype."""
    z = mu + torch.exp(0.5 * logvar) * eps
    return z, -0.5 * (1.0 + logvar - mu.pow(2) - logvar.exp())


def exact_kl(mu: Tensor, logvar: Tensor) -> Tensor:
    """The elementwise KL in float64 without cancellation, to a relative error of 1e-14."""
    mu, x = mu.double(), logvar.double()
    term, series = 0.5 * x * x, torch.zeros_like(x)
    for n in range(3, 24):
        series, term = series + term, term * x / n
    return 0.5 * (mu * mu + torch.where(x.abs() < 0.5, series, torch.expm1(x) - x))


def exact_gradients(
    mu: Tensor, logvar: Tensor, eps: Tensor, grad_z: Tensor, grad_kl: Tensor
) -> tuple[Tensor, Tensor]:
    """Returns float64 gradients of `sum(grad_z * z) + sum(grad_kl * kl)` for the elementwise KL."""
    mu, x, eps, grad_z, grad_kl = (t.double() for t in (mu, logvar, eps, grad_z, grad_kl))
    grad_x = 0.5 * (grad_z * eps * torch.exp(0.5 * x) + grad_kl * torch.expm1(x))
    return grad_z + grad_kl * mu, grad_x


def kl_by_mpmath(mu: float, logvar: float) -> float:
    """The KL, correct to the last bit. The computation shares no code with anything under test."""
    with mpmath.workdps(60):
        m, x = mpmath.mpf(mu), mpmath.mpf(logvar)
        return float((m * m + mpmath.exp(x) - 1 - x) / 2)


def reduced(kl: Tensor, reduction: str = "batchmean", dim: Any = None) -> Tensor:
    """Reduces the elementwise KL with torch as the arguments specify."""
    if dim is not None:
        return kl.sum(dim=dim)
    if reduction == "batchmean":
        return kl.sum() / kl.shape[0] if kl.dim() else kl.sum()
    if reduction == "sample":
        return kl.flatten(1).sum(1) if kl.dim() > 1 else kl.clone()
    return {"sum": kl.sum, "mean": kl.mean, "none": kl.clone}[reduction]()


def relative(got: Tensor, want: Tensor) -> float:
    """The largest relative error over all elements."""
    return ((got.double() - want).abs() / want.abs()).max().item()


def scaled(got: Tensor, want: Tensor) -> float:
    """The largest error over all elements, relative to the largest magnitude in `want` or to 1."""
    error = (got.double() - want.double()).abs().max().item()
    return error / max(1.0, want.abs().max().item())


# --------------------------------------------------------------------------------------------------
# Layouts
# --------------------------------------------------------------------------------------------------

# Each function changes a tensor's strides with operators through which autograd can reach a
# contiguous leaf. The expanded layouts also repeat values.
LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "contiguous": lambda x: x.contiguous(),
    "transposed": lambda x: x.transpose(0, -1).contiguous().transpose(0, -1),
    "reversed": lambda x: x.permute(*reversed(range(x.dim()))).contiguous().permute(
        *reversed(range(x.dim()))
    ),
    "chunked last": lambda x: torch.cat([x, x + 1], -1).chunk(2, -1)[0],
    "chunked second": lambda x: torch.cat([x + 1, x], 1).chunk(2, 1)[1],
    "chunked first": lambda x: torch.cat([x, x + 1], 0).chunk(2, 0)[0],
    "every other": lambda x: torch.stack([x, x + 1], -1)[..., 0],
    "misaligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
    "channels last": lambda x: x.movedim(1, -1).contiguous().movedim(-1, 1),
    "expanded rows": lambda x: x[:1].expand(x.shape),
    "expanded last": lambda x: x[..., :1].expand(x.shape),
    "expanded all": lambda x: x.flatten()[0].expand(x.shape),
}  # fmt: skip


def all_dims(ndim: int) -> list[tuple[int, ...]]:
    """Returns every non-empty set of dimensions to sum over."""
    return [d for n in range(1, ndim + 1) for d in itertools.combinations(range(ndim), n)]


def posterior(
    shape: tuple[int, ...],
    *,
    seed: int = 0,
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    requires_grad: bool = False,
) -> tuple[Tensor, Tensor]:
    """Returns a pair `(mu, logvar)` of standard normals."""
    pair = random(2, *shape, seed=seed, dtype=dtype, device=device)
    mu, logvar = (t.clone().requires_grad_(requires_grad) for t in pair)
    return mu, logvar


def normal(key: Tensor, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> Tensor:
    """Returns the package's noise, which is a sample with mu = 0 and logvar = 0."""
    zeros = torch.zeros(shape, dtype=dtype, device=key.device)
    return vf.reparameterize(zeros, zeros, key=key)
