"""Mail fetched from a real server, once and no more: folders, flags, dates, bytes."""

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
from tests.conftest import Client, Clock, raw_message
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

pytestmark = pytest.mark.usefixtures("examined")
__all__ = ["far", "server"]


async def test_all_folders_are_fetched_and_nothing_twice(ada: Client, far: DovecotAccount) -> None:
    far.save_message(raw_message("One"))
    far.save_message(raw_message("Two"))
    far.save_message(raw_message("Mine"), "Sent")
    far.save_message(raw_message("Deep"), "Größe/Tief")
    far.save_message(raw_message("Bad"), "Spam")
    key = await connector(ada, far, exclude="(?i)spam|(?i)junk")
    run = await ran(ada.world, key)
    assert (run.state, run.error) == (TaskState.SUCCEEDED, None), run.log
    assert (run.seen, run.imported, run.skipped) == (4, 4, 0)
    assert await stored(ada.world) == {
        "INBOX": ["One", "Two"], "Sent": ["Mine"], "Größe/Tief": ["Deep"]
    }  # fmt: skip
    second = await again(ada.world, key)
    assert (second.state, second.seen, second.imported) == (TaskState.SUCCEEDED, 4, 0), second.log
    far.save_message(raw_message("Three"))
    third = await again(ada.world, key)
    assert (third.seen, third.imported) == (5, 1)
    assert (await stored(ada.world))["INBOX"] == ["One", "Two", "Three"]


async def test_flags_and_dates_come_along_and_follow(ada: Client, far: DovecotAccount) -> None:
    far.save_message(raw_message("Old"))
    far.save_message(raw_message("Read"))
    far.run_doveadm("flags add", "\\Seen \\Flagged $Work", "mailbox", "INBOX", "subject", "Read")
    key = await connector(ada, far)
    await ran(ada.world, key)
    told = far.run_doveadm("fetch", "date.received", "mailbox", "INBOX", "subject", "Old").decode()
    old, read = await message(ada.world, "Old"), await message(ada.world, "Read")
    assert told.split(maxsplit=1)[1].startswith(f"{old.received_at:%Y-%m-%d %H:%M:%S}")
    assert (old.seen, old.flagged, old.keywords) == (False, False, [])
    assert (read.seen, read.flagged, read.keywords) == (True, True, ["$Work"])
    # Here it is answered, there it is seen: both hold.
    async with ada.world.write_session() as session:
        this = update(core_table(Message)).where(col(Message.id) == old.id)
        await (await session.connection()).execute(this.values(flagged=True))
    far.run_doveadm("flags add", "\\Seen", "mailbox", "INBOX", "subject", "Old")
    far.run_doveadm("flags remove", "$Work", "mailbox", "INBOX", "subject", "Read")
    await again(ada.world, key)
    old, read = await message(ada.world, "Old"), await message(ada.world, "Read")
    assert (old.seen, old.flagged) == (True, True)
    assert (read.seen, read.keywords) == (True, [])
    # By an option they stay as they are.
    far.run_doveadm("flags remove", "\\Seen", "mailbox", "INBOX", "subject", "Old")
    await again(ada.world, key, custom_options=[{"name": "NO_FLAGS", "value": ""}])
    assert (await message(ada.world, "Old")).seen


async def test_a_folder_that_is_numbered_anew_is_not_copied_again(
    ada: Client, far: DovecotAccount
) -> None:
    for name in ("One", "Two", "Two", "Three"):
        far.save_message(raw_message(name), "Work")
    key = await connector(ada, far, remove_duplicates=False)
    first = await ran(ada.world, key)
    assert first.imported == 4
    far.run_doveadm("mailbox delete", "Work")
    far.created_mailboxes.discard((far.user, "Work"))
    for name in ("Three", "Two", "Two", "New"):
        far.save_message(raw_message(name), "Work")
    far.run_doveadm("flags add", "\\Seen", "mailbox", "Work", "subject", "Three")
    run = await again(ada.world, key)
    assert (run.imported, run.skipped) == (1, 3), run.log
    assert (await stored(ada.world))["Work"] == ["One", "Two", "Two", "Three", "New"]
    # What is known by its content is still followed.
    far.run_doveadm("flags add", "\\Flagged", "mailbox", "Work", "subject", "Three")
    await again(ada.world, key)
    assert (await message(ada.world, "Three")).flagged
    marks = await ada.world.database.read(select(*select_columns(FetchedMessage)))
    assert sum(":" in row.mark for row in marks) == 1  # that of the one that is gone


