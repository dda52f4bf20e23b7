"""mutants.py finds formulas in C++ and Python, and changes nothing without a mutant."""

from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from mutations import mutants

ROOT = Path(__file__).resolve().parents[2]

CPP = """
template <typename F>
struct Two {
  F first, second;
};

// return a comment;
template <typename F>
VAE_FUSED_HD Two<F> both(F x) {
  F p = 0.5f;
  p = p * x + 1.0f;
  const F a = x * p, b = a - F(1);
#if defined(__CUDA_ARCH__)
  return {b, a};
#endif
  if (a > b) return {a, F(0)};
  return {select(a < b, a, b), b};
}

VAE_FUSED_HD bool is_large(float x) { return x > 1.0f; }
VAE_FUSED_HD Two<float> again(float x) { return both(x); }

struct Kind {
  static VAE_FUSED_HD void adjoint(float grad, float (&out)[2]) {
    out[0] = grad * 2.0f;
    out[1] = out[0] = both(grad).first;
  }
};
"""

PYTHON = '''
from __future__ import annotations

TABLE = {"twice": lambda x: 2.0 * x}


def pair(x: Tensor, flag: bool) -> tuple[Tensor, Tensor]:
    """return a text"""
    y = x + 1.0
    return y * y, (x if flag else -x)


def count(x: Tensor) -> int:
    return x.numel()


def pairs(xs: list[Tensor]) -> tuple[Tensor, ...]:
    return tuple(x * 3.0 for x in xs)
'''


def found(spans: list[mutants.Span], text: str) -> list[tuple[str, str, str]]:
    return [(s.function, s.part, text[s.start : s.end]) for s in spans]


def test_formulas_of_cpp() -> None:
    spans = list(mutants.cpp_spans(CPP, {"both", "again"}))
    assert found(spans, CPP) == [
        ("both", "local a", "x * p"),
        ("both", "local b", "a - F(1)"),
        ("both", "return 1", "a"),
        ("both", "return 1", "select(a < b, a, b)"),
        ("both", "return 2", "b"),
        ("Kind::adjoint", "out[0]", "grad * 2.0f"),
        ("Kind::adjoint", "out[1]", "both(grad).first"),
    ]


def test_formulas_of_python() -> None:
    spans = list(mutants.python_spans(PYTHON))
    assert sorted(found(spans, PYTHON)) == sorted(
        [
            ("lambda", "lambda x", "2.0 * x"),
            ("pair", "local y", "x + 1.0"),
            ("pair", "return 1", "y * y"),
            ("pair", "return 2 1", "x"),
            ("pair", "return 2 2", "-x"),
            ("pairs", "return 1 1", "x * 3.0"),
        ]
    )


@pytest.mark.parametrize("mutant", [0, 1, 3, 5])
def test_one_formula_at_a_time_is_wrong_by_one_percent(mutant: int) -> None:
    sites: list[mutants.Site] = []
    text = mutants.rewritten(PYTHON, "some.py", list(mutants.python_spans(PYTHON)), sites)

    def mutated(number: int, value: float) -> float:
        return value * 1.01 if number == mutant else value

    names: dict = {"Tensor": float, "_mutated": mutated}
    exec(compile(text, "some.py", "exec"), names)
    module = SimpleNamespace(**names)
    got = [module.TABLE["twice"](4.0), *module.pair(4.0, True), *module.pair(4.0, False)]
    got += module.pairs([4.0])
    want = [8.0, 25.0, 4.0, 25.0, -4.0, 12.0]
    site = sites[mutant - 1] if mutant else None
    changed = [i for i, (g, w) in enumerate(zip(got, want, strict=True)) if g != w]
    by_text = {"2.0 * x": [0], "x + 1.0": [1, 3], "y * y": [1, 3], "x": [2], "-x": [4],
               "x * 3.0": [5]}  # fmt: skip
    assert changed == (by_text[site.text] if site else [])


def test_the_sources_without_a_mutant_compile(tmp_path: Path) -> None:
    """Each formula in the sources is rewritten to valid C++ or Python."""
    for name in ("csrc", "vae_fused"):
        shutil.copytree(ROOT / name, tmp_path / name)
    sites = mutants.rewrite(tmp_path)
    for path in (tmp_path / "vae_fused").rglob("*.py"):
        compile(path.read_text(), str(path), "exec")
    files = {site.file for site in sites}
    headers = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc/math").rglob("*.h")}
    expected = headers - mutants.WITHOUT_FORMULAS - {"csrc/math/likelihood/kinds.h"}
    assert {f for f in files if f.endswith(".h")} == expected
    for header in expected:
        text = (tmp_path / header).read_text()
        numbers = [n for n, site in enumerate(sites, 1) if site.file == header]
        assert all(text.count(f"mutated<{n}>()") == 1 for n in numbers)
