"""Workers and the command line as ways of writing to the database."""

from datetime import timedelta

from sqlalchemy import update
from sqlmodel import col

from mail import consistency
from mail.maintenance import housekeeping, snooze_worker
from mail.scanners import training_worker
from mail.search import index_worker
from models.admin.key_values import KeyValueEntry
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from resolvers.certificates import acme_worker
from resolvers.domains import dkim_rotation
from tests.conftest import deliver_to
from tests.support.accounts.key_value_operations import change_options
from tests.support.mail_servers.dns_zone_server import run_dns_zone
from tests.support.mail_servers.imap_and_pop3_servers import (
    REMOTE_PASSWORD,
    make_three_message_server,
    run_remote_server,
)
from tests.support.mail_servers.smtp_and_dns_servers import (
    FakeDnsServer,
    run_dns_server,
)
from tests.support.operations import connector_operations, push_receivers
from tests.support.operations.platform import dkim_key_operations
from tests.support.operations.quarantine_operations import (
    quarantine_message,
    set_options,
)
from tests.support.sample_mutations import SAMPLE_CALLS, MutationCall
from tests.support.sample_mutations.dkim_mutations import PRIVATE_KEY
from tests.support.servers import webhook_receiver
from tests.support.servers.dovecot_server import DovecotAccount
from tests.support.write_paths.write_path import (
    MESSAGES_PER_ACCOUNT,
    WriteAction,
    WritePathContext,
    register_write_path,
    update_rows,
)

ONE_DAY = timedelta(days=1)


async def _run_housekeeping(stage: WritePathContext) -> WriteAction:
    return lambda: housekeeping.run_housekeeping_round(stage.environment)


@register_write_path("mail.maintenance.housekeeping.run_until_stopped")
async def expire_messages(stage: WritePathContext) -> WriteAction:
    values = {"expires_at": stage.clock() + timedelta(seconds=1)}
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
    "security_events",
    "setting_history",
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
    "mail.maintenance.housekeeping.run_until_stopped", "key_value_entries", is_journaled=False
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


@register_write_path("mail.maintenance.snooze_worker.unsnooze_until_worker_stops")
async def return_snoozed_messages(stage: WritePathContext) -> WriteAction:
    input_fields = {
        "select": {"mailbox": {"path": "INBOX"}, "uids": "1:2"},
        "set": {"snoozedUntil": (stage.clock() + ONE_DAY).isoformat()},
    }
    assert (await MutationCall("messageUpdate", input_fields)(stage.ada))["errors"] == []
    stage.clock.tick(days=2)
    return lambda: snooze_worker.unsnooze_due_messages(stage.environment)


@register_write_path(
    "mail.search.index_worker.index_new_messages_until_worker_stops", is_journaled=False
)
async def index_messages(stage: WritePathContext) -> WriteAction:
    async def action() -> None:
        while await index_worker.index_next_batch_and_record_contacts(stage.environment):
            pass

    return action


@register_write_path("the command line", fully_journaled_tables=["mailboxes"])
async def repair_counters(stage: WritePathContext) -> WriteAction:
    wrong_values = {"message_count": 77, "unseen_count": 5}
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


@register_write_path(
    "resolvers.notifications.push_worker.run_push_worker_until_stopped", is_journaled=False
)
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
        assert await training_worker.try_train_with_next_messages(stage.environment)
        assert len(receiver.requests) == 2

    return action


@register_write_path(
    "resolvers.notifications.webhook_worker.run_webhook_worker_until_stopped", is_journaled=False
)
async def post_webhook(stage: WritePathContext) -> WriteAction:
    return await _post_webhook(stage, webhook_receiver.OK_RESPONSE)


@register_write_path(
    "resolvers.notifications.webhook_worker.run_webhook_worker_until_stopped", is_journaled=False
)
async def disable_webhook(stage: WritePathContext) -> WriteAction:
    return await _post_webhook(stage, b"HTTP/1.1 410 Gone\r\n\r\n")


async def _post_webhook(stage: WritePathContext, response: bytes) -> WriteAction:
    webhook_receiver.allow_local_webhooks(stage.environment)
    receiver = await stage.stack.enter_async_context(webhook_receiver.run_webhook_receiver())
    receiver.response = response
    stage.clock.tick(seconds=1)
    await webhook_receiver.create_webhook(stage.root, receiver.url, "MESSAGE_RECEIVED")
    await deliver_to(stage.ada, "News")
    worker = webhook_receiver.make_webhook_worker(stage.environment)

    async def action() -> None:
        await webhook_receiver.post_until_idle(worker)
        assert len(receiver.requests) == 1

    return action


@register_write_path("resolvers.connectors.worker.run_worker")
async def fetch_remote_messages(stage: WritePathContext) -> WriteAction:
    remote = await stage.stack.enter_async_context(run_remote_server(make_three_message_server()))
    account = DovecotAccount(stage.folder, {"imap": remote.port})
    connector_id = await connector_operations.add_connector(
        stage.ada, account, password=REMOTE_PASSWORD
    )
    return lambda: connector_operations.run_connector(stage.environment, connector_id)


@register_write_path("resolvers.domains.dkim_rotation.activate_or_delete_due_keys_forever")
async def rotate_dkim_keys(stage: WritePathContext) -> WriteAction:
    input_fields = {"domains": [{"name": "example.org"}], "privateKey": PRIVATE_KEY}
    for selector in ("old", "dkim"):
        payload = await MutationCall(
            "dkimKeySet", {**input_fields, "selector": selector}, "dkimKeys { id }"
        )(stage.root)
        assert payload["errors"] == []
    stage.clock.tick(days=30)
    rotate = MutationCall(
        "dkimKeyRotate",
        {"domains": [{"name": "example.org"}]},
        f"dkimKeys {{ {dkim_key_operations.DKIM_KEY_FIELDS} }}",
    )
    (dkim_key,) = (await rotate(stage.root))["dkimKeys"]
    server_address = await stage.stack.enter_async_context(
        run_dns_zone(dkim_key_operations.make_dkim_zone([dkim_key]))
    )
    dkim_key_operations.use_dns_server(stage.root, server_address)

    async def action() -> None:
        assert await dkim_rotation.activate_or_delete_due_keys_and_count_due(stage.environment) == 2

    return action


@register_write_path("resolvers.certificates.acme_worker.order_and_renew_certificates_forever")
async def fail_certificate_order(stage: WritePathContext) -> WriteAction:
    dns_server = await stage.stack.enter_async_context(run_dns_server(FakeDnsServer({})))
    set_options(
        stage.environment, acme_terms_agreed=True, dns_resolver=f"127.0.0.1:{dns_server.port}"
    )
    set_certificate = MutationCall("certificateSet", {"serverName": "mx.example.org", "acme": True})
    assert (await set_certificate(stage.root))["errors"] == []

    async def action() -> None:
        assert await acme_worker.order_or_query_next_due_certificate(stage.environment)

    return action
