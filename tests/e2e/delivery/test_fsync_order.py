"""What the kernel is told, in which order, before the bytes of a promise leave the server.

A kill cannot show a missing sync, for what is in the page cache survives it: strace can.
"""

import os
import re
import shutil
import signal
from collections.abc import Sequence
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
from resolvers.auth import api_keys
from resolvers.auth.api_keys import NewApiKey
from tests.support.run_scope import CI

CALLS = "fsync,fdatasync,rename,renameat,renameat2,sendto,sendmsg,write,writev"
LINE = re.compile(r"^(\d+) +(?:(\w+)\((.*)|<\.\.\. (\w+) resumed>(.*))$")
SYNCS, RENAMES = ("fsync", "fdatasync"), ("rename", "renameat", "renameat2")
FILE = 400_000  # bytes that cannot be compressed: they become an object in the blob store


@dataclass
class Call:
    """A system call: the lines of the trace where it begins and ends, and what is between."""

    name: str
    text: str
    begin: int
    end: int


def calls(trace: Sequence[str]) -> list[Call]:
    found: list[Call] = []
    open_: dict[str, Call] = {}
    for number, line in enumerate(trace):
        if not (match := LINE.match(line)):
            continue
        thread, name, text, _, rest = match.groups()
        if name is None:
            call = open_.pop(thread)
            call.text, call.end = call.text + rest, number
        else:
            call = Call(name, text, number, number)
            found.append(call)
            if text.endswith("<unfinished ...>"):
                open_[thread] = call
    return found


Step = tuple[str, Sequence[str], str]  # what it is, by which calls, of what
DELIVERY: Sequence[Step] = (
    ("sync of the blob", SYNCS, r"/blobs/[0-9a-f]{2}/\.part-[^>]*>"),
    ("rename of the blob", RENAMES, r"/blobs/[0-9a-f]{2}/\.part-.*/blobs/"),
    ("sync of its folder", SYNCS, r"/blobs/[0-9a-f]{2}>"),
    ("sync of the store's log", SYNCS, r"/merganser\.db-wal>"),
)
PIECE: Sequence[Step] = (
    ("sync of the piece", SYNCS, r"/spool/http/upload-[0-9a-f]+>"),
    ("sync of the spool", SYNCS, r"/spool/http>"),
    ("sync of the store's log", SYNCS, r"/merganser\.db-wal>"),
)


def promised_too_early(
    trace: Sequence[str], promise: str = "250 2.0.0 Delivered", steps: Sequence[Step] = DELIVERY
) -> str:
    """What had not been done yet when a promise was written; "" when all was."""
    done = calls(trace)
    (reply,) = [call for call in done if f'"{promise}' in call.text]
    earlier = [call for call in done if call.end < reply.begin]
    at = -1
    for what, names, holds in steps:
        came = [
            call.end
            for call in earlier
            if call.begin > at and call.name in names and re.search(holds, call.text)
        ]
        if not came:
            return what
        at = came[0]
    return ""


@pytest.fixture(scope="module")
def strace() -> str:
    found = shutil.which("strace")
    if found is None and CI:
        pytest.fail("CI has to have strace")
    if found is None:
        pytest.skip("there is no strace here")
    return found


async def traced(strace: str, folder: Path) -> list[str]:
    """The trace of a server that got a message with a large file, and a piece of an upload."""
    server, log = MerganserServer(folder), folder / "trace"
    async with open_environment(Settings(data=folder), migrate=True) as world:
        user = await create_user(world, RECEIVER_ADDRESS)
        _, secret = await api_keys.create_api_key(
            root_context(world), NewApiKey("piece", user_id=user.id)
        )
    before = (strace, "-f", "-y", "-s", "64", "-e", f"trace={CALLS}", "-o", str(log))
    process = await server.start(command_prefix=before)
    try:
        neighbour = await connect(server.lmtp_port)
        raw = MessageGenerator().make_message(1, attachment=os.urandom(FILE))
        assert (await neighbour.deliver(RECEIVER_ADDRESS, raw)).startswith("250 2.0.0 Delivered")
        await neighbour.close()
        await _piece(server.http_port, secret)
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # strace hands on no signal of its own accord
        await stop_process(process)
    return log.read_text(errors="replace").splitlines()


async def _piece(port: int, secret: str) -> None:
    named = {"Authorization": f"Bearer {secret}", "Tus-Resumable": "1.0.0"}
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{port}", headers=named, timeout=30
    ) as http:
        created = await http.post("/rest/uploads", headers={"Upload-Length": "10"})
        headers = {"Upload-Offset": "0", "Content-Type": "application/offset+octet-stream"}
        path = created.headers["location"]
        assert (await http.patch(path, content=b"12345", headers=headers)).status_code == 204


async def test_what_is_promised_is_on_the_disk_before(strace: str, tmp_path: Path) -> None:
    trace = await traced(strace, tmp_path)
    assert promised_too_early(trace) == ""
    assert promised_too_early(trace, "HTTP/1.1 204 No Content", PIECE) == ""


BLOB = "/d/blobs/ab"
ORDER = (
    f"7 fsync(12<{BLOB}/.part-x>) = 0",
    f'7 rename("{BLOB}/.part-x", "{BLOB}/abc.1") = 0',
    f"7 fsync(13<{BLOB}>) = 0",
    "8 fdatasync(9</d/merganser.db-wal>) = 0",
    '1 write(14<socket:[5]>, "250 2.0.0 Delivered\\r\\n", 21) = 21',
)


def test_the_right_order_passes() -> None:
    assert promised_too_early(ORDER) == ""


@pytest.mark.parametrize(
    ("missing", "what"),
    [
        (0, "sync of the blob"),
        (1, "rename of the blob"),
        (2, "sync of its folder"),
        (3, "sync of the store's log"),
    ],
)
def test_a_step_that_is_missing_or_late_is_found(missing: int, what: str) -> None:
    without = [line for number, line in enumerate(ORDER) if number != missing]
    assert promised_too_early(without) == what
    assert promised_too_early([*without, ORDER[missing]]) == what


def test_a_sync_that_has_only_begun_when_the_reply_goes_does_not_count() -> None:
    begun = "8 fdatasync(9</d/merganser.db-wal> <unfinished ...>"
    late = [*ORDER[:3], begun, ORDER[4], "8 <... fdatasync resumed>) = 0"]
    assert promised_too_early(late) == "sync of the store's log"
