"""Client of a SandboxFusion server (github.com/bytedance/SandboxFusion), which runs programs elsewhere.

Expected values never go there, as in the local sandbox. Tests in the form of statements are judged where they are plain
(`reward.code.literal_tests`); others are "unusable" here.
"""

import asyncio
import random
import secrets
from collections.abc import Sequence
from typing import Any

import aiohttp

from reward.code.literal_tests import all_as_expected, literal_calls, source_and_stdin
from reward.code.local_sandbox import Limits, Report, Run, SandboxFailed

STATUS = {"Finished": "ok", "Error": "error", "TimeLimitExceeded": "time"}
NOT_PLAIN = (
    "a SandboxFusion server judges statements only of the form `assert f(values) == value`, since it would run others "
    "where the program can forge them; use the local sandbox (no sandbox_url) for this data set, or calls (fn_name)"
)


class SandboxFusion:
    """Runs each case by a request to ``{url}/run_code``.

    Args:
        url: of the server, as http://host:8080.
        attempts: per case; between them a pause that doubles, with jitter.
        parallel: requests at once, of one program.
    """

    def __init__(
        self, url: str, limits: Limits | None = None, attempts: int = 4, parallel: int = 8, pause_s: float = 0.5
    ):
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"sandbox_url={url!r}: want http://host:port")
        self.url, self.limits = url.rstrip("/"), limits or Limits()
        self.attempts, self.parallel, self.pause_s = attempts, parallel, pause_s

    async def run(self, runs: Sequence[Run], stop_at_failure: bool) -> list[Report]:
        """As `LocalSandbox.run`. Raises SandboxFailed when the server gives no judgement in all attempts."""
        reports: list[Report] = []
        async with aiohttp.ClientSession() as session:
            for start in range(0, len(runs), self.parallel):
                part = runs[start : start + self.parallel]
                reports += await asyncio.gather(*(self._judged(session, run) for run in part))
                if stop_at_failure and any(report.status != "ok" for report in reports):
                    first = next(i for i, report in enumerate(reports) if report.status != "ok")
                    return reports[: first + 1]
        return reports

    async def _judged(self, session: aiohttp.ClientSession, run: Run) -> Report:
        if run.tests is None:
            return await self._case(session, run.source, run.stdin)
        calls = literal_calls(run.tests)
        if calls is None:
            return Report("unusable", "", NOT_PLAIN)
        mark = secrets.token_hex(16)
        report = await self._case(session, *source_and_stdin(run.source, calls, mark))
        if report.status == "ok" and not all_as_expected(report.stdout, calls, mark):
            return Report("error", "", report.stderr)
        return report

    async def _case(self, session: aiohttp.ClientSession, source: str, stdin: str) -> Report:
        body = {
            "code": source,
            "stdin": stdin,
            "language": "python",
            "run_timeout": self.limits.time_s,
            "compile_timeout": self.limits.time_s,
            "memory_limit_MB": self.limits.memory_mb,
        }
        limit = aiohttp.ClientTimeout(total=2 * self.limits.time_s + 10)
        said = ""
        for attempt in range(self.attempts):
            if attempt:
                await asyncio.sleep(self.pause_s * 2 ** (attempt - 1) * random.uniform(0.5, 1.5))
            try:
                async with session.post(f"{self.url}/run_code", json=body, timeout=limit) as response:
                    if response.status == 200:
                        report, said = _read(await response.json())
                        if report is not None:
                            return report
                    else:
                        said = f"status {response.status}"
                        if response.status in (400, 401, 403, 404, 405, 422):
                            break  # the same request will get the same answer
            except (aiohttp.ClientError, asyncio.TimeoutError, ValueError) as error:
                said = f"{type(error).__name__} {error}".strip()
        raise SandboxFailed(f"SandboxFusion at {self.url} gave no judgement in {attempt + 1} attempts: {said}")


def _read(answer: Any) -> tuple[Report | None, str]:
    """The report, or None and what is wrong."""
    if not isinstance(answer, dict) or answer.get("status") == "SandboxError":
        return None, f"SandboxError {str(answer)[:200]}"
    result = answer.get("run_result") or {}
    status = STATUS.get(str(result.get("status")))
    if status is None:
        return None, f"unknown answer {str(answer)[:200]}"
    if status == "ok" and result.get("return_code") not in (0, None):
        status = "error"
    return Report(status, result.get("stdout") or "", result.get("stderr") or ""), ""
