"""Makes every formula wrong by 1 %, one at a time, and reports those that no test detects.

    make mutations                                          prints the report
    make mutations MUTATION_ARGS="--locals --out FILE"      also mutates variables, and writes FILE
    make mutations MUTATION_ARGS="--only 'special.py'"      selects mutants by `file:function part`

The program copies the tree, rewrites the formulas in the copy (mutants.py) and builds, once each,
the CPU extension, the package without an extension, and the native test module. It runs the tests
without a mutant, and records which formulas each test evaluates and how long it takes. For each
mutant, it then runs the tests that evaluate the mutated formula, until one of them fails. Tests
that have caught other mutants in the same file run first, followed by the fastest tests. One
process collects the tests, and then forks for each run. torch and the packages that the tests
require must be installed. `--folder` keeps the copy and the results. A second run with the same
folder copies the current tests and runs the mutants that no test has caught.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from .mutants import Site, rewrite

ROOT = Path(__file__).resolve().parents[2]
# `SUITES` maps a name to the build of the package to import and to the tests that check values. The
# math tests do not need the package, and evaluate most formulas in csrc/math.
MATH_TESTS = [f"tests/native/test_{name}.py" for name in (
    "math", "scale", "likelihood_math", "family", "kernels",
)]  # fmt: skip
KERNEL_TESTS = [f"tests/functional/test_{name}.py" for name in (
    "numerics", "scale_range", "densities", "masks", "multi", "noise", "gradients", "elbo", "nll",
    "likelihood_kinds", "option_values", "estimator", "estimator_calls", "stats",
)]  # fmt: skip
PACKAGE_TESTS = [
    *(
        f"tests/functional/test_{n}.py"
        for n in (
            "nll_values",
            "iwae",
            "stats",
            "moments",
            "nll_errors",
        )
    ),
    *(
        f"tests/layers/test_{n}.py"
        for n in (
            "distributions",
            "distributions_contract",
            "schedules",
            "options",
            "nn",
        )
    ),
    "tests/usage/test_func.py",
    *KERNEL_TESTS,
]
SUITES = {
    "native": ("none", MATH_TESTS),
    "compiled": ("cpu", KERNEL_TESTS),
    "eager": ("none", PACKAGE_TESTS),
}
# CUDA kernels that are further instances of the same templates and take minutes to compile.
OTHER_KERNELS = ("nll_half.cu", "nll_bfloat16.cu", "nll_double.cu")

# Mutants that no test can detect: a pattern for `file:function part = formula`, and the reason.
INFINITE = "The value is infinite or NaN where it is used, and stays so."
EQUIVALENT: dict[str, str] = {
    r"csrc/math/elementary\.h:log_any local special": INFINITE,
    r"csrc/math/likelihood/front_end\.h:at_infinity local infinite": INFINITE,
    r"csrc/math/likelihood/continuous_bernoulli\.h:ContinuousBernoulli::value local end": INFINITE,
    r"csrc/math/likelihood/negative_binomial_logits\.h:NegativeBinomialLogits::count_term p 4": (
        "This field is read where eps is not 0, and this kind has no eps."
    ),
    r"csrc/math/platform\.h:rounded_product return = x \* y": (
        "Only compilers without the barrier of the line above compile this line."
    ),
    r"csrc/math/scale\.h:base_of local ds = F\(1\)": "Each base assigns another value.",
    r"csrc/math/latent/gaussian\.h:relative return 2 = q": (
        "The KL of DefaultOptions and its gradient do not read this field."
    ),
    r"vae_fused/_kinds/.*\.is_valid return": "A truth value.",
    r"vae_fused/elbo\.py:_computed return = _native": "A tuple, which the kernels compute.",
    r"vae_fused/iwae\.py:_bound local ties": "Each element is 0 or minus infinity.",
    r"\S+:\S+ (?:local [^=]+|return) = torch\.zeros_like": "The value is 0.",
    r"vae_fused/_formulas/gaussian\.py:_growth local (?:smallest|\(low, high\))": (
        "It chooses between two forms, which are both accurate to within rounding near the bound."
    ),
    r"vae_fused/_formulas/likelihood\.py:_log_or local tiny": (
        "It chooses between two forms, which are both accurate to within rounding near the bound."
    ),
    r"vae_fused/_formulas/gaussian\.py:balanced local toward_p 1": (
        "The value of a divergence is the one toward q, and this one has no gradient."
    ),
}


def name_of(site: Site) -> str:
    return f"{site.file}:{site.function} {site.part}"


def reason_of(site: Site) -> str:
    """Returns why this mutant cannot be detected, or an empty string if it can."""
    whole = f"{name_of(site)} = {site.text}"
    return next((why for pattern, why in EQUIVALENT.items() if re.match(pattern, whole)), "")


# --------------------------------------------------------------------------------------------------
# Runs of a suite
# --------------------------------------------------------------------------------------------------


class Runs:
    """A pytest plugin that, in a fork for each mutant, runs the collected tests that reach it."""

    def __init__(self, suite: str, sites: list[Site], chosen: list[int], limit: float) -> None:
        self.suite, self.sites, self.chosen, self.limit = suite, sites, chosen, limit
        self.terminal, self.folder = os.dup(1), Path.cwd()
        self.results = self.folder / "results.json"
        self.found = json.loads(self.results.read_text()) if self.results.exists() else {}
        self.failed: list[str] = []
        self.seconds = 0.0

    def say(self, text: str) -> None:
        os.write(self.terminal, f"{text}\n".encode())

    def pytest_runtestloop(self, session: Any) -> bool:
        if session.testsfailed:
            return False
        self.items = {item.nodeid: item for item in session.items}
        for name, module in list(sys.modules.items()):
            if self.suite == "native" and name.endswith("native.build"):
                module.module()
        started = time.monotonic()
        tests = self.run(-1, list(self.items), 3600)
        if isinstance(tests, str):
            raise session.Failed(tests)
        seconds = time.monotonic() - started
        self.say(f"{self.suite}: {len(tests)} tests in {seconds:.0f} s without a mutant")
        kills: Counter[tuple[str, str]] = Counter()
        for number in self.chosen:
            if self.found.get(str(number)):
                continue
            site = self.sites[number - 1]
            reaching = [test for test, (_, reached) in tests.items() if number in reached]
            if not reaching:
                is_other = any(-number in reached for _, reached in tests.values())
                if is_other:  # a Boolean, an integer or a shape
                    self.found[str(number)] = "no number"
                continue
            reaching.sort(key=lambda t: (not kills[site.file, t], tests[t][0]))
            caught = self.run(number, reaching, self.limit)
            kills[site.file, caught] += 1
            self.found[str(number)] = f"{self.suite}: {caught}" if caught else ""
            missed = f"{len(reaching)} tests evaluate it, none fails"
            self.say(f"{number} {site.line} {name_of(site)}: {caught or missed}")
            self.results.write_text(json.dumps(self.found))
        self.results.write_text(json.dumps(self.found))
        return True

    def run(self, mutant: int, names: list[str], limit: float) -> Any:
        """Returns the result of :meth:`in_child` in a fork, or the reason why there is none."""
        answer = self.folder / "answer.json"
        answer.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            os.setsid()
            answer.write_text(json.dumps(self.in_child(mutant, names)))
            os._exit(0)
        end = time.monotonic() + limit
        while (done := os.waitpid(child, os.WNOHANG))[0] == 0:
            if time.monotonic() > end:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
                return "" if mutant > 0 else "the time limit"
            time.sleep(0.01)
        return json.loads(answer.read_text()) if answer.exists() else f"status {done[1]}"

    def in_child(self, mutant: int, names: list[str]) -> Any:
        """Returns the first failing test, or each test's duration in seconds and its formulas."""
        os.environ["VAE_FUSED_MUTANT"] = str(mutant)
        sys.modules["vae_fused._mutant"].SELECTED = mutant
        self.libraries = [ctypes.CDLL(path) for path in self.mapped()]
        for library in self.libraries:
            ctypes.c_int.in_dll(library, "vae_fused_mutant").value = mutant
        tests = {}
        for name, following in zip(names, [*names[1:], None], strict=True):
            self.seconds = 0.0
            self.items[name].ihook.pytest_runtest_protocol(
                item=self.items[name], nextitem=following and self.items[following]
            )
            if mutant > 0 and self.failed:
                return name
            reached = [] if mutant > 0 else self.reached()
            if self.failed:
                self.say(f"fails without a mutant, and is left out: {self.failed}")
                self.failed.clear()
            else:
                tests[name] = (self.seconds, reached)
        return "" if mutant > 0 else tests

    def pytest_runtest_logreport(self, report: Any) -> None:
        self.seconds += report.duration
        if report.failed:
            self.failed.append(f"{report.nodeid}\n{report.longreprtext}")

    def mapped(self) -> list[str]:
        """Returns the extensions in the copy that this process has loaded."""
        maps = Path("/proc/self/maps").read_text()
        pattern = rf"{re.escape(str(self.folder))}/\S+/(?:_native|_C)\.\S*so"
        return sorted(set(re.findall(pattern, maps)))

    def reached(self) -> list[int]:
        """Returns the formulas that have been evaluated since the last call."""
        module: Any = sys.modules["vae_fused._mutant"]
        result = set(module.REACHED)
        module.REACHED.clear()
        for library in self.libraries:
            array = (ctypes.c_int * (len(self.sites) + 1)).in_dll(library, "vae_fused_reached")
            result |= {number for number, flag in enumerate(array) if flag}
            ctypes.memset(array, 0, ctypes.sizeof(array))
        return sorted(result)


