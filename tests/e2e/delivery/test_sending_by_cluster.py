"""Mail leaves over several servers that are killed in turn; every recipient is accounted for.

`python -m bench.cluster_soak` is the long form.
"""

import asyncio
from pathlib import Path

import pytest

from bench.cluster_soak import SoakPlan, run_cluster_soak
from tests.support.run_scope import CI

pytestmark = pytest.mark.skipif(not CI, reason="takes a minute")

SKEW = 300  # seconds between the clocks of the servers
LIMIT = 540.0  # on a busy machine
REASON = "4.3.0 Later"  # of the server that accepts nothing


async def test_every_recipient_is_accounted_for_after_servers_were_killed(tmp_path: Path) -> None:
    """One dead server is taken over by the other, and one is started again at once."""
    async with asyncio.timeout(LIMIT):
        account = await run_cluster_soak(tmp_path, SoakPlan([0, SKEW], kills=2, clients=2))
    assert account.differences == []  # such as a lease that remains, or a second copy
    assert (account.kill_count, len(account.takeover_seconds)) == (2, 1)
    assert account.accounted_count == account.accepted
    assert set(account.queued_by_reason) <= {REASON}
    assert account.delivered_once > 0


async def test_a_failover_costs_no_more_than_what_the_standby_lacked(tmp_path: Path) -> None:
    async with asyncio.timeout(LIMIT):
        account = await run_cluster_soak(
            tmp_path, SoakPlan([0, SKEW], kills=0, failover=True, clients=2)
        )
    assert account.differences == []
    assert account.accounted_count == account.accepted
    assert account.lost_commits is not None
    assert account.lost_commits.submissions
    assert account.lost_commits.results
    assert account.lost + account.unrecorded <= len(account.lost_commits.submissions)
    assert account.twice_after_failover <= account.lost_commits.second_copies.total()
    assert account.delivered_once > 0
