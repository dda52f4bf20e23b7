"""The posteriors of diffusers' autoencoders, implemented with the fused functions.

Each class has the name, the defaults and the formulas of diffusers' class, so code written for that
class can use it unchanged. diffusers itself is not required:

    from vae_fused.compat.diffusers import DiagonalGaussianDistribution

=============================================  =====================================================
``DiagonalGaussianDistribution``               images and video; ``models/autoencoders/vae.py``,
                                               after CompVis' ``ldm``
``OobleckDiagonalGaussianDistribution``        audio: Stable Audio, Cosmos 3;
                                               ``models/autoencoders/autoencoder_oobleck.py``
``MiniMaxH3AudioDiagonalGaussianDistribution`` audio: MiniMax-H3;
                                               ``autoencoder_kl_minimax_h3_audio.py`` there
=============================================  =====================================================

Each class computes sigma from its parameters in a different way, so the same parameters give a
different sigma in each class. ``IdentityDistribution``, the remaining posterior of diffusers, has
neither noise nor a KL, so there is nothing to replace.

If diffusers is installed, :func:`patch` gives each of its classes the methods of the stand-in with
the same name:

    import vae_fused.compat.diffusers

    vae_fused.compat.diffusers.patch()

The class objects remain diffusers' own. Therefore, every module that imported one of them, at any
time, uses the new methods, and ``isinstance`` and pickles work as before.

Where results differ from diffusers':

- KL and nll of 16-bit moments are computed and returned in float32. diffusers computes them in 16
  bits, and in float16 the sum over a latent overflows.
- ``sample()`` without a generator stores no noise for the backward pass. It obeys
  ``torch.manual_seed``, but its noise differs from that of ``torch.randn``. With a generator, the
  noise is the same, so seeded pipelines draw the same latents.
- The KL of a deterministic posterior is a zero of shape (1,), as in diffusers, but on the device of
  ``parameters``.

You can assign attributes and modify them in place, as in diffusers: ``q.mean = 0.2 * q.mean``.
Methods that depend on such an attribute then evaluate diffusers' formula, with the noise of
``torch.randn``.
"""

from __future__ import annotations

import importlib
import math
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from vae_fused import functional
from vae_fused._checks import check_moments, check_posterior
from vae_fused.compat import _patch
from vae_fused.compat._posterior import (
    LATENT_DIMS,
    LOG_2PI,
    Posterior,
    State,
    as_tuple,
    default_dims,
    is_point,
    kl_by_formula,
    moments,
    reduction,
    untouched,
    widen,
)
from vae_fused.distributions import DiagonalGaussian, kl_between
from vae_fused.options import Scale

__all__ = [
    "DiagonalGaussianDistribution",
    "MiniMaxH3AudioDiagonalGaussianDistribution",
    "OobleckDiagonalGaussianDistribution",
    "is_patched",
    "patch",
    "unpatch",
]


