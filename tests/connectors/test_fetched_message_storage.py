"""How fetched messages are stored: bytes, flags, encryption, quota and crashes."""

from datetime import datetime, timedelta

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from models.admin.tasks import TaskState
from models.events.event_types import EventType
from models.events.journal import Change
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.store.columns import core_table, select_columns
from models.users.tables import User
from tests.conftest import GraphQLClient, ManualClock, raw_message
from tests.support.accounts.openpgp_keys import armored_public_key, decrypt_message, make_secret_key
from tests.support.accounts.user_operations import set_user_columns
from tests.support.operations.connector_operations import (
    RETENTION,
    add_connector,
    dovecot_account,
    load_message_row,
    load_newest_run,
    load_subjects_by_mailbox,
    rerun_connector,
    run_connector,
    run_connectors_until_killed,
    shared_dovecot,
)
from tests.support.operations.filter_operations import create_filter
from tests.support.operations.quarantine_operations import CAROL_ADDRESS
from tests.support.operations.sieve_operations import put_sieve_script
from tests.support.servers.dovecot_server import DovecotAccount
from tests.support.stores.counter_check import select_rows
from tests.support.stores.other_processes import deregister_as_dead

__all__ = ["dovecot_account", "shared_dovecot"]
pytestmark = pytest.mark.usefixtures("verify_consistency")
MESSAGE_COUNT = 40  # messages of more than one batch


