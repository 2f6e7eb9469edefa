"""What `make run` starts: the server with its demo account, as a stranger meets it."""

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest

from bench.servers.ports import free_port
from tests.support.servers.forked_process import ForkedProcess, Streams

ROOT = Path(__file__).parents[3]
COUNT = 40


@dataclass
class House:
    """A data folder, and places to listen."""

    folder: Path
    more: dict[str, str] = field(default_factory=dict)
    http: int = field(default_factory=free_port)
    lmtp: int = field(default_factory=free_port)
    begun: list["Command"] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "MERGANSER_DATA": str(self.folder),
            "MERGANSER_HTTP": f"127.0.0.1:{self.http}",
            "MERGANSER_LMTP": f"127.0.0.1:{self.lmtp}",
            **self.more,
        }

    async def begin(self, *words: str) -> "Command":
        """Start a command."""
        self.folder.parent.mkdir(exist_ok=True)
        nth = len(self.begun)
        out, err = (self.folder.parent / f"{name}-{nth}" for name in ("out", "err"))
        for file in (out, err):
            file.touch()
        process = await asyncio.to_thread(ForkedProcess, words, self.env, Streams(out, err))
        self.begun.append(Command(process, out, err))
        return self.begun[-1]

    async def told(self, *words: str) -> tuple[int, str, str]:
        """Code, stdout and stderr of a command."""
        command = await self.begin(*words)
        code = await command.wait(120)
        return code, command.out.read_text(), command.err.read_text()

    async def asked(self, key: str, document: str) -> Any:
        async with httpx.AsyncClient(timeout=30) as client:
            headers = {"Authorization": f"Bearer {key}"}
            url = f"http://127.0.0.1:{self.http}/graphql"
            answer = await client.post(url, json={"query": document}, headers=headers)
            return answer.json()


@dataclass
class Command:
    """A command, and the files that it writes."""

    process: ForkedProcess
    out: Path
    err: Path

    async def wait(self, seconds: float) -> int:
        """Wait for its end; its exit code."""
        return await asyncio.to_thread(self.process.wait, seconds)


@dataclass
class Running:
    """A server with a demo account, and what it has said."""

    command: Command
    banner: str

    def line(self, words: str) -> str:
        return next(line.strip() for line in self.banner.splitlines() if words in line)

    @property
    def key(self) -> str:
        return self.line("API key").split()[-1]

    async def end(self, how: signal.Signals = signal.SIGTERM) -> None:
        self.command.process.send_signal(how)
        code, log = await self.command.wait(60), self.command.err.read_text()
        assert code == 0, log
        assert "Traceback" not in log


@pytest.fixture
async def house(tmp_path: Path) -> AsyncIterator[House]:
    house = House(tmp_path / "var")
    yield house
    for command in house.begun:  # of a test that has failed
        command.process.kill()
        await command.wait(60)


async def running(house: House) -> Running:
    command = await house.begin("serve", "--demo", "--demo-count", str(COUNT))
    async with asyncio.timeout(120):
        while "send-test" not in (banner := command.out.read_text()) or banner[-1] != "\n":
            assert command.process.poll() is None, command.err.read_text()
            await asyncio.sleep(0.02)
    return Running(command, banner)


async def shell(line: str, env: dict[str, str]) -> str:
    process = await asyncio.create_subprocess_shell(
        line, env=env, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), 120)
    assert process.returncode == 0
    return out.decode()


async def totals(house: House, key: str) -> dict[str, int]:
    answer = await house.asked(key, "{ viewer { user { mailboxes { path total } } } }")
    return {box["path"]: box["total"] for box in answer["data"]["viewer"]["user"]["mailboxes"]}


async def test_a_stranger_starts_it_reads_writes_and_starts_it_again(house: House) -> None:
    first = await running(house)
    answer = json.loads(await shell(first.line("curl"), dict(os.environ)))
    nodes = answer["data"]["viewer"]["user"]["mailbox"]["messages"]["nodes"]
    assert len([node["subject"] for node in nodes]) == 3

    before = await totals(house, first.key)
    assert sum(before.values()) == COUNT
    said = await shell(first.line("send-test"), dict(os.environ))
    assert "250 2.0.0 Delivered" in said
    page = await asyncio.to_thread(
        httpx.get,
        re.findall(r"http://\S+", first.line("GraphiQL"))[0],
        headers={"Accept": "text/html"},
    )
    assert "GraphiQL" in page.text
    assert (await totals(house, first.key))["INBOX"] == before["INBOX"] + 1
    await first.end(signal.SIGINT)

    second = await running(house)
    assert second.banner == first.banner
    assert (await totals(house, second.key))["INBOX"] == before["INBOX"] + 1
    await second.end(signal.SIGTERM)


