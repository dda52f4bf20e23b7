"""Rewrites the formulas of a copy so that an environment variable makes one of them wrong by 1 %.

All mutants are compiled together. Each formula becomes `(formula) * mutated<7>()` in C++, where the
factor is 1.01 if VAE_FUSED_MUTANT is 7, and `_mutated(7, formula)` in Python. A formula is an
expression that a function returns, a component of such an expression, or an expression assigned to
a result or to a floating-point variable. Integers, Booleans, bit casts and constants are unchanged.
The steps of a polynomial are also unchanged, because 1 % of a high coefficient is below rounding,
and the polynomial's value is itself a formula.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Files in csrc/math without formulas: integers, and values that the host derives from options.
WITHOUT_FORMULAS = {
    "csrc/math/philox.h", "csrc/math/options.h", "csrc/math/scale_options.h",
    "csrc/math/latent/options.h", "csrc/math/likelihood/options.h",
}  # fmt: skip
PYTHON = (
    "_formulas/*.py", "_kinds/*.py", "iwae.py", "stats.py", "schedules.py", "elbo.py",
    "_grid_distribution.py", "_count_distributions.py", "_normal.py",
)  # fmt: skip
HEADER = """#pragma once
#include <cstdlib>
extern "C" {
// Which formulas have been evaluated.
inline __attribute__((visibility("default"))) int vae_fused_reached[%d];
inline __attribute__((visibility("default"))) int vae_fused_mutant =
    std::getenv("VAE_FUSED_MUTANT") ? std::atoi(std::getenv("VAE_FUSED_MUTANT")) : 0;
}
namespace vae_fused::math {
// A number, as files of several instruction sets share this function.
template <int id>
inline __attribute__((always_inline)) float mutated() {
  vae_fused_reached[id] = 1;
  return vae_fused_mutant == id ? 1.01f : 1.0f;
}
}  // namespace vae_fused::math
"""
MODULE = '''"""Which formula is wrong by 1 %."""

import os

import torch

SELECTED = int(os.environ.get("VAE_FUSED_MUTANT", "0"))
REACHED = set()  # the formulas that have been evaluated, negative if what they are is no number


def mutated(number, value):
    if SELECTED not in (-1, number):
        return value
    is_tensor = isinstance(value, torch.Tensor) and value.is_floating_point()
    is_number = is_tensor or isinstance(value, float)
    if SELECTED == number:
        return value * 1.01 if is_number else value
    if not torch.compiler.is_compiling():
        REACHED.add(number if is_number else -number)
    return value
'''


@dataclass(frozen=True)
class Site:
    """A formula that a mutant can change."""

    file: str
    line: int
    function: str
    part: str  # "return" or the assigned name, and the index of a component
    text: str


@dataclass(frozen=True)
class Span:
    """The position of a formula in a file's text."""

    start: int
    end: int
    function: str
    part: str


def rewritten(text: str, file: str, spans: list[Span], known: list[Site]) -> str:
    """Returns the text with a factor for each span, and appends the sites to ``known``."""
    edits: list[tuple[int, int, str]] = []  # at equal positions, the shorter span is the inner one
    for span in spans:
        line = text.count("\n", 0, span.start) + 1
        shown = " ".join(text[span.start : span.end].split())
        known.append(Site(file, line, span.function, span.part, shown))
        number = len(known)
        before, after = (
            (f"_mutated({number}, ", ")")
            if file.endswith(".py")
            else ("(", f") * mutated<{number}>()")
        )
        edits.append((span.start, -span.end, before))
        edits.append((span.end, -span.start, after))
    result, last = [], 0
    for place, _, inserted in sorted(edits, key=lambda edit: (edit[0], edit[2][0] != ")", edit[1])):
        result += [text[last:place], inserted]
        last = place
    return "".join([*result, text[last:]])


# --------------------------------------------------------------------------------------------------
# C++
# --------------------------------------------------------------------------------------------------

SCALARS = ("F", "T", "float", "double", "auto")
# Functions that return Booleans or bits.
NO_FLOAT = ("is_near", "is_outside", "with_base", "bits", "real", "mulhi", "words_of_pair")
# Components and values that are structures, whose fields are separate formulas.
STRUCTURES = re.compile(r"scale|exps\[j\]|mean|theta|far|q\.exponentials\.excess\(q\.scale\.x\)")
CONSTANT = re.compile(r"(?:[FT]\()?0(?:\.0*)?f?\)?|true|false|real\(0x7.*|is_outside\(.*", re.S)
STEP = re.compile(r"(?:p|sine|cosine) \* |-?[\d.]+(?:e-?\d+)?f?$|k \* -?[\d.e-]+f$|1\.0 / 23$")
NO_RESULT = re.compile(r"\S*\.(?:u|is_\w+) |h narrow|far log_parts")  # bits and Booleans
HEAD = re.compile(
    r"\b(?:VAE_FUSED_(?:HD|NOINLINE_DEVICE|LIBM)|inline)\s+"
    r"(?P<type>(?:constexpr )?[\w:]+(?:<[^;{}()]*?>)?)\s+"
    r"(?P<name>\w+)\s*\("
)
STATEMENT = re.compile(
    r"\breturn\b\s*|(?:(?<=[;{})])|(?<=else))\s*(?:else\s+)?"
    r"(?P<type>(?:const\s+)?(?:[FT]|float|double|\w+<[^;=(){}]*>)\s+)?"
    r"(?P<left>\w+(?:\.\w+|\[[^\]=]*\])*)\s*(?P<op>[-+]?=)(?!=)\s*"
)


