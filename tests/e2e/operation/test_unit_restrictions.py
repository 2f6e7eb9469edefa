"""A server runs with the restrictions of `deploy/merganser.service` on calls and memory."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import raw_message
from tests.support.servers.merganser_server import ROOT, MerganserProcess
from tests.support.servers.program_process import program_path, require_program

UNIT = ROOT / "deploy/merganser.service"
# PR_SET_MDWE of Linux 6.3 refuses what MemoryDenyWriteExecute refuses; older kernels ignore it.
DENY_WRITE_EXECUTE_AND_RUN = """\
import ctypes, os, sys
PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN = 65, 1
ctypes.CDLL(None).prctl(PR_SET_MDWE, PR_MDWE_REFUSE_EXEC_GAIN, 0, 0, 0)
os.execv(sys.executable, [sys.executable, "-m", "merganser", *sys.argv[1:]])
"""


def allowed_system_calls() -> set[str]:
    """The system calls that the unit allows, with the groups of calls of this systemd."""
    groups: dict[str, set[str]] = {}
    command = [program_path("systemd-analyze"), "--no-pager", "syscall-filter"]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    name = ""
    for line in output.splitlines():
        if line.startswith("@"):
            name = line.strip()
            groups[name] = set()
        elif re.fullmatch(r"    @?\w[\w-]*", line) and name:
            groups[name].add(line.strip())

    def expand(name: str) -> set[str]:
        if not name.startswith("@"):
            return {name}
        return set().union(*map(expand, groups[name]))

    allowed: set[str] = set()
    for value in re.findall(r"^SystemCallFilter=(.*)$", UNIT.read_text(), re.MULTILINE):
        calls = set().union(*map(expand, value.removeprefix("~").split()))
        allowed = allowed - calls if value.startswith("~") else allowed | calls
    return allowed


@dataclass
class RestrictedProcess(MerganserProcess):
    """A server of which strace records the system calls that the unit refuses."""

    @property
    def refused_calls_path(self) -> Path:
        return self.folder / "refused_calls"

    def _start_process(self, arguments: list[str]) -> "subprocess.Popen[bytes]":
        allowed = ",".join(f"?{name}" for name in sorted(allowed_system_calls()))
        command = [
            "strace", "-D", "-f", "--seccomp-bpf", "-qq", "-o", str(self.refused_calls_path),
            "-e", f"trace=!{allowed}", "-e", "signal=none",
            sys.executable, "-c", DENY_WRITE_EXECUTE_AND_RUN, *arguments,
        ]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(
                command,
                cwd=ROOT,
                env=self.process_env,
                stderr=log,
                stdout=log,
                stdin=subprocess.DEVNULL,
            )


@pytest.fixture(params=[(), ("--workers", "2")], ids=["one process", "two workers"])
def restricted_server(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[RestrictedProcess]:
    require_program("strace")
    require_program("systemd-analyze")
    process = RestrictedProcess(tmp_path, serve_arguments=request.param)
    process.create_users("ada")
    process.start()
    yield process
    if process.is_running:
        process.kill()


async def test_server_makes_only_calls_that_the_unit_allows(
    restricted_server: RestrictedProcess,
) -> None:
    await restricted_server.deliver_by_lmtp(raw_message("Hello"), "ada@example.org")
    async with restricted_server.open_client("ada") as client:
        page = await client("{ messages(first: 1) { nodes { subject } } }")
        assert (await client.http.get("/health/ready")).is_success
    assert [node["subject"] for node in page["messages"]["nodes"]] == ["Hello"]
    restricted_server.stop()
    assert restricted_server.unexpected_log_records() == []
    refused_calls = restricted_server.refused_calls_path.read_text().splitlines()
    # SQLite keeps the owner of its files if root runs it, which the unit does not
    allowed_of_root = re.compile(r" fchown\(| fchown resumed>")
    assert [
        line for line in refused_calls if os.geteuid() or not allowed_of_root.search(line)
    ] == []
