"""Messages that a connector fetches into INBOX pass scanners, sender rules, filters and Sieve."""

import asyncio
from collections.abc import AsyncIterator
from itertools import product
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from models.admin.tasks import TaskState
from models.connectors import ConnectorProtocol
from models.runtime.environment import Environment
from models.submission.tables import Submission
from tests.conftest import GraphQLClient, ManualClock, raw_message
from tests.support.accounts.key_value_operations import change_options
from tests.support.accounts.user_operations import execute_mutation as call
from tests.support.mail.stored_messages import message_special_use
from tests.support.mail_servers.scanner_servers import (
    http_response,
    read_clamd_request,
    rspamd_reply,
)
from tests.support.operations.connector_operations import (
    INBOX,
    JUNK,
    RETENTION,
    add_connector,
    dovecot_account,
    load_message_row,
    load_subjects_by_mailbox,
    rerun_connector,
    run_connector,
    shared_dovecot,
)
from tests.support.operations.filter_operations import add_filter, create_filter, list_filters
from tests.support.operations.quarantine_operations import CAROL_ADDRESS, load_quarantine_rows
from tests.support.operations.sieve_operations import put_sieve_script
from tests.support.servers.dovecot_server import DovecotAccount
from tests.support.servers.scripted_server import run_scripted_server
from tests.support.servers.webhook_receiver import (
    ReceivedRequest,
    WebhookReceiver,
    run_webhook_receiver,
)

__all__ = ["dovecot_account", "shared_dovecot"]
pytestmark = pytest.mark.usefixtures("verify_consistency")
UNAVAILABLE = http_response(b"no", "500 broken")
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
    assert (await load_message_row(ada.environment, "Offer")).spam_report["score"] == 10.0
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
        assert any("rejected: The message is spam." in line for line in run.log) is bool(skipped)
    assert await load_subjects_by_mailbox(ada.environment) == {}


async def test_copy_of_a_rejected_message_is_rejected_and_stays_remote(
    ada: GraphQLClient, dovecot_account: DovecotAccount, rspamd_server: WebhookReceiver
) -> None:
    dovecot_account.save_message(raw_message("Bad"))
    rspamd_server.response = rspamd_reply(20.0)
    connector_id = await add_connector(ada, dovecot_account, **RETENTION)
    await run_connector(ada.environment, connector_id)
    dovecot_account.save_message(raw_message("Bad"))  # as if it was moved away and back
    run = await rerun_connector(ada.environment, connector_id)
    assert (run.skipped_count, run.deleted_remote_count) == (1, 0), run.log
    assert dovecot_account.count_messages() == 2


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
