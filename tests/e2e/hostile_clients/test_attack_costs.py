"""Tests of what attacks of anonymous clients and users cost the server.

`ATTACKS=docs/operating/attacks.md` writes the measured table to that file.
"""

import asyncio
import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.conftest import raw_message
from tests.support.attacks import document_attacks, http_attacks, slow_attacks, websocket_attacks
from tests.support.attacks.attack_runner import AttackedServer, ServerAttack
from tests.support.attacks.slow_attacks import SLOW_CLIENT_SECONDS
from tests.support.servers.merganser_server import MerganserProcess
from tests.support.time_limits import HANG_SECONDS

SETTINGS = {
    "TRUSTED_PROXIES": "127.0.0.1",  # attackers from other loopback addresses are not proxies
    "HTTP_HEADER_TIMEOUT": f"{SLOW_CLIENT_SECONDS} s",
    "HTTP_BODY_TIMEOUT": f"{SLOW_CLIENT_SECONDS} s",
    "WEBSOCKET_INIT_TIMEOUT": f"{SLOW_CLIENT_SECONDS} s",
    "HTTP_WRITE_TIMEOUT": f"{SLOW_CLIENT_SECONDS} s",
    "HTTP_KEEP_ALIVE": "1 s",
    "HTTP_CONNECTIONS_PER_CLIENT": "80",
    "SUBSCRIPTIONS_PER_USER": "20",
    "CONCURRENT_OPERATIONS": "12",
    "CONCURRENT_OPERATIONS_PER_CLIENT": "8",
    "COST_BUDGET_USER": "100000",
}
SEQUENTIAL_ATTACKS = [*document_attacks.ATTACKS, *http_attacks.ATTACKS, *websocket_attacks.ATTACKS]
ATTACK_NAMES = [attack.name for attack in (*SEQUENTIAL_ATTACKS, *slow_attacks.ATTACKS)]
SLOW_ATTACKS = [attack for attack in slow_attacks.ATTACKS if attack.name.startswith("slow:")]
QUICK_ATTACKS = [attack for attack in slow_attacks.ATTACKS if attack not in SLOW_ATTACKS]
MAX_GROWTH = 96 * 1024  # KiB of all attacks, caches, threads, buffers: 55 to 66 MiB measured
# What an attack leaves until the next garbage collection is no leak: a leak grows in each round.
MAX_GROWTH_OF_ROUND = 4 * 1024  # KiB
MAX_FURTHER_ROUNDS = 10
REPEATED_FROM_GROWTH = 256  # KiB: attacks that grew less are not repeated
SERVED_BEFORE_ATTACKS = 3  # times: threads and caches for usual requests are no growth
SECRET_WORDS = "password", "mgk_", "evil", "pwned", "msg_", "nope", "Traceback"


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AttackedServer]:
    server = MerganserProcess(tmp_path_factory.mktemp("siege"), extra_settings=SETTINGS)
    server.create_users("ada", "bob", "dora", "eve", "fay")
    server.start()
    try:
        asyncio.run(server.deliver_by_lmtp(raw_message("Private"), "dora@example.org"))
        yield AttackedServer(server)
    finally:
        server.stop()


@pytest.fixture(scope="module")
def initial_usage(siege: AttackedServer) -> tuple[int, int]:
    """KiB and sockets of the process before the first attack, when it has served other clients."""
    for _ in range(SERVED_BEFORE_ATTACKS):
        asyncio.run(siege.assert_others_are_served())
    return siege.memory_kib(), siege.socket_count()


async def least_growth_of_further_rounds(
    siege: AttackedServer, attacks: Iterable[ServerAttack], max_growth_kib: int
) -> int:
    """Run the attacks again until a round grows the process by less than the limit.

    Returns the growth in KiB of the round that grew it least.
    """
    growths = list[int]()
    while len(growths) < MAX_FURTHER_ROUNDS and min(growths, default=max_growth_kib) >= (
        max_growth_kib
    ):
        kib = siege.memory_kib()
        for attack in attacks:
            await attack.run(siege)
        growths.append(siege.memory_kib() - kib)
    return min(growths)


