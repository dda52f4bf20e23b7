"""The probe of tools/gpu_probe on the emulated device, and the build of its real program."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from . import build
from .conftest import show

PROBE = build.ROOT / "tools" / "gpu_probe"
DTYPES = {"float32", "float64", "float16", "bfloat16"}
DIRECTIONS = {"forward", "backward"}

Row = dict[str, Any]


@pytest.fixture(scope="session")
def emulated(pytestconfig: pytest.Config) -> Path:
    """The probe for the emulated device, with the kernels and the oracle of the other tests."""
    if shutil.which(build.CXX[0]) is None:
        pytest.skip(f"no compiler: {build.CXX[0]}")
    device = ["-O1", "-DVAE_FUSED_EMULATOR", "-fno-strict-aliasing", f"-I{PROBE}"]
    own = [(path, device) for path in sorted([*PROBE.glob("*.cpp"), *PROBE.glob("*.cu")])]
    others = build.common_sources("plain", every_target=False)
    shared = [(path, flags) for path, flags in others if path.parent != build.NATIVE]
    with show(pytestconfig):
        return build.link("gpu_probe", "", build.compile_all("probe", [*own, *shared]), [])


@lru_cache
def run(program: Path, *arguments: str, fault: str = "") -> tuple[int, list[Row]]:
    """Returns the exit status and the rows that the probe writes to its standard output."""
    environment = {**os.environ, "VAE_FUSED_PROBE_FAULT": fault}
    command = [str(program), "--tiny", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env=environment)
    assert not done.stderr
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def listed(program: Path, section: str) -> set[str]:
    command = [str(program), "--tiny", "--list", "--section", section]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    prefix = f"{section}: "
    return {line.removeprefix(prefix) for line in done.stdout.splitlines()}


def of_kind(rows: list[Row], kind: str) -> list[Row]:
    return [row for row in rows if row["kind"] == kind]


def failures(rows: list[Row]) -> list[Row]:
    return [row for row in rows if row.get("status") == "FAIL" and row["kind"] != "summary"]


def test_every_call_agrees_with_the_oracle(emulated: Path) -> None:
    status, rows = run(emulated, "--section", "correctness")
    assert not failures(rows)
    assert status == 0
    results = of_kind(rows, "correctness")
    assert len(results) == len(listed(emulated, "correctness"))
    ran = {(row.get("dtype"), row["access"], row.get("direction")) for row in results}
    accesses = ("contiguous", "chunked", "channels_last", "scalar", "list")
    assert ran >= {(t, a, d) for t in DTYPES for a in accesses for d in DIRECTIONS}
    assert rows[0]["kind"] == "device"
    assert rows[-1] == {**rows[-1], "kind": "summary", "status": "PASS", "failed": 0, "skipped": 0}


def test_every_variant_is_checked_and_timed(emulated: Path) -> None:
    _, checked = run(emulated, "--section", "correctness")
    status, rows = run(emulated, "--section", "bandwidth")
    assert status == 0
    results = of_kind(rows, "bandwidth")
    assert {row["status"] for row in results} == {"PASS"}
    contests = {
        f"{row['case']}, {row['contest']}" + (", graph" if row["mode"] == "graph" else "")
        for row in results
    }
    assert contests == listed(emulated, "bandwidth")
    timed = {
        (row["direction"], row["dtype"], row["contender"].removesuffix(", persistent"))
        for row in results
        if row["group"] == "variant"
    }
    for row in of_kind(checked, "correctness"):
        if row["access"] == "variant":
            name = re.sub(r", (merged|persistent|channels_last \d+)$", "", row["case"])
            assert (row["direction"], row["dtype"], name) in timed
    for values, field in (
        ({"registers", "shared", "parameters"}, "keys"),
        ({"plain", "once", "prefetch", "ring"}, "loads"),
        ({"merged", "persistent"}, "grid"),
        ({"fences", "acq_rel", "second launch"}, "ticket"),
        ({2, 3, 4, 5}, "blocks"),
    ):
        variants = [row for row in results if row["group"] == "variant"]
        assert {row[field] for row in variants if field in row} == values


def test_a_contest_has_its_yardsticks_and_a_variant_the_bits_of_the_shipped_kernel(
    emulated: Path,
) -> None:
    _, rows = run(emulated, "--section", "bandwidth")
    groups: dict[str, set[str]] = {}
    for row in of_kind(rows, "bandwidth"):
        contest = f"{row['case']} {row['contest']} {row['mode']}"
        groups.setdefault(contest, set()).add(row["group"])
        assert row["us"] > 0
        assert row["us_least"] <= row["us"]
        assert row["share_of_copy"] > 0
        assert row["share_of_roof"] > 0
        expected = row["bytes"] / row["us"] * 1e-3
        assert row["gb_s"] == pytest.approx(expected, rel=1e-3)
        if row["group"] == "variant":
            assert row["identical"], row
    assert all(found >= {"shipped", "copy", "roof"} for found in groups.values())


@pytest.mark.parametrize("direction", sorted(DIRECTIONS))
def test_a_wrong_block_of_noise_is_found(emulated: Path, direction: str) -> None:
    name = f"^{direction} [a-z0-9]+ contiguous: whole tiles$"
    status, rows = run(emulated, "--section", "correctness", "--only", name, fault="noise")
    assert status == 1
    assert {row["dtype"] for row in failures(rows)} == DTYPES
    assert rows[-1]["status"] == "FAIL"


def test_a_wrong_key_of_the_variants_is_found_and_nothing_wrong_is_timed(emulated: Path) -> None:
    status, rows = run(emulated, "--section", "correctness", fault="variant")
    assert status == 1
    variants = [row for row in rows if row.get("access") == "variant"]
    assert failures(rows) == variants
    only = ["--only", "(keys|patches)$"]
    status, rows = run(emulated, "--section", "bandwidth", *only, fault="variant")
    assert status == 1
    for row in of_kind(rows, "bandwidth"):
        assert ("us" in row) == (row["group"] != "variant")


def test_what_the_time_does_not_allow_is_skipped_by_name(emulated: Path) -> None:
    status, rows = run(emulated, "--section", "bandwidth", "--seconds", "0")
    assert status == 1  # because no case passed
    assert {row["case"] for row in of_kind(rows, "skipped")} == listed(emulated, "bandwidth")


def test_rows_are_appended_to_the_file(emulated: Path, tmp_path: Path) -> None:
    out = tmp_path / "rows.jsonl"
    command = [str(emulated), "--tiny", "--out", str(out), "--section", "correctness"]
    for _ in range(2):
        subprocess.run([*command, "--only", "^roof 1r1w, 1 vector"], check=True, timeout=60)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [row["kind"] for row in rows].count("summary") == 2
    assert {row["status"] for row in of_kind(rows, "correctness")} == {"PASS"}


def test_the_profile_launches_eight_headline_kernels(emulated: Path) -> None:
    status, rows = run(emulated, "--section", "profile")
    assert status == 0
    assert len({row["case"] for row in of_kind(rows, "profile")}) == 8


def test_a_bad_option_is_an_error(emulated: Path) -> None:
    for arguments in (["--section", "all"], ["--only", "("], ["--seconds"], ["--fast"]):
        done = subprocess.run([str(emulated), *arguments], capture_output=True, text=True)
        assert done.returncode == 1
        assert "usage:" in done.stderr


# --- the real program ----------------------------------------------------------------------------


@lru_cache
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_probe_build", PROBE / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def real() -> Path:
    """The static program for sm_90, built in `build/gpu_probe` in two minutes of one core."""
    if builder().cuda_home() is None:
        pytest.skip("no nvcc")
    return Path(builder().build(build.ROOT / "build" / "gpu_probe"))


@pytest.mark.slow
def test_the_real_probe_needs_a_driver_alone_and_says_so(real: Path) -> None:
    linked = subprocess.run(["ldd", str(real)], capture_output=True, text=True).stdout
    libraries = {line.split()[0].partition(".so")[0] for line in linked.splitlines()}
    assert not {name for name in libraries if "cuda" in name or "torch" in name}
    if Path("/dev/nvidia0").exists():
        pytest.skip("there is a device")
    done = subprocess.run([str(real), "--section", "correctness"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "no CUDA driver" in done.stderr
    assert not done.stdout


@pytest.mark.slow
def test_the_real_probe_is_below_8_mb(real: Path) -> None:
    assert real.stat().st_size < 8_000_000


# Variants that have too few registers for their values. Their rows contain the local_bytes.
MAY_SPILL = re.compile(
    r"ab_kernel.*Loads\)2, \d>"  # registers also hold the vectors of the next step
    r"|ab_kernel.*, 5>"  # 48 registers
    r"|ab_patch_kernel.*, [34]>"  # a patch has 16 elements
)


@pytest.mark.slow
def test_variants_do_not_spill_but_for_those_listed(real: Path) -> None:
    log = builder().ptxas_log(real.parent)
    entries = re.findall(
        r"Function properties for (\S+)\n.*?(\d+) bytes spill stores, (\d+) bytes spill loads", log
    )
    names = [name for name, _, _ in entries]
    demangled = subprocess.run(["c++filt"], input="\n".join(names), capture_output=True, text=True)
    kernels = dict(
        zip(
            demangled.stdout.splitlines(),
            (int(stores) + int(loads) for _, stores, loads in entries),
            strict=True,
        )
    )
    variants = {name: spilled for name, spilled in kernels.items() if "::ab_" in name}
    assert len(variants) > 100
    spilling = [name for name, spilled in variants.items() if spilled]
    assert [
        name for name in spilling if not MAY_SPILL.search(name.partition(">(vae_fused")[0] + ">")
    ] == []
