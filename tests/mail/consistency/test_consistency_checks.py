import asyncio
import json
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlmodel import col

from mail.consistency import ConsistencyReport, check_consistency
from mail.consistency.checks import CheckRun, find_broken_rows, key_ranges
from mail.consistency.mailbox_counters import mailbox_checks
from models.events.journal import Change, ChangeKind
from models.files.blobs import Blob, MessageBlob, SubmissionBlob, Upload
from models.messages.tables import Message
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime.environment import Environment
from models.search.text_index import TABLE_NAME
from models.store.columns import select_columns
from models.submission.tables import Submission, SubmissionState
from tests.support.accounts.account_rows import Home, domain_of, home_of, letter
from tests.support.stores.store_damage import BOX, HARMS, ONE, Harm


@dataclass
class Town:
    """Two accounts with mail of all kinds."""

    world: Environment
    ada: Home
    bob: Home
    messages: list[int]  # Ada's: plain, its answer, with an attachment, sent to both
    thread: int  # of the third
    submission: int
    folder: Path

    async def harm(self, *templates: str, **names: Any) -> None:
        """Change rows behind everybody's back, foreign keys included."""
        statements = [template.format(**{**vars(self), **names}) for template in templates]
        if self.world.database.dialect == "sqlite":
            with sqlite3.connect(str(self.world.database.engine.url.database)) as connection:
                for statement in statements:
                    connection.execute(statement)
            connection.close()
            return
        async with self.world.database.engine.begin() as connection_:
            await connection_.execute(text("SET LOCAL session_replication_role = replica"))
            for statement in statements:
                await connection_.execute(text(statement))

    async def rules(self, **options: Any) -> set[str]:
        """What is wrong, as subject and rule."""
        return said(await check_consistency(self.world, **options))

    async def piece(self) -> Any:
        """The blob of Ada's attachment."""
        asked = select(*select_columns(Blob)).join(
            MessageBlob, col(MessageBlob.blob_id) == col(Blob.id)
        )
        mine = col(MessageBlob.message_id) == self.messages[2]
        rows = await self.world.database.read(asked.where(mine, col(Blob.name).is_not(None)))
        return rows[0]


def said(report: ConsistencyReport) -> set[str]:
    return {f"{finding.subject}.{finding.rule}" for finding in report.unrepaired_findings}


@pytest.fixture
async def town(world: Environment, tmp_path: Path) -> Town:
    domain = await domain_of(world)
    ada, bob = [await home_of(world, domain, name) for name in ("ada", "bob")]
    shared = letter("to both", attached=3000)
    raws = [letter("one"), letter("two", answers="one"), letter("file", attached=9000), shared]
    placed = [await ada.receive(raw) for raw in raws]
    for raw in (shared, letter("for bob")):
        await bob.receive(raw)
    submission = await _submit(world, ada, placed[2].layout_blob_id, placed[2].blob_ids)
    rows = await world.database.read(select(col(Message.id), col(Message.thread_id)))
    messages = [each.message_id for each in placed]
    (thread,) = [row.thread_id for row in rows if row.id == messages[2]]
    return Town(world, ada, bob, messages, thread, submission, tmp_path / "blobs")


async def _submit(world: Environment, home: Home, root: int, blobs: Any) -> int:
    now, key = world.now(), world.new_id()
    async with world.write_session(home.user_id) as session:
        session.add(
            Submission(
                id=key,
                user_id=home.user_id,
                tenant_id=0,
                queue_id="q1",
                blob_id=root,
                size=1,
                envelope_from=home.address,
                created_at=now,
            )
        )
        await session.flush()
        session.add_all([SubmissionBlob(submission_id=key, blob_id=blob) for blob in blobs])
        for state in (DeliveryState.PENDING, DeliveryState.DELIVERED):
            session.add(
                QueueEntry(
                    id=world.new_id(),
                    user_id=home.user_id,
                    submission_id=key,
                    recipient="dan@example.net",
                    domain="example.net",
                    state=state,
                    next_at=now if state is DeliveryState.PENDING else None,
                    created_at=now,
                    expires_at=now,
                )
            )
    return key


