"""Connector runs with a Dovecot server: folders, flags, dates, deletion and limits."""

from datetime import timedelta

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
from tests.conftest import GraphQLClient, ManualClock, raw_message
from tests.support.operations.connector_operations import (
    again,
    connector,
    far,
    message,
    ran,
    row_of,
    server,
    stored,
    trial,
)
from tests.support.servers.dovecot_server import PASSWORD, DovecotAccount

pytestmark = pytest.mark.usefixtures("verify_consistency")
__all__ = ["far", "server"]


async def test_all_folders_are_fetched_once(ada: GraphQLClient, far: DovecotAccount) -> None:
    far.save_message(raw_message("One"))
    far.save_message(raw_message("Two"))
    far.save_message(raw_message("Mine"), "Sent")
    far.save_message(raw_message("Deep"), "Größe/Tief")
    far.save_message(raw_message("Bad"), "Spam")
    connector_id = await connector(ada, far, exclude="(?i)spam|(?i)junk")
    run = await ran(ada.environment, connector_id)
    assert (run.state, run.error) == (TaskState.SUCCEEDED, None), run.log
    assert (run.seen, run.imported, run.skipped) == (4, 4, 0)
    assert await stored(ada.environment) == {
        "INBOX": ["One", "Two"], "Sent": ["Mine"], "Größe/Tief": ["Deep"]
    }  # fmt: skip
    second_run = await again(ada.environment, connector_id)
    assert (second_run.state, second_run.seen, second_run.imported) == (
        TaskState.SUCCEEDED,
        4,
        0,
    ), second_run.log
    far.save_message(raw_message("Three"))
    third_run = await again(ada.environment, connector_id)
    assert (third_run.seen, third_run.imported) == (5, 1)
    assert (await stored(ada.environment))["INBOX"] == ["One", "Two", "Three"]


async def test_flags_and_dates_are_fetched_and_synchronized(
    ada: GraphQLClient, far: DovecotAccount
) -> None:
    far.save_message(raw_message("Old"))
    far.save_message(raw_message("Read"))
    far.run_doveadm("flags add", "\\Seen \\Flagged $Work", "mailbox", "INBOX", "subject", "Read")
    connector_id = await connector(ada, far)
    await ran(ada.environment, connector_id)
    date_line = far.run_doveadm(
        "fetch", "date.received", "mailbox", "INBOX", "subject", "Old"
    ).decode()
    old_message, read_message = (
        await message(ada.environment, "Old"),
        await message(ada.environment, "Read"),
    )
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
    far.run_doveadm("flags add", "\\Seen", "mailbox", "INBOX", "subject", "Old")
    far.run_doveadm("flags remove", "$Work", "mailbox", "INBOX", "subject", "Read")
    await again(ada.environment, connector_id)
    old_message, read_message = (
        await message(ada.environment, "Old"),
        await message(ada.environment, "Read"),
    )
    assert (old_message.seen, old_message.flagged) == (True, True)
    assert (read_message.seen, read_message.keywords) == (True, [])
    # NO_FLAGS leaves the flags unchanged.
    far.run_doveadm("flags remove", "\\Seen", "mailbox", "INBOX", "subject", "Old")
    await again(ada.environment, connector_id, custom_options=[{"name": "NO_FLAGS", "value": ""}])
    assert (await message(ada.environment, "Old")).seen


async def test_changed_uidvalidity_does_not_fetch_again(
    ada: GraphQLClient, far: DovecotAccount
) -> None:
    for name in ("One", "Two", "Two", "Three"):
        far.save_message(raw_message(name), "Work")
    connector_id = await connector(ada, far, remove_duplicates=False)
    first_run = await ran(ada.environment, connector_id)
    assert first_run.imported == 4
    far.run_doveadm("mailbox delete", "Work")
    far.created_mailboxes.discard((far.user, "Work"))
    for name in ("Three", "Two", "Two", "New"):
        far.save_message(raw_message(name), "Work")
    far.run_doveadm("flags add", "\\Seen", "mailbox", "Work", "subject", "Three")
    run = await again(ada.environment, connector_id)
    assert (run.imported, run.skipped) == (1, 3), run.log
    assert (await stored(ada.environment))["Work"] == ["One", "Two", "Two", "Three", "New"]
    # A message that is matched by its content keeps its flags synchronized.
    far.run_doveadm("flags add", "\\Flagged", "mailbox", "Work", "subject", "Three")
    await again(ada.environment, connector_id)
    assert (await message(ada.environment, "Three")).flagged
    fetched_rows = await ada.environment.database.read(select(*select_columns(FetchedMessage)))
    assert sum(":" in row.mark for row in fetched_rows) == 1  # the deleted remote message


async def test_duplicates_are_skipped(ada: GraphQLClient, far: DovecotAccount) -> None:
    for folder in ("INBOX", "INBOX", "Copies"):
        far.save_message(raw_message("Same"), folder)
    connector_id = await connector(ada, far, skip_cross_duplicates=True)
    run = await ran(ada.environment, connector_id)
    assert (run.imported, run.skipped) == (1, 2)
    assert await stored(ada.environment) == {"INBOX": ["Same"]}
    other_id = await connector(ada, far)
    run = await ran(ada.environment, other_id)
    assert (run.imported, run.skipped) == (1, 2)
    assert await stored(ada.environment) == {"INBOX": ["Same"], "Copies": ["Same"]}
    third_id = await connector(ada, far, remove_duplicates=False)
    assert (await ran(ada.environment, third_id)).imported == 3


