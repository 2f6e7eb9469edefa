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
from mail.consistency.checks import CheckRun, find_broken_rows, iterate_key_ranges_with_progress
from mail.consistency.mailbox_counters import mailbox_checks
from models.events.event_types import EventType
from models.events.journal import Change
from models.files.blobs import Blob, MessageBlob, SubmissionBlob, Upload
from models.messages.tables import Message
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime.environment import Environment
from models.search.text_index import TABLE_NAME
from models.store.columns import select_columns
from models.submission.tables import Submission, SubmissionState
from tests.support.accounts.account_rows import (
    StoredAccount,
    make_domain,
    make_stored_account,
    message_with_subject,
)
from tests.support.case_loop import each_case
from tests.support.stores.store_damage import (
    STORE_DAMAGES,
    UPDATE_FIRST_MESSAGE,
    UPDATE_INBOX,
    StoreDamage,
)


@dataclass
class TwoAccountsWithMail:
    """Two accounts with several kinds of messages and a submission."""

    environment: Environment
    ada: StoredAccount
    bob: StoredAccount
    messages: list[int]  # Ada's: plain, a reply to it, with an attachment, sent to both
    thread: int  # of the third message
    submission: int
    folder: Path

    async def damage_rows(self, *templates: str, **names: Any) -> None:
        """Execute statements without foreign key checks and without journal entries."""
        statements = [template.format(**{**vars(self), **names}) for template in templates]
        if self.environment.database.dialect == "sqlite":
            with sqlite3.connect(str(self.environment.database.engine.url.database)) as connection:
                for statement in statements:
                    connection.execute(statement)
            connection.close()
            return
        async with self.environment.database.engine.begin() as connection_:
            await connection_.execute(text("SET LOCAL session_replication_role = replica"))
            for statement in statements:
                await connection_.execute(text(statement))

    async def failed_rules(self, **options: Any) -> set[str]:
        """Run the consistency check and return the failed rules as `subject.rule`."""
        return unrepaired_rules(await check_consistency(self.environment, **options))

    async def find_attachment_blob(self) -> Any:
        """Return the blob of Ada's attachment."""
        statement = select(*select_columns(Blob)).join(
            MessageBlob, col(MessageBlob.blob_id) == col(Blob.id)
        )
        is_of_message = col(MessageBlob.message_id) == self.messages[2]
        rows = await self.environment.database.read(
            statement.where(is_of_message, col(Blob.name).is_not(None))
        )
        return rows[0]


def unrepaired_rules(report: ConsistencyReport) -> set[str]:
    return {f"{finding.subject}.{finding.rule}" for finding in report.unrepaired_findings}


@pytest.fixture
async def two_accounts(environment: Environment, tmp_path: Path) -> TwoAccountsWithMail:
    domain = await make_domain(environment)
    ada, bob = [await make_stored_account(environment, domain, name) for name in ("ada", "bob")]
    shared = message_with_subject("to both", attachment_size=3000)
    raws = [
        message_with_subject("one"),
        message_with_subject("two", in_reply_to="one"),
        message_with_subject("file", attachment_size=9000),
        shared,
    ]
    deliveries = [await ada.deliver(raw) for raw in raws]
    for raw in (shared, message_with_subject("for bob")):
        await bob.deliver(raw)
    submission = await add_submission(
        environment, ada, deliveries[2].layout_blob_id, deliveries[2].blob_ids
    )
    rows = await environment.database.read(select(col(Message.id), col(Message.thread_id)))
    messages = [delivery.message_id for delivery in deliveries]
    (thread,) = [row.thread_id for row in rows if row.id == messages[2]]
    return TwoAccountsWithMail(
        environment, ada, bob, messages, thread, submission, tmp_path / "blobs"
    )


