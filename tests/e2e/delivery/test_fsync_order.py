"""Tests of the order of sync system calls before the server confirms a message or an upload.

A kill does not show a missing sync, because the page cache survives it. strace shows it.
"""

import asyncio
import os
import re
import shutil
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from bench.load.lmtp_client import connect
from bench.load.message_generator import MessageGenerator
from bench.load.sample_account import RECEIVER_ADDRESS, create_user
from bench.servers.merganser_process import MerganserServer, stop_process
from merganser.server.environment_factory import open_environment, root_context
from merganser.settings.settings import Settings
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import NewApiKey
from tests.support.run_scope import CI
from tests.support.time_limits import HANG_SECONDS

TRACED_CALLS = "fsync,fdatasync,rename,renameat,renameat2,sendto,sendmsg,write,writev"
TRACE_LINE = re.compile(r"^(\d+) +(?:(\w+)\((.*)|<\.\.\. (\w+) resumed>(.*))$")
SYNCS, RENAMES = ("fsync", "fdatasync"), ("rename", "renameat", "renameat2")
ATTACHMENT_BYTES = 400_000  # incompressible, so that it becomes an object in the blob store


@dataclass
class SystemCall:
    """A system call with its text and the numbers of its first and last trace line."""

    name: str
    text: str
    begin: int
    end: int


def parse_trace(trace: Sequence[str]) -> list[SystemCall]:
    parsed: list[SystemCall] = []
    unfinished: dict[str, SystemCall] = {}
    for number, line in enumerate(trace):
        if not (match := TRACE_LINE.match(line)):
            continue
        thread, name, text, _, remainder = match.groups()
        if name is None:
            call = unfinished.pop(thread)
            call.text, call.end = call.text + remainder, number
        else:
            call = SystemCall(name, text, number, number)
            parsed.append(call)
            if text.endswith("<unfinished ...>"):
                unfinished[thread] = call
    return parsed


SyncStep = tuple[str, Sequence[str], str]  # description, names of the calls, pattern of their text
DELIVERY_STEPS: Sequence[SyncStep] = (
    ("sync of the blob", SYNCS, r"/blobs/[0-9a-f]{2}/\.part-[^>]*>"),
    ("rename of the blob", RENAMES, r"/blobs/[0-9a-f]{2}/\.part-.*/blobs/"),
    ("sync of its folder", SYNCS, r"/blobs/[0-9a-f]{2}>"),
    ("sync of the store's log", SYNCS, r"/merganser\.db-wal>"),
)
UPLOAD_PART: Sequence[SyncStep] = (
    ("sync of the piece", SYNCS, r"/spool/http/upload-[0-9a-f]+>"),
    ("sync of the spool", SYNCS, r"/spool/http>"),
    ("sync of the store's log", SYNCS, r"/merganser\.db-wal>"),
)


def first_late_step(
    trace: Sequence[str],
    reply_text: str = "250 2.0.0 OK: queued",
    steps: Sequence[SyncStep] = DELIVERY_STEPS,
) -> str:
    """Return the first step that was not done when the reply was written, or ""."""
    system_calls = parse_trace(trace)
    (reply_call,) = [call for call in system_calls if f'"{reply_text}' in call.text]
    earlier = [call for call in system_calls if call.end < reply_call.begin]
    previous_end = -1
    for description, names, pattern in steps:
        matching_ends = [
            call.end
            for call in earlier
            if call.begin > previous_end and call.name in names and re.search(pattern, call.text)
        ]
        if not matching_ends:
            return description
        previous_end = matching_ends[0]
    return ""


@pytest.fixture(scope="module")
def strace() -> str:
    program = shutil.which("strace")
    if program is None and CI:
        pytest.fail("CI has to have strace")
    if program is None:
        pytest.skip("there is no strace here")
    return program


