"""The public methods of every kind."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.distributions import Distribution

from vae_fused import losses
from vae_fused._formulas.latent import widen
from vae_fused._likelihood import Likelihood
from vae_fused._likelihood_checks import check_outputs

Outputs: TypeAlias = tuple[Tensor, ...]


@dataclass(frozen=True, repr=False)
class Kind(Likelihood):
    """Base class with the public methods of every kind."""

    def log_prob(
        self,
        output: Tensor | Sequence[Tensor],
        target: Tensor,
        *,
        mask: Tensor | None = None,
        library: Tensor | None = None,
    ) -> Tensor:
        """The log likelihood of each element: minus :func:`vae_fused.nll` without a reduction.

        Args:
            output, target, mask, library: As for :func:`vae_fused.nll`.

        Returns:
            A tensor in the shape of the first output, float32 (float64 for float64 outputs).
        """
        return -losses.nll(output, target, self, reduction="none", mask=mask, library=library)

    def distribution(
        self, output: Tensor | Sequence[Tensor], library: Tensor | None = None
    ) -> Distribution:
        """The distribution of a target, with ``sample``, ``mean``, ``variance`` and ``log_prob``.

        Its parameters are float32 (float64 for float64 outputs), and gradients reach ``output``
        through them. The distribution checks values if ``validate`` is True, and ignores ``eps``.

        Args:
            output, library: As for :func:`vae_fused.nll`.
        """
        outputs, library = check_outputs(output, library, self)
        outputs = tuple(widen(value) for value in outputs)
        return self.distribution_of(torch.broadcast_tensors(*outputs), library)

    @abstractmethod
    def distribution_of(self, outputs: Outputs, library: Tensor | None) -> Distribution:
        """The distribution for checked outputs of the same shape and dtype."""
