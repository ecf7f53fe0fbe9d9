"""Sources that are run for one test case: the program alone, or with a call or assertions after it.

The result comes back behind a random mark on standard output. The program's own prints go to standard error meanwhile,
so neither an early exit nor a print can pass for a result. (A program that searches its own process's memory for the
mark could forge the success of assertions; the expected outputs of calls and of standard output never enter the
sandbox.)
"""

import json
import secrets

from reward.code.cases import Cases, same_output, same_value
from reward.code.local_sandbox import Report

_PRELUDE = """
import json as _json, os as _os, sys as _sys
_task = _json.load(_sys.stdin)
_out = _os.dup(1)
_os.dup2(2, 1)
_space = {"__name__": "solution"}
exec(compile(_task["source"], "solution.py", "exec"), _space)
"""
_CALL = """
_name = _task["fn_name"]
_call = _space[_name] if _name in _space else getattr(_space["Solution"](), _name)
_text = _json.dumps(_call(*_task["args"]))
_os.write(_out, (_task["mark"] + _text).encode())
"""
_ASSERT = """
exec(compile(_task["assert"], "test.py", "exec"), _space)
_os.write(_out, _task["mark"].encode())
"""


class CaseRun:
    """One case: `source` and `stdin` to run, and `passed` to judge what came back."""

    def __init__(self, cases: Cases, index: int, program: str):
        self.cases, self.index = cases, index
        self.mark = secrets.token_hex(16)
        if cases.kind == "stdio":
            self.source, self.stdin = program, cases.inputs[index]
            return
        task: dict[str, object] = {"source": program, "mark": self.mark}
        if cases.kind == "call":
            args = cases.inputs[index]
            task |= {"fn_name": cases.fn_name, "args": args if isinstance(args, list) else [args]}
            self.source = _PRELUDE + _CALL
        else:
            task["assert"] = cases.inputs[index]
            self.source = _PRELUDE + _ASSERT
        self.stdin = json.dumps(task)

    def passed(self, report: Report) -> bool:
        if report.status != "ok":
            return False
        if self.cases.kind == "stdio":
            return same_output(report.stdout, self.cases.outputs[self.index])
        if not report.stdout.startswith(self.mark):
            return False
        if self.cases.kind == "assert":
            return True
        try:
            return same_value(json.loads(report.stdout[len(self.mark) :]), self.cases.outputs[self.index])
        except (ValueError, RecursionError):  # nested as deeply as no expected output is
            return False
