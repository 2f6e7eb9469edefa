"""Tests of a server with a full disk: it reports errors, loses nothing and recovers later."""

import asyncio
import base64
import os
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import asyncpg
import pytest

from bench.servers.ports import free_port
from models.store.outage_log import QUIET_SECONDS
from models.store.outages import StorageComponent
from tests.support.mail_servers.lmtp_client import connect_lmtp
from tests.support.servers.merganser_server import HttpClient, MerganserProcess
from tests.support.stores import store_fixtures
from tests.support.stores.small_disk import SmallDisk, mount_small_disk
from tests.support.time_limits import HANG_SECONDS

MAILBOX_CREATE = """mutation ($path: String!) {
    mailboxCreate(input: {paths: [$path]}) { errors { code message } }
}"""
ATOMIC_MAILBOX_CREATE = """mutation ($path: String!, $other: String!) @atomic {
    a: mailboxCreate(input: {paths: [$path]}) { errors { code message } }
    b: mailboxCreate(input: {paths: [$other]}) { errors { code message } }
}"""
DRAFT_UPLOAD = """mutation ($file: String!) {
    draftSave(input: {
        set: {text: "Hi", addAttachments: [{filename: "a.bin", content: $file}]}
    }) { errors { code message } }
}"""
UNAVAILABLE_EXTENSIONS = {"code": "UNAVAILABLE", "retryAfter": "PT5S", "retryAfterSeconds": 5}
EXPECTED_COMPLAINTS = (
    "Component unavailable",
    "Component available again",
    "Could not write the incarnation mark",
    "Log entries are lost: the log store can't be written",
    "Old log entries could not be deleted",
)
NO_ROOM_REPLY = "452 4.3.1 Insufficient system storage"
MESSAGE_TEMPLATE = b"Subject: Hello\r\n\r\n%s\r\n"
POSTGRES = pytest.mark.skipif(
    "postgres" not in store_fixtures.STORES, reason="STORES has no postgres"
)


