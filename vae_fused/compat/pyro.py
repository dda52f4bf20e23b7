"""Makes the distributions of this package usable as Pyro sites.

``pyro.sample`` requires distributions with Pyro's own methods, such as ``mask`` and ``to_event``,
which torch's distributions lack. :func:`site` adds these methods to a distribution, and the classes
in this file have them:

    import pyro
    from vae_fused.compat.pyro import DiagonalGaussian, site

    pyro.sample("z", DiagonalGaussian(mu, logvar).to_event(1))
    pyro.sample("z", site(q))

The fused functions compute samples and KLs, including the KLs of ``TraceMeanField_ELBO``. Importing
this module requires Pyro.
"""

from __future__ import annotations

import importlib
from typing import Any

from vae_fused import distributions
from vae_fused._normal import FusedNormal
from vae_fused.compat import distributions as drop_in

__all__ = ["DiagonalGaussian", "Normal", "site"]

_Mixin: Any = importlib.import_module(
    "pyro.distributions.torch_distribution"
).TorchDistributionMixin


class DiagonalGaussian(distributions.DiagonalGaussian, _Mixin):  # type: ignore[misc]
    """:class:`vae_fused.DiagonalGaussian` with the methods of Pyro's distributions."""


class Normal(drop_in.Normal, _Mixin):  # type: ignore[misc]
    """:class:`vae_fused.compat.distributions.Normal` with the methods of Pyro's distributions."""


def site(q: FusedNormal) -> Any:
    """Return the same distribution for ``pyro.sample``. It shares the parameters of ``q``.

    Args:
        q: A :class:`vae_fused.DiagonalGaussian` or a
            :class:`vae_fused.compat.distributions.Normal`. A distribution that already has Pyro's
            methods is returned unchanged.

    Raises:
        TypeError: ``q`` is any other distribution.
    """
    if isinstance(q, _Mixin):
        return q
    for cls in (DiagonalGaussian, Normal):
        if type(q) is cls.__bases__[0]:
            new = cls.__new__(cls)
            new.__dict__.update(q.__dict__)
            return new
    raise TypeError(
        "q must be a vae_fused.DiagonalGaussian or a vae_fused.compat.distributions.Normal, got "
        f"{type(q).__name__}; derive a class from it and from Pyro's TorchDistributionMixin"
    )