async def test_what_is_here_already_does_not_come_again(ada: Client, far: DovecotAccount) -> None:
    for place in ("INBOX", "INBOX", "Copies"):
        far.save_message(raw_message("Same"), place)
    key = await connector(ada, far, skip_cross_duplicates=True)
    run = await ran(ada.world, key)
    assert (run.imported, run.skipped) == (1, 2)
    assert await stored(ada.world) == {"INBOX": ["Same"]}
    other = await connector(ada, far)
    run = await ran(ada.world, other)
    assert (run.imported, run.skipped) == (1, 2)
    assert await stored(ada.world) == {"INBOX": ["Same"], "Copies": ["Same"]}
    third = await connector(ada, far, remove_duplicates=False)
    assert (await ran(ada.world, third)).imported == 3


@pytest.mark.parametrize("protocol", list(ConnectorProtocol)[:2])
async def test_what_is_safe_here_is_deleted_there(
    ada: Client, far: DovecotAccount, clock: Clock, protocol: ConnectorProtocol
) -> None:
    far.save_message(raw_message("One"))
    far.save_message(raw_message("Two"))
    far.run_doveadm("flags add", "\\Deleted", "mailbox", "INBOX", "subject", "Two")  # by others
    key = await connector(ada, far, protocol=protocol, source_retention=86_400)
    run = await ran(ada.world, key)
    assert (run.imported, run.deleted_remote) == (2, 0), run.log
    assert far.count_messages() == 2
    clock.tick(days=1, seconds=1)
    far.save_message(raw_message("Three"))
    far.run_doveadm("flags remove", "\\Deleted", "mailbox", "INBOX", "subject", "Two")
    run = await again(ada.world, key)
    assert (run.imported, run.deleted_remote) == (1, 2), run.log
    assert far.count_messages() == 1
    run = await again(ada.world, key, source_retention=0)
    assert (run.imported, run.deleted_remote, far.count_messages()) == (0, 1, 0)
    assert await stored(ada.world) == {"INBOX": ["One", "Two", "Three"]}


async def test_what_others_want_to_delete_there_is_not_expunged(
    ada: Client, far: DovecotAccount
) -> None:
    far.save_message(raw_message("Old"))
    key = await connector(ada, far, source_retention=0, max_age=3600 * 24 * 36_500)
    far.run_doveadm("flags add", "\\Deleted", "mailbox", "INBOX", "all")
    await ran(ada.world, key)
    far.save_message(raw_message("Marked"))
    far.run_doveadm("flags add", "\\Deleted", "mailbox", "INBOX", "all")
    run = await again(ada.world, key, custom_options=[{"name": "MIN_AGE", "value": "P9000D"}])
    assert run.imported == 0
    assert far.count_messages() == 1


async def test_what_is_gone_there_is_put_away_here(ada: Client, far: DovecotAccount) -> None:
    for name in ("One", "Two", "Three"):
        far.save_message(raw_message(name))
    key = await connector(ada, far, mirror_deletes=True)
    await ran(ada.world, key)
    far.run_doveadm("expunge", "mailbox", "INBOX", "subject", "Two")
    await again(ada.world, key)
    assert await stored(ada.world) == {"INBOX": ["One", "Three"]}
    gone = await message(ada.world, "Two")
    assert gone.archived_at is not None
    assert gone.archived_from == "INBOX"


