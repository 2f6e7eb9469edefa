"""What strangers and users try against a server, and what it costs.

`ATTACKS=docs/attacks.md` writes the table that was measured into that file.
"""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import siege_documents, siege_http, siege_sockets
from tests.e2e.server import Server
from tests.e2e.siege import Attack, Siege

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
IN_TURN = [*siege_documents.ATTACKS, *siege_http.ATTACKS, *siege_sockets.ATTACKS]


@pytest.fixture(scope="module")
def siege(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Siege]:
    server = Server(tmp_path_factory.mktemp("siege"), more=SETTINGS)
    server.make("ada", "bob", "dora", "eve", "fay")
    server.start()
    yield Siege(server)
    server.stop()


@pytest.mark.parametrize("attack", IN_TURN, ids=lambda attack: attack.name)
async def test_an_attack_is_answered_soon_and_leaves_nothing(siege: Siege, attack: Attack) -> None:
    assert await attack.fought(siege) in attack.expected
    row = siege.rows[-1]
    assert row.ms < attack.ms
    assert row.kib < attack.kib
    await siege.served()


async def test_zzz(siege: Siege) -> None:
    if path := os.environ.get("ATTACKS"):
        Path(path).write_text(siege.table() + "\n")
    print(siege.table())
    assert siege.server.complaints() == []
