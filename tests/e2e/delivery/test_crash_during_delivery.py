"""Killed at the worst moments, the server has all mail that it promised: once, and unchanged."""

import sqlite3
from pathlib import Path

from bench import soak
from bench.crashes import forward_soak
from bench.crashes.crash_rounds import CrashRound, DeliveryLedger, PlannedKill

SEED = 3
PLAN = [PlannedKill("data", 6), PlannedKill("commit", 7), PlannedKill("reply", 8)]


async def test_a_server_killed_in_data_before_the_commit_and_before_the_reply_loses_nothing(
    tmp_path: Path,
) -> None:
    lives: list[CrashRound] = []
    verdict = await soak.run_crash_soak(tmp_path, PLAN, seed=SEED, report_round=lives.append)
    assert verdict.differences == []
    assert [(life.planned_kill, life.exit_code) for life in lives] == [
        *((one, -9) for one in PLAN),
        (None, 0),
    ]
    ledger = verdict.ledger
    assert ledger.accepted.keys() == ledger.digests_by_subject.keys()
    assert set(ledger.accepted.values()) == {1}
    assert (
        lives[3].inspection.stored_unanswered_count > 0
    )  # mail whose answer was lost: it was sent again, not doubled
    assert any(times > 1 for times in ledger.attempts.values())
    await _lost_doubled_and_changed_mail_would_have_been_found(tmp_path, ledger)


async def _lost_doubled_and_changed_mail_would_have_been_found(
    folder: Path, ledger: DeliveryLedger
) -> None:
    kept, gone, changed = list(ledger.digests_by_subject)[:3]
    ledger.digests_by_subject[changed] = "0" * 64
    with sqlite3.connect(folder / "merganser.db") as db:
        db.execute("UPDATE messages SET subject = ? WHERE subject = ?", (kept, gone))
    db.close()
    assert set(await soak.find_differences(folder, ledger)) == {
        f"{gone} was answered 250 and is not there",
        f"{kept} is there 2 times",
        f"{kept} has other bytes than were sent",
        f"{changed} has other bytes than were sent",
    }


async def test_a_server_killed_around_the_dot_loses_no_mail_that_it_sends_on(
    tmp_path: Path,
) -> None:
    verdict = await forward_soak.run_forward_soak(
        tmp_path,
        [PlannedKill("dot", 3), PlannedKill("sent", 4)],
        seed=SEED,
        report_round=lambda _life: None,
    )
    assert verdict.differences == []
    assert [life.exit_code for life in verdict.rounds] == [-9, -9, 0]
    assert (
        verdict.duplicate_count > 0
    )  # what had left and was not written down: it is told, not hidden
    verdict.received.subtract(dict.fromkeys(verdict.received, 2))
    assert len(list(forward_soak.find_differences(verdict))) == len(verdict.received)
