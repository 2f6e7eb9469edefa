"""Tests of clients that send nothing, half a request, or disappear: other clients are served."""

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import raw_message
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.servers.merganser_server import PASSWORD, MerganserProcess
from tests.support.time_limits import HANG_SECONDS

STORES = ["sqlite"]
MIB = 1 << 20
VIEWER_QUERY = "{ viewer { user { username } } }"
CHANGES_SUBSCRIPTION = (
    "subscription ($after: Cursor) { changes(after: $after) { events { type } } }"
)
REVOKE_MUTATION = "mutation { accessTokenRevoke(input: {}) { revokedCount errors { code } } }"
SIGN_IN = f"""mutation {{ authenticate(
  input: {{username: "dora", password: "{PASSWORD}"}}) {{ token }} }}"""
MAX_RESPONSE_SECONDS = 8.0  # without waits for a CPU; less than the time limits of slow requests
RECHECK_LIMIT = 90.0  # seconds: credentials are checked every 30 s and cached for 5 s
SHORT_LIFETIME = 20.0  # seconds: longer than the subscriptions need to start
REQUEST_HEAD = "POST /graphql HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


@asynccontextmanager
async def open_connection(port: int, data: bytes = b"") -> AsyncGenerator[tuple[Any, Any]]:
    """Open a connection and send these bytes. Abort it at the end."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(data)
        yield reader, writer
    finally:
        writer.transport.abort()


async def assert_server_responds(server: MerganserProcess) -> None:
    """Assert that other clients are served quickly by HTTP, WebSocket and LMTP."""
    started_at = time.monotonic() - server.seconds_not_serving()
    async with (
        server.open_client("ada") as ada,
        server.open_websocket(server.secrets["ada"]) as socket,
    ):
        await socket.subscribe(CHANGES_SUBSCRIPTION, after=await ada.load_cursor())
        assert (await ada(VIEWER_QUERY))["viewer"]["user"]["username"] == "ada"
        reply = await server.deliver_by_lmtp(raw_message(f"{started_at}"), "ada@example.org")
        assert reply.startswith("250 2.0.0 OK: queued")
        assert (await socket.read_changes())["events"] == [{"type": "MESSAGE_RECEIVED"}]
    assert time.monotonic() - server.seconds_not_serving() - started_at < MAX_RESPONSE_SECONDS


async def _subscribe_until_closed(
    server: MerganserProcess, secret: str, end_credential: Any
) -> tuple[Any, int, float]:
    """Subscribe, end the credential, and return the last frame, close code and seconds until it."""
    async with server.open_websocket(secret) as socket:
        await socket.subscribe(CHANGES_SUBSCRIPTION)
        with suppress(TimeoutError):  # events of other credentials of the same user
            assert (await socket.read_frame(0.3))["type"] == "next"
        started_at = time.monotonic()
        await end_credential()
        frame = await socket.read_frame(RECHECK_LIMIT)
        while frame["type"] == "next":
            frame = await socket.read_frame(RECHECK_LIMIT)
        return frame, await socket.wait_for_close_code(), time.monotonic() - started_at


async def _read_stream_until_end(server: MerganserProcess, secret: str) -> list[Any]:
    """Read the lines of an SSE stream until its credential ends."""
    server.secrets["short"] = secret
    async with server.open_client("short") as client:
        body = {"query": CHANGES_SUBSCRIPTION}
        headers = {"Accept": "text/event-stream"}
        async with asyncio.timeout(RECHECK_LIMIT):
            request = client.http.stream(
                "POST", "/graphql", json=body, headers=headers, timeout=None
            )
            async with request as response:
                return [line async for line in response.aiter_lines() if line]


async def end_credentials(server: MerganserProcess) -> dict[str, Any]:
    """End credentials in each possible way while a subscription uses them."""
    async with server.open_client("dora") as dora, server.open_client() as anonymous:
        token = (await anonymous(SIGN_IN))["authenticate"]["token"]
        expires_at = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + SHORT_LIFETIME))
        short_key = await dora.run_mutation(
            "apiKeyCreate", {"name": "short", "expiresAt": expires_at}, "secret"
        )
        deleted_key = await dora.run_mutation(
            "apiKeyCreate", {"name": "lost"}, "secret apiKey { id }"
        )

        async def sign_out() -> None:
            server.secrets["token"] = token
            async with server.open_client("token") as client:
                assert (await client(REVOKE_MUTATION))["accessTokenRevoke"] == {
                    "revokedCount": 1,
                    "errors": [],
                }

        async def delete() -> None:
            document = (
                "mutation ($id: ID!) { apiKeyDelete(input: {apiKeys: [{id: $id}]}) { deletedIds } }"
            )
            assert (await dora(document, id=deleted_key["apiKey"]["id"]))["apiKeyDelete"][
                "deletedIds"
            ]

        async def wait() -> None:
            await asyncio.sleep(SHORT_LIFETIME)

        async def change_password() -> None:
            words = ("user", "passwd", "eve", "--password-stdin")
            result = await asyncio.to_thread(server.run_command, *words, stdin="another horse\n")
            assert result.exit_code == 0, result.stderr

        eve_sign_in = SIGN_IN.replace('"dora"', '"eve"')
        eve_token = (await anonymous(eve_sign_in))["authenticate"]["token"]
        names = ("signed out", "deleted", "expired", "password", "stream")
        results = await asyncio.gather(
            _subscribe_until_closed(server, token, sign_out),
            _subscribe_until_closed(server, deleted_key["secret"], delete),
            _subscribe_until_closed(server, short_key["secret"], wait),
            _subscribe_until_closed(server, eve_token, change_password),
            _read_stream_until_end(server, short_key["secret"]),
        )
        results_by_name = dict(zip(names, results, strict=True))
        results_by_name["secrets"] = {
            "signed out": token,
            "deleted": deleted_key["secret"],
            "expired": short_key["secret"],
            "password": eve_token,
        }
        return results_by_name


@pytest.fixture(scope="module")
def credential_results(server: MerganserProcess) -> Iterator["Future[dict[str, Any]]"]:
    """The results of ended credentials. They take as long as the other tests."""
    with ThreadPoolExecutor(1) as thread:
        yield thread.submit(lambda: asyncio.run(end_credentials(server)))


pytestmark = pytest.mark.usefixtures("credential_results")


async def test_four_hundred_idle_connections_delay_no_one(server: MerganserProcess) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(100):
            await stack.enter_async_context(open_connection(server.http_port))
            await stack.enter_async_context(open_connection(server.lmtp_port))
        for _ in range(200):
            await stack.enter_async_context(
                open_connection(server.http_port, REQUEST_HEAD.encode())
            )
        await assert_server_responds(server)


async def test_slow_request_is_ended_and_other_clients_are_served(server: MerganserProcess) -> None:
    """The header, the body and the WebSocket send slowly until their time limit."""
    request_head = f"{REQUEST_HEAD}Content-Length: 900\r\n\r\n"

    async def send_slow_body() -> bytes:
        async with open_connection(server.http_port, request_head.encode()) as (reader, writer):
            slow_writer = asyncio.create_task(_write_slowly(writer))
            async with asyncio.timeout(HANG_SECONDS):
                response: bytes = await reader.read()
            slow_writer.cancel()
            return response

    async def open_silent_socket() -> int:
        async with server.open_websocket() as socket:
            return await socket.wait_for_close_code()

    async with open_connection(server.http_port, b"POST /graphql HTTP/1.1\r\nHost") as (_, writer):
        slow_writer = asyncio.create_task(_write_slowly(writer))
        slow_clients = asyncio.gather(send_slow_body(), open_silent_socket())
        await assert_server_responds(server)
        response, close_code = await slow_clients
        await assert_server_responds(server)
        slow_writer.cancel()
    assert response.startswith(b"HTTP/1.1 408 ")
    assert b'"DEADLINE_EXCEEDED"' in response
    assert close_code == 4408


async def _write_slowly(writer: asyncio.StreamWriter) -> None:
    while not writer.transport.is_closing():
        writer.write(b"a")
        await asyncio.sleep(0.2)


async def test_lmtp_refuses_long_lines_and_session_continues(server: MerganserProcess) -> None:
    lmtp_client = await server.connect_lmtp()
    assert (await lmtp_client.run_command("NOOP " + "x" * 100_000)).startswith(
        "500 5.5.2 Line too long"
    )
    assert (await lmtp_client.run_command("RCPT TO:<ada@example.org>")).startswith("503")
    large_size_reply = await lmtp_client.run_command(f"MAIL FROM:<a@b.example> SIZE={16 * MIB + 1}")
    assert large_size_reply.startswith("552 5.3.4")
    huge_size_reply = await lmtp_client.run_command("MAIL FROM:<a@b.example> SIZE=" + "9" * 20)
    assert huge_size_reply.startswith("552 5.3.4")
    assert (await lmtp_client.run_command("MAIL FROM:<a@b.example> SIZE=-1")).startswith("501")
    for content in (b"Subject: too long\r\n\r\n" + b"x" * (MIB + 9), b"x\r\n" * (6 * MIB)):
        await lmtp_client.start_data("ada@example.org")
        lmtp_client.send_bytes(content + b"\r\n.\r\n")
        assert (await lmtp_client.read_reply()).startswith(("500 5.5.2", "552 5.3.4"))
    await lmtp_client.start_data("ada@example.org")
    lmtp_client.send_bytes(raw_message("good at last") + b".\r\n")
    assert (await lmtp_client.read_reply()).startswith("250 2.0.0 OK: queued")
    await lmtp_client.close()


async def test_aborted_transfers_leave_no_files_or_messages(server: MerganserProcess) -> None:
    count_before = await _message_count(server)
    for disconnect in (SmtpTestClient.abort_connection, SmtpTestClient.close):
        lmtp_client = await server.connect_lmtp()
        await lmtp_client.start_data("ada@example.org")
        lmtp_client.send_bytes(raw_message("never") * 900)
        await asyncio.sleep(0.1)
        if disconnecting := disconnect(lmtp_client):
            await disconnecting
    auth_header = f"Authorization: Bearer {server.secrets['ada']}\r\n"
    upload_head = f"POST /rest/uploads HTTP/1.1\r\nHost: a\r\n{auth_header}"
    upload = f"{upload_head}Content-Length: {8 * MIB}\r\n\r\n".encode() + b"x" * 5 * MIB
    async with open_connection(server.http_port, upload):
        await _wait_for_spool_files(server, expected=True)
    partial_request = f"{REQUEST_HEAD}Content-Length: 900\r\n\r\n".encode() + b'{"query": "{ viewer'
    async with open_connection(server.http_port, partial_request):
        await asyncio.sleep(0.1)
    async with open_connection(
        server.http_port, f"{upload_head}Content-Length: {8 * MIB + 1}\r\n\r\n".encode()
    ) as (
        reader,
        _,
    ):
        async with asyncio.timeout(HANG_SECONDS):
            assert (await reader.read()).startswith(b"HTTP/1.1 413 ")
    await _wait_for_spool_files(server, expected=False)
    assert await _message_count(server) == count_before


async def _message_count(server: MerganserProcess) -> int:
    async with server.open_client("ada") as ada:
        return int(
            (await ada("{ viewer { user { messageCount } } }"))["viewer"]["user"]["messageCount"]
        )


async def _wait_for_spool_files(server: MerganserProcess, *, expected: bool) -> None:
    """Wait until the spool has non-empty files, or has none."""
    spool = server.folder / "var" / "spool"

    def spool_files() -> list[Path]:
        return [path for path in spool.rglob("*") if path.is_file() and path.stat().st_size]

    async with asyncio.timeout(HANG_SECONDS):
        while bool(spool_files()) is not expected:  # noqa: ASYNC110 - another process writes the files
            await asyncio.sleep(0.02)


async def test_sockets_that_do_not_read_or_disappear_delay_no_one(server: MerganserProcess) -> None:
    async with AsyncExitStack() as stack:
        unread_sockets = []
        for _ in range(20):
            socket = await stack.enter_async_context(server.open_websocket(server.secrets["eve"]))
            await socket.subscribe(CHANGES_SUBSCRIPTION)
            unread_sockets.append(socket)
        for socket in unread_sockets[:10]:
            socket.ws.transport.abort()
        await server.deliver_by_lmtp(raw_message("to all"), "eve@example.org")
        await assert_server_responds(server)


async def test_subscription_is_closed_soon_after_credential_ends(
    server: MerganserProcess, credential_results: "Future[dict[str, Any]]"
) -> None:
    results = await asyncio.to_thread(credential_results.result, RECHECK_LIMIT + 15)
    for name, secret in results.pop("secrets").items():
        async with server.open_client() as client:
            auth_header = {"Authorization": f"Bearer {secret}"}
            response = await client.post({"query": "{ __typename }"}, **auth_header)
        assert (response.status_code, name) == (401, name)
        assert response.json()["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"
    stream = "\n".join(results.pop("stream")[-4:])
    assert '"UNAUTHENTICATED"' in stream
    assert "event: complete" in stream
    for name, (frame, close_code, seconds) in results.items():
        assert (name, close_code, frame["type"]) == (name, 4403, "error")
        assert frame["payload"][0]["extensions"]["code"] == "UNAUTHENTICATED"
        assert seconds < RECHECK_LIMIT


async def test_database_is_consistent_and_log_has_no_complaints(server: MerganserProcess) -> None:
    report = await asyncio.to_thread(server.run_command, "check")
    assert (report.exit_code, json.loads(report.stdout)["findings"]) == (0, [])
    assert server.unexpected_log_records() == []
    words = [PASSWORD, "example.org", "b.example", "never", "mgk_", *server.secrets.values()]
    assert [word for word in words if word in server.log] == []