async def add_submission(
    environment: Environment, account: StoredAccount, layout_blob_id: int, blob_ids: Any
) -> int:
    now, submission_id = environment.now(), environment.new_id()
    async with environment.write_session(account.user_id) as session:
        session.add(
            Submission(
                id=submission_id,
                user_id=account.user_id,
                tenant_id=0,
                queue_id="q1",
                blob_id=layout_blob_id,
                size=1,
                envelope_from=account.address,
                created_at=now,
            )
        )
        await session.flush()
        session.add_all(
            [SubmissionBlob(submission_id=submission_id, blob_id=blob) for blob in blob_ids]
        )
        for state in (DeliveryState.PENDING, DeliveryState.DELIVERED):
            session.add(
                QueueEntry(
                    id=environment.new_id(),
                    user_id=account.user_id,
                    submission_id=submission_id,
                    recipient="dan@example.net",
                    domain="example.net",
                    state=state,
                    next_at=now if state is DeliveryState.PENDING else None,
                    created_at=now,
                    expires_at=now,
                )
            )
    return submission_id


async def test_intact_store_has_no_findings(two_accounts: TwoAccountsWithMail) -> None:
    for reads_blobs in (True, False):
        report = await check_consistency(two_accounts.environment, reads_blobs=reads_blobs)
        assert report.findings == []
        assert report.to_json()["whole"]
        assert report.checked_counts["messages"] == 6
        assert report.checked_counts["mailboxes"] == 4
        assert report.checked_counts["objects"] == 1


async def test_empty_store_has_no_findings(environment: Environment) -> None:
    assert (await check_consistency(environment)).findings == []


async def check_damage(two_accounts: TwoAccountsWithMail, damage: StoreDamage) -> None:
    """Damage an intact store, and compare the findings before, during and after a repair."""
    (bob_thread_row,) = await two_accounts.environment.database.read(
        select(col(Message.thread_id))
        .where(col(Message.user_id) == two_accounts.bob.user_id)
        .limit(1)
    )
    blob = await two_accounts.find_attachment_blob()
    await two_accounts.damage_rows(damage.sql, bobs_thread=bob_thread_row[0], piece=blob.id)

    failed_checks = set(damage.failed_checks.split())
    if two_accounts.environment.database.dialect == "postgresql":
        failed_checks |= set(damage.failed_checks_without_triggers.split())
    assert await two_accounts.failed_rules() == failed_checks
    assert await two_accounts.failed_rules(repair=True) == set(damage.unrepaired_checks.split())
    assert await two_accounts.failed_rules() == set(damage.unrepaired_checks.split())


async def test_damage_is_found_and_repaired(two_accounts: TwoAccountsWithMail) -> None:
    for case in each_case(damage for damage in STORE_DAMAGES if not damage.unrepaired_checks):
        with case as damage:
            await check_damage(two_accounts, damage)


@pytest.mark.parametrize(
    "damage",
    [damage for damage in STORE_DAMAGES if damage.unrepaired_checks],
    ids=lambda damage: damage.name,
)
async def test_damage_that_has_no_repair_is_found(
    two_accounts: TwoAccountsWithMail, damage: StoreDamage
) -> None:
    await check_damage(two_accounts, damage)


async def test_two_messages_with_one_uid_are_found(two_accounts: TwoAccountsWithMail) -> None:
    await two_accounts.damage_rows(
        "DROP INDEX messages_by_uid",
        "UPDATE messages SET uid = 1 WHERE mailbox_id = {ada.inbox_id}",
    )
    try:
        assert await two_accounts.failed_rules() == {"counters.messages_of_one_uid"}
        assert await two_accounts.failed_rules(repair=True) == {"counters.messages_of_one_uid"}
    finally:
        await two_accounts.damage_rows(
            "UPDATE messages SET uid = modseq",
            "CREATE UNIQUE INDEX messages_by_uid ON messages (mailbox_id, uid)",
        )
    assert await two_accounts.failed_rules() == set()