async def test_a_healthy_store_has_no_findings(town: Town) -> None:
    for read in (True, False):
        report = await check_consistency(town.world, reads_blobs=read)
        assert report.findings == []
        assert report.to_json()["whole"]
        assert report.checked_counts["messages"] == 6
        assert report.checked_counts["mailboxes"] == 4
        assert report.checked_counts["objects"] == 1


async def test_an_empty_store_has_no_findings(world: Environment) -> None:
    assert (await check_consistency(world)).findings == []


@pytest.mark.parametrize("harm", HARMS, ids=lambda harm: harm.name)
async def test_what_is_broken_is_found_and_what_can_be_is_repaired(town: Town, harm: Harm) -> None:
    (bobs,) = await town.world.database.read(
        select(col(Message.thread_id)).where(col(Message.user_id) == town.bob.user_id).limit(1)
    )
    piece = await town.piece()
    await town.harm(harm.sql, bobs_thread=bobs[0], piece=piece.id)

    assert await town.rules() == set(harm.broken.split())
    assert await town.rules(repair=True) == set(harm.stays.split())
    assert await town.rules() == set(harm.stays.split())


async def test_two_messages_of_one_uid_are_found(town: Town) -> None:
    await town.harm(
        "DROP INDEX messages_by_uid",
        "UPDATE messages SET uid = 1 WHERE mailbox_id = {ada.inbox}",
    )
    try:
        assert await town.rules() == {"counters.messages_of_one_uid"}
        assert await town.rules(repair=True) == {"counters.messages_of_one_uid"}
    finally:
        await town.harm(
            "UPDATE messages SET uid = modseq",
            "CREATE UNIQUE INDEX messages_by_uid ON messages (mailbox_id, uid)",
        )
    assert await town.rules() == set()


async def test_a_repair_is_told_to_those_who_follow(town: Town) -> None:
    await town.harm("UPDATE mailboxes SET total = 77", "UPDATE users SET used = 77")
    report = await check_consistency(town.world, repair=True)
    assert all(finding.repaired for finding in report.findings)
    assert len(report.findings) == 6

    asked = select(*select_columns(Change)).where(col(Change.stream_id) == town.ada.user_id)
    told = await town.world.database.read(asked.order_by(col(Change.last)))
    boxes, user = told[-2:]
    assert boxes.kind is ChangeKind.MAILBOX_UPDATED
    assert set(boxes.ids) == {town.ada.inbox, town.ada.notes}
    assert (user.kind, user.ids) == (ChangeKind.USER_CHANGED, [town.ada.user_id])


async def test_a_finding_says_what_was_expected_where(town: Town) -> None:
    await town.harm(BOX.format("total = 9"))
    (found,) = json.loads(json.dumps((await check_consistency(town.world)).to_json()))["findings"]
    assert found == {
        "subject": "counters",
        "rule": "total",
        "object": f"mailboxes/{town.ada.inbox}",
        "expected": 4,
        "found": 9,
        "repairable": True,
        "repaired": False,
    }


def _remove(place: Path) -> None:
    place.unlink()


def _cut(place: Path) -> None:
    place.write_bytes(place.read_bytes()[:-1])


