"""Tests of webhooks of a server that is killed while it sends one."""

import asyncio
from pathlib import Path

import httpx

from tests.conftest import raw_message
from tests.support.accounts.demo_account import send_by_lmtp
from tests.support.servers.merganser_server import MerganserProcess
from tests.support.servers.webhook_receiver import (
    WEBHOOK_CREATE,
    ReceivedRequest,
    run_webhook_receiver,
)
from tests.support.time_limits import HANG_SECONDS

API_KEY = "mgk_" + "b" * 43


async def test_webhook_of_killed_server_is_sent_again_after_restart(tmp_path: Path) -> None:
    server = MerganserProcess(
        tmp_path, extra_settings={"WEBHOOKS_ALLOW_PRIVATE_NETWORKS": "on", "BOOTSTRAP_KEY": API_KEY}
    )
    server.create_users("ada")
    is_hanging = True

    async def respond(_request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        if not is_hanging:
            writer.write(b"HTTP/1.1 200 OK\r\n\r\n")
            return
        await asyncio.sleep(5)

    async with run_webhook_receiver() as receiver, httpx.AsyncClient(timeout=HANG_SECONDS) as http:
        receiver.response = respond
        server.start()
        try:
            webhook_input = {"url": receiver.url, "types": ["MESSAGE_RECEIVED"]}
            response = await http.post(
                f"{server.url}/graphql",
                json={"query": WEBHOOK_CREATE, "variables": {"input": webhook_input}},
                headers={"Authorization": f"Bearer {API_KEY}"},
            )
            secret = response.json()["data"]["webhookCreate"]["secret"]
            for number in range(3):
                await asyncio.to_thread(
                    send_by_lmtp, server, "ada@example.org", raw_message(f"No. {number}")
                )
            async with asyncio.timeout(HANG_SECONDS):
                await receiver.wait_for_requests(1)
            server.kill()
            is_hanging = False
            await asyncio.to_thread(server.start)
            async with asyncio.timeout(HANG_SECONDS):
                await receiver.wait_for_requests(4)
        finally:
            server.stop()
    uids = [request.body["objects"][0]["uid"] for request in receiver.requests]
    assert uids == [1, 1, 2, 3]
    assert receiver.requests[0].body == receiver.requests[1].body
    assert all(request.is_signed_with(secret) for request in receiver.requests)
