"""Tests of webhooks of a server that is killed while it sends one."""

import asyncio
from pathlib import Path

import httpx

from tests.conftest import raw_message
from tests.support.accounts.demo_account import send_by_lmtp
from tests.support.servers.merganser_server import Server
from tests.support.servers.webhook_receiver import CREATE, Got, receiving

API_KEY = "mgk_" + "b" * 43


async def test_webhook_of_killed_server_is_sent_again_after_restart(tmp_path: Path) -> None:
    server = Server(tmp_path, more={"WEBHOOKS_PRIVATE": "on", "BOOTSTRAP_KEY": API_KEY})
    server.make("ada")
    is_hanging = True

    async def respond(_request: Got, writer: asyncio.StreamWriter) -> None:
        if not is_hanging:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            return
        await asyncio.sleep(5)

    async with receiving() as receiver, httpx.AsyncClient(timeout=30) as http:
        receiver.answer = respond
        server.start()
        try:
            webhook_input = {"url": receiver.url, "types": ["message.received"]}
            response = await http.post(
                f"{server.url}/graphql",
                json={"query": CREATE, "variables": {"input": webhook_input}},
                headers={"Authorization": f"Bearer {API_KEY}"},
            )
            secret = response.json()["data"]["webhookCreate"]["secret"]
            for number in range(3):
                await asyncio.to_thread(
                    send_by_lmtp, server, "ada@example.org", raw_message(f"No. {number}")
                )
            async with asyncio.timeout(10):
                await receiver.wait(1)
            server.kill()
            is_hanging = False
            await asyncio.to_thread(server.start)
            async with asyncio.timeout(50):
                await receiver.wait(4)
        finally:
            server.stop()
    uids = [request.body["objects"][0]["uid"] for request in receiver.got]
    assert uids == [1, 1, 2, 3]
    assert receiver.got[0].body == receiver.got[1].body
    assert all(request.signed_with(secret) for request in receiver.got)
