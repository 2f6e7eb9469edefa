"""Killed at the worst moments, the server has all mail that it promised: once, and unchanged."""

import sqlite3
from pathlib import Path

from bench import soak
from bench.crashes import forward_soak
from bench.crashes.crash_rounds import Death, Ledger, Round

SEED = 3
PLAN = [Death("data", 6), Death("commit", 7), Death("reply", 8)]


async def test_a_server_killed_in_data_before_the_commit_and_before_the_reply_loses_nothing(
    tmp_path: Path,
) -> None:
    lives: list[Round] = []
    verdict = await soak.soak(tmp_path, PLAN, seed=SEED, told=lives.append)
    assert verdict.differences == []
    assert [(life.death, life.code) for life in lives] == [*((one, -9) for one in PLAN), (None, 0)]
    ledger = verdict.ledger
    assert ledger.answered.keys() == ledger.sent.keys()
    assert set(ledger.answered.values()) == {1}
    assert lives[3].seen.stored > 0  # mail whose answer was lost: it was sent again, not doubled
    assert any(times > 1 for times in ledger.tried.values())
    await _lost_doubled_and_changed_mail_would_have_been_found(tmp_path, ledger)


async def _lost_doubled_and_changed_mail_would_have_been_found(
    folder: Path, ledger: Ledger
) -> None:
    kept, gone, changed = list(ledger.sent)[:3]
    ledger.sent[changed] = "0" * 64
    with sqlite3.connect(folder / "merganser.db") as db:
        db.execute("UPDATE messages SET subject = ? WHERE subject = ?", (kept, gone))
    db.close()
    assert set(await soak.compared(folder, ledger)) == {
        f"{gone} was answered 250 and is not there",
        f"{kept} is there 2 times",
        f"{kept} has other bytes than were sent",
        f"{changed} has other bytes than were sent",
    }


async def test_a_server_killed_around_the_dot_loses_no_mail_that_it_sends_on(
    tmp_path: Path,
) -> None:
    verdict = await forward_soak.soak(
        tmp_path, [Death("dot", 3), Death("sent", 4)], seed=SEED, told=lambda _life: None
    )
    assert verdict.differences == []
    assert [life.code for life in verdict.rounds] == [-9, -9, 0]
    assert verdict.doubled > 0  # what had left and was not written down: it is told, not hidden
    verdict.came.subtract(dict.fromkeys(verdict.came, 2))
    assert len(list(forward_soak.differences(verdict))) == len(verdict.came)