def blanked(text: str) -> str:
    """Replaces comments, preprocessor lines and device code in C++ with blanks."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", match[0])

    text = re.sub(r"//[^\n]*|/\*.*?\*/|\"(?:[^\"\\]|\\.)*\"", blank, text, flags=re.S)
    lines, on_device = text.split("\n"), [False]
    continued = False
    for i, line in enumerate(lines):
        word = re.match(r"\s*#\s*(\w+)(.*)", line)
        if word and not continued:
            device = re.search(r"(?<!!)defined\((?:__CUDA|VAE_FUSED_HAS_CVT)|^ __CUDA", word[2])
            if word[1] in ("if", "ifdef", "ifndef"):
                on_device.append(bool(device))
            elif word[1] in ("elif", "else"):
                on_device[-1] = bool(device)
            elif word[1] == "endif":
                on_device.pop()
        is_directive = continued or bool(word)
        continued = is_directive and line.endswith("\\")
        if is_directive or any(on_device):
            lines[i] = " " * len(line)
    return "\n".join(lines)


def closing(text: str, start: int, stops: str = "") -> int:
    """Finds the end of the bracket at ``start``, or the first of ``stops`` outside brackets."""
    depth = 0
    for i in range(start, len(text)):
        if depth == 0 and text[i] in stops:
            return i
        depth += (text[i] in "([{") - (text[i] in ")]}")
        if depth < 0 or (depth == 0 and not stops):
            return i
    return len(text)


def components(code: str, start: int, end: int, part: str) -> Iterator[tuple[int, int, str]]:
    """Yields the formulas in an expression: the expression itself, or those in its braces."""
    while start < end and code[start].isspace():
        start += 1
    while end > start and code[end - 1].isspace():
        end -= 1
    if code[start] != "{":
        yield start, end, part
        return
    at, number = start + 1, 0
    while at < end:
        stop = closing(code, at, ",}")
        number += 1
        if code[at:stop].strip():
            yield from components(code, at, stop, f"{part} {number}")
        at = stop + 1


def cpp_spans(text: str, structs: set[str]) -> Iterator[Span]:
    """Yields the formulas in a C++ file. ``structs`` are the functions that return structures."""
    code = blanked(text)
    classes = [
        (m.start(), closing(code, m.end() - 1), m[1])
        for m in re.finditer(r"^struct (\w+)[^;{]*\{", code, re.M)
    ]
    for head in HEAD.finditer(code):
        body = closing(code, closing(code, head.end() - 1) + 1, "{;")
        if code[body : body + 1] != "{" or head["name"] in NO_FLOAT:
            continue
        name = head["name"]
        for start, end, outer in classes:
            name = f"{outer}::{name}" if start < head.start() < end else name
        for span in body_spans(code, body, closing(code, body), head["type"] in SCALARS, name):
            value = code[span.start : span.end]
            call = re.fullmatch(r"(?:math::)?(\w+)(?:<\w+>)?\((.*)\)", value, re.S)
            known = call is not None and call[1] in structs and ")" not in call[2].split("(")[0]
            if not (known or CONSTANT.fullmatch(value) or STRUCTURES.fullmatch(value)):
                yield span


def body_spans(code: str, start: int, end: int, scalar: bool, name: str) -> Iterator[Span]:
    for match in STATEMENT.finditer(code, start, end):
        left, at = match["left"], match.end()
        struct = "<" in (match["type"] or "") if left else not scalar
        while True:
            stop = closing(code, at, ",;" if match["type"] else ";")
            value = code[at:stop]
            chained = re.match(r"[\w.\[\]]+ = ", value)  # a = b = value: assigned to b
            at += chained.end() if chained else 0
            skipped = left and (STEP.match(code[at:stop]) or NO_RESULT.match(f"{left} {name}"))
            if not skipped and (not struct or code[at] == "{"):
                declared = "local " if match["type"] and not struct else ""
                for one, other, part in components(code, at, stop, left or "return"):
                    yield Span(one, other, name, declared + part)
            following = re.compile(r",\s*(\w+)\s*=\s*").match(code, stop)
            if not match["type"] or not following:
                break
            left, at = following[1], following.end()


# --------------------------------------------------------------------------------------------------
# Python
# --------------------------------------------------------------------------------------------------

RESULTS = ("Tensor", "IWAETerms", "LatentStats", "ELBOTerms")


class PythonFormulas(ast.NodeVisitor):
    """Collects the formulas in a Python file as nodes of its syntax tree."""

    def __init__(self) -> None:
        self.found: list[tuple[ast.expr, str, str]] = []
        self.scope: list[str] = []
        self.returns_numbers = True

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.inside(node.name, node.body)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        returns = ast.unparse(node.returns) if node.returns else ""
        has_formulas = any(word in returns for word in (*RESULTS, "Distribution"))
        if has_formulas or node.name in ("__init__", "backward"):
            outer = self.returns_numbers
            self.returns_numbers = not returns.startswith(("Callable", "Distribution"))
            self.inside(node.name, node.body)
            self.returns_numbers = outer
        else:  # nested functions
            self.inside(node.name, [n for n in node.body if isinstance(n, ast.ClassDef)])

    def inside(self, name: str, body: list[ast.stmt]) -> None:
        self.scope.append(name)
        for node in body:
            self.visit(node)
        self.scope.pop()

    def visit_Return(self, node: ast.Return) -> None:
        if self.returns_numbers:
            self.add(node.value, "return")
        self.generic_visit(node)

    def visit_Assign(self, node: ast.Assign) -> None:
        target = node.targets[0]
        local = "" if isinstance(target, ast.Attribute) else "local "
        if self.scope:
            self.add(node.value, local + ast.unparse(target))
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.add(node.value, f"local {ast.unparse(node.target)}")
        self.generic_visit(node)

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.scope.append("lambda")
        self.add(node.body, f"lambda {ast.unparse(node.args)}")
        self.scope.pop()
        self.generic_visit(node)

    def add(self, node: ast.expr | None, part: str) -> None:
        parts: list[ast.expr] = []
        if isinstance(node, ast.Tuple | ast.List):
            parts = node.elts
        elif isinstance(node, ast.IfExp):
            parts = [node.body, node.orelse]
        elif isinstance(node, ast.GeneratorExp | ast.ListComp):
            parts = [node.elt]
        elif isinstance(node, ast.Starred):
            parts = [node.value] if isinstance(node.value, ast.GeneratorExp) else []
        elif isinstance(node, ast.Call) and (
            ast.unparse(node.func) in RESULTS
            or any(isinstance(one, ast.GeneratorExp) for one in node.args[:1])
        ):
            parts = [*node.args, *(k.value for k in node.keywords)]
        elif isinstance(node, ast.Lambda | ast.Constant | ast.Dict | ast.JoinedStr):
            return
        elif node is not None:
            self.found.append((node, ".".join(self.scope), part))
        for number, one in enumerate(parts, 1):
            self.add(one, f"{part} {number}")


def python_spans(text: str) -> Iterator[Span]:
    visitor = PythonFormulas()
    visitor.visit(ast.parse(text))
    starts = [0]
    for line in text.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    lines = text.splitlines()

    def place(line: int, column: int) -> int:  # columns count bytes
        return starts[line - 1] + len(lines[line - 1].encode()[:column].decode())

    for node, function, part in visitor.found:
        assert node.end_lineno is not None and node.end_col_offset is not None
        start, end = (
            place(node.lineno, node.col_offset), place(node.end_lineno, node.end_col_offset)
        )  # fmt: skip
        yield Span(start, end, function or "module", part)


# --------------------------------------------------------------------------------------------------
# A whole tree
# --------------------------------------------------------------------------------------------------


def rewrite(root: Path) -> list[Site]:
    """Rewrite the tree in place. The number of a site is its position in the result, from 1."""
    sites: list[Site] = []
    headers = [p for p in sorted((root / "csrc/math").rglob("*.h"))
               if str(p.relative_to(root)) not in WITHOUT_FORMULAS]  # fmt: skip
    heads = [m for p in headers for m in HEAD.finditer(blanked(p.read_text()))]
    structs = {m["name"] for m in heads if m["type"] not in SCALARS}
    structs -= {m["name"] for m in heads if m["type"] in SCALARS}
    for path in headers:
        text, name = path.read_text(), str(path.relative_to(root))
        spans = list(cpp_spans(text, structs))
        path.write_text(rewritten(text, name, spans, sites))
    package = root / "vae_fused"
    for path in sorted({p for pattern in PYTHON for p in package.glob(pattern)}):
        text, name = path.read_text(), str(path.relative_to(root))
        text = rewritten(text, name, list(python_spans(text)), sites)
        future = "from __future__ import annotations"
        added = "; from vae_fused._mutant import mutated as _mutated"
        path.write_text(text.replace(future, future + added, 1))
    (package / "_mutant.py").write_text(MODULE)
    room = (len(sites) // 1000 + 1) * 1000  # so that a few more formulas need no recompilation
    (root / "csrc/math/mutated.h").write_text(HEADER % room)
    platform = root / "csrc/math/platform.h"
    include = "#include <cstring>\n"
    platform.write_text(
        platform.read_text().replace(include, f'{include}#include "math/mutated.h"\n')
    )
    return sites