async def test_repair_is_recorded_in_the_journal(two_accounts: TwoAccountsWithMail) -> None:
    await two_accounts.damage_rows(
        "UPDATE mailboxes SET message_count = 77", "UPDATE users SET used = 77"
    )
    report = await check_consistency(two_accounts.environment, repair=True)
    assert all(finding.repaired for finding in report.findings)
    assert len(report.findings) == 6

    statement = select(*select_columns(Change)).where(
        col(Change.stream_id) == two_accounts.ada.user_id
    )
    changes = await two_accounts.environment.database.read(statement.order_by(col(Change.last)))
    mailbox_change, user_change = changes[-2:]
    assert mailbox_change.type is EventType.MAILBOX_UPDATED
    assert set(mailbox_change.ids) == {two_accounts.ada.inbox_id, two_accounts.ada.notes_id}
    assert (user_change.type, user_change.ids) == (
        EventType.USER_UPDATED,
        [two_accounts.ada.user_id],
    )


async def test_finding_names_object_expected_and_found_value(
    two_accounts: TwoAccountsWithMail,
) -> None:
    await two_accounts.damage_rows(UPDATE_INBOX.format("message_count = 9"))
    (finding,) = json.loads(
        json.dumps((await check_consistency(two_accounts.environment)).to_json())
    )["findings"]
    assert finding == {
        "subject": "counters",
        "rule": "message_count",
        "object": f"mailboxes/{two_accounts.ada.inbox_id}",
        "expected": 4,
        "found": 9,
        "repairable": True,
        "repaired": False,
    }


def remove_file(path: Path) -> None:
    path.unlink()


def truncate_file(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def change_last_byte(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1] + b"?")


@pytest.mark.parametrize(
    ("damage_file", "expected_rule", "expected_without_blobs"),
    [
        (remove_file, "object", {"blobs.object"}),
        (truncate_file, "readable", {"blobs.readable"}),
        (change_last_byte, "digest", set()),
    ],
)
async def test_damaged_object_is_found_with_its_message(
    two_accounts: TwoAccountsWithMail,
    damage_file: Callable[[Path], None],
    expected_rule: str,
    expected_without_blobs: set[str],
) -> None:
    blob = await two_accounts.find_attachment_blob()
    damage_file(two_accounts.folder / blob.name)
    report = await check_consistency(two_accounts.environment, repair=True)
    rules_and_objects = {(finding.rule, finding.object) for finding in report.unrepaired_findings}
    assert rules_and_objects == {
        (expected_rule, f"blobs/{blob.id}"),
        ("whole", f"messages/{two_accounts.messages[2]}"),
        ("whole", f"submissions/{two_accounts.submission}"),
    }
    assert await two_accounts.failed_rules(reads_blobs=False) == expected_without_blobs


async def test_missing_object_of_an_upload_is_found(two_accounts: TwoAccountsWithMail) -> None:
    now = two_accounts.environment.now()
    upload = Upload(
        id=two_accounts.environment.new_id(),
        user_id=two_accounts.ada.user_id,
        size=3,
        digest="",
        content_type="text/plain",
        blob_name="ab/abc.1",
        created_at=now,
        expires_at=now,
    )
    async with two_accounts.environment.write_session() as session:
        session.add(upload)
    assert await two_accounts.failed_rules() == {"blobs.object"}
    await two_accounts.environment.object_store.put("ab/abc.1", b"abc")
    assert await two_accounts.failed_rules() == set()


async def test_garbage_is_counted_and_no_finding(two_accounts: TwoAccountsWithMail) -> None:
    await two_accounts.environment.object_store.put("ab/abc.1", b"abc")
    await two_accounts.damage_rows(
        "INSERT INTO delivery_receipts (digest, message_id, at) "
        "VALUES ('x', 1, '2029-01-01 00:00:00')",
        search_row_insert(two_accounts.environment, 5),
        search_row_insert(two_accounts.environment, two_accounts.messages[0]),
    )
    report = await check_consistency(two_accounts.environment)
    assert report.findings == []
    names = ("garbage_objects", "garbage_bytes", "old_receipts", "search_rows", "dead_search_rows")
    assert [report.figures[name] for name in names] == [1, 3, 1, 2, 1]


async def test_indexed_message_in_the_search_index_has_no_finding(
    two_accounts: TwoAccountsWithMail,
) -> None:
    await two_accounts.damage_rows(
        search_row_insert(two_accounts.environment, two_accounts.messages[0]),
        UPDATE_FIRST_MESSAGE.format("indexed = true"),
    )
    assert await two_accounts.failed_rules() == set()


