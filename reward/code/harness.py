"""What is run for one test case, and how its outcome is judged.

Standard input and output, and calls: the program runs alone, and what it gives is compared here; the expected value
never enters the sandbox. The result of a call comes back behind a random mark on standard output; the program's own
prints go to standard error meanwhile, so that a print or an early exit is not taken for a result.
Statements: see `reward.code.judge`.
"""

import json
import secrets

from reward.code.cases import Cases, same_output, same_value
from reward.code.local_sandbox import Report, Run

_CALL = """
import json as _json, os as _os, sys as _sys
_task = _json.load(_sys.stdin)
_out = _os.dup(1)
_os.dup2(2, 1)
_space = {"__name__": "solution"}
exec(compile(_task["source"], "solution.py", "exec"), _space)
_name = _task["fn_name"]
_call = _space[_name] if _name in _space else getattr(_space["Solution"](), _name)
_text = _json.dumps(_call(*_task["args"]))
_os.write(_out, (_task["mark"] + _text).encode())
"""


class CaseRun:
    """One case: `run` for the sandbox, and `passed` to judge what came back.

    Args:
        program: with `prefix`, the task's own imports, in front.
    """

    def __init__(self, cases: Cases, index: int, program: str, prefix: str = ""):
        self.cases, self.index = cases, index
        self.mark = secrets.token_hex(16)
        given = cases.inputs[index]
        if cases.kind == "stdio":
            self.run = Run(program, given)
        elif cases.kind == "call":
            args = given if isinstance(given, list) else [given]
            task = {"source": program, "mark": self.mark, "fn_name": cases.fn_name, "args": args}
            self.run = Run(_CALL, json.dumps(task))
        else:
            self.run = Run(program, tests=given, prefix=prefix)

    def passed(self, report: Report) -> bool:
        if report.status != "ok":
            return False
        if self.cases.kind == "stdio":
            return same_output(report.stdout, self.cases.outputs[self.index])
        if self.cases.kind == "assert":
            return True
        if not report.stdout.startswith(self.mark):
            return False
        try:
            return same_value(json.loads(report.stdout[len(self.mark) :]), self.cases.outputs[self.index])
        except (ValueError, RecursionError):  # nested as deeply as no expected output is
            return False
