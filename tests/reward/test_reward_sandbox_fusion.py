"""The SandboxFusion client against a real HTTP server that answers, fails, hangs and recovers."""

import asyncio
import contextlib
import os
import subprocess
import sys
import time

import pytest
from aiohttp import web

from reward.code.local_sandbox import Limits, Run
from reward.code.sandbox_fusion import SandboxFusion
from reward.code.verifier import CodeVerifier

GOOD = {"status": "Success", "run_result": {"status": "Finished", "return_code": 0, "stdout": "3\n", "stderr": ""}}
CASES = {"inputs": ["1 2"], "outputs": ["3"]}
RESPONSE = "```python\nprint(sum(map(int, input().split())))\n```"


@contextlib.asynccontextmanager
async def server(*answers):
    """Gives the answers in turn, the last one for ever; yields its URL and the requests it got."""
    requests = []

    async def handle(request):
        requests.append(await request.json())
        answer = answers[min(len(requests), len(answers)) - 1]
        if answer == "run":
            return web.json_response(run_here(requests[-1]))
        if answer == "hang":
            await asyncio.sleep(60)
        if isinstance(answer, int):
            return web.Response(status=answer)
        if isinstance(answer, str):
            return web.Response(text=answer)
        return web.json_response(answer)

    app = web.Application()
    app.router.add_post("/run_code", handle)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", requests
    finally:
        await runner.cleanup()


def run_here(request):
    """What a server does. The programs of these tests are ours and harmless."""
    done = subprocess.run([sys.executable, "-I", "-c", request["code"]], input=request["stdin"], text=True,
                          capture_output=True, timeout=20, env={"PATH": os.defpath})  # fmt: skip
    status = "Finished" if done.returncode == 0 else "Error"
    return run_result(status=status, return_code=done.returncode, stdout=done.stdout, stderr=done.stderr)


def judge(*answers, attempts=3, response=RESPONSE, cases=CASES):
    async def run():
        async with server(*answers) as (url, requests):
            verifier = CodeVerifier(sandbox_url=url, time_s=1)
            verifier.sandbox.attempts, verifier.sandbox.pause_s = attempts, 0.01
            return await verifier.verify(response, cases, {}), requests

    return asyncio.run(run())


def run_result(**changes):
    return {"status": "Failed", "run_result": GOOD["run_result"] | changes}


def test_a_right_program():
    verdict, requests = judge(GOOD)
    assert verdict.score == 1.0
    assert requests[0]["stdin"] == "1 2" and requests[0]["language"] == "python" and "sum(" in requests[0]["code"]


@pytest.mark.parametrize(
    "answer",
    [
        run_result(stdout="4"),
        run_result(status="TimeLimitExceeded"),
        run_result(status="Error", return_code=1),
        run_result(return_code=1),
    ],
)
def test_a_wrong_program_is_wrong_at_the_first_attempt(answer):
    verdict, requests = judge(answer)
    assert (verdict.score, verdict.failed, len(requests)) == (0.0, False, 1)


@pytest.mark.parametrize("bad", [500, 429, "no json", {"status": "SandboxError"}, {}, []])
def test_it_recovers_at_the_third_attempt(bad):
    verdict, requests = judge(bad, bad, GOOD)
    assert (verdict.score, verdict.failed, len(requests)) == (1.0, False, 3)


@pytest.mark.parametrize("bad", [500, {"status": "SandboxError"}])
def test_a_server_that_stays_bad_is_a_failed_verifier(bad):
    verdict, requests = judge(bad)
    assert verdict.failed and verdict.score == 0.0 and len(requests) == 3
    assert "no judgement in 3 attempts" in verdict.reason


def test_a_refused_request_is_not_repeated():
    verdict, requests = judge(422)
    assert verdict.failed and len(requests) == 1


def test_a_server_that_hangs(monkeypatch):
    import aiohttp

    real = aiohttp.ClientTimeout
    monkeypatch.setattr("reward.code.sandbox_fusion.aiohttp.ClientTimeout", lambda total: real(total=min(total, 0.3)))
    start = time.monotonic()
    verdict, requests = judge("hang", attempts=2)
    assert verdict.failed and len(requests) == 2 and time.monotonic() - start < 10


def test_no_server():
    fusion = SandboxFusion("http://127.0.0.1:1", Limits(time_s=1), attempts=2, pause_s=0.01)
    with pytest.raises(RuntimeError, match="no judgement in 2 attempts"):
        asyncio.run(fusion.run([Run("print(1)")], True))
    with pytest.raises(ValueError, match="http://host:port"):
        SandboxFusion("localhost:80")


def test_many_cases_stop_after_the_first_wave_that_fails():
    async def run():
        async with server(run_result(stdout="no", status="Error", return_code=1)) as (url, requests):
            reports = await SandboxFusion(url, Limits(time_s=1), parallel=4).run([Run("x")] * 12, True)
            return reports, requests

    reports, requests = asyncio.run(run())
    assert len(reports) == 1 and len(requests) == 4


PLAIN = [
    "assert f(1, k=[2]) == {1: (1, [2]), 'x': {3, 4}}",
    "from typing import List\nMETADATA = {'a': 1}\ndef check(candidate):\n"
    "    assert candidate(2) == {2: (2, None), 'x': {4, 3}}\n"
    "    assert not candidate(0)\n    assert candidate(5)\n    assert candidate(-1) is None\ncheck(f)",
]  # fmt: skip
F = "def f(n, k=None):\n    print('noise')\n    return {} if n == 0 else None if n < 0 else {n: (n, k), 'x': {3, 4}}"
FORGED = {
    "another value": "def f(*a, **k): return 7",
    "an object that equals everything": (
        "class E(int):\n    def __eq__(self, o): return True\ndef f(*a, **k): return E()"
    ),
    "the task, read": (
        "import __main__ as m, os\nos.write(m._out, (m._task['mark'] + '[[1, []]]').encode()); os._exit(0)"
    ),
    "deep": "import __main__ as m, os\nos.write(m._out, (m._task['mark'] + '[' * 99999).encode()); os._exit(0)",
    "without end": (
        'import __main__ as m, os\nnode = \'[{"r": 0}, [["p", {"r": 0}]]]\'\n'
        "text = m._task['mark'] + '[' + ','.join([node] * len(m._task['calls'])) + ']'\n"
        "os.write(m._out, text.encode()); os._exit(0)"
    ),
    "nothing": "pass",
}


def statements(program, tests):
    return judge("run", response=f"```python\n{program}\n```", cases={"functional": tests})


@pytest.mark.parametrize("tests", PLAIN)
def test_plain_statements_are_compared_here(tests):
    verdict, requests = statements(F, tests)
    assert verdict.score == 1.0, verdict
    assert "assert" not in requests[0]["stdin"] + requests[0]["code"] and "'x'" not in requests[0]["code"]


@pytest.mark.parametrize("tests", PLAIN)
@pytest.mark.parametrize("name", FORGED)
def test_a_forged_answer_is_wrong(name, tests):
    verdict, _ = statements(FORGED[name], tests)
    assert (verdict.score, verdict.failed) == (0.0, False), verdict


@pytest.mark.parametrize(
    "tests",
    ["assert sorted(f(1)) == [1]", "x = f(1)\nassert x == 1", "import math\nassert math.isclose(f(1), 1)", "f("],
)
def test_other_statements_get_no_judgement_of_a_server(tests):
    verdict, requests = statements(F, tests)
    assert verdict.failed and "local sandbox" in verdict.reason and not requests