class DiagonalGaussianDistribution(Posterior):
    """Posterior over latents, from an encoder's packed output.

    ``kl()`` and ``nll()`` sum over the dimensions (1, 2, 3), as in diffusers. Latents with fewer
    dimensions, which are an error in diffusers, are summed over all dimensions but the first.
    Latents with more dimensions keep the remaining ones, as in diffusers: the KL of a (B, C, T, H,
    W) video has shape (B, W), and its mean is W times too small. A warning reports this, and
    ``dim=(1, 2, 3, 4)`` gives the KL of each sample.

    Args:
        parameters: Mean and log variance, packed along dimension 1: ``(B, 2C, ...)``, float32,
            float64, float16 or bfloat16. Do not modify it in place while the posterior is in use.
        deterministic: Whether the variance is 0.
        share_launch: Whether ``sample()`` also computes the KL, in the same launch, for the next
            ``kl()``. The sample and the KL then belong to one autograd node. A backward pass
            through one of them without ``retain_graph=True`` frees the node, so a second pass
            through the other raises an error. Default: False, or the argument of :func:`patch`.

    Attributes:
        parameters: As given.
        mean: ``(B, C, ...)``, a view of ``parameters``.
        logvar: ``(B, C, ...)``, clamped to (-30, 20); the gradient is 0 outside.
        std, var: ``(B, C, ...)``; 0 if deterministic.
        deterministic: As given.

    Raises:
        TypeError: ``parameters`` is not a floating point tensor.
        ValueError: ``parameters`` has fewer than two dimensions, or an odd size in dimension 1.
    """

    _LAW: ClassVar[Scale] = Scale("logvar", clamp=(-30.0, 20.0))

    def __init__(
        self, parameters: Tensor, deterministic: bool = False, *, share_launch: bool | None = None
    ) -> None:
        self.parameters = parameters
        self.deterministic = deterministic
        self._state = _packed_state(
            parameters, deterministic, self._share_launch if share_launch is None else share_launch
        )

    def kl(self, other: Any = None, *, dim: int | Sequence[int] | None = None) -> Tensor:
        """KL from the standard normal or from ``other``, in nats. Its shape is ``(B,)`` for images.

        Args:
            other: An object with ``mean`` and ``logvar``, such as another instance of this class or
                of diffusers'. If ``other`` is deterministic, the KL is inf.
            dim: The dimensions to sum over. Default: (1, 2, 3), as in diffusers; see the class.
        """
        if self.deterministic:
            return self._zero()
        ndim = len(self._shape())
        dims = default_dims(ndim, "dim") if dim is None else dim
        is_touched = self._is_touched("mean", "logvar", "var")
        if other is None:
            if is_touched:
                return kl_by_formula(self, dims)
            if dim is None and (kl := self._take_kl()) is not None:
                return kl
            mean, raw = self._halves()
            return functional.gaussian_kl(mean, raw, scale=self._LAW, **reduction(ndim, dim))
        if is_point(other):
            return torch.full_like(widen(self.mean - other.mean).sum(as_tuple(dims)), torch.inf)
        prior = untouched(other)
        if is_touched or prior is None:
            return kl_by_formula(self, dims, other)
        return kl_between(DiagonalGaussian(*self._halves(), scale=self._LAW), prior, dim=dims)

    def nll(self, sample: Tensor, dims: int | Sequence[int] = LATENT_DIMS) -> Tensor:
        """Negative log likelihood of ``sample``, in nats, summed over ``dims``."""
        if self.deterministic:
            return self._zero()
        ndim = len(self._shape())
        if dims is LATENT_DIMS or (ndim < 4 and [*as_tuple(dims)] == [*LATENT_DIMS]):
            dims = default_dims(ndim, "dims")
        if self._is_touched("mean", "logvar", "var"):
            mean, var, logvar = moments(self)
            terms: Tensor = LOG_2PI + logvar + (widen(sample) - mean) ** 2 / var
            return 0.5 * terms.sum(as_tuple(dims))
        return DiagonalGaussian(*self._halves(), scale=self._LAW).nll(sample, dims)

    def _sample_and_kl(self, eps: Tensor | None) -> tuple[Tensor, Tensor]:
        ndim = len(self._shape())
        reduced = reduction(ndim, None)
        if "dim" in reduced:
            reduced = {"kl_dim": reduced["dim"]}
        return functional.reparameterize_kl_moments(
            self._packed(), scale=self._LAW, eps=eps, **reduced
        )


class OobleckDiagonalGaussianDistribution(Posterior):
    """Posterior over audio latents, from an encoder's packed output.

    sigma is ``softplus(scale) + 1e-4``.

    Args:
        parameters: Mean and scale, packed along dimension 1: ``(B, 2C, T)``, float32, float64,
            float16 or bfloat16. Do not modify it in place while the posterior is in use.
        deterministic: Whether the KL is 0. As in diffusers, samples are random in any case.
        share_launch: As in :class:`DiagonalGaussianDistribution`.

    Attributes:
        parameters: As given.
        mean, scale: ``(B, C, T)``, views of ``parameters``.
        std, var, logvar: ``(B, C, T)``.
        deterministic: As given.

    Raises:
        TypeError: ``parameters`` is not a floating point tensor.
        ValueError: ``parameters`` has fewer than two dimensions, or an odd size in dimension 1.
    """

    _LAW: ClassVar[Scale] = Scale("softplus", std_floor=1e-4)
    _RAW: ClassVar[str | None] = "scale"
    _ATTRIBUTES: ClassVar[tuple[str, ...]] = ("mean", "scale", "logvar", "std", "var")

    def __init__(
        self, parameters: Tensor, deterministic: bool = False, *, share_launch: bool | None = None
    ) -> None:
        self.parameters = parameters
        self.deterministic = deterministic
        self._state = _packed_state(
            parameters, False, self._share_launch if share_launch is None else share_launch
        )

    def kl(self, other: Any = None) -> Tensor:
        """Twice the KL in nats, summed over dimension 1 and averaged over the others: a 0-d tensor.

        Args:
            other: A posterior with ``mean``, ``var`` and ``logvar``; default: the standard normal.
                With ``other``, the result is that of diffusers' formula, in which the logarithms
                have the wrong sign. It is therefore not a KL and may be negative.
        """
        if self.deterministic:
            return self._zero()
        if other is not None:
            mean, var, logvar = moments(self)
            m, prior_var, prior_logvar = moments(other)
            terms = (mean - m) ** 2 / prior_var + var / prior_var + (logvar - prior_logvar) - 1
            return terms.sum(1).mean()
        if self._is_touched("mean", "logvar", "var"):
            mean, var, logvar = moments(self)
            return (mean * mean + var - logvar - 1.0).sum(1).mean()
        kl = self._take_kl()
        if kl is None:
            mean, raw = self._halves()
            kl = functional.gaussian_kl(mean, raw, scale=self._LAW, reduction="sum")
        return kl * self._weight()

    def _weight(self) -> float:
        """The factor for a sum over all elements: 2 divided by the number of averaged values."""
        shape = self._shape()
        columns = math.prod((shape[0], *shape[2:]))
        return 2.0 / columns if columns else math.nan

    def _sample_and_kl(self, eps: Tensor | None) -> tuple[Tensor, Tensor]:
        return functional.reparameterize_kl_moments(
            self._packed(), scale=self._LAW, reduction="sum", eps=eps
        )