async def test_a_second_server_on_the_store_and_a_taken_port_are_told_in_one_sentence(
    house: House, tmp_path: Path
) -> None:
    server = await running(house)
    code, _, err = await house.told("serve")
    assert (code, err.count("\n")) == (1, 1)
    assert f"another merganser uses this store (pid {server.command.process.pid})" in err

    elsewhere = House(tmp_path / "other", http=house.http, begun=house.begun)
    code, _, err = await elsewhere.told("serve")
    assert (code, err.splitlines()[-1].partition(": address")[0]) == (
        1,
        f"merganser: cannot listen on 127.0.0.1:{house.http}",
    )
    assert "MERGANSER_HTTP" in err
    elsewhere = House(tmp_path / "other", lmtp=house.lmtp, begun=house.begun)
    code, _, err = await elsewhere.told("serve")
    assert code == 1
    assert "set MERGANSER_LMTP to another place" in err.splitlines()[-1]
    assert "Traceback" not in err

    code, _, err = await house.told("check", "--repair")
    assert code == 1
    assert "stop it, then repair" in err
    await server.end()


async def test_what_the_command_line_does_beside_a_server_is_heard(
    house: House, tmp_path: Path
) -> None:
    import websockets

    server = await running(house)
    (tmp_path / "a.eml").write_bytes(b"Subject: from the side\r\n\r\nHello\r\n")
    url = f"ws://127.0.0.1:{house.http}/graphql"
    protocol = websockets.Subprotocol("graphql-transport-ws")
    async with websockets.connect(url, subprotocols=[protocol]) as ws:
        signed = {"Authorization": f"Bearer {server.key}"}
        await ws.send(json.dumps({"type": "connection_init", "payload": signed}))
        assert json.loads(await ws.recv())["type"] == "connection_ack"
        query = "subscription { changes { events { kind } } }"
        await ws.send(json.dumps({"id": "1", "type": "subscribe", "payload": {"query": query}}))
        await asyncio.sleep(0.5)  # until it waits for the bell
        code, out, err = await house.told("import", str(tmp_path / "a.eml"), "--user", "demo")
        assert (code, out) == (0, "1 messages imported.\n"), err
        assert "MESSAGE_ADDED" in await heard(ws)
        code, _, err = await house.told("send-test")
        assert code == 0, err
        assert "MESSAGE_ADDED" in await heard(ws)
        await server.end()  # whoever listens does not hold it up


async def heard(ws: Any) -> list[str]:
    """The kinds of all that comes until a message does, or for a while."""
    kinds: list[str] = []
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(30):
            while "MESSAGE_ADDED" not in kinds:
                payload = json.loads(await ws.recv())["payload"]
                kinds += [event["kind"] for event in payload["data"]["changes"]["events"]]
    return kinds


async def test_nobody_else_is_served_until_there_is_a_credential(house: House) -> None:
    house.more["MERGANSER_HTTP"] = f"0.0.0.0:{house.http}"
    code, _, err = await house.told("serve")
    assert code == 1
    assert err.splitlines()[-1].startswith("merganser: MERGANSER_HTTP is open to other machines")
    assert "merganser token create --name root --role ROOT" in err
    code, _, err = await house.told("token", "create", "--name", "root", "--role", "ROOT")
    assert code == 0, err
    command = await house.begin("serve")
    async with asyncio.timeout(120), httpx.AsyncClient(timeout=30) as client:
        while True:
            try:
                answer = await client.get(f"http://127.0.0.1:{house.http}/health")
            except httpx.ConnectError:
                await asyncio.sleep(0.05)
            else:
                break
    assert answer.status_code == 200
    await Running(command, "").end(signal.SIGINT)


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_told_to_end_while_it_starts_it_ends_quietly(
    house: House, how: signal.Signals
) -> None:
    command = await house.begin("serve", "--demo", "--demo-count", "400")
    async with asyncio.timeout(90):
        while not (house.folder / "demo.json").exists():  # noqa: ASYNC110 - another process's
            await asyncio.sleep(0.02)
    await Running(command, "").end(how)
    server = await running(house)
    assert sum((await totals(house, server.key)).values()) in (COUNT, 400)
    await server.end()