def search_row_insert(environment: Environment, row_id: int) -> str:
    column, value = (
        ("owner", "u1u") if environment.database.dialect == "sqlite" else ("words", "u1u")
    )
    return f"INSERT INTO {TABLE_NAME} (rowid, {column}) VALUES ({row_id}, '{value}')"  # noqa: S608


@pytest.mark.parametrize(
    ("states", "state"),
    [
        (("DELIVERED", "RELAYED"), SubmissionState.SENT),
        (("DELIVERED", "BOUNCED"), SubmissionState.PARTIAL),
        (("EXPIRED", "BOUNCED"), SubmissionState.FAILED),
        (("CANCELLED", "CANCELLED"), SubmissionState.CANCELLED),
    ],
)
async def test_repair_derives_submission_state_from_queue_entries(
    two_accounts: TwoAccountsWithMail, states: tuple[str, str], state: SubmissionState
) -> None:
    pending_update, delivered_update = (
        f"UPDATE queue_entries SET state = '{new}', next_at = NULL WHERE state = '{old}'"  # noqa: S608
        for new, old in zip(states, ("PENDING", "DELIVERED"), strict=True)
    )
    await two_accounts.damage_rows(delivered_update, pending_update)
    (finding,) = (await check_consistency(two_accounts.environment, repair=True)).findings
    assert (finding.rule, finding.expected, finding.repaired) == ("state", state, True)
    (row,) = await two_accounts.environment.database.read(select(col(Submission.state)))
    assert row.state is state


async def test_key_ranges_of_any_size_find_the_same_rows(two_accounts: TwoAccountsWithMail) -> None:
    await two_accounts.damage_rows("UPDATE mailboxes SET message_count = 77, unseen_count = 77")
    check_run = CheckRun(two_accounts.environment, None)
    small_range_rows = [
        await find_broken_rows(check_run, replace(check, keys_per_statement=1))
        for check in mailbox_checks()
    ]
    large_range_rows = [await find_broken_rows(check_run, check) for check in mailbox_checks()]
    keys = [
        [(broken_row.key, len(broken_row.findings)) for broken_row in broken_rows]
        for broken_rows in small_range_rows
    ]
    assert keys == [
        [(broken_row.key, len(broken_row.findings)) for broken_row in broken_rows]
        for broken_rows in large_range_rows
    ]
    assert len(keys[0]) == 4


async def test_key_ranges_cover_all_rows_once(two_accounts: TwoAccountsWithMail) -> None:
    progress: list[tuple[str, int, int | None]] = []
    check_run = CheckRun(two_accounts.environment, lambda *step: progress.append(step))
    ranges = [
        key_range
        async for key_range in iterate_key_ranges_with_progress(check_run, "some", Message, 4)
    ]
    assert len(ranges) == 2
    assert ranges[0][1] == ranges[1][0]
    assert progress == [("some", 4, 6), ("some", 6, 6)]


async def test_statement_count_does_not_depend_on_message_count(
    two_accounts: TwoAccountsWithMail, statements: list[str]
) -> None:
    async def count_statements() -> int:
        del statements[:]
        await check_consistency(two_accounts.environment)
        return len([statement for statement in statements if "blobs.codec" not in statement])

    count_before = await count_statements()
    for number in range(20):
        await two_accounts.ada.deliver(message_with_subject(f"more {number}"))
    assert await count_statements() == count_before


async def test_concurrent_deliveries_cause_no_findings(two_accounts: TwoAccountsWithMail) -> None:
    async def deliver() -> None:
        for number in range(40):
            await two_accounts.bob.deliver(
                message_with_subject(f"more {number}", attachment_size=6000 if number % 9 else 0)
            )

    deliveries = asyncio.create_task(deliver())
    while not deliveries.done():
        assert await two_accounts.failed_rules() == set()
    await deliveries
    assert (await check_consistency(two_accounts.environment)).checked_counts["messages"] == 46