def incompressible_message(size: int) -> bytes:
    """Return an incompressible message of about this size in bytes, without a dot."""
    lines = base64.encodebytes(os.urandom(size * 3 // 4))
    return MESSAGE_TEMPLATE % lines.replace(b"\n", b"\r\n")


def stop_and_check_log(server: MerganserProcess) -> None:
    """Stop the server and assert that its log reports only the outage."""
    server.stop()
    assert not [
        line for line in server.unexpected_log_records() if line["event"] not in EXPECTED_COMPLAINTS
    ]
    assert "Traceback" not in server.log
    # asyncio logs "never retrieved" or "never awaited"
    assert "never" not in server.log


@pytest.fixture
def cleanup_stack() -> Iterator[ExitStack]:
    """Resources of the test, closed at its end."""
    with ExitStack() as stack:
        yield stack


@pytest.fixture
def public_folder() -> Iterator[Path]:
    """A folder that the operating system user of PostgreSQL can enter."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


def start_server(
    cleanup_stack: ExitStack,
    folder: Path,
    store: str = "",
    serve_arguments: tuple[str, ...] = (),
    **extra: str,
) -> MerganserProcess:
    """Start a server that is killed after its test."""
    settings = {"SMTP_LISTEN": f"127.0.0.1:{free_port()}", **extra}
    server = MerganserProcess(folder, store, settings, serve_arguments=serve_arguments)
    server.create_users("ada")
    server.start()

    def kill_server() -> None:
        with suppress(AssertionError):
            server.kill()

    cleanup_stack.callback(kill_server)
    return server


def assert_unavailable_errors(result: Any, component: str) -> None:
    """Assert that errors have a retry time, and that nothing was done in their response."""
    for error in result.get("errors", ()):
        assert error["extensions"] == {**UNAVAILABLE_EXTENSIONS, "component": component}, result
        assert error["message"].endswith(": retry later.")
        fields = (result.get("data") or {}).values()
        assert {
            payload_error["code"] for field in fields if field for payload_error in field["errors"]
        } <= {"ABORTED"}
        assert all(field is None or field["errors"] for field in fields), result


async def smtp_reply(server: MerganserProcess, size: int = 200_000) -> str:
    """Send a message by SMTP and return the last reply."""
    smtp_client = await connect_lmtp(int(server.extra_settings["SMTP_LISTEN"].rpartition(":")[2]))
    try:
        await smtp_client.run_command("EHLO client.example.net")
        reply = await smtp_client.run_command("MAIL FROM:<carol@example.net>")
        for line in ("RCPT TO:<ada@example.org>", "DATA"):
            if reply[0] in "23":
                reply = await smtp_client.run_command(line)
        if reply.startswith("354"):
            smtp_client.send_bytes(incompressible_message(size) + b".\r\n")
            reply = await smtp_client.read_reply()
        return reply
    finally:
        await smtp_client.close()


async def deliver_until_refused(deliver: Callable[[], Awaitable[str]]) -> None:
    """Deliver messages until one is refused. The first ones can find space in used pages."""
    for _ in range(50):
        reply = await deliver()
        if reply == NO_ROOM_REPLY:
            return
        assert reply.startswith("250 "), reply
    raise AssertionError("no message was refused")


async def mutate_until_refused(
    ada: HttpClient, component: str, *, refused_singles: int = 20, refused_atomics: int = 5
) -> None:
    """Run concurrent mutations, single and atomic, until more than these counts were refused.

    The first ones can find space in the WAL of SQLite or in pages of PostgreSQL.
    """
    single_refusals = atomic_refusals = 0
    for round_number in range(100):
        requests = [
            ada.raw(MAILBOX_CREATE, path=f"{round_number}-{index}".ljust(200, "x"))
            for index in range(10)
        ]
        requests += [
            ada.raw(
                ATOMIC_MAILBOX_CREATE,
                path=f"a{round_number}-{index}".ljust(200, "x"),
                other=f"b{round_number}-{index}",
            )
            for index in range(5)
        ]
        results = await asyncio.gather(*requests)
        for result in results:
            assert_unavailable_errors(result, component)
        single_refusals += sum("errors" in result for result in results[:10])
        atomic_refusals += sum("errors" in result for result in results[10:])
        if single_refusals > refused_singles and atomic_refusals > refused_atomics:
            return
    pytest.fail("the disk is not full")


async def move_database(uri: str, url: str, disk: SmallDisk) -> None:
    """Move a PostgreSQL database to the disk."""
    name = urlsplit(url).path.removeprefix("/")
    connection = await asyncpg.connect(uri)
    try:
        disk.give_to_owner(await connection.fetchval("SHOW data_directory"))
        await connection.execute(f"CREATE TABLESPACE small LOCATION '{disk.folder}'")
        await connection.execute(f'ALTER DATABASE "{name}" SET TABLESPACE small')
    finally:
        await connection.close()


async def remove_database(uri: str, url: str) -> None:
    """Remove the database and its tablespace."""
    name = urlsplit(url).path.removeprefix("/")
    connection = await asyncpg.connect(uri)
    try:
        await connection.execute(f'DROP DATABASE "{name}" WITH (FORCE)')
        await connection.execute("DROP TABLESPACE small")
    finally:
        await connection.close()


async def assert_server_works(server: MerganserProcess, ada: HttpClient) -> None:
    """Assert that the server accepts mail, mutations and uploads."""
    assert (
        await server.deliver_by_lmtp(incompressible_message(200_000), "ada@example.org")
        != NO_ROOM_REPLY
    )
    await ada(MAILBOX_CREATE, path="Room")
    response = await ada.http.post("/rest/uploads", content=bytes(3_000_000))
    assert response.status_code == 201
    assert (await smtp_reply(server)).startswith("250 ")


async def test_sqlite_on_full_disk_reports_unavailable_and_recovers(
    cleanup_stack: ExitStack, tmp_path: Path
) -> None:
    disk = cleanup_stack.enter_context(mount_small_disk(tmp_path / "var", 96))
    server = start_server(cleanup_stack, tmp_path, DISK_RESERVE="0")
    async with server.open_client("ada") as ada:
        await assert_server_works(server, ada)
        disk.fill()
        await mutate_until_refused(ada, "store")
        assert (
            await server.deliver_by_lmtp(incompressible_message(9_000_000), "ada@example.org")
            == NO_ROOM_REPLY
        )
        assert await smtp_reply(server, 9_000_000) == NO_ROOM_REPLY
        response = await ada.http.post("/rest/uploads", content=bytes(3_000_000))
        assert response.status_code == 507
        assert response.json()["errors"][0]["extensions"] == UNAVAILABLE_EXTENSIONS
        assert response.headers["retry-after"] == "5"
        disk.remove_ballast()
        await ada(MAILBOX_CREATE, path="After")
        assert (
            await server.deliver_by_lmtp(incompressible_message(200_000), "ada@example.org")
        ).startswith("250 ")
        assert (await smtp_reply(server)).startswith("250 ")
    stop_and_check_log(server)


def outage_lines(server: MerganserProcess) -> list[str]:
    """The lines about the begin and end of outages of the database, in their order."""
    events = ("Component unavailable", "Component available again")
    return [
        record["event"]
        for record in server.log_records()
        if record["event"] in events and record["component"] == "store"
    ]


async def assert_reads_are_served(server: MerganserProcess, ada: HttpClient) -> None:
    """Assert that a server with a full disk shows mail, and refuses mail and changes."""
    answer = await ada("{ user { messages(first: 1) { nodes { subject text } } } }")
    assert answer["user"]["messages"]["nodes"][0]["subject"] == "Hello"
    assert await smtp_reply(server, 9_000_000) == NO_ROOM_REPLY
    reply = await server.deliver_by_lmtp(incompressible_message(9_000_000), "ada@example.org")
    assert reply == NO_ROOM_REPLY


@pytest.mark.parametrize(
    ("end_methods", "serve_arguments"),
    [(("stop", "kill", "stop"), ()), (("stop", "stop"), ("--workers", "2"))],
    ids=["one process", "two workers"],
)
async def test_server_starts_while_the_disk_is_full(
    cleanup_stack: ExitStack,
    tmp_path: Path,
    end_methods: tuple[str, ...],
    serve_arguments: tuple[str, ...],
) -> None:
    disk = cleanup_stack.enter_context(mount_small_disk(tmp_path / "var", 96))
    server = start_server(
        cleanup_stack, tmp_path, serve_arguments=serve_arguments, DISK_RESERVE="0"
    )
    reply = await server.deliver_by_lmtp(incompressible_message(200_000), "ada@example.org")
    assert reply.startswith("250 ")
    disk.fill()
    for end_method in end_methods:  # the later starts have less room than the first
        getattr(server, end_method)()
        disk.fill()
        server.start()
        disk.fill()
        async with server.open_client("ada") as ada:
            await assert_reads_are_served(server, ada)
            await mutate_until_refused(ada, "store", refused_singles=8, refused_atomics=3)
    lines_before = len(outage_lines(server))
    disk.remove_ballast()
    async with server.open_client("ada") as ada:
        async with asyncio.timeout(HANG_SECONDS):
            while "Component available again" not in outage_lines(server)[lines_before:]:
                await ada("{ user { username } }")
                await asyncio.sleep(0.1)
        await ada(MAILBOX_CREATE, path="After")
        assert (await smtp_reply(server)).startswith("250 ")
    stop_and_check_log(server)


async def test_outage_of_a_full_disk_has_two_log_lines(
    cleanup_stack: ExitStack, tmp_path: Path
) -> None:
    disk = cleanup_stack.enter_context(mount_small_disk(tmp_path / "var", 96))
    server = start_server(cleanup_stack, tmp_path, DISK_RESERVE="0")
    async with server.open_client("ada") as ada:
        disk.fill()
        for _ in range(2):  # between them small writes and reads succeed
            await mutate_until_refused(ada, "store", refused_singles=8, refused_atomics=3)
            await asyncio.sleep(QUIET_SECONDS[StorageComponent.STORE] + 0.5)
            await ada("{ user { username } }")
        assert outage_lines(server) == ["Component unavailable"]
    server.kill()


async def test_blobs_on_full_disk_report_unavailable_and_recover(
    cleanup_stack: ExitStack, tmp_path: Path
) -> None:
    disk = cleanup_stack.enter_context(mount_small_disk(tmp_path / "blobs", 16))
    server = start_server(cleanup_stack, tmp_path, OBJECT_STORE_URL=str(disk.folder))
    file = base64.b64encode(os.urandom(400_000)).decode()
    async with server.open_client("ada") as ada:
        await assert_server_works(server, ada)
        disk.fill()
        assert (
            await server.deliver_by_lmtp(incompressible_message(1_500_000), "ada@example.org")
            == NO_ROOM_REPLY
        )
        assert await smtp_reply(server, 1_500_000) == NO_ROOM_REPLY
        for response in await asyncio.gather(*(ada.raw(DRAFT_UPLOAD, file=file) for _ in range(5))):
            assert "errors" in response
            assert_unavailable_errors(response, "blobs")
        response = await ada.http.post("/rest/uploads", content=os.urandom(3_000_000))
        assert response.status_code == 507
        assert response.json()["errors"][0]["extensions"]["component"] == "blobs"
        await ada(MAILBOX_CREATE, path="The store has room")
        disk.remove_ballast()
        assert (await ada(DRAFT_UPLOAD, file=file))["draftSave"]["errors"] == []
        await assert_server_works(server, ada)
    stop_and_check_log(server)


@POSTGRES
async def test_postgres_on_full_disk_reports_unavailable_and_recovers(
    public_folder: Path, cleanup_stack: ExitStack, tmp_path: Path, postgres: str
) -> None:
    url = store_fixtures.create_migrated_database(postgres, "full")
    uri = postgres.replace("+asyncpg", "")
    disk = cleanup_stack.enter_context(mount_small_disk(public_folder / "table", 64))
    await move_database(uri, url, disk)
    server = start_server(cleanup_stack, tmp_path, url)
    try:
        async with server.open_client("ada") as ada:
            await assert_server_works(server, ada)
            disk.fill()
            await mutate_until_refused(ada, "store")
            await deliver_until_refused(
                lambda: server.deliver_by_lmtp(incompressible_message(500_000), "ada@example.org")
            )
            await deliver_until_refused(lambda: smtp_reply(server))
            disk.remove_ballast()
            await assert_server_works(server, ada)
        stop_and_check_log(server)
    finally:
        if server.is_running:
            server.kill()
        await remove_database(uri, url)