def run_suite(copy: Path, suite: str, sites: list[Site], chosen: list[int], limit: float) -> None:
    """Run a suite in a fork of this process, which has imported neither build of the package."""
    child = os.fork()
    if child == 0:
        package, paths = SUITES[suite]
        os.chdir(copy)
        os.environ |= {**variables_of(suite), "PYTHONPATH": str(copy / package)}
        sys.argv = ["pytest"]
        import pytest

        runs = Runs(suite, sites, chosen, limit)
        log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(log, 1)
        os.dup2(log, 2)
        # The package under test comes first on the path, before the checkout.
        options = ["-o", f"pythonpath={copy / package}", "-q", "--tb=short"]
        options += ["-p", "no:cacheprovider", "-p", "no:xdist"]
        options += ["-k", "not compile and not sanitizers"]
        os._exit(pytest.main([*options, *paths], plugins=[runs]))
    if os.waitpid(child, 0)[1] != 0:
        raise SystemExit(f"{suite} fails without a mutant:\n{(copy / 'log.txt').read_text()}")


# --------------------------------------------------------------------------------------------------
# The copy
# --------------------------------------------------------------------------------------------------


def copied(copy: Path, names: tuple[str, ...]) -> None:
    for name in names:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.so", "_build_info.json")
            shutil.rmtree(copy / name, ignore_errors=True)
            shutil.copytree(source, copy / name, ignore=ignored)
        else:
            shutil.copy(source, copy / name)


