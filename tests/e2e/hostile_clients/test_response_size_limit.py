"""The bytes of an answer are bounded while it is made."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.servers.merganser_server import Server
from tests.support.stores.store_fixtures import create_database

MIB = 1 << 20
LINE = b"A line of a text that is long, and says nothing new.\r\n"
TEXT = 26 * MIB
HEAD = b"From: carol@example.com\r\nTo: ada@example.org\r\nSubject: %s\r\n\r\n"
ALIASES = " ".join(f"a{nth}: text" for nth in range(10))
MANY = f"{{ messages(first: 4) {{ nodes {{ {ALIASES} }} }} }}"
BODIES = " ".join(
    f'b{nth}: bodyPart(section: "TEXT", offset: {nth}, maxBytes: 8000000)' for nth in range(40)
)
PARTS = f"{{ messages(first: 4) {{ nodes {{ {BODIES} }} }} }}"
CHANGES = f"""subscription {{ changes {{ events {{
    ... on MessageChange {{ message {{ {ALIASES} }} }} }} }} }}"""
SMALL = "{ messages(first: 4) { nodes { subject size } } }"
GROWTH = 400 * MIB


@pytest.fixture(params=["on", "off", "postgres"])
def large(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Server]:
    """A server that takes large messages, with one of both executors, or with PostgreSQL."""
    settings = {"MESSAGE_MAX": "35 MiB"}
    if request.param == "postgres":
        url = create_database(request.getfixturevalue("postgres"), "large")
        server = Server(tmp_path, url, more=settings)
    else:
        server = Server(tmp_path, more={**settings, "COMPILED_EXECUTOR": request.param})
    server.make("ada")
    server.start()
    yield server
    server.stop()


def resident(pid: int, name: str) -> int:
    """The resident bytes of a process: `VmRSS` now, `VmHWM` at most."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def count_peak_from_here(pid: int) -> None:
    Path(f"/proc/{pid}/clear_refs").write_text("5")


async def test_many_aliases_of_a_large_text_end_with_a_typed_error(large: Server) -> None:
    text = LINE * (TEXT // len(LINE))
    for nth in range(4):
        answer = await large.deliver(HEAD % f"{nth}".encode() + text, "ada@example.org")
        assert answer.startswith("250"), answer
    before = resident(large.pid, "VmRSS")
    count_peak_from_here(large.pid)
    async with large.client("ada") as ada, large.client("ada") as other:
        ada.http.timeout = other.http.timeout = 60
        for document in (MANY, MANY, PARTS, PARTS):  # compiled the second time
            asked = asyncio.create_task(ada.post({"query": document}))
            rounds, begun = 0, time.monotonic()
            while not asked.done():
                found = await other(SMALL)
                assert len(found["messages"]["nodes"]) == 4
                rounds += 1
            response = await asked
            said = response.json()
            assert said["data"] is None
            (error,) = said["errors"]
            limit = 32 * MIB
            assert error["extensions"] == {"code": "RESPONSE_TOO_LARGE", "limit": limit}
            assert error["path"][:2] == ["messages", "nodes"]
            assert len(response.content) < 2000
            assert rounds > 1, f"nobody else was answered in {time.monotonic() - begun} s"
        await read_an_event(large)
        whole = await ada("{ messages(first: 1) { nodes { text } } }")
        assert len(whole["messages"]["nodes"][0]["text"]) > TEXT - MIB
    grown = resident(large.pid, "VmHWM") - before
    assert grown < GROWTH, f"{grown // MIB} MiB"
    assert not large.complaints()


async def read_an_event(server: Server) -> None:
    """Follow changes whose answers are too large: the event has an error, the stream goes on."""
    async with server.socket(server.secrets["ada"]) as socket:
        await socket.subscribe(CHANGES)
        text = LINE * (TEXT // len(LINE))
        for subject in (b"x", b"y"):
            said = asyncio.create_task(server.deliver(HEAD % subject + text, "ada@example.org"))
            while (frame := await socket.hear(60))["payload"].get("errors") is None:
                assert frame["type"] == "next"
            (error,) = frame["payload"]["errors"]
            assert error["extensions"] == {"code": "RESPONSE_TOO_LARGE", "limit": 32 * MIB}
            assert len(str(frame)) < 2000
            assert (await said).startswith("250")


async def test_bytes_read_are_paid_from_the_budget(tmp_path: Path) -> None:
    """Small answers made of large messages empty the budget too."""
    server = Server(tmp_path, more={"MESSAGE_MAX": "35 MiB", "BUDGET_USERS": "1"})
    server.make("ada")
    server.start()
    try:
        await read_until_refused(server)
    finally:
        server.stop()


async def read_until_refused(server: Server) -> None:
    text = LINE * (TEXT // len(LINE))
    answer = await server.deliver(HEAD % b"0" + text, "ada@example.org")
    assert answer.startswith("250"), answer
    async with server.client("ada") as ada:
        ada.http.timeout = 60
        document = (
            '{ messages(first: 1) { nodes { bodyPart(section: "TEXT", maxBytes: 9999999) } } }'
        )
        codes: list[str] = []
        while "RATE_LIMITED" not in codes and len(codes) < 20:
            said = await ada.raw(document)
            codes += [error["extensions"]["code"] for error in said.get("errors", ())]
            codes += [] if codes else ["read"]
        assert "RATE_LIMITED" in codes
        assert codes[0] == "read"
