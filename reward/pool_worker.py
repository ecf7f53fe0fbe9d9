"""What runs in the processes of `reward.process_pool`: a template that loads the libraries once, and its forks.

The template has one thread and computes nothing, so that it can be forked safely and in a few milliseconds. Requests
and replies are lines of JSON; nothing is unpickled. Functions are named ``module:name``.
"""

import ctypes
import importlib
import json
import os
import select
import signal
import socket
import sys
import traceback
from collections.abc import Callable
from typing import Any

PARENT_CHECK_S = 1.0  # how often the template looks whether its parent is still there
PR_SET_PDEATHSIG = 1


def function_of(name: str) -> Callable[..., Any]:
    """The function that ``module:name`` stands for."""
    module, _, attribute = name.partition(":")
    return getattr(importlib.import_module(module), attribute)


def template(control_fd: int, parent: int, path: list[str], start: str) -> None:
    """Load what `start` loads, then fork and end workers on request, until the parent closes its end or is gone.

    Requests are ``{"fork": true}``, with the worker's socket beside it, answered by ``{"pid": ...}``, and
    ``{"end": pid}``, answered by ``{"status": ...}`` (negative: the signal that ended it).
    """
    sys.path[:] = path
    os.dup2(2, 1)  # what a library prints belongs to no reply
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    control = socket.socket(fileno=control_fd)
    try:
        function_of(start)()
    except Exception as error:
        traceback.print_exc()
        control.sendall(_line({"failed": f"{type(error).__name__}: {error}"}))
        return
    own = os.getpid()
    control.sendall(_line({"pid": own}))
    while os.getppid() == parent:
        if not select.select([control], [], [], PARENT_CHECK_S)[0]:
            continue
        data, fds, _, _ = socket.recv_fds(control, 4096, 1)
        if not data:
            return
        request = json.loads(data)
        if "fork" in request:
            pid = os.fork()
            if not pid:
                control.close()
                _serve(socket.socket(fileno=fds[0]), own)
                os._exit(0)
            os.close(fds[0])
            reply = {"pid": pid}
        else:
            os.kill(request["end"], signal.SIGKILL)
            reply = {"status": os.waitstatus_to_exitcode(os.waitpid(request["end"], 0)[1])}
        control.sendall(_line(reply))


def _serve(connection: socket.socket, template_pid: int) -> None:
    """Answer tasks, one a line, until the other end closes; die with the template, and so with its parent."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != template_pid:
        return
    for line in connection.makefile("rb"):
        task = json.loads(line)
        try:
            reply = {"value": function_of(task["function"])(*task["args"])}
        except Exception as error:  # whatever a task raises is its caller's to handle
            kind = type(error)
            reply = {"raised": f"{kind.__module__}:{kind.__name__}", "text": str(error)}
        connection.sendall(_line(reply))


def _line(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"
