"""What the kernel is told, in which order, before the bytes of a 250 leave the server.

A kill cannot show a missing sync, for what is in the page cache survives it: strace can.
"""

import os
import re
import shutil
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.house import TAKER, make_user
from bench.letters import Writer
from bench.lmtp import connected
from bench.server import Server, stop
from merganser.building import opened
from merganser.settings import Settings

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


def promised_too_early(trace: Sequence[str]) -> str:
    """What had not been done yet when the 250 of a delivery was written; "" when all was."""
    done = calls(trace)
    (reply,) = [call for call in done if '"250 2.0.0 Delivered' in call.text]
    earlier = [call for call in done if call.end < reply.begin]
    at = -1
    for what, names, holds in (
        ("sync of the blob", SYNCS, r"/blobs/[0-9a-f]{2}/\.part-[^>]*>"),
        ("rename of the blob", RENAMES, r"/blobs/[0-9a-f]{2}/\.part-.*/blobs/"),
        ("sync of its folder", SYNCS, r"/blobs/[0-9a-f]{2}>"),
        ("sync of the store's log", SYNCS, r"/merganser\.db-wal>"),
    ):
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
    if found is None and os.environ.get("CI") == "true":
        pytest.fail("CI has to have strace")
    if found is None:
        pytest.skip("there is no strace here")
    return found


async def traced(strace: str, folder: Path) -> list[str]:
    """The trace of a server to which one message with a large file was delivered."""
    server, log = Server(folder), folder / "trace"
    async with opened(Settings(data=folder), migrate=True) as world:
        await make_user(world, TAKER)
    before = (strace, "-f", "-y", "-s", "64", "-e", f"trace={CALLS}", "-o", str(log))
    process = await server.start(before=before)
    try:
        neighbour = await connected(server.lmtp)
        raw = Writer().letter(1, attached=os.urandom(FILE))
        assert (await neighbour.deliver(TAKER, raw)).startswith("250 2.0.0 Delivered")
        await neighbour.close()
    finally:
        os.killpg(process.pid, signal.SIGTERM)  # strace hands on no signal of its own accord
        await stop(process)
    return log.read_text(errors="replace").splitlines()


async def test_blob_folder_and_log_are_on_the_disk_before_a_delivery_is_promised(
    strace: str, tmp_path: Path
) -> None:
    trace = await traced(strace, tmp_path)
    assert promised_too_early(trace) == ""


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
