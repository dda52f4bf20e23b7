r"""Weight schedules: 0-d tensors that follow a formula from one training step to the next.

A schedule is a module. Its value is a buffer, so it moves with ``.to(device)``, and :meth:`step`
computes the next value on that device. The host neither waits for the device nor copies to it. The
value changes in place, so a compiled function that reads it is not recompiled.

    >>> import torch, vae_fused as vf
    >>> beta = vf.nn.LinearSchedule(1000)  # from 0 to 1 in 1000 steps
    >>> mu, logvar = torch.zeros(8, 4), torch.zeros(8, 4)
    >>> for _ in range(10):
    ...     z, kl = vf.reparameterize_kl(mu, logvar)
    ...     loss = beta() * kl
    ...     _ = beta.step()

You can pass the value wherever this package accepts a 0-d tensor: ``beta=``, ``temperature=``,
``free_bits=`` and the weights of ``balance=``. Because it is one tensor, three rules apply:

- Pass ``schedule()`` to each call. A module that received the tensor in its constructor loses the
  connection to the schedule when it moves to another device.
- Call ``step()`` after ``backward()``, where you call ``optimizer.step()``. Autograd saves the
  weight of a product, and raises an error if the weight has changed by the time of ``backward()``.
- To log the value, read it with ``float(schedule())``, which waits for the device.
"""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor
from torch.nn import Module

from vae_fused._numbers import check_number, check_positive

__all__ = ["CyclicalSchedule", "LinearSchedule", "Schedule", "SigmoidSchedule"]