def prepared(copy: Path) -> list[Site]:
    """Copy and rewrite the tree. In an existing copy, replace only the tests."""
    record = copy / "sites.json"
    if record.exists():
        copied(copy, ("tests", "docs", "README.md"))
        return [Site(**site) for site in json.loads(record.read_text())]
    left_out = (".git", "build")
    every = [p.name for p in ROOT.iterdir() if not p.name.startswith(".venv")]
    copied(copy, tuple(name for name in every if name not in left_out))
    for kernel in OTHER_KERNELS:
        (copy / "csrc/cuda/likelihood" / kernel).unlink()
    sites = rewrite(copy)
    record.write_text(json.dumps([asdict(site) for site in sites]))
    return sites


def variables_of(suite: str) -> dict[str, str]:
    """Returns the environment in which a suite is built and run.

    The tests look for a build made by the same compiler.
    """
    package, compiler = SUITES[suite][0], os.environ.get("CXX", "g++")
    native = {"CXX": f"{compiler} -DVAE_FUSED_FLOAT_LIKELIHOODS"} if suite == "native" else {}
    baseline = {"VAE_FUSED_BUILD": package, "CPPFLAGS": "-DVAE_FUSED_CPU_BASELINE"}
    return {**baseline, **native, "OMP_NUM_THREADS": "1"}


