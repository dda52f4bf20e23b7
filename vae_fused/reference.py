"""The public functions in plain PyTorch: the oracle of the tests and the fallback.

Each is the function of that name in ``vae_fused.functional``, ``vae_fused.lists``,
``vae_fused.losses``, ``vae_fused.elbo`` or ``vae_fused.stats``, with its arguments, checks, dtypes and shapes, computed
without operators: on any device, differentiable to any order in reverse mode. ``iwae_loss`` has no
operators and is the same function in both.
Without a key the noise is ``torch.randn``'s, bit for bit what eager code draws; with one it is the
stateless Philox stream.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

from vae_fused import elbo, functional, lists, losses, stats
from vae_fused._formulas.latent import noise_of_multi, normal, philox
from vae_fused.iwae import iwae_loss

__all__ = [
    "elbo_loss",
    "gaussian_kl",
    "gaussian_kl_multi",
    "gaussian_log_prob",
    "iwae_loss",
    "latent_stats",
    "nll",
    "noise_of_multi",
    "normal",
    "philox",
    "reparameterize",
    "reparameterize_kl",
    "reparameterize_kl_moments",
    "reparameterize_kl_multi",
    "sampled_kl",
]

F = TypeVar("F", bound=Callable[..., Any])


def _twin(function: F) -> F:
    """The function without operators."""

    @functools.wraps(function)
    def twin(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs, _reference=True)

    twin.__module__ = __name__
    same = "in plain PyTorch: same arguments, results and errors."
    twin.__doc__ = f":func:`vae_fused.{function.__name__}` {same}"
    return twin  # type: ignore[return-value]


elbo_loss = _twin(elbo.elbo_loss)
gaussian_kl = _twin(functional.gaussian_kl)
gaussian_kl_multi = _twin(lists.gaussian_kl_multi)
gaussian_log_prob = _twin(losses.gaussian_log_prob)
latent_stats = _twin(stats.latent_stats)
nll = _twin(losses.nll)
reparameterize = _twin(functional.reparameterize)
reparameterize_kl = _twin(functional.reparameterize_kl)
reparameterize_kl_moments = _twin(functional.reparameterize_kl_moments)
reparameterize_kl_multi = _twin(lists.reparameterize_kl_multi)
sampled_kl = _twin(functional.sampled_kl)
