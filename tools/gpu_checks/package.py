"""The compiled package under test: from the bundle, installed or built here, never the sources.

Only child processes import torch or vae_fused. This process therefore also works if the imports
fail, and an error affects only one child.
"""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from gpu_checks.bundle import Bundle
from gpu_checks.processes import Finished, Running, execute
from gpu_checks.report import ROOT

TOOLS = ROOT / "tools"
# The modules that the tests import. Some may be missing on a machine without a network.
TEST_MODULES = (
    *("pytest", "xdist", "mpmath", "hypothesis", "expecttest", "pybind11", "pytest_benchmark"),
)
EXTRA_MODULES = ("scipy", "sklearn", "matplotlib", "tqdm", "triton", "pyro")

QUESTION = f"""
import importlib.util, json, platform, warnings
warnings.simplefilter("ignore")
names = {TEST_MODULES + EXTRA_MODULES}
answer = {{"python": platform.python_version(), "gpus": 0}}
answer["missing"] = [n for n in names if importlib.util.find_spec(n) is None]
try:
    import torch
    answer.update(torch=str(torch.__version__), torch_cuda=torch.version.cuda)
    answer["gpus"] = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if answer["gpus"]:
        answer["capability"] = "{{}}.{{}}".format(*torch.cuda.get_device_capability(0))
        answer["name"] = torch.cuda.get_device_name(0)
    from vae_fused import _ext
    answer.update(file=_ext.__file__, has_cuda=_ext.has_cuda, reason=_ext.reason)
    answer.update(available=_ext.available, build=_ext.build_info)
except Exception as error:
    answer.update(file=None, reason=f"{{type(error).__name__}}: {{error}}")
print("ANSWER" + json.dumps(answer))
"""


@dataclasses.dataclass
class Place:
    """The working folder, the import paths and the log folder of child processes."""

    scratch: Path  # also their working directory, which contains no sources
    logs: Path
    device: str = "cuda"  # or "cpu", to test these tools without a GPU
    package: Path | None = None  # the folder with the compiled package, unless it is installed
    modules: Path | None = None  # the bundle's folder of test modules, if some are missing

    def env(self, **more: str) -> dict[str, str]:
        # Remove variables of a pytest that started this run. With those of an xdist worker, the
        # suite's processes would send their records to a parent that they do not have.
        env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
        inherited = env.get("PYTHONPATH", "").split(os.pathsep)
        kept = [p for p in inherited if os.path.isabs(p) and Path(p).resolve() != ROOT]
        ours = [str(folder) for folder in (self.package, self.modules) if folder]
        env["PYTHONPATH"] = os.pathsep.join([*ours, *kept, str(TOOLS)])
        env.setdefault("CUDA_MODULE_LOADING", "LAZY")
        env["PYTHONDONTWRITEBYTECODE"] = "1"
        env["VAE_FUSED_STRICT"] = "1"  # the fallback to eager PyTorch is no result
        return env | more

    def run(
        self, command: list[str], timeout: float, name: str, env: dict[str, str] | None = None
    ) -> Finished:
        log = self.logs / f"{name}.log"
        return execute(command, timeout, env=env or self.env(), cwd=self.scratch, log=log)

    def drive(self, name: str, *arguments: str) -> list[str]:
        """The command line of a program in driver.py."""
        script = str(TOOLS / "gpu.py")
        return [sys.executable, script, "--driver", name, "--device", self.device, *arguments]

    def run_driver(self, name: str, timeout: float, *arguments: str) -> tuple[Any, Finished]:
        """Run a driver program. Returns its output, or None if it wrote none."""
        out = self.scratch / f"{name}.json"
        out.unlink(missing_ok=True)
        done = self.run(self.drive(name, "--out", str(out), *arguments), timeout, name)
        try:
            return json.loads(out.read_text(encoding="utf-8")), done
        except (OSError, ValueError):
            return None, done


