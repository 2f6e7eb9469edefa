"""Tests that servers that are killed in turn account for every recipient of sent mail.

`python -m bench.cluster_soak` is the long form.
"""

import asyncio
from pathlib import Path

import pytest

from bench.cluster_soak import SoakPlan, run_cluster_soak
from tests.support.run_scope import CI, RUNS_ALL_TESTS

pytestmark = pytest.mark.skipif(not CI, reason="takes a minute")

CLOCK_SKEW = 300  # seconds between the clocks of the servers
# A server whose clock is ahead can't be forked: its start takes 8 s of CPU. The test of killed
# servers has one, too.
FAILOVER_SKEWS = [0, CLOCK_SKEW] if RUNS_ALL_TESTS else [0, 0]
TIME_LIMIT = 540.0  # seconds, on a busy machine
TEMPORARY_REPLY = "4.3.0 Later"  # the reply of the server that accepts nothing


async def test_every_recipient_is_accounted_for_after_server_kills(tmp_path: Path) -> None:
    """One killed server is taken over by the other, and one is restarted immediately."""
    async with asyncio.timeout(TIME_LIMIT):
        result = await run_cluster_soak(tmp_path, SoakPlan([0, CLOCK_SKEW], kills=2, clients=2))
    assert result.differences == []  # no remaining lease and no second copy
    assert (result.kill_count, len(result.takeover_seconds)) == (2, 1)
    assert result.accounted_count == result.accepted
    assert set(result.queued_by_reason) <= {TEMPORARY_REPLY}
    assert result.delivered_once > 0


async def test_failover_loses_only_commits_missing_on_standby(tmp_path: Path) -> None:
    async with asyncio.timeout(TIME_LIMIT):
        result = await run_cluster_soak(
            tmp_path, SoakPlan(FAILOVER_SKEWS, kills=0, failover=True, clients=2)
        )
    assert result.differences == []
    assert result.accounted_count == result.accepted
    assert result.lost_commits is not None
    assert result.lost_commits.submissions
    assert result.lost_commits.results
    assert result.lost + result.unrecorded <= len(result.lost_commits.submissions)
    assert result.twice_after_failover <= result.lost_commits.second_copies.total()
    assert result.delivered_once > 0
