"""Tests of the limit of the response size, which applies while the response is built."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers.merganser_server import MerganserProcess
from tests.support.stores.store_fixtures import create_migrated_database

MIB = 1 << 20
LINE = b"A line of a text that is long, and says nothing new.\r\n"
TEXT_BYTES = 26 * MIB
HEADER = b"From: carol@example.com\r\nTo: ada@example.org\r\nSubject: %s\r\n\r\n"
ALIASES = " ".join(f"a{nth}: text" for nth in range(10))
ALIASES_QUERY = f"{{ messages(first: 4) {{ nodes {{ {ALIASES} }} }} }}"
BODY_PART_FIELDS = " ".join(
    f'b{nth}: bodyPart(section: "TEXT", offset: {nth}, maxBytes: 8000000)' for nth in range(40)
)
BODY_PARTS_QUERY = f"{{ messages(first: 4) {{ nodes {{ {BODY_PART_FIELDS} }} }} }}"
CHANGES_SUBSCRIPTION = f"""subscription {{ changes {{ events {{
    ... on MessageChange {{ message {{ {ALIASES} }} }} }} }} }}"""
SMALL_QUERY = "{ messages(first: 4) { nodes { subject size } } }"
MAX_GROWTH = 400 * MIB


@pytest.fixture(params=["on", "off", "postgres"])
def large_message_server(
    request: pytest.FixtureRequest, tmp_path: Path
) -> Iterator[MerganserProcess]:
    """A server for large messages, with each executor on SQLite, and with PostgreSQL."""
    settings = {"MESSAGE_MAX_SIZE": "35 MiB"}
    if request.param == "postgres":
        url = create_migrated_database(request.getfixturevalue("postgres"), "large")
        server = MerganserProcess(tmp_path, url, extra_settings=settings)
    else:
        server = MerganserProcess(
            tmp_path, extra_settings={**settings, "COMPILED_EXECUTOR": request.param}
        )
    server.create_users("ada")
    server.start()
    yield server
    server.stop()


def memory_bytes(pid: int, name: str) -> int:
    """Return the resident bytes of a process: `VmRSS` is the current value, `VmHWM` the peak."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def reset_peak(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


async def test_large_response_is_refused_and_other_requests_are_served(
    large_message_server: MerganserProcess,
) -> None:
    text = LINE * (TEXT_BYTES // len(LINE))
    for number in range(4):
        reply = await large_message_server.deliver_by_lmtp(
            HEADER % f"{number}".encode() + text, "ada@example.org"
        )
        assert reply.startswith("250"), reply
    memory_before = memory_bytes(large_message_server.pid, "VmRSS")
    reset_peak(large_message_server.pid)
    async with (
        large_message_server.open_client("ada") as ada,
        large_message_server.open_client("ada") as other_client,
    ):
        ada.http.timeout = other_client.http.timeout = 60
        for document in (
            ALIASES_QUERY,
            ALIASES_QUERY,
            BODY_PARTS_QUERY,
            BODY_PARTS_QUERY,
        ):  # the second request uses compiled execution
            request = asyncio.create_task(ada.post({"query": document}))
            other_count, started_at = 0, time.monotonic()
            while not request.done():
                other_result = await other_client(SMALL_QUERY)
                assert len(other_result["messages"]["nodes"]) == 4
                other_count += 1
            response = await request
            body = response.json()
            assert body["data"] is None
            (error,) = body["errors"]
            limit = 32 * MIB
            assert error["extensions"] == {"code": "RESPONSE_TOO_LARGE", "limit": limit}
            assert error["path"][:2] == ["messages", "nodes"]
            assert len(response.content) < 2000
            assert other_count > 1, f"nobody else was answered in {time.monotonic() - started_at} s"
        await assert_large_event_has_error(large_message_server)
        result = await ada("{ messages(first: 1) { nodes { text } } }")
        assert len(result["messages"]["nodes"][0]["text"]) > TEXT_BYTES - MIB
    growth = memory_bytes(large_message_server.pid, "VmHWM") - memory_before
    assert growth < MAX_GROWTH, f"{growth // MIB} MiB"
    assert not large_message_server.unexpected_log_records()


async def assert_large_event_has_error(server: MerganserProcess) -> None:
    """Subscribe to changes with large results: the event has an error and the stream continues."""
    async with server.open_websocket(server.secrets["ada"]) as socket:
        await socket.subscribe(CHANGES_SUBSCRIPTION)
        text = LINE * (TEXT_BYTES // len(LINE))
        for subject in (b"x", b"y"):
            delivery = asyncio.create_task(
                server.deliver_by_lmtp(HEADER % subject + text, "ada@example.org")
            )
            while (frame := await socket.read_frame(60))["payload"].get("errors") is None:
                assert frame["type"] == "next"
            (error,) = frame["payload"]["errors"]
            assert error["extensions"] == {"code": "RESPONSE_TOO_LARGE", "limit": 32 * MIB}
            assert len(str(frame)) < 2000
            assert (await delivery).startswith("250")


async def test_stored_bytes_read_are_charged_to_rate_budget(tmp_path: Path) -> None:
    """Small responses that need large messages use up the rate budget too."""
    server = MerganserProcess(
        tmp_path, extra_settings={"MESSAGE_MAX_SIZE": "35 MiB", "COST_BUDGET_USER": "1"}
    )
    server.create_users("ada")
    server.start()
    try:
        await read_until_refused(server)
    finally:
        server.stop()


async def read_until_refused(server: MerganserProcess) -> None:
    text = LINE * (TEXT_BYTES // len(LINE))
    reply = await server.deliver_by_lmtp(HEADER % b"0" + text, "ada@example.org")
    assert reply.startswith("250"), reply
    async with server.open_client("ada") as ada:
        ada.http.timeout = 60
        document = (
            '{ messages(first: 1) { nodes { bodyPart(section: "TEXT", maxBytes: 9999999) } } }'
        )
        codes: list[str] = []
        while "RATE_LIMITED" not in codes and len(codes) < 20:
            result = await ada.raw(document)
            codes += [error["extensions"]["code"] for error in result.get("errors", ())]
            codes += [] if codes else ["read"]
        assert "RATE_LIMITED" in codes
        assert codes[0] == "read"
