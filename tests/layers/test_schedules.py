"""Schedules: agreement with closed forms, state, and use as an option under torch.compile."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from conftest import Calls, make_key, random

import vae_fused as vf
from vae_fused import nn

KEY = make_key(3)
CLASSES = (nn.LinearSchedule, nn.CyclicalSchedule, nn.SigmoidSchedule)


def values(schedule, steps):
    """Returns the values before the first step and after each step."""
    return [float(schedule())] + [float(schedule.step()) for _ in range(steps)]


def linear(t, steps):
    return t / steps


def cyclical(t, steps, cycles, share):
    length = steps / cycles
    return min(1.0, math.fmod(t, length) / length / share)


def sigmoid(t, steps, steepness):
    def s(x):
        return 1 / (1 + math.exp(-steepness * (x / steps - 0.5)))

    return (s(t) - s(0)) / (s(steps) - s(0))


CASES = {
    "linear": (lambda **k: nn.LinearSchedule(10, **k), lambda t: linear(t, 10), 10),
    "one step": (lambda **k: nn.LinearSchedule(1, **k), lambda t: linear(t, 1), 1),
    "cyclical": (
        lambda **k: nn.CyclicalSchedule(24, cycles=3, ramp_share=0.5, **k),
        lambda t: cyclical(t, 24, 3, 0.5),
        24,
    ),
    "cyclical, whole ramps": (
        lambda **k: nn.CyclicalSchedule(12, cycles=4, ramp_share=1.0, **k),
        lambda t: cyclical(t, 12, 4, 1.0),
        12,
    ),
    "cyclical, cycles of 2.5 steps": (
        lambda **k: nn.CyclicalSchedule(10, cycles=4, ramp_share=0.75, **k),
        lambda t: cyclical(t, 10, 4, 0.75),
        10,
    ),
    "sigmoid": (lambda **k: nn.SigmoidSchedule(10, **k), lambda t: sigmoid(t, 10, 12.0), 10),
    "gentle sigmoid": (
        lambda **k: nn.SigmoidSchedule(7, steepness=0.5, **k),
        lambda t: sigmoid(t, 7, 0.5),
        7,
    ),
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("start", "end"), [(0.0, 1.0), (0.5, 0.0), (-1.0, 4.0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_values_are_those_of_the_formula(name, start, end, dtype, device):
    make, ramp, steps = CASES[name]
    schedule = make(start=start, end=end, dtype=dtype, device=device)
    got = values(schedule, steps + 3)
    want = [start + (end - start) * ramp(t) for t in range(steps)] + [end] * 4
    tolerance = 4 * torch.finfo(dtype).eps * max(abs(start), abs(end))
    # The ramp of a gentle sigmoid is the difference of nearly equal numbers.
    torch.testing.assert_close(got, want, rtol=0, atol=max(4 * tolerance, 1e-14))
    assert got[0] == start and got[steps:] == [end] * 4
    assert schedule().dtype == dtype and schedule().device.type == device


def test_the_sigmoid_is_close_to_the_logistic_curve_of_bowman():
    k, x0 = 0.0025, 2500
    schedule = nn.SigmoidSchedule(2 * x0, steepness=2 * k * x0, dtype=torch.float64)
    for t in range(0, 2 * x0 + 1, 500):
        schedule.step_count.fill_(t - 1)
        assert float(schedule.step()) == pytest.approx(1 / (1 + math.exp(-k * (t - x0))), abs=2e-3)


@pytest.mark.parametrize("cls", CLASSES)
def test_the_value_is_one_tensor_that_changes_in_place(cls):
    schedule = cls(8)
    value, before = schedule(), float(schedule())
    assert value.shape == () and not value.requires_grad
    assert schedule.step() is value and schedule() is value and schedule.value is value
    assert float(value) != before
    assert schedule.reset() is value
    assert float(value) == before and int(schedule.step_count) == 0


@pytest.mark.parametrize("cls", CLASSES)
def test_a_step_reads_nothing_back(cls):
    schedule = cls(8)
    with Calls() as calls:
        schedule.step()
    assert not {"aten::_local_scalar_dense", "aten::item", "aten::nonzero"} & set(calls.names)
    meta = cls(8, device="meta")  # on which reading a value raises an error
    assert meta.step().device.type == "meta"
    with pytest.raises(RuntimeError):
        float(meta())


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize("cls", CLASSES)
def test_the_state_continues_at_its_step(cls, assign):
    first, second = cls(20), cls(20)
    values(first, 7)
    model = torch.nn.ModuleDict({"beta": second})
    state = copy.deepcopy(torch.nn.ModuleDict({"beta": first}).state_dict())
    assert list(state) == ["beta.step_count"]
    model.load_state_dict(state, assign=assign)
    assert float(second()) == float(first()) > 0
    assert values(second, 15) == values(first, 15)


def test_loaded_into_a_longer_schedule_the_value_is_that_of_the_longer_one():
    short, long = nn.LinearSchedule(10), nn.LinearSchedule(40)
    values(short, 8)
    long.load_state_dict(short.state_dict())
    assert float(long()) == pytest.approx(0.2)


def test_it_moves_with_its_module_and_keeps_its_options():
    schedule = nn.LinearSchedule(4)
    schedule.step()
    model = torch.nn.ModuleDict({"beta": schedule}).to(torch.float64)
    assert schedule().dtype == torch.float64 and schedule.step_count.dtype == torch.int64
    assert float(schedule.step()) == 0.5
    assert model.to("meta")["beta"]().device.type == "meta"
    clone = copy.deepcopy(nn.CyclicalSchedule(8, cycles=2))
    assert "steps=8" in repr(clone) and "cycles=2" in repr(clone)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: nn.LinearSchedule(0), ValueError, "steps must be at least 1, got 0"),
        (lambda: nn.LinearSchedule(2.5), TypeError, "steps must be an int"),
        (lambda: nn.LinearSchedule(True), TypeError, "steps must be an int"),
        (
            lambda: nn.LinearSchedule(5, math.nan),
            ValueError,
            "start must be a finite number, got nan",
        ),
        (lambda: nn.LinearSchedule(5, end="1"), TypeError, "end must be a number"),
        (lambda: nn.LinearSchedule(5, dtype=torch.int64), TypeError, "dtype must be a floating"),
        (lambda: nn.CyclicalSchedule(5, cycles=0), ValueError, "cycles must be at least 1, got 0"),
        (
            lambda: nn.CyclicalSchedule(5, ramp_share=0.0),
            ValueError,
            "ramp_share must be above 0, got 0",
        ),
        (
            lambda: nn.CyclicalSchedule(5, ramp_share=1.5),
            ValueError,
            "ramp_share must be at most 1, got 1.5",
        ),
        (
            lambda: nn.SigmoidSchedule(5, steepness=0.0),
            ValueError,
            "steepness must be above 0, got 0",
        ),
    ],
)
def test_a_bad_argument_is_named(make, error, message):
    with pytest.raises(error, match=message):
        make()


# --- in use --------------------------------------------------------------------------------------


def loss_of(schedule, option):
    """Returns a function of mu and raw that uses the schedule's value as this option."""
    elbo = nn.ELBOLoss("mse")

    def loss(mu, raw):
        if option == "beta":
            z, kl = vf.reparameterize_kl(mu, raw, key=KEY)
            return elbo(z, torch.zeros_like(z), kl=kl, beta=schedule()).loss
        given = (schedule(), 1.0) if option == "balance" else schedule()
        z, kl = vf.reparameterize_kl(mu, raw, key=KEY, **{option: given})
        return (z * z).sum() + kl

    return loss


