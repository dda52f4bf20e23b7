"""The steps of the run, the most important ones for a first run on a GPU first."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from typing import Any

from gpu_checks import judge, machine, ncu, probe, sanitizer, suite
from gpu_checks.bundle import Bundle
from gpu_checks.package import Package, Place
from gpu_checks.report import FAIL, NOT_RUN, PASS, Promise, Report
from gpu_checks.schedule import LEAST, Outcome, Step


@dataclasses.dataclass
class Run:
    """The state that all steps share. `tests` replaces the suite in tests of this tool."""

    place: Place
    report: Report
    bundle: Bundle
    package: Package
    exponent: int = 24
    tests: str = ""

    # Each step receives the seconds that it may take.

    def machine(self, seconds: float) -> Outcome:
        """Look for the package first, so that a necessary build starts at once."""
        self.package.begin(self.bundle)
        outcome = machine.describe(self.place)
        self.report.data["device"] |= outcome.figures["gpu"]
        tools = outcome.figures["tools"]
        self.report.data["versions"] |= {"tools": tools, "bundle": self.bundle.manifest}
        if self.bundle.problem:
            detail = f"not run: {self.bundle.problem}"
            absent = Promise("the bundle is whole", NOT_RUN, detail=detail, optional=True)
            outcome.promises.append(absent)
        return outcome

    def correctness(self, seconds: float) -> Outcome:
        out = self.report.folder / "probe-correctness.jsonl"
        return probe.run(self.place, self.bundle, "correctness", seconds, out)

    def probe_bandwidth(self, seconds: float) -> Outcome:
        out = self.report.folder / "probe-bandwidth.jsonl"
        return probe.run(self.place, self.bundle, "bandwidth", seconds, out)

    def counters(self, seconds: float) -> Outcome:
        file = self.report.folder / "kernels.ncu-rep"
        until = time.monotonic() + seconds
        missing = "" if self.bundle.probe else self.package.look(seconds / 4)
        left = until - time.monotonic()
        return ncu.run(self.place, self.bundle, left, missing, file, self.exponent)

    def sanitizers(self, seconds: float) -> Outcome:
        before = self.report.of("sanitizers")
        until = time.monotonic() + seconds
        missing = self.package.look(seconds / 4)
        left = until - time.monotonic()
        return sanitizer.run(self.place, self.bundle, left, missing, before)

    def with_package(
        self, name: str, seconds: float, action: Callable[[float], Outcome]
    ) -> Outcome:
        """Wait for the package. The action receives the remaining seconds.

        A failed build fails the step, because the package's promises are then not kept.
        """
        until = time.monotonic() + seconds
        missing = self.package.wait(seconds - LEAST)
        answer = self.package.answer
        versions = {k: answer.get(k) for k in ("python", "torch", "torch_cuda", "missing")}
        self.report.data["versions"] |= versions | {"package": self.package.origin}
        if not missing:
            return action(until - time.monotonic())
        verdict = FAIL if self.package.build_failed else NOT_RUN
        return Outcome([Promise(name, verdict, detail=f"not run: {missing}")], reason=missing)

    def smoke(self, seconds: float) -> Outcome:
        name = f"a step on {self.place.device} agrees with the CPU"

        def action(left: float) -> Outcome:
            written, done = self.place.run_driver("smoke", left)
            found: dict[str, Any] = written or {"device": {}, "versions": {}}
            data = self.report.data
            data["device"] = found["device"] | data["device"]
            data["versions"] |= found["versions"]
            if "smoke" in found and done.status == 0:
                detail = f"the package: {self.package.origin}"
                promise = Promise(name, PASS, "", f"{found['smoke']:.1g}", detail)
            else:
                verdict = NOT_RUN if done.status is None else FAIL
                promise = Promise(name, verdict, detail=f"{done.ended()}: {done.tail(3)}")
            return Outcome([promise], found)

        return self.with_package(name, seconds, action)

    def pytest(self, name: str, seconds: float, arguments: list[str], limit: float) -> Outcome:
        earlier = self.report.log(f"{name}.jsonl")

        def action(left: float) -> Outcome:
            missing = self.package.answer["missing"]
            return suite.run(self.place, left, name, arguments, missing, earlier, limit)

        return self.with_package(name, seconds, action)

    def tests_on_device(self, seconds: float) -> Outcome:
        arguments = [self.tests] if self.tests else suite.device_arguments()
        return self.pytest("tests", seconds, arguments, 45)

    def rest(self, seconds: float) -> Outcome:
        arguments = [self.tests, "-k", "rest"] if self.tests else suite.rest_arguments()
        return self.pytest("rest", seconds, arguments, 120)

    def measure(self, name: str, seconds: float) -> Outcome:
        """Run a driver program, and judge the results that it wrote before it ended."""
        judges = {
            "bandwidth": judge.judge_bandwidth,
            "likelihood": judge.judge_likelihoods,
            "step": judge.judge_steps,
        }

        def action(left: float) -> Outcome:
            rows, done = self.place.run_driver(name, left, "--exponent", str(self.exponent))
            promises = judges[name](rows or [])
            figures: dict[str, Any] = {"rows": rows or []}
            reason = "" if done.status == 0 else done.ended()
            if reason:
                figures["output"] = done.tail(30)
                detail = f"not run to its end: {reason}: {done.tail(2)}"
                promises.append(Promise(f"{name}: all measured", NOT_RUN, detail=detail))
            return Outcome(promises, figures, reason)

        return self.with_package(f"{name}: all measured", seconds, action)

    def steps(self) -> list[Step]:
        """Shares of 240 s, 10 s of which are reserved. A step also gets time that others left."""
        return [
            Step("machine", 12, self.machine),
            Step("probe correctness", 18, self.correctness),
            Step("probe bandwidth", 42, self.probe_bandwidth),
            Step("counters", 24, self.counters, optional=True),
            Step("sanitizers", 26, self.sanitizers),
            Step("smoke", 8, self.smoke),
            Step("tests", 44, self.tests_on_device),
            Step("bandwidth", 22, lambda seconds: self.measure("bandwidth", seconds)),
            Step("likelihood", 14, lambda seconds: self.measure("likelihood", seconds)),
            Step("step", 24, lambda seconds: self.measure("step", seconds)),
            Step("rest", 10, self.rest, optional=True),
        ]
