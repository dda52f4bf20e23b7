"""One binary supports several instruction sets, and VAE_FUSED_CPU_CAPABILITY selects one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import make_key, native

import vae_fused as vf
from vae_fused import _ext

pytestmark = native

NAMES = ["default", "avx2", "avx512"]
HERE = NAMES[: NAMES.index(_ext.cpu_capability) + 1] if _ext.available else []
TOP = 2**64 - 1
# With the second key, the counter's high word changes within the tensor, at a block of noise that
# does not begin a vector.
KEYS = [(42, 0), (7, 2**32 - 100), (3, TOP - 555)]
N = 9001

# A script that computes all results of a call on non-contiguous tensors and on tensors with tails.
SCRIPT = f"""
import sys, torch, vae_fused as vf
from vae_fused import _ext
results = {{"capability": _ext.cpu_capability}}
for dtype in (torch.float32, torch.float64, torch.bfloat16, torch.float16):
    for key in {KEYS}:
        k = torch.tensor(key, dtype=torch.uint64)
        mu = torch.linspace(-2, 2, {N}).to(dtype).view(1, -1).expand(3, -1).clone().requires_grad_()
        x = torch.linspace(1, -6, {N}).to(dtype).view(1, -1).expand(3, -1).clone().requires_grad_()
        z, kl = vf.reparameterize_kl(mu, x, key=k, dim=1)
        g = torch.autograd.grad((z.sum(), kl.sum()), (mu, x))
        zeros = torch.zeros({N}, dtype=dtype)
        strided = torch.zeros(60, 2, 75, dtype=dtype).transpose(0, 2)
        results[str(dtype), key] = {{
            "noise": vf.reparameterize(zeros, zeros, key=k),
            "strided": vf.reparameterize_kl(strided, strided, key=k, dim=(0, 1))[0].flatten(),
            "step": (z.detach(), kl.detach(), *g),
        }}
torch.save(results, sys.argv[1])
"""


def run(*args: str, check: bool = True, **variables: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, **variables}
    # Python runs in this folder, because in the root of a checkout it would import the sources.
    return subprocess.run(
        [sys.executable, *args],
        env=environment,
        cwd=Path(__file__).parent,
        capture_output=True,
        text=True,
        check=check,
    )


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict]:
    """Returns the results for each instruction set."""
    folder = tmp_path_factory.mktemp("capability")
    for name in HERE:
        run("-c", SCRIPT, str(folder / name), VAE_FUSED_CPU_CAPABILITY=name)
    return {name: torch.load(folder / name) for name in HERE}


def test_the_variable_forces_an_instruction_set(results):
    assert {name: result["capability"] for name, result in results.items()} == {
        name: name for name in HERE
    }


@pytest.mark.parametrize("key", KEYS)
def test_the_words_are_the_same_on_every_instruction_set(results, key):
    """Normals in float64 reveal all four words of a block. The C library computes these normals."""
    want = vf.reference.normal(make_key(*key), (N,), dtype=torch.float64)
    for name, result in results.items():
        got = result["torch.float64", key]["noise"]
        torch.testing.assert_close(got, want, rtol=0, atol=1e-12, msg=name)
        assert torch.equal(got, results["default"]["torch.float64", key]["noise"]), name


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_normals_agree_on_every_instruction_set(results, dtype, key):
    for name, result in results.items():
        got, want = (r[str(dtype), key]["noise"].double() for r in (result, results["default"]))
        rtol = 0 if dtype == torch.float32 else torch.finfo(dtype).eps
        torch.testing.assert_close(got, want, rtol=rtol, atol=2e-6, msg=name)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_the_noise_of_an_element_depends_on_its_index_alone(results, dtype):
    for name, result in results.items():
        for key in KEYS:
            got = result[str(dtype), key]
            assert torch.equal(got["strided"], got["noise"][: got["strided"].numel()]), (name, key)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_results_agree_on_every_instruction_set(results, dtype):
    tolerance = {torch.float32: 1e-5, torch.float64: 1e-13, torch.bfloat16: 2e-2}[dtype]
    for name, result in results.items():
        for key in KEYS:
            pair = (r[str(dtype), key]["step"] for r in (result, results["default"]))
            for got, want in zip(*pair, strict=True):
                torch.testing.assert_close(got, want, rtol=tolerance, atol=tolerance, msg=name)


def test_without_the_variable_it_is_the_best():
    variables = {k: v for k, v in os.environ.items() if k != "VAE_FUSED_CPU_CAPABILITY"}
    code = "from vae_fused import _ext; print(_ext.cpu_capability)"
    for name in ("", None):
        env = variables if name is None else {**variables, "VAE_FUSED_CPU_CAPABILITY": name}
        done = subprocess.run(
            [sys.executable, "-c", code],
            env=env,
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout.strip() in NAMES
        assert NAMES.index(done.stdout.strip()) >= NAMES.index(_ext.cpu_capability)


@pytest.mark.parametrize("value", ["AVX2", "avx512f"])
def test_an_unknown_value_is_an_error_that_names_the_variable(value):
    done = run("-c", "import vae_fused", check=False, VAE_FUSED_CPU_CAPABILITY=value)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == (
        f"ValueError: VAE_FUSED_CPU_CAPABILITY must be one of avx512, avx2, default, got '{value}'"
    )


def test_what_the_machine_lacks_is_an_error():
    done = run("-c", "import vae_fused", check=False, VAE_FUSED_CPU_CAPABILITY="avx512")
    machine = torch.backends.cpu.get_cpu_capability()
    assert (done.returncode == 0) == (machine == "AVX512"), machine
    if done.returncode:
        assert "VAE_FUSED_CPU_CAPABILITY=avx512: " in done.stderr.splitlines()[-1]


@pytest.mark.parametrize("name", HERE[:2])
def test_the_diagnosis_shows_it(name):
    done = run("-m", "vae_fused.env", "--json", VAE_FUSED_CPU_CAPABILITY=name)
    report = json.loads(done.stdout)
    assert report["vae_fused"]["CPU capability"] == name
    assert report["variables"]["VAE_FUSED_CPU_CAPABILITY"] == name
    text = run("-m", "vae_fused.env", VAE_FUSED_CPU_CAPABILITY=name).stdout
    assert any(line.split() == ["CPU", "capability", name] for line in text.splitlines())


def test_the_diagnosis_survives_an_unknown_value():
    done = run("-m", "vae_fused.env", "--json", VAE_FUSED_CPU_CAPABILITY="sse")
    assert "got 'sse'" in json.loads(done.stdout)["vae_fused"]["CPU capability"]