@pytest.mark.usefixtures("initial_usage")
@pytest.mark.parametrize(
    "attack", SEQUENTIAL_ATTACKS + QUICK_ATTACKS, ids=lambda attack: attack.name
)
async def test_attack_is_answered_within_limits_and_leaves_nothing(
    siege: AttackedServer, attack: ServerAttack
) -> None:
    assert await attack.run_and_measure(siege) in attack.expected
    row = siege.results[-1]
    assert row.cpu_ms < attack.max_ms
    if row.growth_kib >= attack.max_growth_kib:  # also of threads and buffers that stay
        limit = attack.max_growth_kib
        assert await least_growth_of_further_rounds(siege, [attack], limit) < limit
    await siege.assert_others_are_served()


async def test_slow_attackers_are_disconnected_and_others_are_served(siege: AttackedServer) -> None:
    """The attacks run concurrently, so that each is measured with the time of all."""
    async with asyncio.TaskGroup() as group:  # cancels the attacks if a client is not served
        tasks = [group.create_task(attack.run_and_measure(siege)) for attack in SLOW_ATTACKS]
        while not all(task.done() for task in tasks):
            await siege.assert_others_are_served()
            await asyncio.sleep(0.1)
    outcomes = {
        attack.name: task.result() for attack, task in zip(SLOW_ATTACKS, tasks, strict=True)
    }
    assert [
        (a.name, outcomes[a.name]) for a in SLOW_ATTACKS if outcomes[a.name] not in a.expected
    ] == []
    for row in siege.results[-len(SLOW_ATTACKS) :]:
        (attack,) = (slow_attack for slow_attack in SLOW_ATTACKS if slow_attack.name == row.name)
        assert row.duration_ms < attack.max_ms, row


async def test_attacks_leave_no_memory_sockets_or_secrets(
    siege: AttackedServer, initial_usage: tuple[int, int]
) -> None:
    """Judges the attacks that have run; a failed attack has a failed test of its own."""
    assert len(ATTACK_NAMES) == len(set(ATTACK_NAMES)) >= 60
    kib, sockets = initial_usage
    async with asyncio.timeout(HANG_SECONDS):
        while siege.socket_count() > sockets:  # noqa: ASYNC110 - another process has them
            await asyncio.sleep(0.1)
    assert siege.memory_kib() - kib < MAX_GROWTH
    large_names = {row.name for row in siege.results if row.growth_kib > REPEATED_FROM_GROWTH}
    attacks = [a for a in (*SEQUENTIAL_ATTACKS, *QUICK_ATTACKS) if a.name in large_names]
    growth = await least_growth_of_further_rounds(siege, attacks, MAX_GROWTH_OF_ROUND)
    assert growth < MAX_GROWTH_OF_ROUND
    await siege.assert_others_are_served()
    expected_complaint = "Rejected WebSocket connection from origin"
    assert [
        line
        for line in siege.server.unexpected_log_records()
        if expected_complaint not in line["event"]
    ] == []
    secrets = siege.server.secrets.values()
    log = siege.server.log.replace("https://evil.example", "")
    assert [word for word in (*SECRET_WORDS, *secrets) if word in log] == []
    if path := os.environ.get("ATTACKS"):
        assert sorted(row.name for row in siege.results) == sorted(ATTACK_NAMES)
        _write_page(Path(path), siege, siege.memory_kib() - kib)


def _write_page(path: Path, siege: AttackedServer, kib: int) -> None:
    environment = f"CPython {platform.python_version()}, {os.cpu_count()} cores"
    page_head = PAGE_HEAD.format(
        where=environment, kib=kib, count=len(siege.results), slowest=siege.max_wait_of_others * 1e3
    )
    path.write_text(f"{page_head}\n{siege.results_table()}\n")


PAGE_HEAD = """# Attacks

This page lists {count} attacks on a running server. For each it shows the response, the time until the response, and how much
the memory of the process grew. `make test` runs all of them.

- The tested server has small limits, to show that the limits work. Slow clients are disconnected after 10 s.
- Of an attack that runs twice, the table has the longer time.
- The attacks called *slow* run at the same time. The growth of each is that of all of them.
- During and after each attack, another user sends an ordinary query. The slowest was answered in {slowest:.0f} ms.
- From before the first attack to after the last, the process grew by {kib} KiB. Most of this is caches, threads, and the
  files of GraphiQL, which are read once.

The figures were measured with {where} shared with other work, by this command:

```sh
ATTACKS=docs/operating/attacks.md pytest -n 0 tests/e2e/hostile_clients/test_attack_costs.py
```
"""  # noqa: E501 - as wide as the other pages
