"""vLLM's offline engine in one or several processes, which take their requests from a common queue.

Nothing of vLLM or torch is imported at the top: a worker chooses its devices before that.
"""

import multiprocessing
import os
import queue
import threading
import time
import traceback
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

from recipe.poise.evaluate.prompts import Prompts
from recipe.poise.evaluate.settings import Engine, EvaluationError, Sampling

Task = tuple[str, int, int]  # suite, problem, sample


@dataclass(frozen=True)
class Response:
    """What the model answered to a task."""

    task: Task
    text: str
    tokens: int
    truncated: bool


@dataclass(frozen=True)
class Plan:
    """What every worker needs."""

    model: Path
    model_length: int
    prompts: Prompts
    sampling: Sampling
    engine: Engine


def seed_of(task: Task, seed: int) -> int:
    """A seed of 31 bits that depends on the task alone, not on when or where it is sampled."""
    text = "\0".join(map(str, (*task, seed)))
    return int.from_bytes(blake2b(text.encode(), digest_size=4).digest(), "big") >> 1


def devices() -> list[str]:
    """Ids of the visible accelerators; none on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return []
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    return visible.split(",") if visible else [str(i) for i in range(torch.cuda.device_count())]


def environments(found: list[str], engine: Engine) -> list[dict[str, str]]:
    """The environment of each worker; there are as many workers.

    Raises:
        EvaluationError: more devices are asked for than there are.
    """
    if not found:
        if engine.tensor_parallel > 1:
            raise EvaluationError("--tensor-parallel takes accelerators; on a CPU use --data-parallel")
        cores = os.cpu_count() or 1
        count = engine.data_parallel or 1
        if count > max(2, cores):
            raise EvaluationError(f"--data-parallel {count} on a CPU of {cores} cores: want at most {max(2, cores)}")
        return [{"OMP_NUM_THREADS": str(max(1, cores // count))}] * count
    most = len(found) // engine.tensor_parallel
    count = engine.data_parallel or most
    if not 1 <= count <= most:
        raise EvaluationError(
            f"{count or 1} x {engine.tensor_parallel} devices are asked for, there are {len(found)}: "
            "lower --data-parallel or --tensor-parallel"
        )
    size = engine.tensor_parallel
    return [{"CUDA_VISIBLE_DEVICES": ",".join(found[i * size : (i + 1) * size])} for i in range(count)]


def respond(plan: Plan, tasks: list[Task], logs: Path) -> Generator[Response, None, None]:
    """Responses to all tasks, as they finish. Leaving the iteration early ends the workers.

    Raises:
        EvaluationError: a worker failed or died; its log is named.
    """
    settings = environments(devices(), plan.engine)[: max(1, len(tasks))]
    logs.mkdir(parents=True, exist_ok=True)
    context = multiprocessing.get_context("spawn")
    waiting, results = context.Queue(), context.Queue()
    # A few beyond what runs, so that a finished response is replaced at once; but not another engine's share.
    held = min(plan.engine.max_num_seqs + 8, -(-len(tasks) // len(settings)))
    for item in (*tasks, *[None] * len(settings)):
        waiting.put(item)
    workers = []
    left = len(tasks)
    try:
        for rank, environment in enumerate(settings):
            log = logs / f"worker_{rank}.log"
            arguments = (plan, environment, held, log, waiting, results, os.getpid())
            workers.append((context.Process(target=_work, args=arguments, name=f"worker {rank}"), log))
            workers[-1][0].start()
        while left:
            try:
                yield results.get(timeout=1.0)
                left -= 1
            except queue.Empty:
                _check(workers)
    finally:
        waiting.cancel_join_thread()
        for worker, _ in workers:
            if not left:
                worker.join(timeout=20)  # they have nothing more to do
            worker.kill()
            worker.join()


def _check(workers: list) -> None:
    for worker, log in workers:
        if worker.exitcode:  # 0: it found no more tasks; None: it runs
            said = log.read_text(errors="replace").split("\n") if log.exists() else []
            last = next((line.strip() for line in reversed(said) if line.strip()), "nothing")
            raise EvaluationError(
                f"{worker.name} ended with code {worker.exitcode} (-9: killed, mostly for want of memory). It said at "
                f"last: {last[:500]}. All of it is in {log}. The samples so far are kept, the same command goes on"
            )


def _work(plan: Plan, environment: dict[str, str], held: int, log: Path, waiting, results, parent: int) -> None:
    """A worker's whole life. What it prints, and a failure's traceback, go to its log."""
    _end_with(parent)
    with open(log, "w") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    os.environ.update(environment)
    for name, value in {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine in this process, so that it ends with it
        "VLLM_NO_USAGE_STATS": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }.items():
        os.environ.setdefault(name, value)
    try:
        _serve(plan, "CUDA_VISIBLE_DEVICES" not in environment, held, waiting, results)
    except BaseException:
        traceback.print_exc()
        raise


def _end_with(parent: int) -> None:
    """End this process when its parent is gone, even by a kill that runs no handler."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _serve(plan: Plan, on_cpu: bool, held: int, waiting, results) -> None:
    if on_cpu:
        for name, value in {
            "VLLM_CPU_KVCACHE_SPACE": "2",  # GiB
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",  # several workers would bind to the same cores
            "TORCHDYNAMO_DISABLE": "1",  # compiling takes longer than such models run
        }.items():
            os.environ.setdefault(name, value)
    from vllm import LLM

    # vLLM's rollback of a seeded request's generator after a part of a prompt works on a GPU's generators only.
    on_device: dict[str, Any] = {"enable_chunked_prefill": False} if on_cpu else {}
    # `LLM.generate` returns when all its prompts are done; the engine underneath gives each response when it ends.
    engine = LLM(
        model=str(plan.model),
        trust_remote_code=False,
        dtype=plan.engine.dtype,  # type: ignore[arg-type]  # vLLM checks it
        max_model_len=plan.model_length,
        max_num_seqs=plan.engine.max_num_seqs,
        tensor_parallel_size=plan.engine.tensor_parallel,
        gpu_memory_utilization=plan.engine.gpu_memory_utilization,
        enforce_eager=plan.engine.enforce_eager or on_cpu,
        enable_prefix_caching=True,  # the samples of a problem share its prompt
        seed=plan.sampling.seed,
        **on_device,
    ).llm_engine
    running: dict[str, Task] = {}
    more = True
    while more or running:
        while more and len(running) < held:
            try:
                task = waiting.get(block=not running)
            except queue.Empty:
                break
            if task is None:
                more = False
                break
            running[_add(engine, plan, task)] = task
        for output in _finished(engine.step() if running else ()):
            results.put(_response(running.pop(output.request_id), output))


def _add(engine: Any, plan: Plan, task: Task) -> str:
    """Hand a task to the engine; the request's id."""
    from vllm import SamplingParams, TokensPrompt

    sampling = plan.sampling
    parameters = SamplingParams(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        top_k=sampling.top_k,
        max_tokens=sampling.max_tokens,
        seed=seed_of(task, sampling.seed),
    )
    name = "/".join(map(str, task))
    engine.add_request(name, TokensPrompt(prompt_token_ids=plan.prompts[task[:2]]), parameters)
    return name


def _finished(outputs: Iterable[Any]) -> Iterator[Any]:
    return (output for output in outputs if output.finished)


def _response(task: Task, output: Any) -> Response:
    answer = output.outputs[0]
    return Response(task, answer.text, len(answer.token_ids), answer.finish_reason == "length")
