"""Programs judged by their test cases."""

from collections.abc import Mapping
from typing import Any

from reward.code.cases import program_of, read_cases
from reward.code.harness import CaseRun
from reward.code.local_sandbox import Limits, LocalSandbox, SandboxFailed, whole_number
from reward.code.sandbox_fusion import SandboxFusion
from reward.verdict import RIGHT, WRONG, Verdict, failure, kept_of


class CodeVerifier:
    """The last Python block of a response against test cases.

    Args:
        sandbox_url: of a SandboxFusion server; None: the local sandbox.
        partial: score the share of cases that pass; otherwise 1 only if all do. acc is 1 only if all do.
        max_cases: at most so many are run, the first ones; None: all.
        parallel: programs at once (local), or requests at once (server).
        limits: see `Limits`, by name.

    Raises:
        ValueError: an option has another type or value.
        SandboxUnavailable: no server is given and this machine cannot isolate a program.
    """

    def __init__(
        self,
        sandbox_url: str | None = None,
        partial: bool = False,
        max_cases: int | None = 64,
        parallel: int = 2,
        **limits: int,
    ):
        bounds = Limits(**limits)
        if sandbox_url is not None and not (isinstance(sandbox_url, str) and sandbox_url):
            raise ValueError(f"sandbox_url={sandbox_url!r}: want http://host:port, or null for the local sandbox")
        if type(partial) is not bool:
            raise ValueError(f"partial={partial!r}: want true or false")
        if max_cases is not None:
            whole_number("max_cases", max_cases)
        whole_number("parallel", parallel)
        self.partial, self.max_cases = partial, max_cases
        self.sandbox: LocalSandbox | SandboxFusion
        if sandbox_url is not None:
            self.sandbox = SandboxFusion(sandbox_url, bounds, parallel=parallel)
        else:
            self.sandbox = LocalSandbox(bounds, parallel)

    async def verify(self, response: str, ground_truth: Any, extra_info: Mapping[str, Any]) -> Verdict:
        """Judge. Raises ValueError for test cases that cannot be read."""
        cases = read_cases(ground_truth)
        program = program_of(response)
        if program is None:
            return WRONG
        prefix = str(kept_of(extra_info, "prefix") or "")  # imports that the task takes for granted
        if prefix:
            program = f"{prefix}\n{program}"
        runs = [CaseRun(cases, index, program, prefix) for index in range(len(cases.inputs))][: self.max_cases]
        try:
            reports = await self.sandbox.run([run.run for run in runs], not self.partial)
        except SandboxFailed as error:
            return failure(str(error))
        if unusable := next((report for report in reports if report.status == "unusable"), None):
            return failure(unusable.stderr.strip())
        passed = sum(run.passed(report) for run, report in zip(runs, reports, strict=False))
        if passed == len(runs):
            return RIGHT
        return Verdict(passed / len(runs), 0.0) if self.partial else WRONG
