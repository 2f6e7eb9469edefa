"""Tests of push notifications of a server that is killed while it sends one."""

import asyncio
from pathlib import Path

import httpx

from tests.conftest import raw_message
from tests.support.accounts.demo_account import send_by_lmtp
from tests.support.operations.push_receivers import PUSH_CHANNEL_SET
from tests.support.servers.merganser_server import MerganserProcess
from tests.support.servers.webhook_receiver import (
    OK_RESPONSE,
    ReceivedRequest,
    run_webhook_receiver,
)
from tests.support.time_limits import HANG_SECONDS

API_KEY = "mgk_" + "b" * 43


async def test_push_of_killed_server_is_sent_again_after_restart(tmp_path: Path) -> None:
    server = MerganserProcess(
        tmp_path, extra_settings={"PUSH_ALLOW_PRIVATE_NETWORKS": "on", "BOOTSTRAP_KEY": API_KEY}
    )
    server.create_users("ada")
    is_hanging = True

    async def respond(_request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        if is_hanging:
            await asyncio.sleep(5)
        else:
            writer.write(OK_RESPONSE)

    async with run_webhook_receiver() as receiver, httpx.AsyncClient(timeout=HANG_SECONDS) as http:
        receiver.response = respond
        server.start()
        try:
            channel_input = {
                "users": {"usernames": ["ada"]},
                "kind": "HTTP",
                "endpoint": f"http://127.0.0.1:{receiver.port}/topic",
            }
            response = await http.post(
                f"{server.url}/graphql",
                json={"query": PUSH_CHANNEL_SET, "variables": {"input": channel_input}},
                headers={"Authorization": f"Bearer {API_KEY}"},
            )
            assert response.json()["data"]["pushChannelSet"]["errors"] == []
            await asyncio.to_thread(send_by_lmtp, server, "ada@example.org", raw_message("Once"))
            async with asyncio.timeout(HANG_SECONDS):
                await receiver.wait_for_requests(1)
            server.kill()
            is_hanging = False
            await asyncio.to_thread(server.start)
            async with asyncio.timeout(HANG_SECONDS):
                await receiver.wait_for_requests(2)
        finally:
            server.stop()
    assert [request.raw for request in receiver.requests] == [b"Once", b"Once"]
