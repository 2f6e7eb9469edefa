"""The ways of writing to the database other than mutations, with the objects that they need."""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import update
from sqlmodel import col

from graph.app import create_app
from mail import consistency
from mail.delivery import quarantine
from mail.maintenance import housekeeping, snooze_worker
from mail.scanners import training_worker
from mail.search import index_worker
from mail.smtp import lmtp
from models.admin.key_values import KeyValueEntry
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.admin import tasks
from resolvers.certificates import acme_worker
from resolvers.domains import dkim_rotation
from tests.conftest import GraphQLClient, ManualClock, deliver_to, raw_message
from tests.support.accounts.key_value_operations import change_options
from tests.support.accounts.quota_accounts import receive_messages_of_sizes, set_user_limits
from tests.support.mail_servers.dns_zone_server import run_dns_zone
from tests.support.mail_servers.imap_and_pop3_servers import (
    REMOTE_PASSWORD,
    make_three_message_server,
    run_remote_server,
)
from tests.support.mail_servers.lmtp_client import connect_lmtp
from tests.support.mail_servers.queue_worker import (
    queue_message,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import (
    FakeDnsServer,
    FakeSmtpServer,
    run_dns_server,
    run_smtp_server,
)
from tests.support.operations import connector_operations, dkim_key_operations, push_receivers
from tests.support.operations.quarantine_operations import (
    SPAM_HEADERS,
    quarantine_message,
    set_options,
)
from tests.support.operations.rewrite_and_bcc_operations import create_bcc_rule
from tests.support.operations.sieve_operations import put_sieve_script
from tests.support.sample_mutations import SAMPLE_CALLS, MutationCall
from tests.support.sample_mutations.dkim_mutations import PRIVATE_KEY
from tests.support.servers import webhook_receiver
from tests.support.servers.dovecot_server import DovecotAccount

ONE_DAY = timedelta(days=1)
MESSAGES_PER_ACCOUNT = 3


@dataclass
class WritePathContext:
    """Two accounts with messages, and other objects that a write path needs."""

    ada: GraphQLClient
    bob: GraphQLClient
    root: GraphQLClient
    clock: ManualClock
    folder: Path
    stack: AsyncExitStack
    monkeypatch: pytest.MonkeyPatch

    @property
    def environment(self) -> Environment:
        return self.ada.environment


WriteAction = Callable[[], Awaitable[Any]]


@dataclass(frozen=True)
class WritePath:
    """A way of writing to the database, and what the journal does not contain of it."""

    prepare: Callable[[WritePathContext], Awaitable[WriteAction]]
    worker: str  # the worker, or the kind of the task
    is_journaled: bool = True  # True if it writes to the journal
    changes_rows: bool = True  # True if it changes rows
    # tables whose rows are deleted without an entry
    silently_deleted_tables: frozenset[str] = field(default_factory=frozenset)
    # tables with an entry for changes of counters, too
    fully_journaled_tables: frozenset[str] = field(default_factory=frozenset)


WRITE_PATHS: dict[str, WritePath] = {}


PrepareWritePath = Callable[[WritePathContext], Awaitable[WriteAction]]


def register_write_path(
    worker: str,
    *silently_deleted_tables: str,
    is_journaled: bool = True,
    changes_rows: bool = True,
    fully_journaled_tables: Sequence[str] = (),
) -> Callable[[PrepareWritePath], PrepareWritePath]:
    """Add a write path to the list, by the words of the function's name."""

    def register(prepare: PrepareWritePath) -> PrepareWritePath:
        name = prepare.__name__.replace("_", " ")
        WRITE_PATHS[name] = WritePath(
            prepare,
            worker,
            is_journaled,
            changes_rows,
            frozenset(silently_deleted_tables),
            frozenset(fully_journaled_tables),
        )
        return prepare

    return register


async def update_rows(
    stage: WritePathContext, table: Any, values: dict[str, Any], *conditions: Any
) -> None:
    """Change rows without code of the product."""
    async with stage.environment.write_session(stage.ada.user.id, stage.bob.user.id) as session:
        await (await session.connection()).execute(
            update(table).where(*conditions).values(**values)
        )


async def _deliver_by_lmtp(stage: WritePathContext, raw: bytes, *to: str) -> WriteAction:
    listener = await lmtp.start_lmtp_listener(
        stage.environment, "127.0.0.1", 0, spool_folder=stage.folder / "lmtp"
    )
    stage.stack.push_async_callback(listener.close, 1)
    client = await connect_lmtp(listener.port)
    stage.stack.push_async_callback(client.close)

    async def action() -> None:
        await client.start_data(*to)
        client.send_bytes(raw + b".\r\n")
        assert [(await client.read_reply())[:3] for _ in to] == ["250"] * len(to)

    return action


@register_write_path("LMTP")
async def deliver_message(stage: WritePathContext) -> WriteAction:
    return await _deliver_by_lmtp(stage, raw_message("Hello there"), stage.ada.address)


@register_write_path("LMTP")
async def deliver_message_to_two_accounts(stage: WritePathContext) -> WriteAction:
    return await _deliver_by_lmtp(
        stage, raw_message("To both"), stage.ada.address, stage.bob.address
    )


@register_write_path("LMTP")
async def deliver_to_mailbox_with_retention(stage: WritePathContext) -> WriteAction:
    await update_rows(stage, Mailbox, {"retention": 60}, col(Mailbox.path) == "INBOX")
    return await _deliver_by_lmtp(stage, raw_message("Brief"), stage.ada.address)


@register_write_path("LMTP")
async def deliver_large_message_of_muted_thread(stage: WritePathContext) -> WriteAction:
    mute = await SAMPLE_CALLS["threadUpdate"](stage.ada, stage.root)
    assert (await mute(stage.ada))["errors"] == []
    raw = raw_message("Re: Letter 0", body="x" * 200_000, References="<nobody@example.com>")
    return await _deliver_by_lmtp(stage, raw, stage.ada.address)


@register_write_path("LMTP", is_journaled=False, changes_rows=False)
async def deliver_message_twice(stage: WritePathContext) -> WriteAction:
    action = await _deliver_by_lmtp(stage, raw_message("Once"), stage.ada.address)
    await action()
    return action


@register_write_path("LMTP")
async def deliver_message_near_quota(stage: WritePathContext) -> WriteAction:
    await set_user_limits(stage.ada, quota=10_000)
    await receive_messages_of_sizes(stage.ada, 6_000)
    return await _deliver_by_lmtp(stage, raw_message("Full", body="x" * 2_000), stage.ada.address)


async def _run_without_errors(client: GraphQLClient, document: str) -> None:
    (payload,) = (await client(document)).values()
    assert payload["errors"] == []


@register_write_path("LMTP")
async def forward_message(stage: WritePathContext) -> WriteAction:
    await _run_without_errors(stage.root, """mutation { addressCreate(input: {
      address: "list@example.org", targets: ["ada@example.org", "dave@far.example"]})
      { errors { message } } }""")  # fmt: skip
    return await _deliver_by_lmtp(stage, raw_message("To the list"), "list@example.org")


@register_write_path("LMTP")
async def copy_message_by_bcc_rule(stage: WritePathContext) -> WriteAction:
    await create_bcc_rule(stage.root, stage.ada.address, "archive@far.example")
    return await _deliver_by_lmtp(stage, raw_message("Keep this"), stage.ada.address)


@register_write_path("LMTP")
async def send_autoreply(stage: WritePathContext) -> WriteAction:
    await _run_without_errors(stage.ada, """mutation { autoreplySet(input: {set: {
      enabled: true, text: "Away."}}) { errors { message } } }""")  # fmt: skip
    return await _deliver_by_lmtp(stage, raw_message("Are you there?"), stage.ada.address)


@register_write_path("LMTP")
async def deliver_spam_to_junk(stage: WritePathContext) -> WriteAction:
    return await _deliver_by_lmtp(stage, raw_message("Offer", X_Spam_Flag="YES"), stage.ada.address)


@register_write_path("LMTP")
async def run_sieve_script(stage: WritePathContext) -> WriteAction:
    await put_sieve_script(
        stage.ada,
        'require ["fileinto", "mailbox", "copy", "duplicate", "vacation", "imap4flags"];\n'
        "if duplicate { discard; }\n"
        'fileinto :create :flags "\\\\Seen" "Lists/New"; fileinto :copy "Nowhere";\n'
        'redirect :copy "dave@example.net"; vacation "I am away.";',
    )
    return await _deliver_by_lmtp(stage, raw_message("Hello there"), stage.ada.address)


@register_write_path("LMTP")
async def run_filter(stage: WritePathContext) -> WriteAction:
    await _run_without_errors(stage.ada, """mutation { filterCreate(input: {
      query: {subject: "list"}, action: {
        labels: ["x"], copyTo: [{specialUse: SENT}], targets: ["eve@example.net"]}})
      { errors { message } } }""")  # fmt: skip
    return await _deliver_by_lmtp(stage, raw_message("For the list"), stage.ada.address)


@register_write_path("LMTP")
async def quarantine_spam(stage: WritePathContext) -> WriteAction:
    set_options(stage.environment, spam_quarantine_score=75, quarantine_max_messages_per_user=1)
    await quarantine_message(stage.ada, "Earlier")  # it is deleted, since only one is kept
    return await _deliver_by_lmtp(stage, raw_message("Offer", **SPAM_HEADERS), stage.ada.address)


@register_write_path("HTTP", is_journaled=False)
async def upload_file(stage: WritePathContext) -> WriteAction:
    async def action() -> None:
        response = await stage.ada.http.post(
            "/rest/uploads", content=b"x" * 5_000, headers=stage.ada.headers
        )
        assert response.status_code == 201, response.text

    return action


@register_write_path("HTTP", is_journaled=False)
async def upload_file_in_parts(stage: WritePathContext) -> WriteAction:
    async def action() -> None:
        http, tus = stage.ada.http, {**stage.ada.headers, "Tus-Resumable": "1.0.0"}
        created = await http.post("/rest/uploads", headers={**tus, "Upload-Length": "10"})
        for offset in (0, 5):
            headers = {
                "Upload-Offset": str(offset),
                "Content-Type": "application/offset+octet-stream",
            }
            response = await http.patch(
                created.headers["location"], content=b"12345", headers={**tus, **headers}
            )
            assert response.status_code == 204, response.text

    return action


async def _deliver_queue(stage: WritePathContext, replies: dict[str, str]) -> WriteAction:
    server = await stage.stack.enter_async_context(run_smtp_server(FakeSmtpServer(replies)))
    submission_id = await queue_message(stage.ada)

    async def action() -> None:
        async with run_queue_worker(stage.environment, relay_settings(server)):
            await wait_until_tried(stage.environment, submission_id)

    return action


@register_write_path("mail.outbound.worker.run_until_stopped")
async def send_message(stage: WritePathContext) -> WriteAction:
    return await _deliver_queue(stage, {})


@register_write_path("mail.outbound.worker.run_until_stopped")
async def copy_sent_message_by_bcc_rule(stage: WritePathContext) -> WriteAction:
    await create_bcc_rule(stage.root, stage.ada.address, "archive@far.example", "SENDER")
    return await _deliver_queue(stage, {})


@register_write_path("mail.outbound.worker.run_until_stopped")
async def defer_message(stage: WritePathContext) -> WriteAction:
    return await _deliver_queue(stage, {"carol": "450 4.2.1 Later", "dave": "450 4.2.1 Later"})


@register_write_path("mail.outbound.worker.run_until_stopped")
async def bounce_message(stage: WritePathContext) -> WriteAction:
    return await _deliver_queue(stage, {"carol": "550 5.1.1 No such user"})


async def _run_housekeeping(stage: WritePathContext) -> WriteAction:
    return lambda: housekeeping.run_round(stage.environment)


@register_write_path("mail.maintenance.housekeeping.run_until_stopped")
async def expire_messages(stage: WritePathContext) -> WriteAction:
    values = {"expires": stage.clock() + timedelta(seconds=1)}
    await update_rows(stage, Message, values, col(Message.uid) < MESSAGES_PER_ACCOUNT)
    stage.clock.tick(seconds=2)
    return await _run_housekeeping(stage)


async def _delete_messages(stage: WritePathContext) -> None:
    input_fields = {"select": {"mailbox": {"path": "INBOX"}, "uids": "1:2"}}
    assert (await MutationCall("messageDelete", input_fields)(stage.ada))["errors"] == []


@register_write_path(
    "mail.maintenance.housekeeping.run_until_stopped", "messages", is_journaled=False
)
async def purge_deleted_messages(stage: WritePathContext) -> WriteAction:
    await _delete_messages(stage)  # the journal has their entries already
    stage.clock.tick(days=40)
    return await _run_housekeeping(stage)


@register_write_path(
    "mail.maintenance.housekeeping.run_until_stopped",
    "auth_events",
    "setting_changes",
    "tasks",
    "files",
    is_journaled=False,
)
async def trim_journal_and_logs(stage: WritePathContext) -> WriteAction:
    await _delete_messages(stage)
    set_setting = await SAMPLE_CALLS["settingSet"](stage.ada, stage.root)
    assert (await set_setting(stage.root))["errors"] == []
    stage.clock.tick(days=900)
    await update_rows(stage, Message, {"purge_at": None}, col(Message.purge_at).is_not(None))
    return await _run_housekeeping(stage)


@register_write_path(
    "mail.maintenance.housekeeping.run_until_stopped", "key_values", is_journaled=False
)
async def expire_key_values(stage: WritePathContext) -> WriteAction:
    set_value = await SAMPLE_CALLS["keyValueSet"](stage.ada, stage.root)
    assert (await set_value(stage.ada))["errors"] == []
    await update_rows(
        stage, KeyValueEntry, {"expires_at": stage.clock() - ONE_DAY}, col(KeyValueEntry.id) > 0
    )
    return await _run_housekeeping(stage)


@register_write_path("mail.maintenance.housekeeping.run_until_stopped")
async def delete_unused_files(stage: WritePathContext) -> WriteAction:
    upload = await SAMPLE_CALLS["fileUpload"](stage.ada, stage.root)
    assert (await upload(stage.ada))["errors"] == []
    stage.clock.tick(days=400)
    return await _run_housekeeping(stage)


@register_write_path("mail.maintenance.housekeeping.run_until_stopped")
async def expire_quarantine_and_schedule_digests(stage: WritePathContext) -> WriteAction:
    await quarantine_message(stage.ada)
    stage.clock.tick(days=28)
    await quarantine_message(stage.ada, "Later")
    stage.clock.tick(days=2)
    return await _run_housekeeping(stage)


@register_write_path("mail.maintenance.snooze_worker.run_forever")
async def return_snoozed_messages(stage: WritePathContext) -> WriteAction:
    input_fields = {
        "select": {"mailbox": {"path": "INBOX"}, "uids": "1:2"},
        "set": {"snoozedUntil": (stage.clock() + ONE_DAY).isoformat()},
    }
    assert (await MutationCall("messageUpdate", input_fields)(stage.ada))["errors"] == []
    stage.clock.tick(days=2)
    return lambda: snooze_worker.return_due_messages(stage.environment)


@register_write_path("mail.search.index_worker.run", is_journaled=False)
async def index_messages(stage: WritePathContext) -> WriteAction:
    async def action() -> None:
        while await index_worker.index_next_batch(stage.environment):
            pass

    return action


@register_write_path("the command line", fully_journaled_tables=["mailboxes"])
async def repair_counters(stage: WritePathContext) -> WriteAction:
    wrong_values = {"total": 77, "unseen": 5}
    await update_rows(stage, Mailbox, wrong_values, col(Mailbox.path) == "INBOX")

    async def action() -> None:
        report = await consistency.check_consistency(stage.environment, repair=True)
        assert report.findings

    return action


@register_write_path("the command line", fully_journaled_tables=["mailboxes"])
async def repair_modseqs(stage: WritePathContext) -> WriteAction:
    async with stage.environment.write_session(stage.ada.user.id) as session:
        statement = update(Message).where(col(Message.user_id) == stage.ada.user.id)
        await (await session.connection()).execute(statement.values(modseq=10**6))

    async def action() -> None:
        report = await consistency.check_consistency(stage.environment, repair=True)
        assert report.findings

    return action


@register_write_path("resolvers.notifications.push_worker.run_worker", is_journaled=False)
async def push_new_message(stage: WritePathContext) -> WriteAction:
    push_receivers.allow_local_pushes(stage.environment)
    receiver = await stage.stack.enter_async_context(webhook_receiver.run_webhook_receiver())
    await push_receivers.create_push_channel(
        stage.ada, **push_receivers.http_channel_input(receiver)
    )
    await deliver_to(stage.ada, "News")
    worker = push_receivers.make_push_worker(stage.environment)

    async def action() -> None:
        await push_receivers.push_until_idle(worker)
        assert receiver.requests

    return action


@register_write_path("mail.scanners.training_worker.run_worker", is_journaled=False)
async def train_spam_filter(stage: WritePathContext) -> WriteAction:
    receiver = await stage.stack.enter_async_context(webhook_receiver.run_webhook_receiver())
    change_options(stage.environment, rspamd_learn_url=f"http://127.0.0.1:{receiver.port}")
    input_fields = {
        "select": {"mailbox": {"path": "INBOX"}, "uids": "1:2"},
        "to": {"specialUse": "JUNK"},
    }
    assert (await MutationCall("messageMove", input_fields)(stage.ada))["errors"] == []

    async def action() -> None:
        assert await training_worker.train_batch(stage.environment)
        assert len(receiver.requests) == 2

    return action


@register_write_path("resolvers.notifications.webhook_worker.run_worker", is_journaled=False)
async def post_webhook(stage: WritePathContext) -> WriteAction:
    return await _post_webhook(stage, webhook_receiver.OK_RESPONSE)


@register_write_path("resolvers.notifications.webhook_worker.run_worker", is_journaled=False)
async def disable_webhook(stage: WritePathContext) -> WriteAction:
    return await _post_webhook(stage, b"HTTP/1.1 410 Gone\r\n\r\n")


async def _post_webhook(stage: WritePathContext, response: bytes) -> WriteAction:
    webhook_receiver.allow_local_webhooks(stage.environment)
    receiver = await stage.stack.enter_async_context(webhook_receiver.run_webhook_receiver())
    receiver.response = response
    stage.clock.tick(seconds=1)
    await webhook_receiver.create_webhook(stage.root, receiver.url, "message.received")
    await deliver_to(stage.ada, "News")
    worker = webhook_receiver.make_webhook_worker(stage.environment)

    async def action() -> None:
        await webhook_receiver.post_until_idle(worker)
        assert len(receiver.requests) == 1

    return action


async def _run_tasks(environment: Environment) -> None:
    assert await tasks.run_next_task(environment)
    while await tasks.run_next_task(environment):
        pass


def register_task_path(
    task_kind: str, mutation_name: str, is_journaled: bool = True, **fields: Any
) -> None:
    """Add the task that a mutation creates as a write path."""

    async def prepare(stage: WritePathContext) -> WriteAction:
        sample = await SAMPLE_CALLS[mutation_name](stage.ada, stage.root)
        sample = replace(sample, input={**sample.input, **fields})
        client = sample.other_caller or (stage.root if sample.by_root else stage.ada)
        while await tasks.run_next_task(client.environment):
            pass
        assert (await sample(client))["errors"] == []
        return lambda: _run_tasks(client.environment)

    WRITE_PATHS[f"the task {task_kind}"] = WritePath(prepare, task_kind, is_journaled)


ASYNC_INPUT: Any = {"async": True}
for _task_kind, _mutation_name in (
    ("MESSAGE_UPDATE", "messageUpdate"),
    ("MESSAGE_MOVE", "messageMove"),
    ("MESSAGE_COPY", "messageCopy"),
    ("MESSAGE_DELETE", "messageDelete"),
):
    register_task_path(_task_kind, _mutation_name, **ASYNC_INPUT)
for _task_kind, _mutation_name in (
    ("DELETED_MESSAGES_RESTORE", "deletedMessagesRestore"),
    ("USER_EXPORT", "userExport"),
    ("USER_IMPORT", "userImport"),
    ("HELD_COPY", "legalHoldCreate"),
    ("FILTER_APPLY", "filterApply"),
    ("SEARCH_INDEX_OPTIMIZE", "searchIndexOptimize"),
    ("SEARCH_INDEX_REBUILD", "searchIndexRebuild"),
    ("USERS_CREATE", "usersCreateFromFile"),
    ("WEBHOOK_REPLAY", "webhookReplay"),
):
    register_task_path(_task_kind, _mutation_name)
register_task_path("QUEUE_DELETE", "queueDelete", notifySender=True)


@register_write_path("QUEUE_FLUSH")
async def flush_large_queue(stage: WritePathContext) -> WriteAction:
    samples = [await SAMPLE_CALLS["queueFlush"](stage.ada, stage.root) for _ in range(2)]
    set_options(stage.environment, bulk_max_items=1)
    payload = await replace(samples[0], input={"all": True})(stage.root)
    assert payload["task"] == {"kind": "QUEUE_FLUSH"}
    return lambda: _run_tasks(stage.environment)


@register_write_path("USER_DELETE", "users", "addresses", "mailboxes", "messages", "files",
      "submissions", "auth_events", "labels", "saved_searches", "key_values", "quarantine_items",
      "tasks")  # fmt: skip
async def purge_account(stage: WritePathContext) -> WriteAction:
    """The journal has the deletion already, and the stream is deleted with the account."""
    await quarantine_message(stage.ada)
    purge = await SAMPLE_CALLS["userPurge"](stage.ada, stage.root)
    client = purge.other_caller or (stage.root if purge.by_root else stage.ada)
    assert (await purge(client))["errors"] == []
    stage.clock.tick(days=90)
    return lambda: _run_tasks(stage.environment)


@register_write_path("LIMIT_LETTER")
async def send_quota_warning(stage: WritePathContext) -> WriteAction:
    await set_user_limits(stage.ada, quota=10_000)
    await receive_messages_of_sizes(stage.ada, 7_500, 600)
    return lambda: _run_tasks(stage.environment)


@register_write_path("SECURITY_LETTER")
async def send_password_reset_notice(stage: WritePathContext) -> WriteAction:
    reset = await SAMPLE_CALLS["userPasswordReset"](stage.ada, stage.root)
    assert (await reset(stage.root))["errors"] == []
    return lambda: _run_tasks(stage.environment)


@register_write_path("QUARANTINE_LETTER")
async def send_quarantine_digest(stage: WritePathContext) -> WriteAction:
    await quarantine_message(stage.ada)
    stage.clock.tick(days=1)
    assert await quarantine.insert_due_notification_tasks(stage.environment) == 1
    return lambda: _run_tasks(stage.environment)


@register_write_path("resolvers.connectors.worker.run_worker")
async def fetch_remote_messages(stage: WritePathContext) -> WriteAction:
    remote = await stage.stack.enter_async_context(run_remote_server(make_three_message_server()))
    account = DovecotAccount(stage.folder, {"imap": remote.port})
    connector_id = await connector_operations.add_connector(
        stage.ada, account, password=REMOTE_PASSWORD
    )
    return lambda: connector_operations.run_connector(stage.environment, connector_id)


@register_write_path("resolvers.domains.dkim_rotation.run_worker")
async def rotate_dkim_keys(stage: WritePathContext) -> WriteAction:
    input_fields = {"domains": ["example.org"], "privateKey": PRIVATE_KEY}
    for selector in ("old", "dkim"):
        payload = await MutationCall(
            "dkimKeySet", {**input_fields, "selector": selector}, "keys { id }"
        )(stage.root)
        assert payload["errors"] == []
    stage.clock.tick(days=30)
    rotate = MutationCall(
        "dkimKeyRotate",
        {"domains": ["example.org"]},
        f"keys {{ {dkim_key_operations.DKIM_KEY_FIELDS} }}",
    )
    (dkim_key,) = (await rotate(stage.root))["keys"]
    server_address = await stage.stack.enter_async_context(
        run_dns_zone(dkim_key_operations.make_dkim_zone([dkim_key]))
    )
    dkim_key_operations.use_dns_server(stage.root, server_address)

    async def action() -> None:
        assert await dkim_rotation.activate_or_delete_due_keys(stage.environment) == 2

    return action


@register_write_path("resolvers.certificates.acme_worker.run_worker")
async def fail_certificate_order(stage: WritePathContext) -> WriteAction:
    dns_server = await stage.stack.enter_async_context(run_dns_server(FakeDnsServer({})))
    set_options(
        stage.environment, acme_terms_agreed=True, dns_resolver=f"127.0.0.1:{dns_server.port}"
    )
    set_certificate = MutationCall("certificateSet", {"serverName": "mx.example.org", "acme": True})
    assert (await set_certificate(stage.root))["errors"] == []

    async def action() -> None:
        assert await acme_worker.order_or_query_next_certificate(stage.environment)

    return action


@register_write_path("MAILBOX_REPAIR", fully_journaled_tables=["mailboxes"])
async def repair_mailboxes(stage: WritePathContext) -> WriteAction:
    await update_rows(stage, Mailbox, {"total": 77}, col(Mailbox.path) == "INBOX")
    input_fields = {"users": {"all": True}, "mailboxPatterns": ["*"]}
    assert (await MutationCall("mailboxRepair", input_fields)(stage.root))["errors"] == []
    return lambda: _run_tasks(stage.environment)


@register_write_path("QUOTA_RECALCULATE", fully_journaled_tables=["users"])
async def recalculate_quota(stage: WritePathContext) -> WriteAction:
    await update_rows(stage, User, {"used": 5}, col(User.id) == stage.ada.user.id)
    input_fields = {"users": {"all": True}}
    assert (await MutationCall("quotaRecalculate", input_fields)(stage.root))["errors"] == []
    return lambda: _run_tasks(stage.environment)


@register_write_path("SEARCH_INDEX_BUILD")
async def build_search_index(stage: WritePathContext) -> WriteAction:
    input_fields = {"users": {"all": True}, "mailboxPatterns": ["*"], "queue": True}
    assert (await MutationCall("searchIndexBuild", input_fields)(stage.root))["errors"] == []
    return lambda: _run_tasks(stage.environment)


@register_write_path("MESSAGE_TIER_MOVE")
async def move_blobs_to_other_tier(stage: WritePathContext) -> WriteAction:
    stage.monkeypatch.setattr("resolvers.messages.bulk.storage_tiers.MAX_INLINE_MESSAGES", 0)
    move = await SAMPLE_CALLS["messageTierMove"](stage.ada, stage.root)
    assert move.other_caller
    client = move.other_caller
    assert (await move(client))["errors"] == []
    return lambda: _run_tasks(client.environment)


@register_write_path("MAILBOX_RETENTION")
async def apply_retention_to_old_messages(stage: WritePathContext) -> WriteAction:
    input_fields = {
        "mailboxes": [{"path": "INBOX"}],
        "set": {"retention": "P1D"},
        "applyRetention": True,
    }
    assert (await MutationCall("mailboxUpdate", input_fields)(_client_with_bulk_limit(stage, 1)))[
        "errors"
    ] == []
    return lambda: _run_tasks(stage.environment)


@register_write_path("MESSAGE_DEDUPLICATE")
async def deduplicate_messages(stage: WritePathContext) -> WriteAction:
    deduplicate = await SAMPLE_CALLS["messageDeduplicate"](stage.ada, stage.root)
    assert (await deduplicate(_client_with_bulk_limit(stage, 0)))["errors"] == []
    return lambda: _run_tasks(stage.environment)


def _client_with_bulk_limit(stage: WritePathContext, bulk: int) -> GraphQLClient:
    """The client ada of an app where more messages than `bulk` are the work of a task."""
    environment = replace(
        stage.environment, options=replace(stage.environment.options, bulk_max_items=bulk)
    )
    transport = httpx.ASGITransport(app=create_app(environment, spool_folder=stage.folder / "few"))
    http = httpx.AsyncClient(transport=transport, base_url="http://test")
    return GraphQLClient(http, environment, stage.ada.user, stage.ada.secret)
