"""In data-parallel training, each process draws the noise of its part of the batch."""

from __future__ import annotations

import gc

import pytest
import torch
from conftest import make_key, random

import vae_fused as vf


def gradients_of_half(rank):
    """Returns a linear encoder's gradients, averaged over two processes with half a batch each."""
    torch.manual_seed(0)
    encoder = torch.nn.parallel.DistributedDataParallel(torch.nn.Linear(5, 6))
    mu, logvar = encoder(random(8, 5)[4 * rank : 4 * rank + 4]).chunk(2, dim=1)
    key = make_key(7, offset=3 * rank)  # rank 1 draws the noise of elements 12 to 23
    z, kl = vf.reparameterize_kl(mu, logvar, key=key)
    (z.square().sum() / 4 + kl).backward()
    return [p.grad for p in encoder.module.parameters()]


def train_in_parallel(rank, package, store, results):
    """Train on half of the batch in this process, one of two."""
    assert vf.__file__ == package
    dist = torch.distributed
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    torch.save(gradients_of_half(rank), f"{results}{rank}")
    # The wrapped encoder is in reference cycles and holds the group. If the group outlives this
    # function, so do gloo's threads. A thread that frees a Python object while the interpreter
    # exits aborts the process (8 of 80 runs, torch 2.13).
    gc.collect()
    dist.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
def test_shards_in_parallel_give_the_gradients_of_the_whole_batch(tmp_path):
    torch.multiprocessing.spawn(
        train_in_parallel,
        (vf.__file__, str(tmp_path / "store"), str(tmp_path / "grads")),
        nprocs=2,
    )
    torch.manual_seed(0)
    encoder = torch.nn.Linear(5, 6)
    z, kl = vf.reparameterize_kl(*encoder(random(8, 5)).chunk(2, dim=1), key=make_key(7))
    (z.square().sum() / 8 + kl).backward()
    for rank in range(2):
        grads = torch.load(tmp_path / f"grads{rank}")
        for got, parameter in zip(grads, encoder.parameters(), strict=True):
            torch.testing.assert_close(got, parameter.grad)
