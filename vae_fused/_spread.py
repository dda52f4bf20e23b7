"""How the batch of a call with DTensors is distributed over the ranks of a mesh.

This file determines which rows a rank computes, the local part of each tensor, the noise for these
rows, and the placements of the rank's results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from vae_fused import _ext
from vae_fused._checks import check_noise, check_tensor
from vae_fused._formulas import latent as formulas
from vae_fused._native import latent as native
from vae_fused.options import DEFAULT_OPTIONS, Prior

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh
    from torch.distributed.tensor.placement_types import Placement

__all__ = ["check_leading", "common_shape", "found", "replicated", "spread_of", "summed"]

SEE = "see docs/processes.md"


def found(*values: Any) -> bool:
    """Return whether a value is a DTensor, or a sequence, dictionary or prior that contains one.

    The class is compared by name, because importing its module is slow. No DTensor can exist before
    that import.
    """
    for value in values:
        kind = type(value)
        if kind is Tensor or value is None:
            continue
        if kind is dict:
            value = value.values()
        elif kind is Prior:
            value = value.mean, value.raw
        elif kind is not tuple and kind is not list:
            if kind.__name__ == "DTensor":
                return True
            continue
        if value and found(*value):
            return True
    return False


def replicated(value: Any, mesh: DeviceMesh) -> Any:
    """Wrap a plain tensor, equal on all ranks, in a DTensor. Return other values unchanged."""
    if not isinstance(value, Tensor) or found(value):
        return value
    from torch.distributed.tensor import DTensor, Replicate

    return DTensor.from_local(value, mesh, [Replicate()] * mesh.ndim, run_check=False)


def summed(value: Tensor) -> Tensor:
    """Sum a partial value over the ranks, because nonlinear functions require the total."""
    if not found(value) or not any(p.is_partial() for p in value.placements):  # type: ignore[attr-defined]
        return value
    from torch.distributed.tensor import Replicate

    placements = [Replicate() if p.is_partial() else p for p in value.placements]  # type: ignore[attr-defined]
    return value.redistribute(placements=placements)  # type: ignore[attr-defined,no-any-return]


def check_leading(operands: Mapping[str, Any], others: Mapping[str, Any]) -> None:
    """Raise an error if only ``others`` contain a DTensor.

    In a call with a DTensor, a plain ``mu`` could be the rank's part of a batch or a replica.
    """
    if not found(*operands.values()):
        first = next(iter(operands))
        other = next((name for name, value in others.items() if found(value)), "other arguments")
        raise TypeError(
            f"{first} must be a DTensor like {other}, got a plain tensor; pass DTensor.from_local("
            f"{first}, mesh, [Shard(0)]), or .full_tensor() of {other}: {SEE}"
        )


class Spread(NamedTuple):
    """How the batch of a call is distributed over the ranks of a mesh.

    Attributes:
        mesh: The mesh of all DTensors of the call.
        is_sharded: For each mesh dimension, whether dimension 0 of the call is sharded over it. If
            not, the call is replicated over that mesh dimension.
        shape: The shape of the whole call.
        first, rows: The first row of dimension 0 on this rank, and the number of rows on this rank.
    """

    mesh: DeviceMesh
    is_sharded: tuple[bool, ...]
    shape: tuple[int, ...]
    first: int
    rows: int

    def spans(self, t: Tensor, lead: int = 0) -> bool:
        """Return whether dimension ``lead`` of a tensor is the batch. If not, it broadcasts."""
        ndim = len(self.shape)
        return ndim > 0 and t.dim() == lead + ndim and t.shape[lead] == self.shape[0]

    def of_halves(self, dim: int) -> Spread:
        """Return the spread of a tensor's halves along ``dim``, which the local call checks."""
        ndim = len(self.shape)
        if not isinstance(dim, int) or not -ndim <= dim < ndim:
            return self
        dim %= ndim
        if dim == 0 and any(self.is_sharded):
            raise ValueError(
                "h must not be sharded on dimension 0, where mu and raw are packed, got dim=0; "
                "pack them along another dimension, or pass h.redistribute(placements="
                "[Replicate()])"
            )
        shape = (*self.shape[:dim], self.shape[dim] // 2, *self.shape[dim + 1 :])
        return self._replace(shape=shape)

    def local(self, value: Any, lead: int = 0) -> Any:
        """Return the part of a tensor that this rank uses. Return other values unchanged.

        A plain tensor is assumed to be equal on all ranks, as if it were replicated. The gradient
        of a tensor that broadcasts along the batch is a sum over the ranks.
        """
        if not isinstance(value, Tensor):
            return value
        spans = self.spans(value, lead)
        if not found(value) and not value.requires_grad:
            is_part = spans and any(self.is_sharded)
            return value.narrow(lead, self.first, self.rows) if is_part else value
        whole = replicated(value, self.mesh)
        placements = self._placements(lead if spans else -1)
        grads = placements if spans else self._placements(None)
        return whole.redistribute(self.mesh, placements).to_local(grad_placements=grads)

    def whole(self, t: Tensor, dim: int | None) -> Tensor:
        """Wrap this rank's result in a DTensor: sharded on ``dim``, or a partial sum for None."""
        from torch.distributed.tensor import DTensor

        shape, stride = list(t.shape), list(t.stride())
        if dim is not None and shape:
            # The strides of the dimensions outside the batch are proportional to the batch size.
            inner, shape[dim] = stride[dim], self.shape[0]
            rows, batch = max(self.rows, 1), max(self.shape[0], 1)
            stride = [s if s <= inner else s // rows * batch for s in stride]
        return DTensor.from_local(
            t, self.mesh, self._placements(dim), run_check=False, shape=torch.Size(shape),
            stride=tuple(stride),
        )  # fmt: skip

    def _placements(self, dim: int | None) -> list[Placement]:
        """Return a result's placements: sharded on ``dim``, replicated for -1, partial for None."""
        from torch.distributed.tensor import Partial, Replicate, Shard

        if dim == -1:
            return [Replicate()] * len(self.is_sharded)
        mine = Partial() if dim is None else Shard(dim)
        return [mine if sharded else Replicate() for sharded in self.is_sharded]

    def reduction(
        self, reduction: str, dim: int | Sequence[int] | None, mask: Tensor | None, lead: int = 0
    ) -> tuple[str, Tensor | float | None, int | None]:
        """Return the local call's ``reduction``, its result's divisor, and :meth:`whole`'s ``dim``.

        The local call checks ``reduction`` and ``dim``. ``lead`` is the number of dimensions in
        front of the batch.
        """
        if dim is not None:
            dims = dim if isinstance(dim, Sequence) else (dim,)
            is_summed = any(d in (0, -len(self.shape)) for d in dims)
            return reduction, None, None if is_summed else lead
        if reduction in ("batchmean", "mean") and any(self.is_sharded):
            divisor = self.shape[0] if reduction == "batchmean" else self.unmasked(mask)
            return "sum", divisor, None
        return reduction, None, lead if reduction in ("sample", "none") else None

    def unmasked(self, mask: Tensor | None) -> Tensor | float:
        """Return the number of unmasked elements in the whole call."""
        numel = math.prod(self.shape)
        if mask is None:
            return numel
        count: Tensor = self.local(mask).sum()
        if self.spans(mask):
            count = self.whole(count, None).full_tensor()  # type: ignore[attr-defined]
        return count * (numel // max(mask.numel(), 1))

    def noise(
        self, device: torch.device, dtype: torch.dtype, samples: tuple[int, ...], eps: Any,
        generator: torch.Generator | None, key: Any, reference: bool,
    ) -> dict[str, Any]:  # fmt: skip
        """Return the arguments with which a local call generates its part of the noise.

        For a single sample, the rows of a rank are consecutive elements of the stream. If they
        begin at a block boundary, the key of that block is sufficient. Otherwise, the noise is
        drawn before the call, which takes one more launch for each sample, and autograd saves the
        noise.
        """
        key = key.to_local() if found(key) else key
        if eps is not None:  # the local call checks that it is the only source
            return {"eps": self.local(eps, len(samples)), "generator": generator, "key": key}
        check_noise(torch.empty(0, dtype=dtype, device=device), None, generator, key)
        per_block = 2 if dtype == torch.float64 else 4
        row = math.prod(self.shape[1:])
        numel = math.prod((*samples, *self.shape))
        if key is None:
            key = _reserved_key(device, generator, -(-numel // per_block))
        if not any(self.is_sharded):
            return {"key": key}
        start, count = self.first * row, self.rows * row
        if math.prod(samples) == 1 and start % per_block == 0:
            return {"key": _advanced(key, start // per_block)}
        starts = range(start, start + numel, max(math.prod(self.shape), 1))
        parts = [_normals(key, s, count, dtype, reference) for s in starts]
        drawn = torch.stack(parts) if parts else torch.empty(0, dtype=dtype, device=device)
        return {"eps": drawn.reshape((*samples, self.rows, *self.shape[1:]))}


def spread_of(
    shape: tuple[int, ...], operands: Mapping[str, Tensor], others: Mapping[str, Any]
) -> Spread:
    """Check a call's DTensors. The call is sharded if any of them is sharded along the batch."""
    check_leading(operands, others)
    tensors = {name: t for name, t in {**operands, **others}.items() if found(t)}
    owner, leading = next((name, t) for name, t in tensors.items())
    mesh: DeviceMesh = leading.device_mesh
    spread = Spread(mesh, (False,) * mesh.ndim, shape, 0, shape[0] if shape else 1)
    is_sharded = list(spread.is_sharded)
    for name, t in tensors.items():
        if t.device_mesh != mesh:
            raise ValueError(
                f"{name} must be on the mesh of {owner}, {mesh}, got {t.device_mesh}; make both on "
                "one mesh"
            )
        for k, placement in enumerate(t.placements):
            is_sharded[k] |= _is_shard(name, t, placement) and spread.spans(t)
    first, rows = _rows_of_rank(mesh, is_sharded, spread.rows)
    return Spread(mesh, tuple(is_sharded), shape, first, rows)


def _is_shard(name: str, t: Any, placement: Placement) -> bool:
    """Return True for Shard(0) and False for Replicate. Raise for any other placement."""
    from torch.distributed.tensor import Shard

    if type(placement) is Shard and placement.dim == 0:
        return True
    if placement.is_replicate():
        return False
    wanted = ", ".join("Replicate()" if p.is_replicate() else "Shard(0)" for p in t.placements)
    raise ValueError(
        f"{name} must be sharded on dimension 0 or replicated, got {placement}; pass "
        f"{name}.redistribute(placements=[{wanted}])"
    )


def _rows_of_rank(mesh: DeviceMesh, is_sharded: Sequence[bool], size: int) -> tuple[int, int]:
    """Return this rank's first row and number of rows, in chunks as from ``torch.chunk``."""
    first, rows = 0, size
    for k, sharded in enumerate(is_sharded):
        if sharded:
            chunk = -(-rows // mesh.size(k))
            skipped = min(mesh.get_local_rank(k) * chunk, rows)
            first, rows = first + skipped, min(chunk, rows - skipped)
    return first, rows


def common_shape(tensors: Mapping[str, Tensor]) -> tuple[int, ...]:
    for name, value in tensors.items():
        check_tensor(name, value)
    try:
        return tuple(torch.broadcast_shapes(*(t.shape for t in tensors.values())))
    except RuntimeError:
        shapes = ", ".join(f"{name} {tuple(t.shape)}" for name, t in tensors.items())
        raise ValueError(
            f"the shapes of the whole tensors must broadcast, got {shapes}; a plain tensor "
            f"beside a DTensor is equal on all ranks and whole: {SEE}"
        ) from None


# --------------------------------------------------------------------------------------------------
# Keys
# --------------------------------------------------------------------------------------------------


def _reserved_key(device: torch.device, generator: torch.Generator | None, blocks: int) -> Tensor:
    """Reserve the key that a call with this many blocks would reserve (csrc/torch/rng.cpp)."""
    if not _ext.use_native(device.type):
        more: dict[str, Any] = {} if generator is None else {"generator": generator}
        seed = torch.randint(-(2**63), 2**63 - 1, (), device=device, **more)
        return torch.stack([seed, torch.zeros_like(seed)])
    if device.type == "cpu":  # the generator's advance does not depend on the size
        zero = torch.zeros(min(blocks, 1))
        key: Tensor = torch.ops.vae_fused.reparameterize.generator(zero, zero, generator=generator)[
            1
        ]
        return key
    if generator is None:
        index = torch.cuda.current_device() if device.index is None else device.index
        generator = torch.cuda.default_generators[index]
    first, offset = generator.initial_seed(), generator.get_offset()
    generator.set_offset(offset + 4 * blocks)
    return torch.tensor([first, offset // 4], dtype=torch.uint64, device=device)


def _advanced(key: Tensor, blocks: int) -> Tensor:
    """Return the key that begins ``blocks`` later in the same stream."""
    if blocks == 0:
        return key
    seed, offset = key.view(torch.int64).unbind()
    return torch.stack([seed, offset + blocks])


def _normals(key: Tensor, start: int, count: int, dtype: torch.dtype, reference: bool) -> Tensor:
    """Return normals ``start`` to ``start + count`` of a key's stream, float32 for 16-bit types."""
    dtype = torch.promote_types(dtype, torch.float32)
    per_block = 2 if dtype == torch.float64 else 4
    blocks, skipped = divmod(start, per_block)
    key, numel = _advanced(key, blocks), skipped + count
    if reference or not _ext.use_native(key.device.type):
        return formulas.normal(key, (numel,), dtype=dtype)[skipped:]
    zero = torch.zeros((), dtype=dtype, device=key.device).expand(numel)
    return native.sample(zero, zero, DEFAULT_OPTIONS, None, None, key)[skipped:]
