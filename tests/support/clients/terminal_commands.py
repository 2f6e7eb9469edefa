"""Commands that write to a terminal, where they show progress bars."""

import os
import pty
import re
import select
from contextlib import closing, suppress
from pathlib import Path

from tests.support.clients.command_line import CommandResult
from tests.support.servers.forked_process import ForkedProcess, ProcessStreams
from tests.support.time_limits import HANG_SECONDS

TERMINAL_VARIABLES = {"TERM": "xterm", "COLUMNS": "150"}
CONTROL_SEQUENCE = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


def run_on_terminal(stdout: Path, *words: str | Path) -> CommandResult:
    """Run a command in a fork, with the environment of this process.

    Its standard output is a file, and its standard error a terminal. `err` is all text that the
    terminal has shown, without control sequences.
    """
    master, slave = pty.openpty()
    streams = ProcessStreams(stdout, Path(os.ttyname(slave)))
    process = ForkedProcess([*map(str, words)], {**os.environ, **TERMINAL_VARIABLES}, streams)
    terminal_output = b""
    # reading fails when the process closes the pty
    with closing(os.fdopen(master, "rb", buffering=0)), suppress(OSError):
        # output shows that the process has opened the pty
        while not select.select([master], [], [], 0.05)[0] and process.poll() is None:
            pass
        os.close(slave)
        while chunk := os.read(master, 1 << 16):
            terminal_output += chunk
    code = process.wait(HANG_SECONDS)
    return CommandResult(
        code, stdout.read_text(), CONTROL_SEQUENCE.sub("", terminal_output.decode())
    )
