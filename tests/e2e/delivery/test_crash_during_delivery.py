"""Tests that a server that is killed during delivery keeps all accepted mail once and unchanged."""

import sqlite3
from pathlib import Path

from bench import soak
from bench.crashes import forward_soak
from bench.crashes.crash_rounds import CrashRound, DeliveryLedger, PlannedKill

SEED = 3
PLANNED_KILLS = [PlannedKill("data", 6), PlannedKill("commit", 7), PlannedKill("reply", 8)]


async def test_server_killed_at_data_commit_or_reply_loses_no_mail(
    tmp_path: Path,
) -> None:
    rounds: list[CrashRound] = []
    result = await soak.run_crash_soak(
        tmp_path, PLANNED_KILLS, seed=SEED, report_round=rounds.append
    )
    assert result.differences == []
    assert [(crash_round.planned_kill, crash_round.exit_code) for crash_round in rounds] == [
        *((kill, -9) for kill in PLANNED_KILLS),
        (None, 0),
    ]
    ledger = result.ledger
    assert ledger.accepted.keys() == ledger.digests_by_subject.keys()
    assert set(ledger.accepted.values()) == {1}
    # mail without a reply was sent again and stored once
    assert rounds[3].inspection.stored_unanswered_count > 0
    assert any(attempt_count > 1 for attempt_count in ledger.attempts.values())
    await _assert_lost_duplicated_and_changed_mail_is_detected(tmp_path, ledger)


async def _assert_lost_duplicated_and_changed_mail_is_detected(
    folder: Path, ledger: DeliveryLedger
) -> None:
    duplicated, lost, changed = list(ledger.digests_by_subject)[:3]
    ledger.digests_by_subject[changed] = "0" * 64
    with sqlite3.connect(folder / "merganser.db") as db:
        db.execute("UPDATE messages SET subject = ? WHERE subject = ?", (duplicated, lost))
    db.close()
    assert set(await soak.find_differences(folder, ledger)) == {
        f"{lost} was accepted with 250 and is not stored",
        f"{duplicated} is stored 2 times",
        f"{duplicated} is stored with other bytes than were sent",
        f"{changed} is stored with other bytes than were sent",
    }


async def test_server_killed_around_final_dot_loses_no_forwarded_mail(
    tmp_path: Path,
) -> None:
    planned_kills = [PlannedKill("dot", 3), PlannedKill("sent", 4)]
    result = await forward_soak.run_forward_soak(
        tmp_path,
        planned_kills,
        seed=SEED,
        report_round=lambda _life: None,
    )
    assert result.differences == []
    assert [crash_round.exit_code for crash_round in result.rounds] == [-9, -9, 0]
    _assert_lost_and_repeated_mail_is_detected(result)


def _assert_lost_and_repeated_mail_is_detected(result: forward_soak.ForwardSoakResult) -> None:
    repeated = next(iter(result.received))
    surplus_count = len(result.unconfirmed) + 1  # more copies than replies that can be lost
    result.received[repeated] += surplus_count
    assert [
        "times more often than the kills explain" in text
        for text in forward_soak.find_differences(result)
    ] == [True]
    result.received[repeated] -= surplus_count
    result.received.subtract(dict.fromkeys(result.received, 2))
    assert len(list(forward_soak.find_differences(result))) == len(result.received)
