"""Modules that wrap the functions, for models that are built from modules.

``LearnedPrior`` owns parameters. The other modules have state only if options are passed as 0-d
tensors. Such options are buffers, named ``temperature``, ``free_bits``, ``to_posterior`` and
``to_prior`` (the last two for ``balance``). These buffers move with the module and are saved with
it, and they can be changed in place.

For a sample and its KL in one launch, call the function ``vf.reparameterize_kl``. Pass its KL to
``ELBOLoss`` as ``kl=``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import Module

from vae_fused import functional
from vae_fused._checks import check_call, check_reduction, check_tensor
from vae_fused._elbo_checks import FREE_BITS_PER, check_batch, check_weight
from vae_fused._formulas import latent
from vae_fused._iwae_module import IWAELoss
from vae_fused._keywords import LatentOptions, SampleOptions, chosen
from vae_fused._learned_prior import LearnedPrior
from vae_fused._likelihood import Likelihood, as_likelihood, class_or_type
from vae_fused._numbers import check_choice
from vae_fused._overrides import call_override, has_override
from vae_fused._remedies import kind_of
from vae_fused.elbo import ELBOTerms, elbo_loss, elbo_of_reconstruction
from vae_fused.likelihoods import Bernoulli, Gaussian
from vae_fused.options import Prior, Scale
from vae_fused.schedules import CyclicalSchedule, LinearSchedule, Schedule, SigmoidSchedule

__all__ = [
    "CyclicalSchedule",
    "ELBOLoss",
    "ELBOTerms",
    "GaussianKL",
    "IWAELoss",
    "LearnedPrior",
    "LinearSchedule",
    "Reparameterize",
    "Schedule",
    "SigmoidSchedule",
]

# Additional names for reconstructions, and the likelihoods that they stand for. A Gaussian with
# variance 1/2 and without constants is the squared error.
_ALIASES: dict[str, Likelihood] = {
    "bce_with_logits": Bernoulli(),
    "mse": Gaussian(sigma=math.sqrt(0.5), constants=False),
    "gaussian": Gaussian(sigma=1.0),
}

Output: TypeAlias = Tensor | tuple[Tensor, ...]


class _WithOptions(Module):
    """A module that stores options of the functions. Options that are 0-d tensors are buffers."""

    def _keep(self, **options: Any) -> None:
        """Check the options at construction, and store those that differ from their defaults."""
        given, posterior = chosen(options, LatentOptions), torch.empty(1, device="meta")
        on_meta = {name: _each(value, lambda t: t.to("meta")) for name, value in given.items()}
        check_call(posterior, posterior, on_meta, LatentOptions)
        self._numbers = {name: _each(value, lambda _: 1.0) for name, value in given.items()}
        wq, wp = given.get("balance", (None, None))
        for name, value in {**given, "to_posterior": wq, "to_prior": wp}.items():
            if isinstance(value, Tensor):
                self.register_buffer(name, value)

    @property
    def options(self) -> dict[str, Any]:
        """The options that differ from their defaults, in the form that the functions take."""
        if not self._buffers:
            return self._numbers
        options = {name: self._buffers.get(name, value) for name, value in self._numbers.items()}
        if "balance" in options:
            pair = zip(("to_posterior", "to_prior"), options["balance"], strict=True)
            options["balance"] = tuple(self._buffers.get(name, weight) for name, weight in pair)
        return options


def _each(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """Apply a function to an option if it is a tensor, or to each part that is one."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        return tuple(_each(part, function) for part in value)
    return function(value) if isinstance(value, Tensor) else value


