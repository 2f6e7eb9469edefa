"""Build the image and print one line for each check. Exits with 1 if one of them fails."""

import itertools
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import typer

from tests.support.container_image.engines import Engine, choose_engine
from tests.support.container_image.run_command import ImageError, is_command_successful, run_command
from tests.support.time_limits import HANG_SECONDS

MAX_SIZE = 250  # MB
WRITABLE = {"/tmp", "/data"}  # noqa: S108
PREPARATION = (
    ("init",),
    ("domain", "add", "example.net"),
    ("user", "add", "carol@example.net", "--no-password"),
    ("api-key", "create", "--name", "root", "--role", "ROOT"),
)
SEND_TEST = ("merganser", "send-test", "--to", "carol@example.net")


@dataclass(frozen=True, slots=True)
class ImageCheck:
    """One expected property of the image, and what was found."""

    name: str
    passed: bool
    found: str


def check_image(engine: Engine) -> Iterator[ImageCheck]:
    """Check the files of the image."""
    size = engine.size()
    yield ImageCheck("size", size <= MAX_SIZE, f"{size:.0f} MB of {MAX_SIZE} MB")
    code = Path(__file__).with_name("probe.py").read_text()
    output = run_command(*engine.command("-c", code, entrypoint="python"))
    user, tools, sources, write_errors = json.loads(output)
    yield ImageCheck("user is not root", user != 0, f"ID {user}")
    yield ImageCheck("no pip, no compiler", not tools, ", ".join(tools) or "none")
    yield ImageCheck("no source of packages", not sources, ", ".join(sources) or "none")
    read_only = {folder for folder, error in write_errors.items() if error == "EROFS"}
    written = {folder for folder, error in write_errors.items() if not error}
    passed = written == WRITABLE and written | read_only == set(write_errors)
    found = f"only {' and '.join(sorted(written))} are written"
    yield ImageCheck("root is read-only", passed, found)


def check_server(engine: Engine) -> Iterator[ImageCheck]:
    """Prepare a database, and check a running server."""
    for arguments in PREPARATION:
        run_command(*engine.command(*arguments))
    yield ImageCheck("commands", True, ", ".join(" ".join(words[:2]) for words in PREPARATION))
    with tempfile.TemporaryFile("w+") as log:
        server = subprocess.Popen(engine.command(), stdout=log, stderr=log, text=True)
        try:
            started = time.monotonic()
            health_check = engine.command_beside(server, *engine.health_check())
            while not is_command_successful(*health_check, timeout=HANG_SECONDS):
                if server.poll() is not None or time.monotonic() - started > HANG_SECONDS:
                    log.seek(0)
                    raise ImageError(f"The server is not ready:\n{log.read()}")
                time.sleep(0.2)
            duration = f"{time.monotonic() - started:.1f} s after the start"
            yield ImageCheck("health check", True, duration)
            send_test = engine.command_beside(server, *SEND_TEST)
            reply = run_command(*send_test, timeout=HANG_SECONDS).strip()
            yield ImageCheck("delivery", " 250 " in reply, reply)
            server.send_signal(signal.SIGTERM)
            code = server.wait(HANG_SECONDS)
            log.seek(0)
            output = "" if code == 0 else f"\n{log.read()}"
            yield ImageCheck("SIGTERM ends the server", code == 0, f"exit code {code}{output}")
        finally:
            server.kill()
            server.wait()


def main() -> int:
    """Build and check the image, and return the exit code."""
    engine = choose_engine()
    typer.echo(f"Building the image with {engine.program}. This takes some minutes.")
    passed = True
    try:
        engine.build()
        for check in itertools.chain(check_image(engine), check_server(engine)):
            typer.echo(f"{'ok' if check.passed else 'FAILED':8}{check.name}: {check.found}")
            passed &= check.passed
    finally:
        engine.remove()
    return 0 if passed else 1


if __name__ == "__main__":
    try:
        sys.exit(main())
    except ImageError as problem:
        sys.exit(f"image: {problem}")