@pytest.mark.parametrize("protocol", list(ConnectorProtocol)[:2])
async def test_fetched_messages_are_deleted_remotely_after_retention(
    ada: GraphQLClient, far: DovecotAccount, clock: ManualClock, protocol: ConnectorProtocol
) -> None:
    far.save_message(raw_message("One"))
    far.save_message(raw_message("Two"))
    # another client set the flag
    far.run_doveadm("flags add", "\\Deleted", "mailbox", "INBOX", "subject", "Two")
    connector_id = await connector(ada, far, protocol=protocol, source_retention=86_400)
    run = await ran(ada.environment, connector_id)
    assert (run.imported, run.deleted_remote) == (2, 0), run.log
    assert far.count_messages() == 2
    clock.tick(days=1, seconds=1)
    far.save_message(raw_message("Three"))
    far.run_doveadm("flags remove", "\\Deleted", "mailbox", "INBOX", "subject", "Two")
    run = await again(ada.environment, connector_id)
    assert (run.imported, run.deleted_remote) == (1, 2), run.log
    assert far.count_messages() == 1
    run = await again(ada.environment, connector_id, source_retention=0)
    assert (run.imported, run.deleted_remote, far.count_messages()) == (0, 1, 0)
    assert await stored(ada.environment) == {"INBOX": ["One", "Two", "Three"]}


async def test_messages_marked_deleted_by_others_are_not_expunged(
    ada: GraphQLClient, far: DovecotAccount
) -> None:
    far.save_message(raw_message("Old"))
    connector_id = await connector(ada, far, source_retention=0, max_age=3600 * 24 * 36_500)
    far.run_doveadm("flags add", "\\Deleted", "mailbox", "INBOX", "all")
    await ran(ada.environment, connector_id)
    far.save_message(raw_message("Marked"))
    far.run_doveadm("flags add", "\\Deleted", "mailbox", "INBOX", "all")
    run = await again(
        ada.environment, connector_id, custom_options=[{"name": "MIN_AGE", "value": "P9000D"}]
    )
    assert run.imported == 0
    assert far.count_messages() == 1


async def test_mirror_deletes_archives_remotely_deleted_messages(
    ada: GraphQLClient, far: DovecotAccount
) -> None:
    for name in ("One", "Two", "Three"):
        far.save_message(raw_message(name))
    connector_id = await connector(ada, far, mirror_deletes=True)
    await ran(ada.environment, connector_id)
    far.run_doveadm("expunge", "mailbox", "INBOX", "subject", "Two")
    await again(ada.environment, connector_id)
    assert await stored(ada.environment) == {"INBOX": ["One", "Three"]}
    deleted_message = await message(ada.environment, "Two")
    assert deleted_message.archived_at is not None
    assert deleted_message.archived_from == "INBOX"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"max_age": 3600}, []),  # by the clock of the test, all messages are years old
        ({"max_age": 86_400 * 36_500}, ["Large", "News", "Small"]),
        ({"custom_options": [{"name": "MIN_AGE", "value": "P36500D"}]}, []),
        ({"custom_options": [{"name": "MAX_SIZE", "value": "10000"}]}, ["News", "Small"]),
        ({"custom_options": [{"name": "MIN_SIZE", "value": "10 kB"}]}, ["Large"]),
        ({"custom_options": [{"name": "INCLUDE", "value": "^Lists"}]}, ["News"]),
        ({"custom_options": [{"name": "INCLUDE_MASK", "value": "lists*"}]}, ["News"]),
        ({"custom_options": [{"name": "EXCLUDE_MASK", "value": "Lists*"}]}, ["Large", "Small"]),
        ({"custom_options": [{"name": "SUBSCRIBED", "value": "true"}]}, ["Large", "Small"]),
    ],
)
async def test_selection_options_limit_fetched_messages(
    ada: GraphQLClient, far: DovecotAccount, arguments: dict[str, object], expected: list[str]
) -> None:
    far.save_message(raw_message("Small"))
    far.save_message(raw_message("Large", body="x" * 20_000))
    far.save_message(raw_message("News"), "Lists/News")
    connector_id = await connector(ada, far, **arguments)
    run = await ran(ada.environment, connector_id)
    assert run.state is TaskState.SUCCEEDED, run.log
    subjects_found = sorted(
        subject for subjects in (await stored(ada.environment)).values() for subject in subjects
    )
    assert subjects_found == expected


