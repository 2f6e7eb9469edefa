"""Tests of `make run`, which starts the server with its demo account."""

import asyncio
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
from tests.support.clients.change_socket import subscribe_to_later_changes
from tests.support.clients.plain_http import plain_client
from tests.support.servers.forked_process import ForkedProcess, ProcessStreams
from tests.support.time_limits import HANG_SECONDS

ROOT = Path(__file__).parents[3]
DEMO_MESSAGE_COUNT = 40
DEMO_ACCOUNTS = {  # by title in the banner
    "User": "demo",
    "Administrator": "demo-admin",
    "Second user": "demo-second",
}


@dataclass
class DemoInstallation:
    """A data folder and free ports for the listeners."""

    folder: Path
    extra_environment: dict[str, str] = field(default_factory=dict)
    http: int = field(default_factory=free_port)
    lmtp: int = field(default_factory=free_port)
    commands: list["RunningCommand"] = field(default_factory=list)

    @property
    def env(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "MERGANSER_DATA": str(self.folder),
            "MERGANSER_HTTP_LISTEN": f"127.0.0.1:{self.http}",
            "MERGANSER_LMTP_LISTEN": f"127.0.0.1:{self.lmtp}",
            **self.extra_environment,
        }

    async def start_command(self, *arguments: str) -> "RunningCommand":
        """Start a command."""
        self.folder.parent.mkdir(exist_ok=True)
        number = len(self.commands)
        out, err = (self.folder.parent / f"{name}-{number}" for name in ("out", "err"))
        for file in (out, err):
            file.touch()
        process = await asyncio.to_thread(
            ForkedProcess, arguments, self.env, ProcessStreams(out, err)
        )
        self.commands.append(RunningCommand(process, out, err))
        return self.commands[-1]

    async def run_command(self, *arguments: str) -> tuple[int, str, str]:
        """Run a command and return its exit code, stdout and stderr."""
        command = await self.start_command(*arguments)
        code = await command.wait(120)
        return code, command.out.read_text(), command.err.read_text()

    async def query(self, api_key: str, document: str) -> Any:
        async with plain_client(timeout=HANG_SECONDS) as client:
            headers = {"Authorization": f"Bearer {api_key}"}
            url = f"http://127.0.0.1:{self.http}/graphql"
            response = await client.post(url, json={"query": document}, headers=headers)
            return response.json()


@dataclass
class RunningCommand:
    """A command and its output files."""

    process: ForkedProcess
    out: Path
    err: Path

    async def wait(self, seconds: float) -> int:
        """Wait for the end of the process and return its exit code."""
        return await asyncio.to_thread(self.process.wait, seconds)


@dataclass
class DemoServer:
    """A server with a demo account and its start banner."""

    command: RunningCommand
    banner: str

    def banner_line(self, text: str) -> str:
        return next(line.strip() for line in self.banner.splitlines() if text in line)

    @property
    def api_key(self) -> str:
        return self.banner_line("API key").split()[-1]

    async def stop(self, signal_number: signal.Signals = signal.SIGTERM) -> None:
        self.command.process.send_signal(signal_number)
        code, log = await self.command.wait(60), self.command.err.read_text()
        assert code == 0, log
        assert "Traceback" not in log


@pytest.fixture
async def installation(tmp_path: Path) -> AsyncIterator[DemoInstallation]:
    installation = DemoInstallation(tmp_path / "var")
    yield installation
    for command in installation.commands:  # commands of a failed test
        command.process.kill()
        await command.wait(60)


async def start_demo_server(installation: DemoInstallation) -> DemoServer:
    command = await installation.start_command(
        "serve", "--demo", "--demo-count", str(DEMO_MESSAGE_COUNT)
    )
    async with asyncio.timeout(HANG_SECONDS):
        while "send-test" not in (banner := command.out.read_text()) or banner[-1] != "\n":
            assert command.process.poll() is None, command.err.read_text()
            await asyncio.sleep(0.02)
    return DemoServer(command, banner)