class Reparameterize(_WithOptions):
    """Samples a diagonal Gaussian in training and returns its mean in evaluation.

    Args:
        scale, mu_soft_clamp, temperature: As in :func:`vae_fused.reparameterize`.

    Shape:
        ``mu`` and ``logvar`` (or the raw scale for another ``scale``): any shapes that broadcast.
        In both modes, the result has their broadcast shape, preceded by ``sample_shape``, and their
        promoted dtype.

    Raises:
        TypeError, ValueError: An invalid argument.
    """

    def __init__(
        self,
        scale: str | Scale = "logvar",
        *,
        mu_soft_clamp: float | None = None,
        temperature: float | Tensor = 1.0,
    ) -> None:
        super().__init__()
        self._keep(scale=scale, mu_soft_clamp=mu_soft_clamp, temperature=temperature)

    def forward(
        self,
        mu: Tensor,
        logvar: Tensor,
        *,
        mask: Tensor | None = None,
        sample_shape: int | Sequence[int] = (),
        eps: Tensor | None = None,
        generator: torch.Generator | None = None,
        key: Tensor | None = None,
    ) -> Tensor:
        """Return ``vf.reparameterize(mu, logvar, ...)`` in training, and its mean in evaluation."""
        options = {**self.options, "mask": mask, "sample_shape": sample_shape}
        if self.training:
            return functional.reparameterize(
                mu, logvar, **options, eps=eps, generator=generator, key=key
            )
        return _mean(mu, logvar, options)

    def extra_repr(self) -> str:
        return _repr(self.options)


def _mean(mu: Tensor, logvar: Tensor, options: dict[str, Any]) -> Tensor:
    if has_override(mu, logvar):
        return call_override(_mean, locals())
    mu, _, checked = check_call(mu, logvar, options, SampleOptions)
    return latent.mean(mu, checked)


class GaussianKL(_WithOptions):
    """KL divergence of a diagonal Gaussian from a prior, by default the standard normal, in nats.

    Args:
        reduction, dim: As in :func:`vae_fused.gaussian_kl`. The default ``"batchmean"`` is the KL
            of a sample, averaged over dimension 0.
        scale, mu_soft_clamp, free_bits, balance: As in :func:`vae_fused.gaussian_kl`.

    Raises:
        TypeError, ValueError: An invalid argument. An out-of-range ``dim`` raises an error only
            when the module is called.
    """

    def __init__(
        self,
        reduction: str = "batchmean",
        dim: int | Sequence[int] | None = None,
        *,
        scale: str | Scale = "logvar",
        mu_soft_clamp: float | None = None,
        free_bits: float | Tensor = 0.0,
        balance: tuple[float | Tensor, float | Tensor] | None = None,
    ) -> None:
        super().__init__()
        if dim is None or reduction != "batchmean":
            check_reduction(torch.empty(1, device="meta"), reduction, dim)
        self.reduction, self.dim = reduction, dim
        self._keep(scale=scale, mu_soft_clamp=mu_soft_clamp, free_bits=free_bits, balance=balance)

    def forward(
        self,
        mu: Tensor,
        logvar: Tensor,
        *,
        prior: Prior | Module | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """Return ``vf.gaussian_kl(mu, logvar, reduction=reduction, dim=dim, ...)``."""
        return functional.gaussian_kl(
            mu, logvar, **self.options, prior=prior, mask=mask,
            reduction=self.reduction, dim=self.dim,
        )  # fmt: skip

    def extra_repr(self) -> str:
        given = {"reduction": self.reduction} if self.dim is None else {"dim": self.dim}
        return _repr({**given, **self.options})


def _repr(options: dict[str, Any]) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in options.items())


