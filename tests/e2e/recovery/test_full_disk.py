"""A server whose disk is full: it says so, breaks nothing, and goes on when there is room."""

import asyncio
import base64
import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from bench.servers.ports import free_port
from tests.support.mail_servers.lmtp_client import connect
from tests.support.servers.merganser_server import Client, Server
from tests.support.stores import store_fixtures
from tests.support.stores.small_disk import SmallDisk, small_disk

CREATE = """mutation ($path: String!) {
    mailboxCreate(input: {paths: [$path]}) { errors { code message } }
}"""
ATOMIC = """mutation ($path: String!, $other: String!) @atomic {
    a: mailboxCreate(input: {paths: [$path]}) { errors { code message } }
    b: mailboxCreate(input: {paths: [$other]}) { errors { code message } }
}"""
DRAFT = """mutation ($file: String!) {
    messageUpload(input: {
        mailbox: {specialUse: DRAFTS}, draft: true, text: "Hi",
        attachments: [{filename: "a.bin", content: $file}]
    }) { errors { code message } }
}"""
PASSING = {"code": "UNAVAILABLE", "retryAfter": "PT5S", "retryAfterSeconds": 5}
TOLD = (
    "a component is unavailable",
    "a component is available again",
    "the mark of the incarnation cannot be kept",
)
NO_ROOM = "452 4.3.1 No room for it now, try again later"
LETTER = b"Subject: Hello\r\n\r\n%s\r\n"
POSTGRES = pytest.mark.skipif(
    "postgres" not in store_fixtures.STORES, reason="STORES has no postgres"
)