async def run_shell_line(line: str, env: dict[str, str]) -> str:
    process = await asyncio.create_subprocess_shell(
        line, env=env, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await asyncio.wait_for(process.communicate(), HANG_SECONDS)
    assert process.returncode == 0
    return out.decode()


async def message_counts(installation: DemoInstallation, api_key: str) -> dict[str, int]:
    result = await installation.query(
        api_key, "{ viewer { user { mailboxes { nodes { path messageCount } } } } }"
    )
    return {
        mailbox["path"]: mailbox["messageCount"]
        for mailbox in result["data"]["viewer"]["user"]["mailboxes"]["nodes"]
    }


async def test_demo_server_is_used_and_restarted_with_same_data(
    installation: DemoInstallation,
) -> None:
    first_server = await start_demo_server(installation)
    result = json.loads(await run_shell_line(first_server.banner_line("curl"), dict(os.environ)))
    nodes = result["data"]["viewer"]["user"]["mailbox"]["messages"]["nodes"]
    assert len([node["subject"] for node in nodes]) == 3
    for title, username in DEMO_ACCOUNTS.items():
        pattern = rf"^ *{title} +{username}\n.*\n *API key +(\S+)$"
        (api_key,) = re.findall(pattern, first_server.banner, re.MULTILINE)
        result = await installation.query(api_key, "{ viewer { user { username } } }")
        assert result["data"]["viewer"]["user"]["username"] == username

    counts_before = await message_counts(installation, first_server.api_key)
    assert sum(counts_before.values()) == DEMO_MESSAGE_COUNT
    output = await run_shell_line(first_server.banner_line("send-test"), dict(os.environ))
    assert "250 2.0.0 OK: queued" in output
    page = await asyncio.to_thread(
        httpx.get,
        re.findall(r"http://\S+", first_server.banner_line("GraphiQL"))[0],
        headers={"Accept": "text/html"},
    )
    assert "GraphiQL" in page.text
    assert (await message_counts(installation, first_server.api_key))["INBOX"] == counts_before[
        "INBOX"
    ] + 1
    await first_server.stop(signal.SIGINT)

    second_server = await start_demo_server(installation)
    assert second_server.banner == first_server.banner
    assert (await message_counts(installation, second_server.api_key))["INBOX"] == counts_before[
        "INBOX"
    ] + 1
    await second_server.stop(signal.SIGTERM)


async def test_second_server_and_occupied_port_are_reported_in_one_line(
    installation: DemoInstallation, tmp_path: Path
) -> None:
    server = await start_demo_server(installation)
    code, _, err = await installation.run_command("serve")
    assert (code, err.count("\n")) == (1, 1)
    assert f"Another merganser process uses this database (pid {server.command.process.pid})" in err

    other_installation = DemoInstallation(
        tmp_path / "other", http=installation.http, commands=installation.commands
    )
    code, _, err = await other_installation.run_command("serve")
    assert (code, err.splitlines()[-1].partition(": address")[0]) == (
        1,
        f"merganser: Cannot listen on 127.0.0.1:{installation.http}",
    )
    assert "MERGANSER_HTTP_LISTEN" in err
    other_installation = DemoInstallation(
        tmp_path / "other", lmtp=installation.lmtp, commands=installation.commands
    )
    code, _, err = await other_installation.run_command("serve")
    assert code == 1
    assert "Set MERGANSER_LMTP_LISTEN to another address." in err.splitlines()[-1]
    assert "Traceback" not in err

    code, _, err = await installation.run_command("check", "--repair")
    assert code == 1
    assert "stop it, then repair" in err
    await server.stop()


async def test_changes_by_command_line_reach_subscribers_of_server(
    installation: DemoInstallation, tmp_path: Path
) -> None:
    import websockets

    server = await start_demo_server(installation)
    (tmp_path / "a.eml").write_bytes(b"Subject: from the side\r\n\r\nHello\r\n")
    url = f"ws://127.0.0.1:{installation.http}/graphql"
    protocol = websockets.Subprotocol("graphql-transport-ws")
    async with websockets.connect(url, subprotocols=[protocol]) as ws:
        auth_payload = {"Authorization": f"Bearer {server.api_key}"}
        await ws.send(json.dumps({"type": "connection_init", "payload": auth_payload}))
        assert json.loads(await ws.recv())["type"] == "connection_ack"
        await subscribe_to_later_changes(ws)
        code, out, err = await installation.run_command(
            "import", str(tmp_path / "a.eml"), "--user", "demo"
        )
        assert (code, out) == (0, "1 messages imported.\n"), err
        assert "MESSAGE_ADDED" in await read_event_types(ws)
        code, _, err = await installation.run_command("send-test")
        assert code == 0, err
        assert "MESSAGE_RECEIVED" in await read_event_types(ws)
        await server.stop()  # a subscriber does not delay the stop


async def read_event_types(ws: Any) -> list[str]:
    """Return the types of events until a message is added."""
    kinds: list[str] = []
    async with asyncio.timeout(HANG_SECONDS):
        while not {"MESSAGE_ADDED", "MESSAGE_RECEIVED"}.intersection(kinds):
            payload = json.loads(await ws.recv())["payload"]
            kinds += [event["type"] for event in payload["data"]["changes"]["events"]]
    return kinds


async def test_public_listener_needs_a_credential(installation: DemoInstallation) -> None:
    installation.extra_environment["MERGANSER_HTTP_LISTEN"] = f"0.0.0.0:{installation.http}"
    code, _, err = await installation.run_command("serve")
    assert code == 1
    assert err.splitlines()[-1].startswith(
        "merganser: MERGANSER_HTTP_LISTEN is reachable from other machines"
    )
    assert "merganser api-key create --name root --role ROOT" in err
    code, _, err = await installation.run_command(
        "api-key", "create", "--name", "root", "--role", "ROOT"
    )
    assert code == 0, err
    command = await installation.start_command("serve")
    async with asyncio.timeout(HANG_SECONDS), plain_client(timeout=HANG_SECONDS) as client:
        while True:
            try:
                response = await client.get(f"http://127.0.0.1:{installation.http}/health")
            except httpx.ConnectError:
                await asyncio.sleep(0.05)
            else:
                break
    assert response.status_code == 200
    await DemoServer(command, "").stop(signal.SIGINT)


@pytest.mark.parametrize("signal_number", [signal.SIGINT, signal.SIGTERM])
async def test_signal_during_start_stops_server_without_error(
    installation: DemoInstallation, signal_number: signal.Signals
) -> None:
    command = await installation.start_command("serve", "--demo", "--demo-count", "400")
    async with asyncio.timeout(HANG_SECONDS):
        while not (installation.folder / "demo.json").exists():  # noqa: ASYNC110 - another process writes the file
            await asyncio.sleep(0.02)
    await DemoServer(command, "").stop(signal_number)
    server = await start_demo_server(installation)
    assert sum((await message_counts(installation, server.api_key)).values()) in (
        DEMO_MESSAGE_COUNT,
        400,
    )
    await server.stop()