class ELBOLoss(_WithOptions):
    r"""The negative evidence lower bound, :math:`-\ln p(x|z) + \beta\,\mathrm{KL}(q(z|x)\|p(z))`.

    This is :func:`vae_fused.elbo_loss` as a module that stores the options. Both terms are **summed
    over the dimensions of each sample and averaged over the batch** (dimension 0), so their
    relative weight is the one in the bound. If you average the reconstruction over pixels but sum
    the KL, or the reverse, you implicitly scale beta by a factor of thousands. (Kingma and Welling
    2014, equation 10; Higgins et al. 2017 for beta.)

    Args:
        reconstruction: The term :math:`-\ln p(x|z)` of a sample:

            - a kind of :mod:`vae_fused.likelihoods`, or its name, as in :func:`vae_fused.nll`.
              ``"gaussian"`` also accepts a single tensor, the mean, and then has variance 1;
            - ``"bce_with_logits"``: another name for ``"bernoulli"``, whose ``output`` are logits;
            - ``"mse"``: the sum of squared errors: up to a constant, a Gaussian with variance 1/2;
            - a callable of ``(output, target)``. If it returns a tensor whose dimension 0 is the
              batch, the module sums that tensor over the other dimensions and averages it over the
              batch. If it returns a 0-d tensor, the tensor is used unchanged and must be a batch
              mean of per-sample sums. (``F.mse_loss`` does not return such a mean, because it also
              divides by the number of pixels. Call it with ``reduction="none"``.)
        beta: Weight of the KL: a number, a 0-d tensor, or a module that returns one, such as a
            schedule. For a warm-up, you can also pass ``beta=`` to each call.
        capacity, free_bits_per, grad: As in :func:`vae_fused.elbo_loss`. ``grad`` has no effect
            with a callable.
        scale, mu_soft_clamp, free_bits, balance: Options of the KL, as in
            :func:`vae_fused.gaussian_kl`.

    Raises:
        TypeError, ValueError: An unknown ``reconstruction``, a ``beta`` that is not a scalar, or an
            invalid KL option.

    Example:
        >>> elbo = vf.nn.ELBOLoss("mse")
        >>> mu, logvar, x = torch.zeros(8, 4), torch.zeros(8, 4), torch.randn(8, 10)
        >>> z, kl = vf.reparameterize_kl(mu, logvar)
        >>> loss, reconstruction, _ = elbo(torch.zeros(8, 10), x, kl=kl, beta=0.1)
    """

    def __init__(
        self,
        reconstruction: str | Likelihood | Callable[[Output, Tensor], Tensor] = "bce_with_logits",
        *,
        beta: float | Tensor | Module = 1.0,
        capacity: float | Tensor | None = None,
        free_bits_per: str = "element",
        grad: str = "backward",
        scale: str | Scale = "logvar",
        mu_soft_clamp: float | None = None,
        free_bits: float | Tensor = 0.0,
        balance: tuple[float | Tensor, float | Tensor] | None = None,
    ) -> None:
        super().__init__()
        if isinstance(reconstruction, str):
            if reconstruction not in _ALIASES:
                as_likelihood(reconstruction)
        elif isinstance(reconstruction, type) or not (
            isinstance(reconstruction, Likelihood) or callable(reconstruction)
        ):
            raise TypeError(
                "reconstruction must be a str, a likelihood or a callable, got "
                f"{class_or_type(reconstruction)}"
            )
        check_choice("free_bits_per", free_bits_per, FREE_BITS_PER)
        check_choice("grad", grad, ("backward", "forward"))
        self.reconstruction = reconstruction
        self.beta = beta if isinstance(beta, Module) else check_weight("beta", beta)
        self.capacity = None if capacity is None else check_weight("capacity", capacity)
        self.free_bits_per, self.grad = free_bits_per, grad
        self._keep(scale=scale, mu_soft_clamp=mu_soft_clamp, free_bits=free_bits, balance=balance)

    def forward(
        self,
        output: Output,
        target: Tensor,
        mu: Tensor | None = None,
        logvar: Tensor | None = None,
        *,
        prior: Prior | Module | None = None,
        mask: Tensor | None = None,
        kl: Tensor | None = None,
        beta: float | Tensor | None = None,
        target_mask: Tensor | None = None,
        weight: Tensor | None = None,
        library: Tensor | None = None,
    ) -> ELBOTerms:
        """Compute the loss of a batch and its terms.

        Args:
            output: The decoder's output, ``(B, ...)``, or the tuple that the likelihood documents.
            target: The data, in the shape of ``output``.
            mu: Posterior mean, ``(B, ...)``.
            logvar: ``ln sigma^2``, or the raw scale for another ``scale``, broadcastable with
                ``mu``.
            prior: p(z), a :class:`vae_fused.Prior` or a module that returns one, such as
                :class:`LearnedPrior`; by default the standard normal.
            mask: Which latents are included: a bool tensor that broadcasts to the posterior's
                shape.
            kl: A KL that is already computed, instead of ``mu``, ``logvar`` and their options. It
                is 0-d (a mean over the batch, such as ``"batchmean"``) or has the batch as
                dimension 0 (``"sample"``, ``"none"``).
            beta: Replaces the module's ``beta``.
            target_mask, weight, library: For the likelihood, as in :func:`vae_fused.elbo_loss`.

        Raises:
            TypeError: An argument that is not a tensor where one is required; both or neither of
                ``mu, logvar`` and ``kl``; a ``prior`` or ``mask`` together with ``kl``.
            ValueError: ``target`` does not have the shape of ``output``, or ``kl`` does not have
                the batch of ``output``.
        """
        if beta is None:
            beta = self.beta() if isinstance(self.beta, Module) else self.beta
        options: dict[str, Any] = self.options
        if kl is not None:
            # The stored options belong to mu and logvar. Free bits also apply to a given KL, unless
            # that KL has already been summed over the elements to which they apply.
            is_summed = self.free_bits_per == "element" and isinstance(kl, Tensor) and kl.dim() < 2
            floors = "free_bits" in options and not is_summed
            options = {"free_bits": options["free_bits"]} if floors else {}
        if prior is not None or mask is not None:
            options = {**options, "prior": prior, "mask": mask}
        more: dict[str, Any] = {
            "beta": beta, "capacity": self.capacity, "free_bits_per": self.free_bits_per
        }  # fmt: skip
        if callable(self.reconstruction):
            of_likelihood = {"target_mask": target_mask, "weight": weight, "library": library}
            given = [name for name, value in of_likelihood.items() if value is not None]
            if given:
                raise TypeError(
                    f"{' and '.join(given)} must come with a likelihood, got a callable as "
                    "reconstruction"
                )
            reconstruction = self.reconstruction(output, target)
            check_tensor("reconstruction", reconstruction)
            # A callable may accept a target without a batch, in which case the batch is not
            # checked.
            if reconstruction.dim() > 0 and isinstance(target, Tensor) and target.dim() > 0:
                check_batch("reconstruction", reconstruction, target, "target")
            return elbo_of_reconstruction(reconstruction, mu, logvar, kl=kl, **more, **options)
        likelihood, output = _likelihood_of(self.reconstruction, output, target)
        return elbo_loss(
            output, target, mu, logvar, kl=kl, likelihood=likelihood, grad=self.grad,
            target_mask=target_mask, weight=weight, library=library, **more, **options,
        )  # fmt: skip

    def extra_repr(self) -> str:
        beta = {} if isinstance(self.beta, Module) else {"beta": self.beta}
        given = {"capacity": self.capacity, "free_bits_per": self.free_bits_per, "grad": self.grad}
        default = {"capacity": None, "free_bits_per": "element", "grad": "backward"}
        chosen = {name: value for name, value in given.items() if value != default[name]}
        return _repr({"reconstruction": self.reconstruction, **beta, **chosen, **self.options})


def _likelihood_of(
    reconstruction: str | Likelihood, output: Output, target: Tensor
) -> tuple[str | Likelihood, Output]:
    """Return the likelihood of a reconstruction. A name in ``_ALIASES`` requires equal shapes."""
    if isinstance(reconstruction, Likelihood) or reconstruction not in _ALIASES:
        return reconstruction, output
    is_pair = isinstance(output, tuple)
    if is_pair and reconstruction != "gaussian":
        raise TypeError(
            f"output must be a Tensor for {reconstruction!r}, got a pair; pass "
            "reconstruction='gaussian'"
        )
    first = output[0] if isinstance(output, tuple) else output
    if has_override(first, target):
        return ("gaussian" if is_pair else _ALIASES[reconstruction]), output
    for name, value in (("output", first), ("target", target)):
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {kind_of(value)}")
    if first.shape != target.shape:
        raise ValueError(
            f"target must have the shape of output, {tuple(first.shape)}, got {tuple(target.shape)}"
        )
    return ("gaussian" if is_pair else _ALIASES[reconstruction]), output
