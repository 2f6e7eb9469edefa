"""Bans of a server with several processes: all refuse within a second, also after a restart."""

import asyncio
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.support.servers.merganser_server import MerganserProcess
from tests.support.stores import store_fixtures
from tests.support.stores.store_fixtures import create_migrated_database
from tests.support.time_limits import HANG_SECONDS

BANNED = "203.0.113.7"
OTHER = "203.0.113.8"
ATTEMPTS = 24  # connections: enough to reach each of the processes
SIGN_IN = """mutation { authenticate(input: {username: "ada", password: "wrong"}) {
  errors { code } } }"""


@pytest.fixture(params=store_fixtures.STORES)
def platform(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[MerganserProcess]:
    store = ""
    if request.param != "sqlite":
        store = create_migrated_database(request.getfixturevalue("postgres"), "bans")
    new_server = MerganserProcess(tmp_path, store, serve_arguments=("--workers", "2"))
    new_server.create_users("ada")
    new_server.start()
    yield new_server
    if new_server.is_running:
        new_server.stop()


async def statuses(platform: MerganserProcess, ip: str) -> set[int]:
    """Return the statuses of requests of this client, each on a connection of its own."""
    found = set[int]()
    for _ in range(ATTEMPTS):
        async with httpx.AsyncClient(base_url=platform.url, timeout=HANG_SECONDS) as http:
            response = await http.get("/health/live", headers={"X-Forwarded-For": ip})
            found.add(response.status_code)
    return found


async def wait_for_statuses(platform: MerganserProcess, ip: str, expected: set[int]) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while (found := await statuses(platform, ip)) != expected:
        assert time.monotonic() < deadline, found
        await asyncio.sleep(0.1)


async def test_all_processes_refuse_after_failures_and_after_restart(
    platform: MerganserProcess,
) -> None:
    async with platform.open_client("root") as root:
        await root.run_mutation("banPolicyUpdate", {"set": {"maxAttempts": 6}})
        await asyncio.sleep(5)  # all processes have read the policy, which they do each second
        for _ in range(6):  # failures of the same network at several processes
            async with httpx.AsyncClient(base_url=platform.url, timeout=HANG_SECONDS) as http:
                headers = {"X-Forwarded-For": BANNED}
                await http.post("/graphql", json={"query": SIGN_IN}, headers=headers)
        await wait_for_statuses(platform, BANNED, {403})
        assert await statuses(platform, OTHER) == {200}
        (ban,) = (
            await root("{ banPolicy { activeBans { nodes { network failureCount cause } } } }")
        )["banPolicy"]["activeBans"]["nodes"]
        assert ban == {"network": f"{BANNED}/32", "failureCount": 6, "cause": "SIGN_IN"}
    platform.stop()
    platform.start()
    assert await statuses(platform, BANNED) == {403}
    lifted = await asyncio.to_thread(platform.run_command, "ban", "lift", BANNED)
    assert lifted.stdout == "Lifted bans: 1. Deleted counts of failures: 2.\n", lifted
    await wait_for_statuses(platform, BANNED, {200})
    # the servers of the platform and loopback can't be banned
    refused = await asyncio.to_thread(platform.run_command, "ban", "add", "127.0.0.1")
    assert refused.exit_code != 0
