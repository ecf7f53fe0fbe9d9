"""The SandboxFusion client against a real HTTP server that answers, fails, hangs and recovers."""

import asyncio
import contextlib
import time

import pytest
from aiohttp import web

from reward.code.local_sandbox import Limits
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


def judge(*answers, attempts=3):
    async def run():
        async with server(*answers) as (url, requests):
            verifier = CodeVerifier(sandbox_url=url, time_s=1)
            verifier.sandbox.attempts, verifier.sandbox.pause_s = attempts, 0.01
            return await verifier.verify(RESPONSE, CASES, {}), requests

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
        asyncio.run(fusion.run([("print(1)", "")], True))
    with pytest.raises(ValueError, match="http://host:port"):
        SandboxFusion("localhost:80")


def test_many_cases_stop_after_the_first_wave_that_fails():
    async def run():
        async with server(run_result(stdout="no", status="Error", return_code=1)) as (url, requests):
            reports = await SandboxFusion(url, Limits(time_s=1), parallel=4).run([("x", "")] * 12, True)
            return reports, requests

    reports, requests = asyncio.run(run())
    assert len(reports) == 1 and len(requests) == 4