@pytest.mark.parametrize("option", ["beta", "temperature", "free_bits", "balance"])
@pytest.mark.parametrize("cls", CLASSES)
def test_a_value_serves_as_an_option_without_recompiling(cls, option, device):
    mu, raw = (random(6, 4, seed=s, device=device).requires_grad_() for s in range(2))
    schedule = cls(6, start=0.25, end=0.75, device=device)
    loss = loss_of(schedule, option)
    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    numbers = set()
    for t in range(4):
        number = float(schedule())
        with torch._dynamo.config.patch(error_on_recompile=t > 0):
            got = compiled(mu, raw)
        want = loss_of(lambda number=number: number, option)(mu, raw)
        torch.testing.assert_close(got, want)
        for mine, other in zip(
            torch.autograd.grad(got, (mu, raw)), torch.autograd.grad(want, (mu, raw)), strict=True
        ):
            torch.testing.assert_close(mine, other)
        schedule.step()
        numbers.add(round(number, 6))
    assert len(numbers) > 1
    torch._dynamo.reset()


@pytest.mark.parametrize("cls", CLASSES)
def test_a_step_compiles_into_one_graph_with_what_reads_it(cls):
    schedule, twin = cls(6), cls(6)
    torch._dynamo.reset()

    @torch.compile(fullgraph=True, backend="aot_eager")
    def scaled(x):
        y = schedule() * x
        schedule.step()
        return y

    for t in range(9):
        with torch._dynamo.config.patch(error_on_recompile=t > 0):
            got = scaled(torch.ones(3))
        torch.testing.assert_close(got, torch.full((3,), float(twin())))
        twin.step()
    torch._dynamo.reset()


def test_modules_take_the_value_as_a_buffer():
    schedule = nn.LinearSchedule(4)
    kl, sample = nn.GaussianKL(free_bits=schedule()), nn.Reparameterize(temperature=schedule())
    mu, raw = random(5, 3, seed=0), random(5, 3, seed=1)
    for _ in range(3):
        number = float(schedule())
        torch.testing.assert_close(kl(mu, raw), vf.gaussian_kl(mu, raw, free_bits=number))
        want = vf.reparameterize(mu, raw, temperature=number, key=KEY)
        torch.testing.assert_close(sample(mu, raw, key=KEY), want)
        schedule.step()


def test_a_step_between_forward_and_backward_raises():
    schedule, x = nn.LinearSchedule(4), torch.ones(3, requires_grad=True)
    loss = (schedule() * x).sum()
    schedule.step()
    with pytest.raises(RuntimeError, match="inplace"):
        loss.backward()


def test_a_subclass_begins_at_its_start() -> None:
    class Squared(vf.nn.Schedule):
        def ramp(self, step: torch.Tensor) -> torch.Tensor:
            return (step / self.steps) ** 2

    schedule = Squared(10, start=0.25, end=1.25)
    values = []
    for _ in range(12):
        values.append(float(schedule()))
        schedule.step()
    expected = [0.25 + min(t / 10, 1.0) ** 2 for t in range(12)]
    assert values == pytest.approx(expected, rel=1e-6)