def _spoil(place: Path) -> None:
    place.write_bytes(place.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize(
    ("hurt", "deep", "shallow"),
    [
        (_remove, "object", {"blobs.object"}),
        (_cut, "readable", {"blobs.readable"}),
        (_spoil, "digest", set()),
    ],
)
async def test_a_hurt_object_is_found_with_the_message_it_belongs_to(
    town: Town, hurt: Callable[[Path], None], deep: str, shallow: set[str]
) -> None:
    piece = await town.piece()
    hurt(town.folder / piece.name)
    report = await check_consistency(town.world, repair=True)
    found = {(finding.rule, finding.object) for finding in report.unrepaired_findings}
    assert found == {
        (deep, f"blobs/{piece.id}"),
        ("whole", f"messages/{town.messages[2]}"),
        ("whole", f"submissions/{town.submission}"),
    }
    assert await town.rules(reads_blobs=False) == shallow


async def test_the_object_of_an_upload_is_missed_too(town: Town) -> None:
    now = town.world.now()
    upload = Upload(
        id=town.world.new_id(),
        user_id=town.ada.user_id,
        size=3,
        digest="",
        content_type="text/plain",
        blob_name="ab/abc.1",
        created_at=now,
        expires_at=now,
    )
    async with town.world.write_session() as session:
        session.add(upload)
    assert await town.rules() == {"blobs.object"}
    await town.world.object_store.put("ab/abc.1", b"abc")
    assert await town.rules() == set()


async def test_leftovers_are_figures_and_no_differences(town: Town) -> None:
    await town.world.object_store.put("ab/abc.1", b"abc")
    await town.harm(
        "INSERT INTO receipts (digest, message_id, at) VALUES ('x', 1, '2029-01-01 00:00:00')",
        _row_in_index(town.world, 5),
        _row_in_index(town.world, town.messages[0]),
    )
    report = await check_consistency(town.world)
    assert report.findings == []
    names = ("garbage_objects", "garbage_bytes", "old_receipts", "search_rows", "dead_search_rows")
    assert [report.figures[name] for name in names] == [1, 3, 1, 2, 1]


async def test_a_message_that_is_in_the_index_is_not_marked(town: Town) -> None:
    await town.harm(_row_in_index(town.world, town.messages[0]), ONE.format("indexed = true"))
    assert await town.rules() == set()


def _row_in_index(world: Environment, key: int) -> str:
    column, value = ("owner", "u1u") if world.database.dialect == "sqlite" else ("words", "u1u")
    return f"INSERT INTO {TABLE_NAME} (rowid, {column}) VALUES ({key}, '{value}')"  # noqa: S608


@pytest.mark.parametrize(
    ("states", "state"),
    [
        (("DELIVERED", "RELAYED"), SubmissionState.SENT),
        (("DELIVERED", "BOUNCED"), SubmissionState.PARTIAL),
        (("EXPIRED", "BOUNCED"), SubmissionState.FAILED),
        (("CANCELLED", "CANCELLED"), SubmissionState.CANCELLED),
    ],
)
async def test_a_submission_gets_the_state_of_its_deliveries(
    town: Town, states: tuple[str, str], state: SubmissionState
) -> None:
    first, second = (
        f"UPDATE deliveries SET state = '{new}', next_at = NULL WHERE state = '{old}'"  # noqa: S608
        for new, old in zip(states, ("PENDING", "DELIVERED"), strict=True)
    )
    await town.harm(second, first)
    (found,) = (await check_consistency(town.world, repair=True)).findings
    assert (found.rule, found.expected, found.repaired) == ("state", state, True)
    (row,) = await town.world.database.read(select(col(Submission.state)))
    assert row.state is state


async def test_small_ranges_find_what_large_ones_find(town: Town) -> None:
    await town.harm("UPDATE mailboxes SET total = 77, unseen = 77")
    look = CheckRun(town.world, None)
    small = [
        await find_broken_rows(look, replace(check, keys_per_statement=1))
        for check in mailbox_checks()
    ]
    large = [await find_broken_rows(look, check) for check in mailbox_checks()]
    keys = [[(hit.key, len(hit.findings)) for hit in hits] for hits in small]
    assert keys == [[(hit.key, len(hit.findings)) for hit in hits] for hits in large]
    assert len(keys[0]) == 4


async def test_ranges_cover_all_rows_once(town: Town) -> None:
    told: list[tuple[str, int, int | None]] = []
    look = CheckRun(town.world, lambda *what: told.append(what))
    found = [pair async for pair in key_ranges(look, "some", Message, 4)]
    assert len(found) == 2
    assert found[0][1] == found[1][0]
    assert told == [("some", 4, 6), ("some", 6, 6)]


async def test_more_mail_needs_no_more_statements(town: Town, statements: list[str]) -> None:
    async def asked() -> int:
        del statements[:]
        await check_consistency(town.world)
        return len([each for each in statements if "blobs.codec" not in each])

    before = await asked()
    for number in range(20):
        await town.ada.receive(letter(f"more {number}"))
    assert await asked() == before


async def test_mail_that_comes_meanwhile_makes_no_findings(town: Town) -> None:
    async def deliver() -> None:
        for number in range(40):
            await town.bob.receive(letter(f"more {number}", attached=6000 if number % 9 else 0))

    coming = asyncio.create_task(deliver())
    while not coming.done():
        assert await town.rules() == set()
    await coming
    assert (await check_consistency(town.world)).checked_counts["messages"] == 46
