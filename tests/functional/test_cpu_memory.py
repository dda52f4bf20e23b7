"""The memory settings of the compiled CPU path."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from conftest import native, random

import vae_fused as vf

SMAPS = Path("/proc/self/smaps")
HUGE = Path("/sys/kernel/mm/transparent_hugepage/enabled")
ELEMENTS = 9 << 20  # 36 MiB: the C library maps each tensor of 32 MiB or more separately


def advised(tensor: torch.Tensor) -> bool:
    """Whether huge pages are advised for the memory in the middle of the tensor."""
    middle = tensor.data_ptr() + tensor.nbytes // 2
    inside = False
    for line in SMAPS.read_text().splitlines():
        if bounds := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            inside = int(bounds[1], 16) <= middle < int(bounds[2], 16)
        elif inside and line.startswith("VmFlags:"):
            return "hg" in line.split()
    raise AssertionError("not a mapped address")


@native
@pytest.mark.skipif(not (SMAPS.exists() and HUGE.exists()), reason="Linux with huge pages")
@pytest.mark.parametrize("call", ["one", "samples", "list"])
def test_huge_pages_are_asked_for_huge_results(call: str) -> None:
    mu, raw = (random(ELEMENTS, seed=k).requires_grad_() for k in (0, 1))
    if call == "one":
        z, kl = vf.reparameterize_kl(mu, raw)
    elif call == "samples":
        z, kl = vf.reparameterize_kl(mu, raw, sample_shape=(1,))
    else:
        (z,), kl = vf.reparameterize_kl_multi([mu], [raw])
    gradients = torch.autograd.grad((z.sum(), kl.sum()), (mu, raw), (torch.ones(()),) * 2)
    assert [advised(t) for t in (z, *gradients)] == [True] * 3
