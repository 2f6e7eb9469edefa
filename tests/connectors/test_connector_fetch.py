"""Connector runs with a Dovecot server: folders, flags, dates, deletion and limits."""

from datetime import timedelta
from itertools import chain

import httpx
import pytest
from sqlalchemy import select, update
from sqlmodel import col

from models.admin.tasks import TaskState
from models.connectors import ConnectorProtocol, FetchedMessage
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.store.columns import core_table, select_columns
from models.users.tables import User
from resolvers.connectors import credentials
from tests.conftest import GraphQLClient, ManualClock, make_client, raw_message
from tests.support.accounts import import_runs
from tests.support.case_loop import each_case
from tests.support.operations.connector_operations import (
    add_connector,
    dovecot_account,
    load_connector_row,
    load_message_row,
    load_subjects_by_mailbox,
    request_trial_run,
    rerun_connector,
    run_connector,
    shared_dovecot,
)
from tests.support.servers.dovecot_server import PASSWORD, DovecotAccount

pytestmark = pytest.mark.usefixtures("verify_consistency")
__all__ = ["dovecot_account", "shared_dovecot"]


async def test_all_folders_are_fetched_once(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    dovecot_account.save_message(raw_message("One"))
    dovecot_account.save_message(raw_message("Two"))
    dovecot_account.save_message(raw_message("Mine"), "Sent")
    dovecot_account.save_message(raw_message("Deep"), "Größe/Tief")
    dovecot_account.save_message(raw_message("Bad"), "Spam")
    connector_id = await add_connector(ada, dovecot_account, exclude="(?i)spam|(?i)junk")
    run = await run_connector(ada.environment, connector_id)
    assert (run.state, run.error) == (TaskState.SUCCEEDED, None), run.log
    assert (run.seen_count, run.imported_count, run.skipped_count) == (4, 4, 0)
    assert await load_subjects_by_mailbox(ada.environment) == {
        "INBOX": ["One", "Two"], "Sent": ["Mine"], "Größe/Tief": ["Deep"]
    }  # fmt: skip
    second_run = await rerun_connector(ada.environment, connector_id)
    assert (second_run.state, second_run.seen_count, second_run.imported_count) == (
        TaskState.SUCCEEDED,
        4,
        0,
    ), second_run.log
    dovecot_account.save_message(raw_message("Three"))
    third_run = await rerun_connector(ada.environment, connector_id)
    assert (third_run.seen_count, third_run.imported_count) == (5, 1)
    assert (await load_subjects_by_mailbox(ada.environment))["INBOX"] == ["One", "Two", "Three"]


async def test_flags_and_dates_are_fetched_and_synchronized(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    dovecot_account.save_message(raw_message("Old"))
    dovecot_account.save_message(raw_message("Read"))
    dovecot_account.run_doveadm(
        "flags add", "\\Seen \\Flagged $Work", "mailbox", "INBOX", "subject", "Read"
    )
    connector_id = await add_connector(ada, dovecot_account)
    await run_connector(ada.environment, connector_id)
    date_line = dovecot_account.run_doveadm(
        "fetch", "date.received", "mailbox", "INBOX", "subject", "Old"
    ).decode()
    old_message = await load_message_row(ada.environment, "Old")
    read_message = await load_message_row(ada.environment, "Read")
    assert date_line.split(maxsplit=1)[1].startswith(f"{old_message.received_at:%Y-%m-%d %H:%M:%S}")
    assert (old_message.seen, old_message.flagged, old_message.keywords) == (False, False, [])
    assert (read_message.seen, read_message.flagged, read_message.keywords) == (
        True,
        True,
        ["$Work"],
    )
    # Local and remote flags are merged.
    async with ada.environment.write_session() as session:
        statement = update(core_table(Message)).where(col(Message.id) == old_message.id)
        await (await session.connection()).execute(statement.values(flagged=True))
    dovecot_account.run_doveadm("flags add", "\\Seen", "mailbox", "INBOX", "subject", "Old")
    dovecot_account.run_doveadm("flags remove", "$Work", "mailbox", "INBOX", "subject", "Read")
    await rerun_connector(ada.environment, connector_id)
    old_message = await load_message_row(ada.environment, "Old")
    read_message = await load_message_row(ada.environment, "Read")
    assert (old_message.seen, old_message.flagged) == (True, True)
    assert (read_message.seen, read_message.keywords) == (True, [])
    # NO_FLAGS leaves the flags unchanged.
    dovecot_account.run_doveadm("flags remove", "\\Seen", "mailbox", "INBOX", "subject", "Old")
    await rerun_connector(
        ada.environment, connector_id, custom_options=[{"name": "NO_FLAGS", "value": ""}]
    )
    assert (await load_message_row(ada.environment, "Old")).seen


async def test_changed_uidvalidity_does_not_fetch_again(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    for name in ("One", "Two", "Two", "Three"):
        dovecot_account.save_message(raw_message(name), "Work")
    connector_id = await add_connector(ada, dovecot_account, remove_duplicates=False)
    first_run = await run_connector(ada.environment, connector_id)
    assert first_run.imported_count == 4
    dovecot_account.run_doveadm("mailbox delete", "Work")
    dovecot_account.created_mailboxes.discard((dovecot_account.user, "Work"))
    for name in ("Three", "Two", "Two", "New"):
        dovecot_account.save_message(raw_message(name), "Work")
    dovecot_account.run_doveadm("flags add", "\\Seen", "mailbox", "Work", "subject", "Three")
    run = await rerun_connector(ada.environment, connector_id)
    assert (run.imported_count, run.skipped_count) == (1, 3), run.log
    assert (await load_subjects_by_mailbox(ada.environment))["Work"] == [
        "One",
        "Two",
        "Two",
        "Three",
        "New",
    ]
    # A message that is matched by its content keeps its flags synchronized.
    dovecot_account.run_doveadm("flags add", "\\Flagged", "mailbox", "Work", "subject", "Three")
    await rerun_connector(ada.environment, connector_id)
    assert (await load_message_row(ada.environment, "Three")).flagged
    fetched_rows = await ada.environment.database.read(select(*select_columns(FetchedMessage)))
    assert sum(":" in row.remote_id for row in fetched_rows) == 1  # the deleted remote message


async def test_duplicates_are_skipped(ada: GraphQLClient, dovecot_account: DovecotAccount) -> None:
    for folder in ("INBOX", "INBOX", "Copies"):
        dovecot_account.save_message(raw_message("Same"), folder)
    connector_id = await add_connector(ada, dovecot_account, skip_cross_duplicates=True)
    run = await run_connector(ada.environment, connector_id)
    assert (run.imported_count, run.skipped_count) == (1, 2)
    assert await load_subjects_by_mailbox(ada.environment) == {"INBOX": ["Same"]}
    other_id = await add_connector(ada, dovecot_account)
    run = await run_connector(ada.environment, other_id)
    assert (run.imported_count, run.skipped_count) == (1, 2)
    assert await load_subjects_by_mailbox(ada.environment) == {
        "INBOX": ["Same"],
        "Copies": ["Same"],
    }
    third_id = await add_connector(ada, dovecot_account, remove_duplicates=False)
    assert (await run_connector(ada.environment, third_id)).imported_count == 3


@pytest.mark.parametrize("protocol", list(ConnectorProtocol)[:2])
async def test_fetched_messages_are_deleted_remotely_after_retention(
    ada: GraphQLClient,
    dovecot_account: DovecotAccount,
    clock: ManualClock,
    protocol: ConnectorProtocol,
) -> None:
    dovecot_account.save_message(raw_message("One"))
    dovecot_account.save_message(raw_message("Two"))
    # another client set the flag
    dovecot_account.run_doveadm("flags add", "\\Deleted", "mailbox", "INBOX", "subject", "Two")
    connector_id = await add_connector(
        ada, dovecot_account, protocol=protocol, source_retention=86_400
    )
    run = await run_connector(ada.environment, connector_id)
    assert (run.imported_count, run.deleted_remote_count) == (2, 0), run.log
    assert dovecot_account.count_messages() == 2
    clock.tick(days=1, seconds=1)
    dovecot_account.save_message(raw_message("Three"))
    dovecot_account.run_doveadm("flags remove", "\\Deleted", "mailbox", "INBOX", "subject", "Two")
    run = await rerun_connector(ada.environment, connector_id)
    assert (run.imported_count, run.deleted_remote_count) == (1, 2), run.log
    assert dovecot_account.count_messages() == 1
    run = await rerun_connector(ada.environment, connector_id, source_retention=0)
    assert (run.imported_count, run.deleted_remote_count, dovecot_account.count_messages()) == (
        0,
        1,
        0,
    )
    assert await load_subjects_by_mailbox(ada.environment) == {"INBOX": ["One", "Two", "Three"]}


async def test_messages_marked_deleted_by_others_are_not_expunged(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    dovecot_account.save_message(raw_message("Old"))
    connector_id = await add_connector(
        ada, dovecot_account, source_retention=0, max_age=3600 * 24 * 36_500
    )
    dovecot_account.run_doveadm("flags add", "\\Deleted", "mailbox", "INBOX", "all")
    await run_connector(ada.environment, connector_id)
    dovecot_account.save_message(raw_message("Marked"))
    dovecot_account.run_doveadm("flags add", "\\Deleted", "mailbox", "INBOX", "all")
    run = await rerun_connector(
        ada.environment, connector_id, custom_options=[{"name": "MIN_AGE", "value": "P9000D"}]
    )
    assert run.imported_count == 0
    assert dovecot_account.count_messages() == 1


async def test_mirror_deletes_archives_remotely_deleted_messages(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    for name in ("One", "Two", "Three"):
        dovecot_account.save_message(raw_message(name))
    connector_id = await add_connector(ada, dovecot_account, mirror_deletes=True)
    await run_connector(ada.environment, connector_id)
    dovecot_account.run_doveadm("expunge", "mailbox", "INBOX", "subject", "Two")
    await rerun_connector(ada.environment, connector_id)
    assert await load_subjects_by_mailbox(ada.environment) == {"INBOX": ["One", "Three"]}
    deleted_message = await load_message_row(ada.environment, "Two")
    assert deleted_message.deleted_at is not None
    assert deleted_message.deleted_from == "INBOX"


async def test_message_that_is_moved_back_remotely_is_stored_again(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    dovecot_account.save_message(raw_message("One"))
    connector_id = await add_connector(ada, dovecot_account, mirror_deletes=True)
    await run_connector(ada.environment, connector_id)
    dovecot_account.run_doveadm("expunge", "mailbox", "INBOX", "subject", "One")
    await rerun_connector(ada.environment, connector_id)
    assert await load_subjects_by_mailbox(ada.environment) == {}
    dovecot_account.save_message(raw_message("One"))
    await rerun_connector(ada.environment, connector_id)
    assert await load_subjects_by_mailbox(ada.environment) == {"INBOX": ["One"]}


async def test_mirror_deletes_keeps_messages_that_are_too_old_after_renumbering(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    dovecot_account.save_message(raw_message("One"), "Work")
    connector_id = await add_connector(ada, dovecot_account, mirror_deletes=True)
    await run_connector(ada.environment, connector_id)
    dovecot_account.run_doveadm("mailbox delete", "Work")
    dovecot_account.created_mailboxes.discard((dovecot_account.user, "Work"))
    dovecot_account.save_message(raw_message("One"), "Work")
    await rerun_connector(ada.environment, connector_id, max_age=3600)
    assert await load_subjects_by_mailbox(ada.environment) == {"Work": ["One"]}


async def test_selection_options_limit_fetched_messages(
    environment: Environment, http: httpx.AsyncClient, dovecot_account: DovecotAccount
) -> None:
    dovecot_account.save_message(raw_message("Small"))
    dovecot_account.save_message(raw_message("Large", body="x" * 20_000))
    dovecot_account.save_message(raw_message("News"), "Lists/News")
    cases: list[tuple[dict[str, object], list[str]]] = [
        ({"max_age": 3600}, []),  # by the clock of the test, all messages are years old
        ({"max_age": 86_400 * 36_500}, ["Large", "News", "Small"]),
        ({"custom_options": [{"name": "MIN_AGE", "value": "P36500D"}]}, []),
        ({"custom_options": [{"name": "MAX_SIZE", "value": "10000"}]}, ["News", "Small"]),
        ({"custom_options": [{"name": "MIN_SIZE", "value": "10 kB"}]}, ["Large"]),
        ({"custom_options": [{"name": "INCLUDE", "value": "^Lists"}]}, ["News"]),
        ({"custom_options": [{"name": "INCLUDE_PATTERN", "value": "lists*"}]}, ["News"]),
        ({"custom_options": [{"name": "EXCLUDE_PATTERN", "value": "Lists*"}]}, ["Large", "Small"]),
        ({"custom_options": [{"name": "SUBSCRIBED", "value": "true"}]}, ["Large", "Small"]),
    ]
    for number, case in enumerate(each_case(cases)):
        with case as (arguments, expected):
            client = await make_client(environment, http, f"user{number}")
            connector_id = await add_connector(client, dovecot_account, **arguments)
            run = await run_connector(environment, connector_id)
            assert run.state is TaskState.SUCCEEDED, run.log
            subjects_by_mailbox = await import_runs.load_subjects_by_mailbox(client)
            assert sorted(chain.from_iterable(subjects_by_mailbox.values())) == expected


@pytest.mark.parametrize("uses_dry_option", [True, False])
async def test_dry_run_stores_and_deletes_nothing(
    ada: GraphQLClient, dovecot_account: DovecotAccount, *, uses_dry_option: bool
) -> None:
    dovecot_account.save_message(raw_message("One"))
    dovecot_account.save_message(raw_message("Two"), "Work")
    options = [{"name": "DRY_RUN", "value": ""}] if uses_dry_option else []
    connector_id = await add_connector(
        ada, dovecot_account, custom_options=options, source_retention=0
    )
    if not uses_dry_option:
        await run_connector(ada.environment, connector_id)
        dovecot_account.save_message(raw_message("Three"))
        await request_trial_run(ada.environment, ada.user.id, connector_id)
    run = await run_connector(ada.environment, connector_id)
    assert run.state is TaskState.SUCCEEDED, run.log
    assert (run.imported_count, run.deleted_remote_count) == ((2, 0) if uses_dry_option else (1, 0))
    assert await load_subjects_by_mailbox(ada.environment) == (
        {} if uses_dry_option else {"INBOX": ["One"], "Work": ["Two"]}
    )
    # without the dry run, One would be deleted and Three fetched
    assert dovecot_account.count_messages() == 1


async def test_folders_are_mapped_and_rewritten(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    dovecot_account.save_message(raw_message("In"))
    dovecot_account.save_message(raw_message("Out"), "Sent")
    dovecot_account.save_message(raw_message("Gone"), "Deleted Items")
    dovecot_account.save_message(raw_message("Job"), "Work/2029")
    rewrites = [{"pattern": "^Work/([0-9]+)$", "replacement": "Jobs/of $1"}]
    connector_id = await add_connector(ada, dovecot_account, folder_rewrites=rewrites)
    await run_connector(ada.environment, connector_id)
    assert await load_subjects_by_mailbox(ada.environment) == {
        "INBOX": ["In"], "Sent": ["Out"], "Trash": ["Gone"], "Jobs/of 2029": ["Job"]
    }  # fmt: skip
    external_id = await add_connector(
        ada, dovecot_account, target_folder="External", subscribe_all=False
    )
    await run_connector(ada.environment, external_id)
    subjects_by_path = await load_subjects_by_mailbox(ada.environment)
    assert subjects_by_path["External/INBOX"] == ["In"]
    assert subjects_by_path["External/Work/2029"] == ["Job"]
    statement = select(col(Mailbox.path), col(Mailbox.subscribed))
    subscribed_by_path = {
        row.path: row.subscribed for row in await ada.environment.database.read(statement)
    }
    assert subscribed_by_path["Jobs/of 2029"] is True
    assert subscribed_by_path["External/Work/2029"] is False


async def test_pop3_fetches_each_message_once(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    dovecot_account.save_message(raw_message("One", body=".\r\n..dots\r\n."))
    dovecot_account.save_message(raw_message("Two"))
    connector_id = await add_connector(ada, dovecot_account, protocol=ConnectorProtocol.POP3)
    run = await run_connector(ada.environment, connector_id)
    assert (run.state, run.imported_count) == (TaskState.SUCCEEDED, 2), run.log
    assert await load_subjects_by_mailbox(ada.environment) == {"INBOX": ["One", "Two"]}
    assert (await load_message_row(ada.environment, "One")).size == len(
        raw_message("One", body=".\r\n..dots\r\n.")
    )
    dovecot_account.save_message(raw_message("Three"))
    run = await rerun_connector(ada.environment, connector_id)
    assert (run.imported_count, run.seen_count) == (1, 3)


async def test_refused_password_is_reported_and_delays_retries(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    connector_id = await add_connector(ada, dovecot_account, password="not-this-one", interval=600)  # noqa: S106
    for failures, delay in ((1, 600), (2, 1200), (3, 2400), (4, 3600), (5, 3600)):
        run = await rerun_connector(ada.environment, connector_id)
        row = await load_connector_row(ada.environment, connector_id)
        assert (run.state, run.stage) == (TaskState.FAILED, "LOGIN")
        assert row.failures == failures
        assert row.last_error == run.error
        assert row.next_run_at == ada.environment.now() + timedelta(seconds=delay)
        assert "not-this-one" not in f"{run} {row}"
    dovecot_account.save_message(raw_message("One"))
    secret = credentials.encrypt_secret(ada.environment, connector_id, {"password": PASSWORD})
    run = await rerun_connector(ada.environment, connector_id, secret=secret)
    row = await load_connector_row(ada.environment, connector_id)
    assert (run.state, row.failures, row.last_error) == (TaskState.SUCCEEDED, 0, None)
    assert row.next_run_at == ada.environment.now() + timedelta(seconds=600)


async def test_full_account_stores_what_fits(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    for name in range(5):
        dovecot_account.save_message(raw_message(f"Nr {name}", body="x" * 50_000))
    await set_quota(ada.environment, ada.user.id, 170_000)
    connector_id = await add_connector(ada, dovecot_account)
    run = await run_connector(ada.environment, connector_id)
    assert (run.state, run.stage) == (TaskState.FAILED, "STORE"), run.log
    assert (
        run.imported_count,
        len((await load_subjects_by_mailbox(ada.environment))["INBOX"]),
    ) == (3, 3)
    await set_quota(ada.environment, ada.user.id, 1 << 30)
    run = await rerun_connector(ada.environment, connector_id)
    assert (run.state, run.imported_count) == (TaskState.SUCCEEDED, 2)
    assert sorted((await load_subjects_by_mailbox(ada.environment))["INBOX"]) == [
        f"Nr {name}" for name in range(5)
    ]


async def set_quota(environment: Environment, user_id: int, quota: int) -> None:
    async with environment.write_session() as session:
        statement = update(core_table(User)).where(col(User.id) == user_id)
        await (await session.connection()).execute(statement.values(quota=quota))
