"""A `merganser` program for shell scripts. Each call runs in a fork of an imported server."""

import json
import socketserver
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.servers.forked_process import ForkedProcess, ProcessStreams
from tests.support.time_limits import HANG_SECONDS

# the client needs no module of the project, so it starts within 20 ms
CLIENT = """
import json, os, socket, sys
connection = socket.socket(socket.AF_UNIX)
connection.connect({address!r})
call = {{"arguments": sys.argv[1:], "env": dict(os.environ), "pid": os.getpid(),
        "folder": os.getcwd()}}
connection.sendall(json.dumps(call).encode() + b"\\n")
sys.exit(int(connection.makefile().readline()) & 255)
"""


class _CallHandler(socketserver.StreamRequestHandler):
    """Runs one call with the streams of the client, and returns the exit code."""

    def handle(self) -> None:
        call = json.loads(self.rfile.readline())
        stdin, stdout, stderr = (Path(f"/proc/{call['pid']}/fd/{number}") for number in range(3))
        process = ForkedProcess(
            call["arguments"],
            call["env"],
            ProcessStreams(stdout, stderr, stdin),
            folder=Path(call["folder"]),
            network_namespace=Path(f"/proc/{call['pid']}/ns/net"),
        )
        try:
            code = process.wait(HANG_SECONDS)
        finally:
            process.kill()
        self.wfile.write(f"{code}\n".encode())


@contextmanager
def forked_program(program: Path) -> Iterator[Path]:
    """Write a program that runs `merganser` in forks until the block ends, and yield its path."""
    address, client = program.with_name("calls"), program.with_name("client.py")
    client.write_text(CLIENT.format(address=str(address)))
    program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -IS "{client}" "$@"\n')
    program.chmod(0o755)
    with socketserver.ThreadingUnixStreamServer(str(address), _CallHandler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield program
        finally:
            server.shutdown()
            thread.join()