async def test_fetched_message_keeps_date_flags_and_bytes(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    await create_filter(ada)
    raw = raw_message("One", Return_Path=f"<{CAROL_ADDRESS}>")
    dovecot_account.save_message(raw)
    dovecot_account.run_doveadm(
        "flags add", "\\Seen \\Flagged \\Answered \\Draft $Mine", "mailbox", "INBOX", "all"
    )
    connector_id = await add_connector(ada, dovecot_account, apply_filters=True)
    await run_connector(ada.environment, connector_id)
    date_line = dovecot_account.run_doveadm(
        "fetch", "date.received", "mailbox", "INBOX", "all"
    ).decode()
    stored_message = await load_message_row(ada.environment, "One")
    assert date_line.split(maxsplit=1)[1].startswith(
        f"{stored_message.received_at:%Y-%m-%d %H:%M:%S}"
    )
    assert (
        stored_message.seen,
        stored_message.flagged,
        stored_message.answered,
        stored_message.draft,
    ) == (True, True, True, True)
    assert sorted(stored_message.keywords) == ["$Mine", "work"]
    document = (
        '{ viewer { user { mailbox(by: {path: "INBOX"}) { messages { nodes { rawSource } } } } } }'
    )
    (node,) = (await ada(document))["viewer"]["user"]["mailbox"]["messages"]["nodes"]
    assert node["rawSource"].encode() == raw
    # Flag changes are synchronized.
    dovecot_account.run_doveadm("flags remove", "\\Flagged", "mailbox", "INBOX", "all")
    await rerun_connector(ada.environment, connector_id)
    stored_message = await load_message_row(ada.environment, "One")
    assert (stored_message.seen, stored_message.flagged, sorted(stored_message.keywords)) == (
        True,
        False,
        ["$Mine", "work"],
    )


async def test_known_message_is_skipped_by_its_content(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    await create_filter(ada)
    dovecot_account.save_message(raw_message("One"))
    first_id = await add_connector(ada, dovecot_account, apply_filters=True)
    assert (await run_connector(ada.environment, first_id)).imported_count == 1
    for apply_filters in (True, False):
        other_id = await add_connector(ada, dovecot_account, apply_filters=apply_filters)
        run = await run_connector(ada.environment, other_id)
        assert (run.imported_count, run.skipped_count) == (0, 1)


@pytest.mark.parametrize("has_script", [True, False])
async def test_recent_messages_are_reported_as_received_after_the_first_run(
    ada: GraphQLClient, dovecot_account: DovecotAccount, *, has_script: bool
) -> None:
    script = 'require ["copy", "fileinto", "mailbox"]; fileinto :copy :create "Copies";'
    if has_script:
        await put_sieve_script(ada, script)
    now = ada.environment.now()
    dovecot_account.save_message(raw_message("Before"))
    dovecot_account.save_with_date(raw_message("First"), now - timedelta(hours=1))
    connector_id = await add_connector(ada, dovecot_account, apply_filters=True)
    await run_connector(ada.environment, connector_id)
    assert await load_received_subjects(ada) == []
    dovecot_account.save_with_date(raw_message("New"), now - timedelta(hours=1))
    dovecot_account.save_with_date(raw_message("Old"), now - timedelta(days=2))
    dovecot_account.save_with_date(raw_message("Read"), now - timedelta(hours=1), "S")
    run = await rerun_connector(ada.environment, connector_id)
    assert run.imported_count == 3, run.log
    # one event for each copy
    assert await load_received_subjects(ada) == ["New"] * (1 + has_script)
    ((received_count,),) = await select_rows(
        ada.environment, "SELECT received FROM users WHERE id = :id", id=ada.user.id
    )
    assert received_count == 1  # counted for the hourly limit
    for name, received_at in (("New", now - timedelta(hours=1)), ("Old", now - timedelta(days=2))):
        assert await load_received_times(ada.environment, name) == [received_at] * (1 + has_script)


async def load_received_subjects(client: GraphQLClient) -> list[str]:
    """Return the subjects of messages that events report as received."""
    statement = select(*select_columns(Change)).where(col(Change.stream_id) == client.user.id)
    message_ids = list[int]()
    for row in await client.environment.database.read(statement.order_by(col(Change.last))):
        if row.type is EventType.MESSAGE_RECEIVED:
            message_ids += row.ids
    subject_statement = select(col(Message.subject)).where(col(Message.id).in_(message_ids))
    return [row.subject for row in await client.environment.database.read(subject_statement)]


async def load_received_times(environment: Environment, subject: str) -> list[datetime]:
    """Return the received times of messages with this subject."""
    statement = select(col(Message.received_at)).where(col(Message.subject) == subject)
    return [row.received_at for row in await environment.database.read(statement)]


@pytest.mark.parametrize("are_checks_enabled", [True, False])
async def test_fetched_message_is_encrypted_if_the_account_encrypts(
    ada: GraphQLClient, dovecot_account: DovecotAccount, *, are_checks_enabled: bool
) -> None:
    key_pair = make_secret_key("Ada <ada@example.org>", seconds=400_000_000)
    await set_user_columns(
        ada, encrypt_messages=True, openpgp_public_key=armored_public_key(key_pair)
    )
    dovecot_account.save_message(raw_message("One", body="A secret."))
    dovecot_account.save_message(raw_message("Two"), "Work")
    checks = dict.fromkeys(("spam_check", "virus_check"), are_checks_enabled)
    run = await run_connector(ada.environment, await add_connector(ada, dovecot_account, **checks))
    assert (run.state, run.imported_count) == (TaskState.SUCCEEDED, 2), run.log
    document = (
        '{ viewer { user { mailbox(by: {path: "INBOX"}) { messages { nodes { rawSource } } } } } }'
    )
    (node,) = (await ada(document))["viewer"]["user"]["mailbox"]["messages"]["nodes"]
    assert "A secret." not in node["rawSource"]
    assert b"A secret." in decrypt_message(node["rawSource"].encode(), key_pair)


@pytest.mark.parametrize("fault_point", ["sifted", "commit", "fetched"])
@pytest.mark.parametrize("remove_duplicates", [True, False])
async def test_crash_loses_and_duplicates_no_messages(
    ada: GraphQLClient,
    dovecot_account: DovecotAccount,
    fault_point: str,
    *,
    remove_duplicates: bool,
) -> None:
    await create_filter(ada)
    names = [f"Nr {number}" for number in range(MESSAGE_COUNT)]
    dovecot_account.save_messages([raw_message(name) for name in names])
    connector_id = await add_connector(
        ada, dovecot_account, apply_filters=True, remove_duplicates=remove_duplicates, **RETENTION
    )
    await run_connectors_until_killed(
        ada.environment, 5 if fault_point == "commit" else 1, fault_point
    )
    assert (await load_newest_run(ada.environment, connector_id)).state is TaskState.RUNNING
    before = len((await load_subjects_by_mailbox(ada.environment)).get("INBOX", []))
    assert 0 < before < MESSAGE_COUNT
    assert dovecot_account.count_messages() == MESSAGE_COUNT
    await deregister_as_dead(ada.environment)
    run = await run_connector(ada.environment, connector_id)
    assert run.state is TaskState.SUCCEEDED, run.log
    assert sorted((await load_subjects_by_mailbox(ada.environment))["INBOX"]) == sorted(names)
    assert dovecot_account.count_messages() == 0


async def test_flags_of_messages_before_a_crash_are_synchronized(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    await create_filter(ada)
    for name in ("One", "Two"):
        dovecot_account.save_message(raw_message(name))
    connector_id = await add_connector(ada, dovecot_account, apply_filters=True)
    await run_connectors_until_killed(ada.environment, 1, "sifted")
    await deregister_as_dead(ada.environment)
    assert (await run_connector(ada.environment, connector_id)).imported_count == 2
    dovecot_account.run_doveadm("flags add", "\\Flagged", "mailbox", "INBOX", "all")
    await rerun_connector(ada.environment, connector_id)
    assert [(await load_message_row(ada.environment, name)).flagged for name in ("One", "Two")] == [
        True,
        True,
    ]


async def test_full_account_stores_what_fits_and_the_rest_later(
    ada: GraphQLClient, dovecot_account: DovecotAccount, clock: ManualClock
) -> None:
    await create_filter(ada)
    for number in range(5):
        dovecot_account.save_message(raw_message(f"Nr {number}", body="x" * 50_000))
    await set_quota(ada, 170_000)
    connector_id = await add_connector(
        ada, dovecot_account, apply_filters=True, remove_duplicates=False
    )
    run = await run_connector(ada.environment, connector_id)
    assert (run.state, run.stage, run.imported_count) == (TaskState.FAILED, "STORE", 3), run.log
    assert len(await load_fetched_subjects(ada)) == 3
    await set_quota(ada, 1 << 30)
    clock.tick(days=2)  # the delivery receipts have expired
    run = await rerun_connector(ada.environment, connector_id)
    assert (run.state, run.imported_count) == (TaskState.SUCCEEDED, 2), run.log
    assert await load_fetched_subjects(ada) == [f"Nr {number}" for number in range(5)]


async def test_duplicates_of_a_message_that_does_not_fit_stay_until_it_is_stored(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    for _ in range(2):
        dovecot_account.save_message(raw_message("Nr 1", body="x" * 50_000))
    await set_quota(ada, 10_000)
    connector_id = await add_connector(ada, dovecot_account, **RETENTION)
    run = await run_connector(ada.environment, connector_id)
    assert (run.state, run.imported_count, run.deleted_remote_count) == (TaskState.FAILED, 0, 0)
    await set_quota(ada, 1 << 30)
    run = await rerun_connector(ada.environment, connector_id)
    assert (run.state, run.imported_count) == (TaskState.SUCCEEDED, 1), run.log
    assert await load_fetched_subjects(ada) == ["Nr 1"]
    assert dovecot_account.count_messages() == 0


async def load_fetched_subjects(client: GraphQLClient) -> list[str]:
    """Return the subjects in INBOX without our messages about the quota."""
    return sorted(
        name
        for name in (await load_subjects_by_mailbox(client.environment))["INBOX"]
        if name[:3] == "Nr "
    )


async def set_quota(client: GraphQLClient, quota: int) -> None:
    async with client.environment.write_session() as session:
        statement = update(core_table(User)).where(col(User.id) == client.user.id)
        await (await session.connection()).execute(statement.values(quota=quota))