def ask(place: Place, timeout: float = 90.0) -> dict[str, Any]:
    """The torch and vae_fused that a fresh interpreter imports, or the `reason` for a failure.

    On a machine that has just started, importing torch may take half a minute.
    """
    env = place.env(VAE_FUSED_STRICT="0")
    command, log = [sys.executable, "-c", QUESTION], place.scratch / "imports.log"
    done = execute(command, timeout, env=env, cwd=place.scratch, log=log)
    for line in done.output.splitlines():
        if line.startswith("ANSWER"):
            answer: dict[str, Any] = json.loads(line[len("ANSWER") :])
            return answer
    return {"gpus": 0, "missing": [], "reason": done.tail(3) or done.ended()}


def problem_with(answer: dict[str, Any], device: str) -> str:
    """Why the package cannot be tested, or ''."""
    file = answer.get("file")
    if not file:
        return str(answer.get("reason"))
    if Path(str(file)).resolve().is_relative_to(ROOT / "vae_fused"):
        return f"python imports the sources ({file})"
    if not answer.get("available" if device == "cpu" else "has_cuda"):
        return str(answer.get("reason") or "it was built without CUDA")
    return ""


def build_command(target: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"),
        *("--no-index", "--disable-pip-version-check", "--target", str(target), str(ROOT)),
    ]


class Package:
    """The package under test. A background thread finds it, and compiles it if necessary."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.answer: dict[str, Any] = {}
        self.problem = "the package is still being looked for"
        self.origin = ""  # bundle | installed | built here
        self.build: Running | None = None
        self.build_failed = False
        self.target = place.scratch / "package"
        self.search: threading.Thread | None = None

    def begin(self, bundle: Bundle) -> None:
        """Start the search. Steps that need no package run meanwhile."""
        self.search = threading.Thread(target=self.find, args=(bundle,), daemon=True)
        self.search.start()

    def find(self, bundle: Bundle) -> None:
        """Use the bundle's package, else the installed one, else start to build one."""
        reasons = []
        choices = [("bundle", bundle.package)] if bundle.package else []
        for origin, folder in [*choices, ("installed", None)]:
            self.place.package = folder
            answer = ask(self.place)
            problem = problem_with(answer, self.place.device)
            if not problem:
                self.origin = origin
                break
            reasons.append(f"{origin}: {problem}")
        python = str(bundle.manifest.get("python"))
        fits = str(answer.get("python")).startswith(f"{python}.")
        if set(answer["missing"]) & set(TEST_MODULES) and bundle.modules and fits:
            self.place.modules = bundle.modules
            answer["missing"] = [name for name in answer["missing"] if name not in TEST_MODULES]
        self.answer, self.problem = answer, "; ".join(reasons) if problem else ""
        if problem and "torch" in answer:
            self.start_build()

    def start_build(self) -> None:
        env = self.place.env(VAE_FUSED_BUILD="cpu" if self.place.device == "cpu" else "cuda")
        env.setdefault("TORCH_CUDA_ARCH_LIST", str(self.answer.get("capability", "9.0")))
        # ninja etc. are beside the interpreter, which may not be on the PATH.
        env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
        log = self.place.scratch / "build.log"
        command = build_command(self.target)
        self.build = Running(command, env=env, cwd=self.place.scratch, log=log)

    def look(self, timeout: float) -> str:
        """Wait for the search, but not for a build. Returns why no package is ready, or ''."""
        if self.search is not None:
            self.search.join(max(0.0, timeout))
        return self.wait(0.0)

    def wait(self, timeout: float) -> str:
        """Wait for the search and the build. Returns why no package is available, or ''."""
        until = time.monotonic() + timeout
        if self.search is not None:
            self.search.join(max(0.0, timeout))
            if self.search.is_alive():
                return self.problem
        if self.build is None:
            return self.problem
        while self.build.process.poll() is None:
            if time.monotonic() >= until:
                return "the package is still being built"
            time.sleep(0.1)
        done, self.build = self.build.wait(0.0), None
        (self.place.logs / "build.log").write_text(done.output, encoding="utf-8")
        if done.status != 0:
            self.build_failed = True
            self.problem = f"{self.problem}; the build {done.ended()}: {done.tail(6)}"
            return self.problem
        missing = self.answer["missing"]
        self.place.package = self.target
        self.answer = ask(self.place) | {"missing": missing}
        self.problem = problem_with(self.answer, self.place.device)
        self.origin = f"built here in {done.seconds:.0f} s"
        return self.problem
