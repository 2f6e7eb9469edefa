"""What strangers and users try against a server, and what it costs.

`ATTACKS=docs/attacks.md` writes the table that was measured into that file.
"""

import asyncio
import os
import platform
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.conftest import raw_message
from tests.support.attacks import document_attacks, http_attacks, slow_attacks, websocket_attacks
from tests.support.attacks.attack_runner import Attack, Siege
from tests.support.servers.merganser_server import Server

SETTINGS = {
    "PROXIES": "127.0.0.1",  # attackers of any other address of the loopback are strangers to it
    "HEAD_TIMEOUT": "1 s",
    "BODY_TIMEOUT": "1 s",
    "INIT_TIMEOUT": "1 s",
    "WRITE_TIMEOUT": "2 s",
    "KEEP_ALIVE": "1 s",
    "CONNECTIONS_EACH": "80",
    "FOLLOWERS_EACH": "20",
    "OPERATIONS": "12",
    "OPERATIONS_EACH": "8",
    "BUDGET_USERS": "100000",
}
IN_TURN = [*document_attacks.ATTACKS, *http_attacks.ATTACKS, *websocket_attacks.ATTACKS]
NAMES = [attack.name for attack in (*IN_TURN, *slow_attacks.ATTACKS)]
SLOW = [attack for attack in slow_attacks.ATTACKS if attack.name.startswith("slow:")]
QUICK = [attack for attack in slow_attacks.ATTACKS if attack not in SLOW]
GROWTH = 56 * 1024  # KiB, of all together: caches of plans, threads, files that are read once
WORDS = "password", "mgk_", "evil", "pwned", "msg_", "nope", "Traceback"


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    server = Server(tmp_path_factory.mktemp("siege"), more=SETTINGS)
    server.make("ada", "bob", "dora", "eve", "fay")
    server.start()
    asyncio.run(server.deliver(raw_message("Private"), "dora@example.org"))
    yield Siege(server)
    server.stop()


@pytest.fixture(scope="module")
def before(siege: Siege) -> tuple[int, int]:
    """KiB and sockets of the process before anything is tried."""
    return siege.memory(), siege.connections()


@pytest.mark.usefixtures("before")
@pytest.mark.parametrize("attack", IN_TURN + QUICK, ids=lambda attack: attack.name)
async def test_an_attack_is_answered_soon_and_leaves_nothing(siege: Siege, attack: Attack) -> None:
    assert await attack.fought(siege) in attack.expected
    row = siege.rows[-1]
    assert row.work < attack.ms
    assert row.kib < attack.kib
    await siege.served()


async def test_those_who_are_slow_are_dropped_and_nobody_waits_for_them(siege: Siege) -> None:
    """They are tried beside each other: each is charged with what all of them took."""
    said = asyncio.gather(*(attack.fought(siege) for attack in SLOW))
    async for _ in until(said):
        await siege.served()
    for attack, answer in zip(SLOW, await said, strict=True):
        assert (attack.name, answer in attack.expected) == (attack.name, True), answer
    for row in siege.rows[-len(SLOW) :]:
        (attack,) = (one for one in SLOW if one.name == row.name)
        assert row.ms < attack.ms, row


async def until(done: "asyncio.Future[list[str]]") -> AsyncIterator[None]:
    """Again and again, as long as others work."""
    while not done.done():
        yield
        await asyncio.sleep(0.1)


async def test_in_the_end_nothing_is_left_of_them(siege: Siege, before: tuple[int, int]) -> None:
    assert len(NAMES) == len(set(NAMES)) >= 60
    assert sorted(row.name for row in siege.rows) == sorted(NAMES)
    kib, sockets = before
    async with asyncio.timeout(10):
        while siege.connections() > sockets:  # noqa: ASYNC110 - another process's
            await asyncio.sleep(0.1)
    assert siege.memory() - kib < GROWTH
    await siege.served()
    foreign = "Rejected WebSocket connection from origin"
    assert [line for line in siege.server.complaints() if foreign not in line["event"]] == []
    secrets = siege.server.secrets.values()
    log = siege.server.log.replace("https://evil.example", "")
    assert [word for word in (*WORDS, *secrets) if word in log] == []
    if path := os.environ.get("ATTACKS"):
        _write(Path(path), siege, siege.memory() - kib)


def _write(path: Path, siege: Siege, kib: int) -> None:
    where = f"CPython {platform.python_version()}, {os.cpu_count()} cores"
    head = HEAD.format(where=where, kib=kib, count=len(siege.rows), slowest=siege.slowest * 1e3)
    path.write_text(f"{head}\n{siege.table()}\n")


HEAD = """# Attacks

{count} attacks on a real server process, tried by `make test`, with what it answers to each, the time until
then (the worst, of those that are tried twice), and by how much the process has grown. The server of the
test has short deadlines and small limits, to show that they hold. Those called *slow* run beside each
other, and the growth of each is that of all of them; meanwhile, and after each other attack, somebody else
asks an ordinary question; the slowest of these was answered in {slowest:.0f} ms. From before the first
attack to after the last the process has grown by {kib} KiB, most of it caches, threads, and the files of
GraphiQL, which are read once.

Measured with {where} shared with others, by

```sh
ATTACKS=docs/attacks.md pytest -n 0 tests/e2e/hostile_clients/test_attack_costs.py
```
"""  # noqa: E501 - as wide as the other pages
