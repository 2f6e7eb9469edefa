"""Killed in the middle of a copy, the server has all mail of the source: once, and unchanged."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bench import fetch_soak
from bench.crashes.crash_rounds import Death
from tests.support.servers.dovecot_server import needed

SEED = 3


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that others than we can be let into: pytest shuts its own."""
    needed()
    with TemporaryDirectory() as name:
        yield Path(name)


async def test_a_copy_that_is_killed_goes_on_where_it_was(folder: Path) -> None:
    plan = [Death("fetched", 2), Death("commit", 40), Death("outside", 20)]
    verdict = await fetch_soak.soak(folder, plan, seed=SEED)
    assert verdict.differences == []
    assert [life.code for life in verdict.lives] == [-9, -9, -9, 0, 0]
    copied = [life.copied for life in verdict.lives]
    assert 0 < copied[0] < copied[2] < copied[3] == copied[4] == verdict.came
    assert {life.left for life in verdict.lives[3:]} == {verdict.came}
    there = await fetch_soak.copied(folder / "server")
    came = set(there)
    assert fetch_soak.differences(came, there) == []
    (mark, path, flags, digest), (other, *_its), *rest = there
    changed = (mark, f"{path}/else", flags | {"\\Flagged", "\\Answered"}, digest[::-1])
    assert fetch_soak.differences(came, [changed, rest[0], *rest]) == [
        f"{other} is missing",
        f"{rest[0][0]} is here 2 times",
        *(f"{mark} has other {what} here" for what in ("folder", "flags", "bytes")),
    ]


async def test_nothing_is_deleted_at_the_source_that_is_not_here(folder: Path) -> None:
    plan = [Death("expunged", 1), Death("outside", 10), Death("fetched", 1)]
    verdict = await fetch_soak.soak(folder, plan, seed=SEED, delete=True)
    assert verdict.differences == []
    lives = verdict.lives
    assert [life.code for life in lives] == [-9, -9, -9, 0, 0]
    assert lives[0].copied > 0
    assert lives[0].left == fetch_soak.COMING - lives[0].copied  # it was killed when they were gone
    assert (lives[4].copied, lives[4].left) == (verdict.came, 0)
