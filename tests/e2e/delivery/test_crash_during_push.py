"""Pushes of a real server that is killed while it pushes."""

import asyncio
from pathlib import Path

import httpx

from tests.conftest import raw_message
from tests.support.accounts.demo_account import send
from tests.support.operations.push_receivers import SET
from tests.support.servers.merganser_server import Server
from tests.support.servers.webhook_receiver import OK, Got, receiving

KEY = "mgk_" + "b" * 43


async def test_what_a_killed_server_was_pushing_is_pushed_by_the_next(tmp_path: Path) -> None:
    server = Server(tmp_path, more={"PUSH_PRIVATE": "on", "BOOTSTRAP_KEY": KEY})
    server.make("ada")
    hang = True

    async def answer(_got: Got, writer: asyncio.StreamWriter) -> None:
        if hang:
            await asyncio.sleep(5)
        else:
            writer.write(OK)

    async with receiving() as receiver, httpx.AsyncClient(timeout=30) as http:
        receiver.answer = answer
        server.start()
        try:
            given = {
                "users": {"usernames": ["ada"]},
                "kind": "HTTP",
                "endpoint": f"http://127.0.0.1:{receiver.port}/topic",
            }
            made = await http.post(
                f"{server.url}/graphql",
                json={"query": SET, "variables": {"input": given}},
                headers={"Authorization": f"Bearer {KEY}"},
            )
            assert made.json()["data"]["pushChannelSet"]["errors"] == []
            await asyncio.to_thread(send, server, "ada@example.org", raw_message("Once"))
            async with asyncio.timeout(10):
                await receiver.wait(1)
            server.kill()
            hang = False
            await asyncio.to_thread(server.start)
            async with asyncio.timeout(90):
                await receiver.wait(2)
        finally:
            server.stop()
    assert [got.raw for got in receiver.got] == [b"Once", b"Once"]
