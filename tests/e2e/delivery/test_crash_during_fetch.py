"""Killed in the middle of a copy, the server has all mail of the source: once, and unchanged."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bench import fetch_soak
from bench.crashes.crash_rounds import PlannedKill
from tests.support.servers.dovecot_server import needed

SEED = 3


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that others than we can be let into: pytest shuts its own."""
    needed()
    with TemporaryDirectory() as name:
        yield Path(name)


async def test_a_copy_that_is_killed_goes_on_where_it_was(folder: Path) -> None:
    plan = [PlannedKill("fetched", 2), PlannedKill("commit", 40), PlannedKill("outside", 20)]
    verdict = await fetch_soak.run_fetch_soak(folder, plan, seed=SEED)
    assert verdict.differences == []
    assert [life.exit_code for life in verdict.rounds] == [-9, -9, -9, 0, 0]
    copied = [life.copied_count for life in verdict.rounds]
    assert 0 < copied[0] < copied[2] < copied[3] == copied[4] == verdict.received_count
    assert {life.remaining_count for life in verdict.rounds[3:]} == {verdict.received_count}
    there = await fetch_soak.read_copied_messages(folder / "server")
    came = set(there)
    assert fetch_soak.find_differences(came, there) == []
    (mark, path, flags, digest), (other, *_its), *rest = there
    changed = fetch_soak.CopiedMessage(
        mark, f"{path}/else", flags | {"\\Flagged", "\\Answered"}, digest[::-1]
    )
    assert fetch_soak.find_differences(came, [changed, rest[0], *rest]) == [
        f"{other} is missing",
        f"{rest[0][0]} is here 2 times",
        *(f"{mark} has other {what} here" for what in ("folder", "flags", "bytes")),
    ]


async def test_nothing_is_deleted_at_the_source_that_is_not_here(folder: Path) -> None:
    plan = [PlannedKill("expunged", 1), PlannedKill("outside", 10), PlannedKill("fetched", 1)]
    verdict = await fetch_soak.run_fetch_soak(folder, plan, seed=SEED, delete=True)
    assert verdict.differences == []
    lives = verdict.rounds
    assert [life.exit_code for life in lives] == [-9, -9, -9, 0, 0]
    assert lives[0].copied_count > 0
    assert (
        lives[0].remaining_count == fetch_soak.NEW_MESSAGE_COUNT - lives[0].copied_count
    )  # it was killed when they were gone
    assert (lives[4].copied_count, lives[4].remaining_count) == (verdict.received_count, 0)
