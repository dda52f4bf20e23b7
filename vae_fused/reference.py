"""The public functions in eager PyTorch, which are the test oracle and the fallback.

Each function has the name, arguments, checks, dtypes and shapes of a function in
``vae_fused.functional``, ``vae_fused.lists``, ``vae_fused.losses``, ``vae_fused.elbo`` or
``vae_fused.stats``. It runs without our operators on any device and is differentiable to any order
in reverse mode. ``iwae_loss`` never uses our operators, so it is the same function as
``vae_fused.iwae_loss``.

Without a key, the noise comes from ``torch.randn``, bit for bit as in eager code. With a key, it
comes from the stateless Philox stream.
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
    """Return the eager version of a function."""

    @functools.wraps(function)
    def twin(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs, _reference=True)

    twin.__module__ = __name__
    same = "in eager PyTorch: same arguments, results and errors."
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