def letter(size: int) -> bytes:
    """A message of so many bytes that can't be compressed."""
    lines = [os.urandom(36).hex() for _ in range(size // 72)]
    return LETTER % "\r\n".join(lines).encode()


def clean(server: Server) -> None:
    """End the server: its log tells of the outage, and of nothing else."""
    server.stop()
    assert not [line for line in server.complaints() if line["event"] not in TOLD]
    assert "Traceback" not in server.log
    assert "never" not in server.log  # a future whose error is never retrieved, a coroutine


@pytest.fixture
def parts() -> Iterator[ExitStack]:
    """What a test has opened, closed at its end."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def public() -> Iterator[Path]:
    """A folder that every user of the machine reaches: the server of PostgreSQL is another one."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


def started(parts: ExitStack, folder: Path, store: str = "", **more: str) -> Server:
    """A server that does not outlive its test."""
    server = Server(folder, store, {"SMTP": f"127.0.0.1:{free_port()}", **more})
    server.make("ada")
    server.start()

    def end() -> None:
        with suppress(AssertionError):
            server.kill()

    parts.callback(end)
    return server


def refused(answer: Any, component: str) -> None:
    """Errors of an answer say when to try again; nothing was done then."""
    for error in answer.get("errors", ()):
        assert error["extensions"] == {**PASSING, "component": component}, answer
        assert error["message"].endswith(", try again later")
        fields = (answer.get("data") or {}).values()
        assert {one["code"] for field in fields if field for one in field["errors"]} <= {"ABORTED"}
        assert all(field is None or field["errors"] for field in fields), answer


async def smtp(server: Server, size: int = 200_000) -> str:
    """The reply to MAIL and DATA by SMTP."""
    neighbour = await connect(int(server.more["SMTP"].rpartition(":")[2]))
    try:
        await neighbour.say("EHLO client.example.net")
        reply = await neighbour.say("MAIL FROM:<carol@example.net>")
        for line in ("RCPT TO:<ada@example.org>", "DATA"):
            if reply[0] in "23":
                reply = await neighbour.say(line)
        if reply.startswith("354"):
            neighbour.send(letter(size) + b".\r\n")
            reply = await neighbour.hear()
        return reply
    finally:
        await neighbour.close()


async def mutate(ada: Client, component: str) -> None:
    """Run mutations at once, alone and in one unit, until many were refused.

    The first may find room in the log of SQLite, or in pages of PostgreSQL.
    """
    alone = together = 0
    for turn in range(100):
        asked = [ada.raw(CREATE, path=f"{turn}-{one}".ljust(200, "x")) for one in range(10)]
        asked += [
            ada.raw(ATOMIC, path=f"a{turn}-{one}".ljust(200, "x"), other=f"b{turn}-{one}")
            for one in range(5)
        ]
        answers = await asyncio.gather(*asked)
        for answer in answers:
            refused(answer, component)
        alone += sum("errors" in answer for answer in answers[:10])
        together += sum("errors" in answer for answer in answers[10:])
        if alone > 20 and together > 5:
            return
    pytest.fail("the disk is not full")


async def move(uri: str, url: str, disk: SmallDisk) -> None:
    """Move a database of PostgreSQL to a disk."""
    name = urlsplit(url).path.removeprefix("/")
    connection = await asyncpg.connect(uri)
    try:
        disk.give_to_owner(await connection.fetchval("SHOW data_directory"))
        await connection.execute(f"CREATE TABLESPACE small LOCATION '{disk.folder}'")
        await connection.execute(f'ALTER DATABASE "{name}" SET TABLESPACE small')
    finally:
        await connection.close()


async def remove(uri: str, url: str) -> None:
    """Remove that database and its tablespace."""
    name = urlsplit(url).path.removeprefix("/")
    connection = await asyncpg.connect(uri)
    try:
        await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await connection.execute("DROP TABLESPACE small")
    finally:
        await connection.close()


async def all_done(server: Server, ada: Client) -> None:
    """The server works."""
    assert await server.deliver(letter(200_000), "ada@example.org") != NO_ROOM
    await ada(CREATE, path="Room")
    answer = await ada.http.post("/rest/uploads", content=bytes(3_000_000))
    assert answer.status_code == 201
    assert (await smtp(server)).startswith("250 ")


async def test_sqlite_on_a_full_disk(parts: ExitStack, tmp_path: Path) -> None:
    disk = parts.enter_context(small_disk(tmp_path / "var", 96))
    server = started(parts, tmp_path, DISK_RESERVE="0")
    async with server.client("ada") as ada:
        await all_done(server, ada)
        disk.fill()
        await mutate(ada, "store")
        assert await server.deliver(letter(9_000_000), "ada@example.org") == NO_ROOM
        assert await smtp(server, 9_000_000) == NO_ROOM
        answer = await ada.http.post("/rest/uploads", content=bytes(3_000_000))
        assert answer.status_code == 507
        assert answer.json()["errors"][0]["extensions"] == PASSING
        assert answer.headers["retry-after"] == "5"
        disk.empty()
        await ada(CREATE, path="After")
        assert (await server.deliver(letter(200_000), "ada@example.org")).startswith("250 ")
        assert (await smtp(server)).startswith("250 ")
    clean(server)


async def test_blobs_on_a_full_disk(parts: ExitStack, tmp_path: Path) -> None:
    disk = parts.enter_context(small_disk(tmp_path / "blobs", 16))
    server = started(parts, tmp_path, BLOBS=str(disk.folder))
    file = base64.b64encode(os.urandom(400_000)).decode()
    async with server.client("ada") as ada:
        await all_done(server, ada)
        disk.fill()
        assert await server.deliver(letter(1_500_000), "ada@example.org") == NO_ROOM
        assert await smtp(server, 1_500_000) == NO_ROOM
        for answer in await asyncio.gather(*(ada.raw(DRAFT, file=file) for _ in range(5))):
            assert "errors" in answer
            refused(answer, "blobs")
        answer = await ada.http.post("/rest/uploads", content=os.urandom(3_000_000))
        assert answer.status_code == 507
        assert answer.json()["errors"][0]["extensions"]["component"] == "blobs"
        await ada(CREATE, path="The store has room")
        disk.empty()
        assert (await ada(DRAFT, file=file))["messageUpload"]["errors"] == []
        await all_done(server, ada)
    clean(server)


@POSTGRES
async def test_postgres_on_a_full_disk(
    public: Path, parts: ExitStack, tmp_path: Path, postgres: str
) -> None:
    url, uri = await store_fixtures.beside(postgres, "full"), postgres.replace("+asyncpg", "")
    disk = parts.enter_context(small_disk(public / "table", 64))
    await move(uri, url, disk)
    server = started(parts, tmp_path, url)
    try:
        async with server.client("ada") as ada:
            await all_done(server, ada)
            disk.fill()
            await mutate(ada, "store")
            assert await server.deliver(letter(500_000), "ada@example.org") == NO_ROOM
            assert await smtp(server) == NO_ROOM
            disk.empty()
            await all_done(server, ada)
        clean(server)
    finally:
        if server.is_running:
            server.kill()
        await remove(uri, url)
