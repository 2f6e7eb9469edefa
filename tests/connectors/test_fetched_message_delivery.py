"""Messages that a connector fetches into INBOX pass scanners, sender rules, filters and Sieve."""

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime, timedelta
from itertools import product
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from models.admin.tasks import TaskState
from models.connectors import ConnectorProtocol
from models.events.event_types import EventType
from models.events.journal import Change
from models.mailboxes.tables import SpecialUse
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.store.columns import core_table, select_columns
from models.submission.tables import Submission
from models.users.tables import User
from tests.conftest import GraphQLClient, ManualClock, raw_message
from tests.support.accounts.key_value_operations import change_options
from tests.support.accounts.openpgp_keys import armored_public_key, decrypt_message, make_secret_key
from tests.support.accounts.user_operations import execute_mutation as call
from tests.support.accounts.user_operations import set_user_columns
from tests.support.mail.stored_messages import message_special_use
from tests.support.mail_servers.scanner_servers import (
    http_response,
    read_clamd_request,
    rspamd_reply,
    run_scripted_server,
)
from tests.support.operations.connector_operations import (
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
from tests.support.operations.filter_operations import add_filter, list_filters
from tests.support.operations.quarantine_operations import CAROL_ADDRESS, load_quarantine_rows
from tests.support.operations.sieve_operations import put_sieve_script
from tests.support.servers.dovecot_server import DovecotAccount
from tests.support.servers.webhook_receiver import (
    ReceivedRequest,
    WebhookReceiver,
    run_webhook_receiver,
)
from tests.support.stores.counter_check import select_rows
from tests.support.stores.other_processes import deregister_as_dead

pytestmark = pytest.mark.usefixtures("verify_consistency")
__all__ = ["dovecot_account", "shared_dovecot"]
INBOX, JUNK = SpecialUse.INBOX, SpecialUse.JUNK
RETENTION = {"source_retention": 0}
UNAVAILABLE = http_response(b"no", "500 broken")
MESSAGE_COUNT = 40  # messages of more than one batch
FILE_SCRIPT = 'require ["fileinto", "mailbox"]; fileinto :create "Lists";'


class FakeClamdServer:
    """A clamd server with a fixed answer that counts its requests."""

    def __init__(self) -> None:
        self.answer, self.request_count = b"stream: OK\0", 0

    async def handle_connection(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        await read_clamd_request(reader)
        self.request_count += 1
        writer.write(self.answer)
        await writer.drain()


@pytest.fixture
async def rspamd_server(environment: Environment) -> AsyncIterator[WebhookReceiver]:
    """A server that answers like rspamd."""
    async with run_webhook_receiver() as receiver:
        receiver.response = rspamd_reply(1.0)
        change_options(environment, rspamd_url=f"http://127.0.0.1:{receiver.port}")
        yield receiver


@pytest.fixture
async def clamd_server(environment: Environment) -> AsyncIterator[FakeClamdServer]:
    """A server that answers like clamd."""
    clamd = FakeClamdServer()
    async with run_scripted_server(clamd.handle_connection) as port:
        change_options(environment, clamd_address=f"127.0.0.1:{port}")
        yield clamd


async def load_submission_ids(environment: Environment) -> list[Any]:
    """Return the IDs of all submissions."""
    return list(await environment.database.read(select(col(Submission.id))))


async def create_filter(ada: GraphQLClient, **action: Any) -> None:
    """Create a filter that acts on all messages."""
    await add_filter(ada, {}, action or {"keywords": ["work"]}, name="all")


async def test_fetched_spam_is_stored_in_junk(
    ada: GraphQLClient, dovecot_account: DovecotAccount, rspamd_server: WebhookReceiver
) -> None:
    dovecot_account.save_message(raw_message("Offer"))
    connector_id = await add_connector(ada, dovecot_account, **RETENTION)
    rspamd_server.response = rspamd_reply(10.0)
    run = await run_connector(ada.environment, connector_id)
    assert (run.state, run.imported_count, run.deleted_remote_count) == (
        TaskState.SUCCEEDED,
        1,
        1,
    ), run.log
    rspamd_server.response = rspamd_reply(3.0)
    dovecot_account.save_message(raw_message("Letter"))
    await rerun_connector(ada.environment, connector_id)
    assert [await message_special_use(ada, name) for name in ("Offer", "Letter")] == [JUNK, INBOX]
    assert (await load_message_row(ada.environment, "Offer")).spam["score"] == 10.0
    assert len(rspamd_server.requests) == 2


@pytest.mark.parametrize("protocol", [ConnectorProtocol.IMAP, ConnectorProtocol.POP3])
async def test_rejected_message_stays_remote_and_is_not_fetched_again(
    ada: GraphQLClient,
    dovecot_account: DovecotAccount,
    rspamd_server: WebhookReceiver,
    protocol: ConnectorProtocol,
) -> None:
    dovecot_account.save_message(raw_message("Bad"))
    rspamd_server.response = rspamd_reply(20.0)
    connector_id = await add_connector(ada, dovecot_account, protocol=protocol, **RETENTION)
    for skipped in (1, 0):
        run = await rerun_connector(ada.environment, connector_id)
        assert (run.state, run.imported_count, run.skipped_count) == (
            TaskState.SUCCEEDED,
            0,
            skipped,
        )
        assert (
            run.deleted_remote_count,
            dovecot_account.count_messages(),
            len(rspamd_server.requests),
        ) == (0, 1, 1)
        assert any("refused: it is spam" in line for line in run.log) is bool(skipped)
    assert await load_subjects_by_mailbox(ada.environment) == {}


@pytest.mark.parametrize(
    ("virus", "expected"),
    [("reject", (1, [], None)), ("quarantine", (0, ["Win.Test"], None)), ("tag", (0, [], JUNK))],
)
async def test_virus_setting_rejects_quarantines_or_tags(
    ada: GraphQLClient,
    dovecot_account: DovecotAccount,
    clamd_server: FakeClamdServer,
    virus: str,
    expected: tuple[Any, ...],
) -> None:
    change_options(ada.environment, virus_action=virus)
    clamd_server.answer = b"stream: Win.Test FOUND\0"
    dovecot_account.save_message(raw_message("Ill"))
    connector_id = await add_connector(ada, dovecot_account, **RETENTION)
    for _ in range(2):
        run = await rerun_connector(ada.environment, connector_id)
        assert run.state is TaskState.SUCCEEDED, run.log
        virus_names = [row.virus for row in await load_quarantine_rows(ada.environment)]
        assert (
            dovecot_account.count_messages(),
            virus_names,
            await message_special_use(ada, "Ill"),
        ) == expected
        assert clamd_server.request_count == 1


async def test_spam_above_the_quarantine_score_is_quarantined(
    ada: GraphQLClient, dovecot_account: DovecotAccount, rspamd_server: WebhookReceiver
) -> None:
    change_options(ada.environment, spam_quarantine_score=60)
    rspamd_server.response = rspamd_reply(14.0)
    dovecot_account.save_message(raw_message("Offer"))
    await run_connector(ada.environment, await add_connector(ada, dovecot_account))
    (row,) = await load_quarantine_rows(ada.environment)
    assert (row.subject, await load_subjects_by_mailbox(ada.environment)) == ("Offer", {})


@pytest.mark.parametrize("checks", list(product((True, False), repeat=2)))
async def test_scanners_run_if_the_connector_enables_them(
    ada: GraphQLClient,
    dovecot_account: DovecotAccount,
    rspamd_server: WebhookReceiver,
    clamd_server: FakeClamdServer,
    checks: tuple[bool, bool],
) -> None:
    rspamd_server.response = rspamd_reply(10.0)
    dovecot_account.save_message(raw_message("Offer"))
    connector_id = await add_connector(
        ada, dovecot_account, spam_check=checks[0], virus_check=checks[1]
    )
    run = await run_connector(ada.environment, connector_id)
    assert (run.state, run.imported_count) == (TaskState.SUCCEEDED, 1), run.log
    assert (len(rspamd_server.requests), clamd_server.request_count) == checks
    assert await message_special_use(ada, "Offer") is (JUNK if checks[0] else INBOX)


async def test_messages_of_other_folders_are_not_scanned_or_filtered(
    ada: GraphQLClient, dovecot_account: DovecotAccount, rspamd_server: WebhookReceiver
) -> None:
    rspamd_server.response = rspamd_reply(40.0)
    await put_sieve_script(ada, FILE_SCRIPT)
    dovecot_account.save_message(raw_message("Work"), "Work")
    dovecot_account.save_message(raw_message("In"))
    run = await run_connector(
        ada.environment, await add_connector(ada, dovecot_account, apply_filters=True)
    )
    assert (run.imported_count, run.skipped_count) == (1, 1)
    assert (await load_subjects_by_mailbox(ada.environment), len(rspamd_server.requests)) == (
        {"Work": ["Work"]},
        1,
    )
    other_id = await add_connector(ada, dovecot_account, target_folder="Far", apply_filters=True)
    await run_connector(ada.environment, other_id)
    assert (await load_subjects_by_mailbox(ada.environment))["Far/INBOX"] == ["In"]
    assert len(rspamd_server.requests) == 1


@pytest.mark.parametrize("policy", ["defer", "accept"])
async def test_unavailable_scanner_defers_or_accepts(
    ada: GraphQLClient,
    dovecot_account: DovecotAccount,
    clock: ManualClock,
    clamd_server: FakeClamdServer,
    policy: str,
) -> None:
    change_options(ada.environment, clamd_on_failure=policy)
    clamd_server.answer = b"no sense"
    for name in ("One", "Two"):
        dovecot_account.save_message(raw_message(name))
    connector_id = await add_connector(ada, dovecot_account, **RETENTION)
    run = await run_connector(ada.environment, connector_id)
    if policy == "accept":
        assert (run.state, run.imported_count, dovecot_account.count_messages()) == (
            TaskState.SUCCEEDED,
            2,
            0,
        ), run.log
        return
    assert (run.state, run.stage, run.imported_count) == (TaskState.FAILED, "STORE", 0)
    assert "scanner" in run.error
    assert (await load_subjects_by_mailbox(ada.environment), dovecot_account.count_messages()) == (
        {},
        2,
    )
    clamd_server.answer = b"stream: OK\0"
    clock.tick(minutes=1)
    run = await rerun_connector(ada.environment, connector_id)
    assert (run.state, run.imported_count, dovecot_account.count_messages()) == (
        TaskState.SUCCEEDED,
        2,
        0,
    ), run.log
    assert {
        path: sorted(names)
        for path, names in (await load_subjects_by_mailbox(ada.environment)).items()
    } == {"INBOX": ["One", "Two"]}


async def test_stored_messages_are_not_fetched_again_after_a_failure(
    ada: GraphQLClient,
    dovecot_account: DovecotAccount,
    clock: ManualClock,
    rspamd_server: WebhookReceiver,
) -> None:
    is_failing = [True]

    async def answer(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        fails = is_failing[0] and b"Nr 1\r\n" in request.raw
        writer.write(
            UNAVAILABLE if fails else rspamd_reply(20.0 if b"Nr 2\r\n" in request.raw else 1.0)
        )

    rspamd_server.response = answer
    change_options(ada.environment, rspamd_on_failure="defer")
    for number in range(4):
        dovecot_account.save_message(raw_message(f"Nr {number}"))
    connector_id = await add_connector(ada, dovecot_account, remove_duplicates=False, **RETENTION)
    run = await run_connector(ada.environment, connector_id)
    assert (run.state, run.stage, run.imported_count, run.skipped_count) == (
        TaskState.FAILED,
        "STORE",
        2,
        1,
    )
    assert (
        dovecot_account.count_messages(),
        sorted((await load_subjects_by_mailbox(ada.environment))["INBOX"]),
    ) == (
        4,
        ["Nr 0", "Nr 3"],
    )
    is_failing[0] = False
    clock.tick(days=2)  # the delivery receipts have expired
    run = await rerun_connector(ada.environment, connector_id)
    assert (run.state, run.imported_count, dovecot_account.count_messages()) == (
        TaskState.SUCCEEDED,
        1,
        1,
    ), run.log
    assert sorted((await load_subjects_by_mailbox(ada.environment))["INBOX"]) == [
        "Nr 0",
        "Nr 1",
        "Nr 3",
    ]


@pytest.mark.parametrize("spam_check", [True, False])
async def test_sender_rules_apply_if_spam_check_is_enabled(
    ada: GraphQLClient, dovecot_account: DovecotAccount, *, spam_check: bool
) -> None:
    rule = {"scope": {"user": {"username": "ada"}}, "action": "BLOCK", "patterns": [CAROL_ADDRESS]}
    assert (await call(ada, "senderRuleCreate", "senderRules { id }", **rule))["errors"] == []
    await create_filter(ada)
    dovecot_account.save_message(raw_message("Hers"))
    dovecot_account.save_message(raw_message("His", From="eve@else.example"))
    connector_id = await add_connector(
        ada, dovecot_account, spam_check=spam_check, apply_filters=True
    )
    await run_connector(ada.environment, connector_id)
    special_uses = [await message_special_use(ada, name) for name in ("Hers", "His")]
    assert special_uses == [JUNK if spam_check else INBOX, INBOX]


@pytest.mark.parametrize("apply_filters", [True, False])
async def test_filters_apply_if_enabled(
    ada: GraphQLClient,
    dovecot_account: DovecotAccount,
    rspamd_server: WebhookReceiver,
    *,
    apply_filters: bool,
) -> None:
    await ada('mutation { mailboxCreate(input: {paths: ["A"]}) { errors { code } } }')
    await add_filter(ada, {"subject": "one"}, {"mailbox": {"path": "A"}, "flag": True}, name="a")
    await add_filter(ada, {"subject": "bin"}, {"delete": True}, name="b")
    await add_filter(ada, {"subject": "one"}, {"keywords": ["work"], "seen": True}, name="c")
    for name in ("One", "Bin", "Rest"):
        dovecot_account.save_message(raw_message(name))
    run = await run_connector(
        ada.environment, await add_connector(ada, dovecot_account, apply_filters=apply_filters)
    )
    assert (run.state, run.imported_count) == (TaskState.SUCCEEDED, 3), run.log
    stored_message = await load_message_row(ada.environment, "One")
    message_state = (stored_message.flagged, stored_message.seen, stored_message.keywords)
    assert message_state == ((True, True, ["work"]) if apply_filters else (False, False, []))
    filtered, unfiltered = {"A": ["One"], "INBOX": ["Rest"]}, {"INBOX": ["Bin", "One", "Rest"]}
    subjects_by_path = {
        path: sorted(names)
        for path, names in (await load_subjects_by_mailbox(ada.environment)).items()
    }
    assert subjects_by_path == (filtered if apply_filters else unfiltered)
    counts = [filter_node["matchCount"] for filter_node in (await list_filters(ada))["nodes"]]
    assert counts == [int(apply_filters)] * 3
    assert len(rspamd_server.requests) == 3


@pytest.mark.parametrize(
    ("script", "expected", "skipped"),
    [
        (FILE_SCRIPT, {"Lists": ["One"]}, 0),
        ('require "imap4flags"; addflag ["\\\\Flagged", "mine"];', {"INBOX": ["One"]}, 0),
        ("discard;", {}, 0),
        ('require "reject"; reject "No, thank you";', {}, 1),
        ('require "variables"; set "a" "b"; stop;', {"INBOX": ["One"]}, 0),
    ],
)
async def test_sieve_script_applies_to_fetched_messages(
    ada: GraphQLClient,
    dovecot_account: DovecotAccount,
    script: str,
    expected: dict[str, list[str]],
    skipped: int,
) -> None:
    await put_sieve_script(ada, script)
    dovecot_account.save_message(raw_message("One"))
    connector_id = await add_connector(ada, dovecot_account, apply_filters=True, **RETENTION)
    run = await run_connector(ada.environment, connector_id)
    assert (run.state, run.imported_count, run.skipped_count) == (
        TaskState.SUCCEEDED,
        1 - skipped,
        skipped,
    )
    assert (await load_subjects_by_mailbox(ada.environment), dovecot_account.count_messages()) == (
        expected,
        skipped,
    )
    if "addflag" in script:
        stored_message = await load_message_row(ada.environment, "One")
        assert (stored_message.flagged, stored_message.keywords) == (True, ["mine"])
    assert await load_submission_ids(ada.environment) == []
    run = await rerun_connector(ada.environment, connector_id, apply_filters=False)
    assert (run.imported_count, run.skipped_count) == (0, 0)


async def test_sieve_script_is_ignored_if_filters_are_disabled(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    await put_sieve_script(ada, "discard;")
    dovecot_account.save_message(raw_message("One"))
    await run_connector(ada.environment, await add_connector(ada, dovecot_account))
    assert await load_subjects_by_mailbox(ada.environment) == {"INBOX": ["One"]}


@pytest.mark.parametrize("reply_source", ["account", "filter", "script"])
async def test_fetched_messages_get_no_automatic_reply(
    ada: GraphQLClient, dovecot_account: DovecotAccount, reply_source: str
) -> None:
    if reply_source == "account":
        autoreply = {"enabled": True, "text": "I am away."}
        arguments = {"users": {"usernames": ["ada"]}, "set": autoreply}
        assert (await call(ada, "autoreplySet", "autoreplies { id }", **arguments))["errors"] == []
        await create_filter(ada)
    elif reply_source == "filter":
        await create_filter(ada, reply={"text": "I am away."})
    else:
        await put_sieve_script(ada, 'require "vacation"; vacation "I am away.";')
    dovecot_account.save_message(raw_message("One", Return_Path=f"<{CAROL_ADDRESS}>"))
    run = await run_connector(
        ada.environment, await add_connector(ada, dovecot_account, apply_filters=True)
    )
    assert (run.imported_count, await load_subjects_by_mailbox(ada.environment)) == (
        1,
        {"INBOX": ["One"]},
    ), run.log
    assert await load_submission_ids(ada.environment) == []


async def test_target_domain_sets_the_envelope_recipient(
    ada: GraphQLClient, dovecot_account: DovecotAccount
) -> None:
    condition = 'envelope :is "to" "ada@else.example"'
    await put_sieve_script(ada, f'require ["envelope", "fileinto", "mailbox"]; if {condition} '
              '{ fileinto :create "Else"; }')  # fmt: skip
    dovecot_account.save_message(raw_message("One"))
    connector_id = await add_connector(ada, dovecot_account, apply_filters=True)
    await run_connector(ada.environment, connector_id)
    dovecot_account.save_message(raw_message("Two"))
    await rerun_connector(ada.environment, connector_id, target_domain="else.example")
    assert await load_subjects_by_mailbox(ada.environment) == {"INBOX": ["One"], "Else": ["Two"]}


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
    assert await load_received_subjects(ada) == ["New"] * (
        1 + has_script
    )  # one event for each copy
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
