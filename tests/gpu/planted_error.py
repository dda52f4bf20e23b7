"""Reads out of bounds on purpose. If compute-sanitizer reports nothing, it sees no kernels."""

import types

import torch

import vae_fused as vf

raw, few = torch.zeros(2**24).to("cuda"), torch.zeros(1024).to("cuda")
longer = {"shape": (2**24,), "typestr": "<f4", "data": (few.data_ptr(), False), "version": 2}
mu = torch.as_tensor(types.SimpleNamespace(__cuda_array_interface__=longer), device="cuda")
vf.reparameterize_kl(mu, raw)
torch.cuda.synchronize()
print("planted")
