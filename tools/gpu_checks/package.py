"""The package under test: compiled, and never the sources of this checkout."""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import os
import sys
from pathlib import Path

from gpu_checks.report import FAIL, PASS, ROOT, Promise
from gpu_checks.run import Finished, Outcome, execute

TOOLS = ROOT / "tools"
# What the tests import; hypothesis and the like may be missing on a machine without a network.
TEST_MODULES = ("pytest", "mpmath", "hypothesis", "expecttest", "pybind11", "pytest_benchmark")
EXTRA_MODULES = ("xdist", "scipy", "sklearn", "matplotlib", "tqdm", "triton")

QUESTION = """
import json, warnings
warnings.simplefilter("ignore")
import torch
answer = {"torch": str(torch.__version__), "torch_cuda": torch.version.cuda}
answer["gpus"] = torch.cuda.device_count() if torch.cuda.is_available() else 0
if answer["gpus"]:
    answer["capability"] = "{}.{}".format(*torch.cuda.get_device_capability(0))
    answer["name"] = torch.cuda.get_device_name(0)
try:
    from vae_fused import _ext
    answer.update(file=_ext.__file__, has_cuda=_ext.has_cuda, reason=_ext.reason)
    answer["build"] = _ext.build_info
except ImportError as error:
    answer.update(file=None, has_cuda=False, reason=f"{type(error).__name__}: {error}")
print("ANSWER" + json.dumps(answer))
"""


@dataclasses.dataclass
class Place:
    """Where subprocesses run, and what they import."""

    scratch: Path  # also their working directory: beside no sources
    target: Path | None = None  # where the package was built to

    def env(self, **more: str) -> dict[str, str]:
        env = dict(os.environ)
        inherited = env.get("PYTHONPATH", "").split(os.pathsep)
        kept = [p for p in inherited if os.path.isabs(p) and Path(p).resolve() != ROOT]
        ours = [str(self.target)] if self.target else []
        env["PYTHONPATH"] = os.pathsep.join([*ours, *kept, str(TOOLS)])
        env.setdefault("CUDA_MODULE_LOADING", "LAZY")
        env["VAE_FUSED_STRICT"] = "1"  # plain PyTorch in place of a kernel is no result
        return env | more

    def run(
        self, command: list[str], timeout: float, name: str, env: dict[str, str] | None = None
    ) -> Finished:
        log = self.scratch / f"{name}.log"
        return execute(command, timeout, env=env or self.env(), cwd=self.scratch, log=log)


def ask(place: Place, timeout: float = 120.0) -> dict[str, object]:
    """What a fresh interpreter imports as torch and vae_fused; `error` where that fails."""
    done = place.run(
        [sys.executable, "-c", QUESTION], timeout, "ask", place.env(VAE_FUSED_STRICT="0")
    )
    for line in done.output.splitlines():
        if line.startswith("ANSWER"):
            answer: dict[str, object] = json.loads(line[len("ANSWER") :])
            return answer
    return {"error": done.tail(3) or done.ended()}


def usable(answer: dict[str, object]) -> str:
    """'' if the package can be tested; else why not."""
    if "error" in answer:
        return str(answer["error"])
    file = answer.get("file")
    if file and Path(str(file)).resolve().is_relative_to(ROOT / "vae_fused"):
        return f"python imports the sources ({file})"
    if not answer.get("has_cuda"):
        return str(answer.get("reason") or "it was built without CUDA")
    return ""


def missing_modules(names: tuple[str, ...]) -> list[str]:
    return [name for name in names if importlib.util.find_spec(name) is None]


def build_command(target: Path) -> list[str]:
    return [
        *(sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps"),
        *("--no-index", "--disable-pip-version-check", "--target", str(target), str(ROOT)),
    ]


def build(place: Place, capability: str, timeout: float) -> Outcome:
    """Compiles this checkout for the visible GPU, offline, to a folder of its own."""
    target = place.scratch / "package"
    env = place.env(VAE_FUSED_BUILD="cuda")
    env.setdefault("TORCH_CUDA_ARCH_LIST", capability)
    # ninja and the like lie beside an interpreter that may not be on the PATH.
    env["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), env.get("PATH", "")])
    done = place.run(build_command(target), timeout, "build", env)
    figures = {
        "archs": env["TORCH_CUDA_ARCH_LIST"],
        "seconds": round(done.seconds, 1),
        "status": done.status,
    }
    if done.status != 0:
        reason = done.ended()
        figures["output"] = done.tail(60)
        promise = Promise("the package builds", FAIL, detail=f"{reason}: {done.tail(6)}")
        return Outcome([promise], figures, reason)
    place.target = target
    answer = ask(place)
    problem = usable(answer)
    verdict = FAIL if problem else PASS
    size = sum(f.stat().st_size for f in target.glob("vae_fused/_C*.so"))
    figures["library_bytes"] = size
    promise = Promise("the package builds", verdict, "", f"{done.seconds:.0f} s", problem)
    return Outcome([promise], figures, problem)