@asynccontextmanager
async def traced_process(strace: str, pid: int, log: Path) -> AsyncGenerator[None]:
    """Write the traced calls of all threads of a process to a file during the block."""
    options = ("-f", "-y", "-s", "64", "-e", f"trace={TRACED_CALLS}", "-o", str(log))
    tracer = await asyncio.create_subprocess_exec(
        strace, *options, "-p", str(pid), stderr=asyncio.subprocess.PIPE
    )
    try:
        async with asyncio.timeout(HANG_SECONDS):
            assert tracer.stderr
            first_line = await tracer.stderr.readline()
        assert b" attached" in first_line, first_line
        yield
    finally:
        tracer.terminate()
        await tracer.wait()


async def trace_server(strace: str, folder: Path) -> list[str]:
    """Trace a server that receives a message with a large attachment and an upload part."""
    server, log = MerganserServer(folder), folder / "trace"
    async with open_environment(Settings(data=folder), migrate=True) as environment:
        user = await create_user(environment, RECEIVER_ADDRESS)
        _, secret = await api_key_mutations.create_api_key(
            root_context(environment), NewApiKey("piece", user_id=user.id)
        )
    process = await server.start()
    try:
        async with traced_process(strace, process.pid, log):
            lmtp_client = await connect(server.lmtp_port)
            raw = MessageGenerator().make_message(1, attachment=os.urandom(ATTACHMENT_BYTES))
            reply = await lmtp_client.deliver(RECEIVER_ADDRESS, raw)
            assert reply.startswith("250 2.0.0 OK: queued")
            await lmtp_client.close()
            await _send_upload_part(server.http_port, secret)
    finally:
        await stop_process(process)
    return log.read_text(errors="replace").splitlines()


async def _send_upload_part(port: int, secret: str) -> None:
    auth_headers = {"Authorization": f"Bearer {secret}", "Tus-Resumable": "1.0.0"}
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", headers=auth_headers, timeout=HANG_SECONDS
    ) as http:
        created = await http.post("/rest/uploads", headers={"Upload-Length": "10"})
        headers = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        path = created.headers["location"]
        assert (await http.patch(path, content=b"12345", headers=headers)).status_code == 204


async def test_data_is_synced_before_confirmation(strace: str, tmp_path: Path) -> None:
    trace = await trace_server(strace, tmp_path)
    assert first_late_step(trace) == ""
    assert first_late_step(trace, "HTTP/1.1 204 No Content", UPLOAD_PART) == ""


BLOB = "/d/blobs/ab"
CORRECT_TRACE = (
    f"7 fsync(12<{BLOB}/.part-x>) = 0",
    f'7 rename("{BLOB}/.part-x", "{BLOB}/abc.1") = 0',
    f"7 fsync(13<{BLOB}>) = 0",
    "8 fdatasync(9</d/merganser.db-wal>) = 0",
    '1 write(14<socket:[5]>, "250 2.0.0 OK: queued\\r\\n", 22) = 22',
)


def test_correct_order_is_accepted() -> None:
    assert first_late_step(CORRECT_TRACE) == ""


@pytest.mark.parametrize(
    ("missing", "step"),
    [
        (0, "sync of the blob"),
        (1, "rename of the blob"),
        (2, "sync of its folder"),
        (3, "sync of the store's log"),
    ],
)
def test_missing_or_late_step_is_detected(missing: int, step: str) -> None:
    incomplete_trace = [line for number, line in enumerate(CORRECT_TRACE) if number != missing]
    assert first_late_step(incomplete_trace) == step
    assert first_late_step([*incomplete_trace, CORRECT_TRACE[missing]]) == step


def test_unfinished_sync_before_reply_is_detected() -> None:
    unfinished_line = "8 fdatasync(9</d/merganser.db-wal> <unfinished ...>"
    trace = [
        *CORRECT_TRACE[:3],
        unfinished_line,
        CORRECT_TRACE[4],
        "8 <... fdatasync resumed>) = 0",
    ]
    assert first_late_step(trace) == "sync of the store's log"
