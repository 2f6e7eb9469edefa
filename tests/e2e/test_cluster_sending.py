"""Mail leaves over several servers that are killed in turn, and every recipient is accounted for.

`python -m bench.clustersoak` is the long form.
"""

import asyncio
from pathlib import Path

import pytest

from bench import clustersoak
from tests.whole import CI

pytestmark = pytest.mark.skipif(not CI, reason="takes minutes")

SKEW = 300  # seconds between the clocks of two servers
LIMIT = 540.0


async def test_servers_killed_in_turn_lose_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clustersoak, "CLIENTS", 2)  # the machine has other tests to run
    async with asyncio.timeout(LIMIT):
        account = await clustersoak.soak(tmp_path, [0, SKEW], kills=3)
    assert account.differences == []
    assert account.kills == 3
    assert account.once + account.twice + account.queued.total() == account.answered
    assert account.once > 0
    assert account.queued.total() > 0
    assert len(account.taken_over) == 2
