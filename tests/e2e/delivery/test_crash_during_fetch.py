"""Tests that a server that is killed while it fetches keeps all mail once and unchanged."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bench import fetch_soak
from bench.crashes.crash_rounds import PlannedKill
from tests.support.servers.dovecot_server import require_dovecot

SEED = 3


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that other users can enter. Folders of pytest are private."""
    require_dovecot()
    with TemporaryDirectory() as name:
        yield Path(name)


async def test_killed_fetch_continues_without_loss_or_duplicates(folder: Path) -> None:
    plan = [PlannedKill("fetched", 2), PlannedKill("commit", 40), PlannedKill("outside", 20)]
    result = await fetch_soak.run_fetch_soak(folder, plan, seed=SEED)
    assert result.differences == []
    assert [crash_round.exit_code for crash_round in result.rounds] == [-9, -9, -9, 0, 0]
    copied_counts = [crash_round.copied_count for crash_round in result.rounds]
    assert (
        0
        < copied_counts[0]
        < copied_counts[2]
        < copied_counts[3]
        == copied_counts[4]
        == result.received_count
    )
    assert {crash_round.remaining_count for crash_round in result.rounds[3:]} == {
        result.received_count
    }
    copied_messages = await fetch_soak.read_copied_messages(folder / "server")
    expected_messages = set(copied_messages)
    assert fetch_soak.find_differences(expected_messages, copied_messages) == []
    (message_name, path, flags, digest), (missing_name, *_other_fields), *remaining = (
        copied_messages
    )
    changed = fetch_soak.CopiedMessage(
        message_name, f"{path}/else", flags | {"\\Flagged", "\\Answered"}, digest[::-1]
    )
    assert fetch_soak.find_differences(expected_messages, [changed, remaining[0], *remaining]) == [
        f"{missing_name} is missing",
        f"{remaining[0][0]} is stored 2 times",
        *(
            f"{message_name} is stored with other {property_name}"
            for property_name in ("mailbox", "flags", "bytes")
        ),
    ]


async def test_killed_fetch_deletes_only_copied_messages_at_source(folder: Path) -> None:
    plan = [PlannedKill("expunged", 1), PlannedKill("outside", 10), PlannedKill("fetched", 1)]
    result = await fetch_soak.run_fetch_soak(folder, plan, seed=SEED, delete=True)
    assert result.differences == []
    crash_rounds = result.rounds
    assert [crash_round.exit_code for crash_round in crash_rounds] == [-9, -9, -9, 0, 0]
    assert crash_rounds[0].copied_count > 0
    assert (
        crash_rounds[0].remaining_count
        == fetch_soak.NEW_MESSAGE_COUNT - crash_rounds[0].copied_count
    )  # the server was killed after their expunge
    assert (crash_rounds[4].copied_count, crash_rounds[4].remaining_count) == (
        result.received_count,
        0,
    )
