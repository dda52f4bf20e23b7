"""Checks for calls with a list of tensors, and the operator arguments for their priors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae_fused._checks import check_call, check_device, check_noise, check_posterior
from vae_fused._learned_prior import as_prior
from vae_fused.options import STANDARD, CheckedPrior, Options, Prior


class CheckedList(NamedTuple):
    """A list of calls that share all options except for the priors."""

    mu: list[Tensor]
    raw: list[Tensor]
    call: Options  # for the first tensor
    priors: list[CheckedPrior]
    given: list[Prior | None]  # the priors before they were expanded and converted

    @property
    def learns_prior(self) -> bool:
        """Whether a prior has a tensor that needs a gradient."""
        return torch.is_grad_enabled() and any(
            t.requires_grad
            for prior in self.priors if has_tensors(prior)
            for t in (prior.mean, prior.raw) if isinstance(t, Tensor)
        )  # fmt: skip

    def arguments(self) -> dict[str, Any]:
        """Return the keyword arguments that all list operators take."""
        return {
            "options": self.call.packed(),
            **(self.call.scalars or {}),
            **prior_arguments(self.priors),
        }


def check_list(
    mus: Sequence[Tensor],
    raws: Sequence[Tensor],
    options: Mapping[str, Any],
    kind: type,
    reduction: str,
) -> CheckedList:
    """Check a list of calls. ``kind`` is the typed dictionary of the accepted options."""
    check_lengths(mus, mus=mus, raws=raws)
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction must be one of sum, mean, got {reduction!r}")
    priors, given = priors_of(options.get("prior"), len(mus)), dict(options)
    mu: list[Tensor] = []
    raw: list[Tensor] = []
    calls: list[Options] = []
    for k, (m, r) in enumerate(zip(mus, raws, strict=True)):
        if k > 0 and priors[k] is priors[0] and not has_tensors(calls[0].prior):
            call = calls[0]  # all its options are numbers and have been checked
            m, r = check_posterior(m, r, call.scale.raw_name)
        else:
            given["prior"] = priors[k]
            m, r, call = check_call(m, r, given, kind)
            given.update(call.scalars or {})  # converted once, not for each tensor
        mu.append(m)
        raw.append(r)
        calls.append(call)
        if m.dtype != mu[0].dtype:
            raise TypeError(
                f"mus[{k}] must have the dtype of mus[0], {mu[0].dtype}, after promotion with the "
                f"raw scale and the prior, got {m.dtype}"
            )
        check_device(f"mus[{k}]", m, mu[0], "mus[0]")
    found = [call.prior or STANDARD for call in calls]
    scale = found[0].scale
    for k, prior in enumerate(found):
        if prior.scale is not scale and prior.scale != scale:
            raise ValueError(
                f"prior[{k}] must have the scale of prior[0], {scale!r}, got {prior.scale!r}"
            )
    return CheckedList(mu, raw, calls[0], found, priors)


def check_list_noise(
    mu: list[Tensor],
    eps: Sequence[Tensor] | None,
    generator: torch.Generator | None,
    key: Tensor | None,
) -> list[Tensor] | None:
    """Check the noise source of a list. Return eps, if given, in the dtype of mu."""
    if eps is None:
        check_noise(mu[0], None, generator, key)
        return None
    check_lengths(mu, eps=eps)
    noise = [check_noise(m, e, generator, key) for m, e in zip(mu, eps, strict=True)]
    return [e for e in noise if e is not None]


def has_tensors(prior: CheckedPrior | None) -> bool:
    return prior is not None and (isinstance(prior.mean, Tensor) or isinstance(prior.raw, Tensor))


def check_lengths(like: Sequence[Tensor], /, **lists: Sequence[Tensor]) -> None:
    for name, values in lists.items():
        if isinstance(values, Tensor | str | Mapping) or not hasattr(values, "__len__"):
            raise TypeError(f"{name} must be a sequence of Tensors, got {type(values).__name__}")
        if len(like) == 0:
            raise ValueError(f"{name} must contain at least 1 tensor, got none")
        if len(values) != len(like):
            raise ValueError(f"{name} must have the length of mus, {len(like)}, got {len(values)}")


def priors_of(given: Any, count: int) -> list[Prior | None]:
    """Return one prior per tensor of a list, from a shared prior or from a sequence."""
    if not hasattr(given, "__len__"):  # neither a sequence nor an nn.ModuleList
        return [None if given is None else as_prior(given)] * count
    if len(given) != count:
        raise ValueError(
            f"prior must have the length of mus, {count}, got {len(given)}; pass one vf.Prior for "
            "all tensors"
        )
    return [None if prior is None else as_prior(prior) for prior in given]


def prior_arguments(priors: list[CheckedPrior]) -> dict[str, Any]:
    """Return the prior arguments: tensors, and numbers unless all priors are one fixed prior."""
    means, raws = [p.mean for p in priors], [p.raw for p in priors]
    tensors = {"prior_mean": _tensors(means), "prior_raw": _tensors(raws)}
    numbers: list[float] = []
    if any(tensors.values()) or means != means[:1] * len(means) or raws != raws[:1] * len(raws):
        pairs = zip(means, raws, strict=True)
        numbers = [0.0 if isinstance(x, Tensor) else float(x) for pair in pairs for x in pair]
    return {**tensors, "prior_numbers": numbers}


def _tensors(values: list[Tensor | float]) -> list[Tensor | None]:
    """Replace numbers with None, or return an empty list if no value is a tensor."""
    # An AOTInductor package cannot represent an empty list of optional tensors.
    if not any(isinstance(v, Tensor) for v in values) and not torch.compiler.is_exporting():
        return []
    return [value if isinstance(value, Tensor) else None for value in values]