class MiniMaxH3AudioDiagonalGaussianDistribution(Posterior):
    """Posterior over MiniMax-H3's audio latents, from two outputs of an encoder.

    Args:
        mean: ``(B, C, T)``, float32, float64, float16 or bfloat16.
        logs: ``ln sigma``, in the shape of ``mean``. Do not modify either in place while the
            posterior is in use.

    Attributes:
        mean, logs: As given.
        std: ``(B, C, T)``.

    Raises:
        TypeError: ``mean`` or ``logs`` is not a floating point tensor.
        ValueError: Their shapes do not broadcast.
    """

    _LAW: ClassVar[Scale] = Scale("logstd")
    _RAW: ClassVar[str | None] = "logs"
    _ATTRIBUTES: ClassVar[tuple[str, ...]] = ("mean", "logs", "std")

    def __init__(self, mean: Tensor, logs: Tensor) -> None:
        check_posterior(mean, logs, "logs", "mean")
        self._state = State(halves=(mean, logs))


def _packed_state(parameters: Tensor, deterministic: bool, share_launch: bool) -> State:
    # The shape is usually valid, and this test takes almost no time.
    if not isinstance(parameters, Tensor) or parameters.dim() < 2 or parameters.shape[1] % 2:
        check_moments(parameters, 1)
    return State(parameters, deterministic=deterministic, shares_launch=share_launch)


# --------------------------------------------------------------------------------------------------
# diffusers' own classes
# --------------------------------------------------------------------------------------------------

PACKAGE = "diffusers.models.autoencoders"
# For each diffusers module: the stand-in for its class, and the number of constructor tensors.
STAND_INS: dict[str, tuple[type[Posterior], int]] = {
    "vae": (DiagonalGaussianDistribution, 1),
    "autoencoder_oobleck": (OobleckDiagonalGaussianDistribution, 1),
    "autoencoder_kl_minimax_h3_audio": (MiniMaxH3AudioDiagonalGaussianDistribution, 2),
}

_patched: dict[type, dict[str, Any]] = {}  # diffusers' classes, with their own methods
_declined: set[type] = set()


def patch(*, share_launch: bool = False) -> bool:
    """Replace the methods of diffusers' posteriors with those of this module.

    Each class is first compared with its stand-in on a small float64 batch: the values and
    gradients of attributes, samples, KL and nll. A class whose results differ, as they may in a
    future version, is not changed, and a warning reports it once. A class that the installed
    version lacks is skipped.

    Existing posteriors keep their attributes. Compiled code that has constructed a posterior must
    be compiled again (``torch.compiler.reset()``).

    Args:
        share_launch: Whether ``sample()`` also computes the KL, in the same launch, for the next
            ``kl()``. Separate backward passes through the two then require ``retain_graph=True``;
            see :class:`DiagonalGaussianDistribution`. A second call of ``patch`` changes only this
            setting.

    Returns:
        Whether every posterior class of the installed version that has a stand-in is replaced.

    Raises:
        ImportError: diffusers is not installed.
    """
    for module_name, (stand_in, count) in STAND_INS.items():
        original = _class_of_diffusers(module_name, stand_in.__name__)
        if original is None or original in _declined:
            continue
        if original not in _patched:
            problem = _patch.difference(original, stand_in, count)
            if problem:
                _declined.add(original)
                warnings.warn(
                    f"vae_fused does not replace a posterior of diffusers: {problem}",
                    RuntimeWarning,
                    stacklevel=2,
                )
                continue
            _patched[original] = _patch.install(original, stand_in)
        original._share_launch = share_launch
    return not _declined


def unpatch() -> None:
    """Restore the classes that :func:`patch` replaced, and let it compare declined classes again.

    Existing posteriors get all attributes that diffusers' methods expect.
    """
    _declined.clear()
    if not _patched:
        return
    for posterior in _patch.live_instances(_patched):
        posterior._compute_all()
        posterior.__dict__.pop("_state", None)
    for original, saved in _patched.items():
        _patch.restore(original, saved)
    _patched.clear()


def is_patched() -> bool:
    """Whether any of diffusers' posterior classes is replaced."""
    return bool(_patched)


def _class_of_diffusers(module: str, name: str) -> Any:
    """Return a diffusers class, or None if this version lacks it."""
    importlib.import_module("diffusers")
    try:
        return getattr(importlib.import_module(f"{PACKAGE}.{module}"), name, None)
    except ModuleNotFoundError:
        return None
