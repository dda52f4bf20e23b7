"""Deterministic counts: bytes kept for backward, peak memory, operators and launches."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.measuring import Step


def _storages(tensors: Any) -> dict[int, int]:
    """Address and bytes of the storages of all tensors in a nested structure."""
    found = {}
    for tensor in tree_leaves(tensors):
        if isinstance(tensor, Tensor):
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def kept_bytes(step: Step, inputs: Any) -> int:
    """Bytes that autograd saves between the passes, without the inputs and the outputs."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = step.forward()
    there = _storages([inputs, outputs])
    return sum(size for pointer, size in _storages(saved).items() if pointer not in there)


def peak_bytes(step: Step, device: str) -> int:
    """The peak memory that a step allocates, with its results but without its inputs."""
    step()
    if device == "cuda":
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with _quiet(), profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        result = step()
    del result
    now = most = 0
    events = recorded.profiler.kineto_results.events()
    for event in sorted(events, key=lambda e: e.start_ns()):
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


class _Count(TorchDispatchMode):
    """Counts operators that compute or copy, but not those that allocate or return a view."""

    SKIPPED = ("empty", "detach", "alias", "_unsafe_view", "new_empty", "lift_fresh")

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.count = self.reads = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "item"):
            self.reads += 1
        elif not func.is_view and not name.startswith(self.SKIPPED):
            self.count += 1
        return func(*args, **(kwargs or {}))


def dispatches(step: Step) -> dict[str, int]:
    """Operators of each pass, and reads of values on the host, which wait for a GPU.

    On a GPU this is close to the number of launches, because few operators launch two kernels.
    torch.compile is inactive in such a mode, so compiled functions cannot be counted this way.
    """
    with _Count() as forward:
        result = step.forward()
    with _Count() as backward:
        step.backward(result)
    return {
        "forward": forward.count,
        "backward": backward.count,
        "reads": forward.reads + backward.reads,
    }


SPINS = 20


def launches(step: Step) -> int | None:
    """Kernels, copies and fills of a step on the GPU; None if the profiler loses some.

    CUPTI may lose the first kernels of a session, so extra kernels run first. If the last of these
    is recorded, all later kernels are recorded too.
    """
    step()
    for _ in range(3):
        with _quiet(), profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
            for _ in range(SPINS):
                torch.cuda._sleep(1000)
            torch.cuda.synchronize()
            step()
            torch.cuda.synchronize()
        cuda = torch.autograd.DeviceType.CUDA  # type: ignore[attr-defined]
        events = [e for e in seen.events() if e.device_type == cuda and not e.is_user_annotation]
        names = [e.name for e in events if not any(word in e.name for word in NO_WORK)]
        spins = sum("spin_kernel" in name for name in names)
        if spins > SPINS // 2 and len(names) > spins:
            return len(names) - spins
    return None


NO_WORK = ("Sync", "Wait", "Buffer", "Lazy")  # other device activities that CUPTI reports


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Suppress messages of the profiler's library, which bypass Python's standard error."""
    sys.stderr.flush()
    kept, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def counts(step: Step, inputs: Any, device: str, *, traced: bool) -> dict[str, Any]:
    """All counts; None for those that are not available here."""
    return {
        "kept_bytes": _or_none(kept_bytes, step, inputs),
        "peak_bytes": _or_none(peak_bytes, step, device),
        "dispatches": None if traced else _or_none(dispatches, step),
        "launches": _or_none(launches, step) if device == "cuda" else None,
    }


def _or_none(function: Callable[..., Any], *arguments: Any) -> Any:
    """The function's result, or None if it fails: a failing profiler must not prevent timing."""
    try:
        return function(*arguments)
    except Exception as error:
        warnings.warn(f"{function.__name__}: {error}", stacklevel=2)
        return None
