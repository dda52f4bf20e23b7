"""Deterministic counts: bytes kept for backward, and operators."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.measuring import Step


def _storages(tensors: Any) -> dict[int, int]:
    """Return the address and the bytes of the storage of each tensor in a nested structure."""
    found = {}
    for tensor in tree_leaves(tensors):
        if isinstance(tensor, Tensor):
            storage = tensor.untyped_storage()
            found[storage.data_ptr()] = storage.nbytes()
    return found


def kept_bytes(step: Step, inputs: Any) -> int:
    """Return the bytes that autograd saves between the passes, except the inputs and outputs."""
    saved: list[Tensor] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.detach())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        outputs = step.forward()
    there = _storages([inputs, outputs])
    return sum(size for pointer, size in _storages(saved).items() if pointer not in there)


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
    """Count the operators of each pass, and how often the host waits for a GPU to read a value.

    On a GPU the count is close to the number of launches, because few operators launch two kernels.
    torch.compile is inactive in a dispatch mode, so compiled functions cannot be counted this way.
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


def counts(step: Step, inputs: Any, *, traced: bool) -> dict[str, Any]:
    return {
        "kept_bytes": kept_bytes(step, inputs),
        "dispatches": None if traced else dispatches(step),
    }
