"""A process that has imported the server, and runs commands in forks of itself.

Imports take most of the CPU time of a start. Requests are lines of JSON on stdin. The answer to
each is the line {"pid": …}. When a command ends, the line {"pid": …, "code": …} follows; the code
is negative if a signal ended it.
"""

import ctypes
import gc
import json
import os
import select
import signal
import sys
from typing import Any, Never

PR_SET_PDEATHSIG = 1  # prctl(2): the signal that the process gets when its parent ends


def _import_server() -> None:
    import graph.schema  # noqa: F401 - only in the fork server
    import merganser.__main__
    import merganser.server.lifecycle  # noqa: F401


def _run(request: dict[str, Any]) -> Never:
    """Become the command of a request: its environment, folder, arguments and files."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    signal.set_wakeup_fd(-1)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)  # a failed test may not stop it
    if request["session"]:
        os.setsid()
    os.environ.clear()
    os.environ.update(request["env"])
    os.chdir(request["folder"])
    os.dup2(os.open(request["stdin"], os.O_RDONLY), 0)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o666), number)
    os.closerange(3, 64)
    sys.argv = ["merganser", *request["words"]]
    from merganser.__main__ import main

    sys.exit(main())


def _write_answer(**members: int) -> None:
    os.write(1, json.dumps(members).encode() + b"\n")


def _report_ended() -> None:
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        _write_answer(pid=pid, code=os.waitstatus_to_exitcode(status))


def serve() -> None:
    """Run the requested commands until stdin ends."""
    _import_server()
    gc.collect()
    gc.freeze()  # else each fork scans and copies all imported objects when it ends: 1.5 s of CPU
    wake_reader, wake_writer = os.pipe()
    os.set_blocking(wake_reader, False)
    os.set_blocking(wake_writer, False)
    signal.set_wakeup_fd(wake_writer)
    signal.signal(signal.SIGCHLD, lambda _number, _frame: None)
    unread = b""
    while True:
        ready, _, _ = select.select([0, wake_reader], [], [])
        if wake_reader in ready:
            os.read(wake_reader, 4096)
            _report_ended()
        if 0 not in ready:
            continue
        if not (chunk := os.read(0, 1 << 20)):
            return
        *lines, unread = (unread + chunk).split(b"\n")
        for line in lines:
            pid = os.fork()
            if pid == 0:
                _run(json.loads(line))
            _write_answer(pid=pid)


if __name__ == "__main__":
    serve()
