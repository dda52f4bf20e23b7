"""The messages of a bad call for a list of tensors, and the arguments that its priors become."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vae_fused._checks import check_call, check_device, check_noise
from vae_fused._learned_prior import as_prior
from vae_fused.options import STANDARD, CheckedPrior, Options, Prior


class CheckedList(NamedTuple):
    """A list of calls that have their options in common, but for the priors."""

    mu: list[Tensor]
    raw: list[Tensor]
    call: Options  # of the first tensor
    priors: list[CheckedPrior]

    @property
    def learns_prior(self) -> bool:
        """Whether a gradient goes to the tensor of a prior."""
        return torch.is_grad_enabled() and any(
            isinstance(t, Tensor) and t.requires_grad for p in self.priors for t in (p.mean, p.raw)
        )

    def arguments(self) -> dict[str, Any]:
        """The keyword arguments that the operators of lists have in common."""
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
    """Check a list of calls; ``kind`` is the typed dictionary of their options."""
    check_lengths(mus, mus=mus, raws=raws)
    if reduction not in ("sum", "mean"):
        raise ValueError(f"reduction is {reduction!r}, wants sum or mean")
    priors = priors_of(options.get("prior"), len(mus))
    mu: list[Tensor] = []
    raw: list[Tensor] = []
    calls: list[Options] = []
    for k, (m, r) in enumerate(zip(mus, raws, strict=True)):
        given = {**options, "prior": priors[k]}
        if calls:  # converted once, not for each tensor
            given.update(calls[0].scalars or {})
        checked = check_call(m, r, given, kind)
        mu.append(checked[0])
        raw.append(checked[1])
        calls.append(checked[2])
        if mu[k].dtype != mu[0].dtype:
            raise TypeError(f"mus[{k}] has dtype {mu[k].dtype}, mus[0] {mu[0].dtype}; want one")
        check_device(f"mus[{k}]", mu[k], mu[0], "mus[0]")
    found = [call.prior or STANDARD for call in calls]
    for k, prior in enumerate(found):
        if prior.scale != found[0].scale:
            raise ValueError(
                f"prior[{k}] has another scale than prior[0]; the priors of a list share one scale"
            )
    return CheckedList(mu, raw, calls[0], found)


def check_list_noise(
    mu: list[Tensor],
    eps: Sequence[Tensor] | None,
    generator: torch.Generator | None,
    key: Tensor | None,
) -> list[Tensor] | None:
    """Check where the noise of a list comes from; return eps, if given, in the dtype of mu."""
    if eps is None:
        check_noise(mu[0], None, generator, key)
        return None
    check_lengths(mu, eps=eps)
    noise = [check_noise(m, e, generator, key) for m, e in zip(mu, eps, strict=True)]
    return [e for e in noise if e is not None]


def check_lengths(like: Sequence[Tensor], /, **lists: Sequence[Tensor]) -> None:
    for name, values in lists.items():
        if not isinstance(values, Sequence):
            raise TypeError(f"{name} must be a sequence of Tensors, got {type(values).__name__}")
        if not values or len(values) != len(like):
            raise ValueError(f"{name} has {len(values)} tensors, wants those of mus: {len(like)}")


def priors_of(given: Any, count: int) -> list[Prior | None]:
    """A prior for each tensor of a list, from one for all of them or from a sequence."""
    if not isinstance(given, Sequence):
        return [None if given is None else as_prior(given)] * count
    if len(given) != count:
        raise ValueError(f"prior has {len(given)} priors, wants one for each of {count} tensors")
    return [as_prior(prior) for prior in given]


def prior_arguments(priors: list[CheckedPrior]) -> dict[str, Any]:
    """The operators' arguments for priors: tensors, and numbers where they differ."""
    fields = {"prior_mean": [p.mean for p in priors], "prior_raw": [p.raw for p in priors]}
    arguments: dict[str, Any] = {}
    for name, values in fields.items():
        tensors = [value if isinstance(value, Tensor) else None for value in values]
        # The file of an AOTInductor package has no notation for an empty list of optional tensors.
        is_listed = torch.compiler.is_exporting() or any(t is not None for t in tensors)
        arguments[name] = tensors if is_listed else []
        fields[name] = [0.0 if isinstance(value, Tensor) else float(value) for value in values]
    pairs = list(zip(fields["prior_mean"], fields["prior_raw"], strict=True))
    differ = any(pair != pairs[0] for pair in pairs) or any(map(len, arguments.values()))
    arguments["prior_numbers"] = [x for pair in pairs for x in pair] if differ else []
    return arguments
