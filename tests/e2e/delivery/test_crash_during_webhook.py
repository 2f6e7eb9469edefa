"""Webhooks of a real server that is killed while it posts."""

import asyncio
from pathlib import Path

import httpx

from tests.conftest import raw_message
from tests.support.accounts.demo_account import send
from tests.support.servers.merganser_server import Server
from tests.support.servers.webhook_receiver import CREATE, Got, receiving

KEY = "mgk_" + "b" * 43


async def test_what_a_killed_server_was_posting_is_posted_by_the_next(tmp_path: Path) -> None:
    server = Server(tmp_path, more={"WEBHOOKS_PRIVATE": "on", "BOOTSTRAP_KEY": KEY})
    server.make("ada")
    hang = True

    async def answer(_got: Got, writer: asyncio.StreamWriter) -> None:
        if not hang:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            return
        await asyncio.sleep(5)

    async with receiving() as receiver, httpx.AsyncClient(timeout=30) as http:
        receiver.answer = answer
        server.start()
        try:
            given = {"url": receiver.url, "types": ["message.received"]}
            made = await http.post(
                f"{server.url}/graphql",
                json={"query": CREATE, "variables": {"input": given}},
                headers={"Authorization": f"Bearer {KEY}"},
            )
            secret = made.json()["data"]["webhookCreate"]["secret"]
            for n in range(3):
                await asyncio.to_thread(send, server, "ada@example.org", raw_message(f"No. {n}"))
            async with asyncio.timeout(10):
                await receiver.wait(1)
            server.kill()
            hang = False
            await asyncio.to_thread(server.start)
            async with asyncio.timeout(50):
                await receiver.wait(4)
        finally:
            server.stop()
    uids = [got.body["objects"][0]["uid"] for got in receiver.got]
    assert uids == [1, 1, 2, 3]
    assert receiver.got[0].body == receiver.got[1].body
    assert all(got.signed_with(secret) for got in receiver.got)