class Schedule(Module):
    r"""The base class of the schedules.

    After :math:`t` calls of :meth:`step`, the value is

    .. math:: v_t = \text{start} + (\text{end} - \text{start})\, r(t),

    where a subclass overrides :meth:`ramp` to define the ramp :math:`r`. From step :math:`t = T`
    on, the value is ``end``.

    The state is the number of steps so far. The value is always computed from this state, even
    after ``load_state_dict``, so a schedule with other options continues at the same step. The
    value is computed in its own dtype, or in float32 if that dtype has 16 bits.

    Args:
        steps: T, the number of steps after which the value is ``end``, at least 1.
        start: The first value.
        end: The last value.
        device, dtype: The device and the floating-point dtype of the value, by default torch's.

    Attributes:
        value: The current value, a 0-d tensor that :meth:`step` changes in place.
        step_count: The number of steps so far, a 0-d int64 tensor.

    Raises:
        TypeError, ValueError: An invalid argument.
    """

    value: Tensor
    step_count: Tensor

    def __init__(
        self,
        steps: int,
        start: float = 0.0,
        end: float = 1.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.steps = _check_count("steps", steps)
        self.start, self.end = check_number("start", start), check_number("end", end)
        value = torch.full((), self.start, device=device, dtype=dtype or torch.get_default_dtype())
        if not value.is_floating_point():
            raise TypeError(f"dtype must be a floating-point dtype, got {value.dtype}")
        self.register_buffer("value", value, persistent=False)
        count = torch.zeros((), dtype=torch.int64, device=value.device)
        self.register_buffer("step_count", count)
        self.register_load_state_dict_post_hook(_recompute)  # type: ignore[no-untyped-call]

    def ramp(self, step: Tensor) -> Tensor:
        """Return the fraction of the way from ``start`` to ``end`` at a step, as a 0-d tensor.

        Args:
            step: The number of steps so far, a 0-d int64 tensor of at most T. The result at T is
                not used.
        """
        raise NotImplementedError

    def forward(self) -> Tensor:
        """Return the current value, which is the same tensor in each call."""
        return self.value

    @torch.no_grad()
    def step(self) -> Tensor:
        """Advance by one step, in place.

        Returns:
            The new value, in the tensor that ``forward`` returns.
        """
        self.step_count.add_(1)
        return self._compute()

    @torch.no_grad()
    def reset(self) -> Tensor:
        """Return to the first step, in place."""
        self.step_count.zero_()
        return self._compute()

    def _compute(self) -> Tensor:
        count = self.step_count.clamp(max=self.steps)
        wide = torch.float64 if self.value.dtype == torch.float64 else torch.float32
        made = self.ramp(count).to(wide)
        # Unlike start + (end - start) * made, this is exact at both ends.
        value = self.start * (1.0 - made) + self.end * made
        return self.value.copy_(torch.where(count >= self.steps, self.end, value))

    def _fraction(self, count: Tensor, whole: int) -> Tensor:
        """Compute ``count / whole`` in the precision of the value."""
        wide = torch.float64 if self.value.dtype == torch.float64 else torch.float32
        return count.to(wide) / whole

    def extra_repr(self) -> str:
        return f"steps={self.steps}, start={self.start}, end={self.end}"


class LinearSchedule(Schedule):
    r"""A straight line: :math:`r(t) = t / T`.

    This is the usual warm-up of the KL weight (Sønderby et al. 2016, "Ladder Variational
    Autoencoders"; ``n_steps_kl_warmup`` of scvi-tools).

    Args:
        steps, start, end, device, dtype: As in :class:`Schedule`.

    Example:
        >>> beta = vf.nn.LinearSchedule(4, end=2.0)
        >>> [float(beta())] + [float(beta.step()) for _ in range(5)]
        [0.0, 0.5, 1.0, 1.5, 2.0, 2.0]
    """

    def __init__(
        self,
        steps: int,
        start: float = 0.0,
        end: float = 1.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(steps, start, end, device=device, dtype=dtype)
        self.reset()

    def ramp(self, step: Tensor) -> Tensor:
        return self._fraction(step, self.steps)


class CyclicalSchedule(Schedule):
    r"""A line that restarts in each of M cycles and stays at ``end`` for the rest of the cycle:

    .. math:: r(t) = \min(1, \tau / R), \qquad \tau = \frac{(t M) \bmod T}{T}.

    (Fu et al. 2019, "Cyclical Annealing Schedule: A Simple Approach to Mitigating KL Vanishing",
    equations 6 and 7, which round the length of a cycle up to whole steps.)

    Args:
        steps: T, the total number of steps of all cycles.
        cycles: M, at least 1.
        ramp_share: R, the share of a cycle in which the value goes from ``start`` to ``end``, above
            0 and at most 1.
        start, end, device, dtype: As in :class:`Schedule`.
    """

    def __init__(
        self,
        steps: int,
        cycles: int = 4,
        ramp_share: float = 0.5,
        start: float = 0.0,
        end: float = 1.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(steps, start, end, device=device, dtype=dtype)
        self.cycles = _check_count("cycles", cycles)
        self.ramp_share = check_positive("ramp_share", ramp_share)
        if ramp_share > 1:
            raise ValueError(f"ramp_share must be at most 1, got {ramp_share}")
        self.reset()

    def ramp(self, step: Tensor) -> Tensor:
        tau = self._fraction((step * self.cycles).remainder(self.steps), self.steps)
        return (tau / self.ramp_share).clamp(max=1.0)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, cycles={self.cycles}, ramp_share={self.ramp_share}"


class SigmoidSchedule(Schedule):
    r"""A logistic curve around the middle of the steps that reaches both ends:

    .. math::

        r(t) = \frac{s(t) - s(0)}{s(T) - s(0)}, \qquad
        s(t) = \frac{1}{1 + e^{-k (t / T - 1/2)}}.

    Bowman et al. 2016, "Generating Sentences from a Continuous Space", anneal the KL weight with
    the logistic curve :math:`s`. The rescaling makes the first value ``start`` and the last value
    ``end``. Compared with :math:`s`, it moves each value by at most :math:`(e^{k/2} + 1)^{-1}` of
    the distance between ``start`` and ``end``, which is 0.25 % for the default k.

    Args:
        steps, start, end, device, dtype: As in :class:`Schedule`.
        steepness: k, above 0. The largest slope is about k / 4 times that of a straight line.
    """

    def __init__(
        self,
        steps: int,
        start: float = 0.0,
        end: float = 1.0,
        steepness: float = 12.0,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(steps, start, end, device=device, dtype=dtype)
        self.steepness = check_positive("steepness", steepness)
        self.reset()

    def ramp(self, step: Tensor) -> Tensor:
        # s(t) - 1/2 is half of tanh(a (2 t/T - 1)) with a = k / 4. tanh is odd, so that
        # r = (1 + tanh(a (2 t/T - 1)) / tanh(a)) / 2.
        a = self._fraction(torch.full_like(step, self.steps), self.steps) * (self.steepness / 4)
        centred = 2 * self._fraction(step, self.steps) - 1
        return (1 + torch.tanh(a * centred) / torch.tanh(a)) / 2  # exactly 0 at t = 0

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, steepness={self.steepness}"


def _check_count(name: str, value: int) -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise TypeError(f"{name} must be an int, got {type(value).__name__}")
    count = operator.index(value)
    if count < 1:
        raise ValueError(f"{name} must be at least 1, got {count}")
    return count


def _recompute(schedule: Any, _: Any) -> None:
    """Compute the value for a loaded step count, after ``load_state_dict``."""
    with torch.no_grad():
        schedule._compute()