@pytest.mark.parametrize(
    ("given", "brought"),
    [
        ({"max_age": 3600}, []),  # by the clock of the test all is years old
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
async def test_limits_hold(
    ada: Client, far: DovecotAccount, given: dict[str, object], brought: list[str]
) -> None:
    far.save_message(raw_message("Small"))
    far.save_message(raw_message("Large", body="x" * 20_000))
    far.save_message(raw_message("News"), "Lists/News")
    key = await connector(ada, far, **given)
    run = await ran(ada.world, key)
    assert run.state is TaskState.SUCCEEDED, run.log
    found = sorted(subject for some in (await stored(ada.world)).values() for subject in some)
    assert found == brought


@pytest.mark.parametrize("dry", [True, False])
async def test_a_trial_stores_and_deletes_nothing(
    ada: Client, far: DovecotAccount, *, dry: bool
) -> None:
    far.save_message(raw_message("One"))
    far.save_message(raw_message("Two"), "Work")
    options = [{"name": "DRY", "value": ""}] if dry else []
    key = await connector(ada, far, custom_options=options, source_retention=0)
    if not dry:
        await ran(ada.world, key)
        far.save_message(raw_message("Three"))
        await trial(ada.world, ada.user.id, key)
    run = await ran(ada.world, key)
    assert run.state is TaskState.SUCCEEDED, run.log
    assert (run.imported, run.deleted_remote) == ((2, 0) if dry else (1, 0))
    assert await stored(ada.world) == ({} if dry else {"INBOX": ["One"], "Work": ["Two"]})
    assert far.count_messages() == 1  # without a trial One is gone, and Three has come


async def test_folders_go_where_they_are_told_to(ada: Client, far: DovecotAccount) -> None:
    far.save_message(raw_message("In"))
    far.save_message(raw_message("Out"), "Sent")
    far.save_message(raw_message("Gone"), "Deleted Items")
    far.save_message(raw_message("Job"), "Work/2029")
    rewrites = [{"pattern": "^Work/([0-9]+)$", "replacement": "Jobs/of $1"}]
    key = await connector(ada, far, folder_rewrites=rewrites)
    await ran(ada.world, key)
    assert await stored(ada.world) == {
        "INBOX": ["In"], "Sent": ["Out"], "Trash": ["Gone"], "Jobs/of 2029": ["Job"]
    }  # fmt: skip
    below = await connector(ada, far, target_folder="External", subscribe_all=False)
    await ran(ada.world, below)
    found = await stored(ada.world)
    assert found["External/INBOX"] == ["In"]
    assert found["External/Work/2029"] == ["Job"]
    asked = select(col(Mailbox.path), col(Mailbox.subscribed))
    boxes = {row.path: row.subscribed for row in await ada.world.database.read(asked)}
    assert boxes["Jobs/of 2029"] is True
    assert boxes["External/Work/2029"] is False


async def test_pop3_fetches_once(ada: Client, far: DovecotAccount) -> None:
    far.save_message(raw_message("One", body=".\r\n..dots\r\n."))
    far.save_message(raw_message("Two"))
    key = await connector(ada, far, protocol=ConnectorProtocol.POP3)
    run = await ran(ada.world, key)
    assert (run.state, run.imported) == (TaskState.SUCCEEDED, 2), run.log
    assert await stored(ada.world) == {"INBOX": ["One", "Two"]}
    assert (await message(ada.world, "One")).size == len(
        raw_message("One", body=".\r\n..dots\r\n.")
    )
    far.save_message(raw_message("Three"))
    run = await again(ada.world, key)
    assert (run.imported, run.seen) == (1, 3)


async def test_a_password_that_is_refused_is_told_and_tried_more_seldom(
    ada: Client, far: DovecotAccount
) -> None:
    key = await connector(ada, far, password="not-this-one", interval=600)  # noqa: S106
    for failures, wait in ((1, 600), (2, 1200), (3, 2400), (4, 3600), (5, 3600)):
        run = await again(ada.world, key)
        row = await row_of(ada.world, key)
        assert (run.state, run.stage) == (TaskState.FAILED, "LOGIN")
        assert row.failures == failures
        assert row.last_error == run.error
        assert row.next_run_at == ada.world.now() + timedelta(seconds=wait)
        assert "not-this-one" not in f"{run} {row}"
    far.save_message(raw_message("One"))
    secret = credentials.seal_secret(ada.world, key, {"password": PASSWORD})
    run = await again(ada.world, key, secret=secret)
    row = await row_of(ada.world, key)
    assert (run.state, row.failures, row.last_error) == (TaskState.SUCCEEDED, 0, None)
    assert row.next_run_at == ada.world.now() + timedelta(seconds=600)


async def test_a_full_account_takes_what_fits(ada: Client, far: DovecotAccount) -> None:
    for name in range(5):
        far.save_message(raw_message(f"Nr {name}", body="x" * 50_000))
    await _room(ada.world, ada.user.id, 170_000)
    key = await connector(ada, far)
    run = await ran(ada.world, key)
    assert (run.state, run.stage) == (TaskState.FAILED, "STORE"), run.log
    assert (run.imported, len((await stored(ada.world))["INBOX"])) == (3, 3)
    await _room(ada.world, ada.user.id, 1 << 30)
    run = await again(ada.world, key)
    assert (run.state, run.imported) == (TaskState.SUCCEEDED, 2)
    assert sorted((await stored(ada.world))["INBOX"]) == [f"Nr {name}" for name in range(5)]


async def _room(world: Environment, user_id: int, quota: int) -> None:
    async with world.write_session() as session:
        this = update(core_table(User)).where(col(User.id) == user_id)
        await (await session.connection()).execute(this.values(quota=quota))