def build(copy: Path, suite: str) -> None:
    """Build a suite. All instruction sets have the same formulas, so the baseline is sufficient."""
    commands = [["setup.py", "--quiet", "build", "--build-lib", SUITES[suite][0]]]
    if suite == "native":
        commands.append(["tests/native/build.py", "module"])
    environment = {**os.environ, **variables_of(suite)}
    for command in commands:
        subprocess.run([sys.executable, *command], cwd=copy, check=True, env=environment)


# --------------------------------------------------------------------------------------------------
# Reports
# --------------------------------------------------------------------------------------------------


def report(sites: list[Site], found: dict[str, str]) -> Iterator[str]:
    """Yields a table of all mutants, with the test that caught each of them."""
    yield "| file | line | function | part | formula | caught by |"
    yield "|---|---|---|---|---|---|"
    for number, site in enumerate(sites, 1):
        if (caught := found.get(str(number))) is None or caught == "no number":
            continue
        result = caught or (f"equivalent: {reason_of(site)}" if reason_of(site) else "**nothing**")
        text = site.text[:60].replace("|", "\\|")
        yield f"| {site.file} | {site.line} | {site.function} | {site.part} | `{text}` | {result} |"


def summary(sites: list[Site], found: dict[str, str]) -> Iterator[str]:
    """Yields the number of mutants per file, and lists the undetectable and uncaught mutants."""
    totals: dict[str, Counter[str]] = {}
    others: dict[str, list[str]] = {}
    for number, site in enumerate(sites, 1):
        if (caught := found.get(str(number))) is None or caught == "no number":
            continue
        why = reason_of(site)
        kind = "caught" if caught else "equivalent" if why else "missed"
        totals.setdefault(site.file, Counter())[kind] += 1
        if kind != "caught":
            reason = why or "**Nothing has caught it.**"
            line = f"- `{site.function}`, {site.part}: `{site.text[:70]}`. {reason}"
            wrapped = textwrap.fill(line, 98, subsequent_indent="  ", break_on_hyphens=False)
            others.setdefault(site.file, []).append(wrapped)
    yield "| file | mutants | caught | equivalent | not caught |"
    yield "|---|---|---|---|---|"
    totals["all files"] = sum(totals.values(), Counter())
    for file, of in totals.items():
        yield f"| {file} | {of.total()} | {of['caught']} | {of['equivalent']} | {of['missed']} |"
    for file, lines in others.items():
        yield from ("", f"**{file}**", "", *lines)


def main() -> int:
    parser = argparse.ArgumentParser("mutations", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="a Markdown file for the table of all mutants")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--only", type=re.compile)
    parser.add_argument("--locals", action="store_true")
    parser.add_argument("--suite", nargs="*", default=list(SUITES))
    parser.add_argument("--limit", type=float, default=120.0, help="seconds of tests for a mutant")
    given = parser.parse_args()
    copy = (given.folder or Path(tempfile.mkdtemp(prefix="mutations-"))).resolve()
    copy.mkdir(exist_ok=True)
    sites = prepared(copy)
    chosen = [
        number
        for number, site in enumerate(sites, 1)
        if (given.locals or not site.part.startswith("local "))
        and not (given.only and not given.only.search(name_of(site)))
    ]
    chosen.sort(key=lambda number: sites[number - 1].part.startswith("local "))
    import torch  # noqa: F401

    for suite in given.suite:
        kind = "vae_fused/" if suite == "eager" else "csrc/"
        of_suite = [number for number in chosen if sites[number - 1].file.startswith(kind)]
        build(copy, suite)
        run_suite(copy, suite, sites, of_suite, given.limit)
    results = copy / "results.json"
    found = {str(n): "" for n in chosen} | json.loads(results.read_text())
    if given.out:
        given.out.write_text("\n".join([*summary(sites, found), "", *report(sites, found), ""]))
    print("\n".join(summary(sites, found)))
    if not given.folder:
        shutil.rmtree(copy)
    missed = (sites[int(number) - 1] for number, caught in found.items() if not caught)
    return 0 if all(map(reason_of, missed)) else 1


if __name__ == "__main__":
    sys.exit(main())