@pytest.mark.parametrize("uses_dry_option", [True, False])
async def test_dry_run_stores_and_deletes_nothing(
    ada: GraphQLClient, far: DovecotAccount, *, uses_dry_option: bool
) -> None:
    far.save_message(raw_message("One"))
    far.save_message(raw_message("Two"), "Work")
    options = [{"name": "DRY", "value": ""}] if uses_dry_option else []
    connector_id = await connector(ada, far, custom_options=options, source_retention=0)
    if not uses_dry_option:
        await ran(ada.environment, connector_id)
        far.save_message(raw_message("Three"))
        await trial(ada.environment, ada.user.id, connector_id)
    run = await ran(ada.environment, connector_id)
    assert run.state is TaskState.SUCCEEDED, run.log
    assert (run.imported, run.deleted_remote) == ((2, 0) if uses_dry_option else (1, 0))
    assert await stored(ada.environment) == (
        {} if uses_dry_option else {"INBOX": ["One"], "Work": ["Two"]}
    )
    assert far.count_messages() == 1  # without the dry run, One would be deleted and Three fetched


async def test_folders_are_mapped_and_rewritten(ada: GraphQLClient, far: DovecotAccount) -> None:
    far.save_message(raw_message("In"))
    far.save_message(raw_message("Out"), "Sent")
    far.save_message(raw_message("Gone"), "Deleted Items")
    far.save_message(raw_message("Job"), "Work/2029")
    rewrites = [{"pattern": "^Work/([0-9]+)$", "replacement": "Jobs/of $1"}]
    connector_id = await connector(ada, far, folder_rewrites=rewrites)
    await ran(ada.environment, connector_id)
    assert await stored(ada.environment) == {
        "INBOX": ["In"], "Sent": ["Out"], "Trash": ["Gone"], "Jobs/of 2029": ["Job"]
    }  # fmt: skip
    external_id = await connector(ada, far, target_folder="External", subscribe_all=False)
    await ran(ada.environment, external_id)
    subjects_by_path = await stored(ada.environment)
    assert subjects_by_path["External/INBOX"] == ["In"]
    assert subjects_by_path["External/Work/2029"] == ["Job"]
    statement = select(col(Mailbox.path), col(Mailbox.subscribed))
    subscribed_by_path = {
        row.path: row.subscribed for row in await ada.environment.database.read(statement)
    }
    assert subscribed_by_path["Jobs/of 2029"] is True
    assert subscribed_by_path["External/Work/2029"] is False


async def test_pop3_fetches_each_message_once(ada: GraphQLClient, far: DovecotAccount) -> None:
    far.save_message(raw_message("One", body=".\r\n..dots\r\n."))
    far.save_message(raw_message("Two"))
    connector_id = await connector(ada, far, protocol=ConnectorProtocol.POP3)
    run = await ran(ada.environment, connector_id)
    assert (run.state, run.imported) == (TaskState.SUCCEEDED, 2), run.log
    assert await stored(ada.environment) == {"INBOX": ["One", "Two"]}
    assert (await message(ada.environment, "One")).size == len(
        raw_message("One", body=".\r\n..dots\r\n.")
    )
    far.save_message(raw_message("Three"))
    run = await again(ada.environment, connector_id)
    assert (run.imported, run.seen) == (1, 3)


async def test_refused_password_is_reported_and_delays_retries(
    ada: GraphQLClient, far: DovecotAccount
) -> None:
    connector_id = await connector(ada, far, password="not-this-one", interval=600)  # noqa: S106
    for failures, delay in ((1, 600), (2, 1200), (3, 2400), (4, 3600), (5, 3600)):
        run = await again(ada.environment, connector_id)
        row = await row_of(ada.environment, connector_id)
        assert (run.state, run.stage) == (TaskState.FAILED, "LOGIN")
        assert row.failures == failures
        assert row.last_error == run.error
        assert row.next_run_at == ada.environment.now() + timedelta(seconds=delay)
        assert "not-this-one" not in f"{run} {row}"
    far.save_message(raw_message("One"))
    secret = credentials.encrypt_secret(ada.environment, connector_id, {"password": PASSWORD})
    run = await again(ada.environment, connector_id, secret=secret)
    row = await row_of(ada.environment, connector_id)
    assert (run.state, row.failures, row.last_error) == (TaskState.SUCCEEDED, 0, None)
    assert row.next_run_at == ada.environment.now() + timedelta(seconds=600)


async def test_full_account_stores_what_fits(ada: GraphQLClient, far: DovecotAccount) -> None:
    for name in range(5):
        far.save_message(raw_message(f"Nr {name}", body="x" * 50_000))
    await set_quota(ada.environment, ada.user.id, 170_000)
    connector_id = await connector(ada, far)
    run = await ran(ada.environment, connector_id)
    assert (run.state, run.stage) == (TaskState.FAILED, "STORE"), run.log
    assert (run.imported, len((await stored(ada.environment))["INBOX"])) == (3, 3)
    await set_quota(ada.environment, ada.user.id, 1 << 30)
    run = await again(ada.environment, connector_id)
    assert (run.state, run.imported) == (TaskState.SUCCEEDED, 2)
    assert sorted((await stored(ada.environment))["INBOX"]) == [f"Nr {name}" for name in range(5)]


async def set_quota(environment: Environment, user_id: int, quota: int) -> None:
    async with environment.write_session() as session:
        statement = update(core_table(User)).where(col(User.id) == user_id)
        await (await session.connection()).execute(statement.values(quota=quota))
