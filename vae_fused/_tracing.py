"""Registrations for tracers, because an operator that reserves a key must never run twice.

With ``torch._functorch.config.activation_memory_budget < 1``, the torch.compile partitioner may
recompute random operators in backward with fresh noise, which silently corrupts the gradients
(pytorch issue 190758). The tag ``nondeterministic_seeded`` prevents this recomputation only with a
budget of 1. A node marked MUST_SAVE is kept with every budget above 0. Operators that take a key
are pure and need no mark.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.fx.experimental.proxy_tensor import ProxyTorchDispatchMode, proxy_call
from torch.utils.checkpoint import CheckpointPolicy

RESERVING = (
    "vae_fused::reparameterize_kl.generator",
    "vae_fused::reparameterize_kl_moments.generator",
    "vae_fused::reparameterize.generator",
    "vae_fused::reparameterize_kl_multi.generator",
)


def register() -> None:
    """Mark the operators of ``RESERVING`` in every trace."""
    for name in RESERVING:
        torch.library.register_torch_dispatch(name, ProxyTorchDispatchMode, _trace_and_save)


def break_at_generator() -> None:
    """Break the torch.compile graph at a call with a generator, and name the remedy.

    Dynamo cannot represent a ``torch.Generator``. Without this function, Dynamo would break the
    graph at the operator, with its own message. With ``fullgraph=True``, a break is an error.
    """
    if torch.compiler.is_dynamo_compiling():
        torch._dynamo.graph_break(
            msg="vae_fused: generator must be None in a compiled graph, because torch.compile does "
            "not trace a torch.Generator; draw a key before the compiled function, key = "
            "torch.randint(2**62, (2,), generator=generator, device=generator.device), and pass "
            "it as key="
        )


def _trace_and_save(mode: Any, func: Any, types: Any, args: Any, kwargs: Any) -> Any:
    import torch._functorch.config as functorch_config

    if functorch_config.activation_memory_budget == 0:
        raise RuntimeError(
            "vae_fused: activation_memory_budget must be above 0, because torch.compile would draw "
            "the noise anew in backward and corrupt gradients (pytorch issue 190758), got 0; set "
            "1e-6 or pass a key"
        )
    out = proxy_call(mode, func, mode.pre_dispatch, args, kwargs)
    for node in reversed(mode.tracer.graph.nodes):
        if node.target is func:
            node.meta.setdefault("recompute", CheckpointPolicy.MUST_SAVE)
            break
    return out
