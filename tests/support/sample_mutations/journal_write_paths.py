"""Every road besides mutations on which the store is written to, on ground made ready for it."""

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
from models.admin.key_values import KeyValue
from models.mailboxes.tables import Mailbox
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.users.tables import User
from resolvers.admin import tasks
from resolvers.certificates import acme_worker
from resolvers.domains import dkim_rotation
from tests.conftest import Client, Clock, raw_message, receive
from tests.support.accounts.key_value_operations import limit
from tests.support.accounts.quota_accounts import bounded, fill
from tests.support.mail_servers.dns_zone_server import asking
from tests.support.mail_servers.imap_and_pop3_servers import SECRET, open_at, three
from tests.support.mail_servers.lmtp_client import connect
from tests.support.mail_servers.queue_worker import relay, send, settled, working
from tests.support.mail_servers.smtp_and_dns_servers import Names, Server, answering, listening
from tests.support.operations import connector_operations, dkim_key_operations, push_receivers
from tests.support.operations.quarantine_operations import SPAM, hold, set_options
from tests.support.operations.rewrite_and_bcc_operations import rule
from tests.support.operations.sieve_operations import put
from tests.support.sample_mutations import CALLS, Call
from tests.support.sample_mutations.dkim_mutations import RAW
from tests.support.servers import webhook_receiver
from tests.support.servers.dovecot_server import DovecotAccount

DAY = timedelta(days=1)
LETTERS = 3  # in each account


@dataclass
class Stage:
    """Two accounts with letters, and what else a road needs."""

    ada: Client
    bob: Client
    root: Client
    clock: Clock
    folder: Path
    stack: AsyncExitStack
    monkeypatch: pytest.MonkeyPatch

    @property
    def world(self) -> Environment:
        return self.ada.world


Work = Callable[[], Awaitable[Any]]


@dataclass(frozen=True)
class Road:
    """What is done, by which worker, and what of it the journal says nothing of."""

    prepare: Callable[[Stage], Awaitable[Work]]
    by: str  # the worker that does so, or the kind of its task
    told: bool = True  # whether the journal says anything
    writes: bool = True  # whether anything is otherwise then
    goes: frozenset[str] = field(default_factory=frozenset)  # tables whose rows end in silence
    whole: frozenset[str] = field(default_factory=frozenset)  # tables whose counters are told, too


ROADS: dict[str, Road] = {}


Prepare = Callable[[Stage], Awaitable[Work]]


def road(
    by: str, *goes: str, told: bool = True, writes: bool = True, whole: Sequence[str] = ()
) -> Callable[[Prepare], Prepare]:
    """Take a road into the list, under the words of its name."""

    def take(prepare: Prepare) -> Prepare:
        name = prepare.__name__.replace("_", " ")
        ROADS[name] = Road(prepare, by, told, writes, frozenset(goes), frozenset(whole))
        return prepare

    return take


async def change(stage: Stage, table: Any, values: dict[str, Any], *where: Any) -> None:
    """Change rows behind everybody's back."""
    async with stage.world.write_session(stage.ada.user.id, stage.bob.user.id) as session:
        await (await session.connection()).execute(update(table).where(*where).values(**values))


# what comes in


async def _letter(stage: Stage, raw: bytes, *to: str) -> Work:
    listener = await lmtp.start_lmtp_listener(
        stage.world, "127.0.0.1", 0, spool_folder=stage.folder / "lmtp"
    )
    stage.stack.push_async_callback(listener.close, 1)
    neighbour = await connect(listener.port)
    stage.stack.push_async_callback(neighbour.close)

    async def work() -> None:
        await neighbour.begin(*to)
        neighbour.send(raw + b".\r\n")
        assert [(await neighbour.hear())[:3] for _ in to] == ["250"] * len(to)

    return work


@road("LMTP")
async def a_letter_arrives(stage: Stage) -> Work:
    return await _letter(stage, raw_message("Hello there"), stage.ada.address)


@road("LMTP")
async def a_letter_to_several_arrives(stage: Stage) -> Work:
    return await _letter(stage, raw_message("To both"), stage.ada.address, stage.bob.address)


@road("LMTP")
async def a_letter_arrives_where_mail_is_kept_for_a_time(stage: Stage) -> Work:
    await change(stage, Mailbox, {"retention": 60}, col(Mailbox.path) == "INBOX")
    return await _letter(stage, raw_message("Brief"), stage.ada.address)


@road("LMTP")
async def a_large_letter_of_a_muted_conversation_arrives(stage: Stage) -> Work:
    made = await CALLS["threadUpdate"](stage.ada, stage.root)
    assert (await made(stage.ada))["errors"] == []
    raw = raw_message("Re: Letter 0", body="x" * 200_000, References="<nobody@example.com>")
    return await _letter(stage, raw, stage.ada.address)


@road("LMTP", told=False, writes=False)
async def a_letter_that_came_before_arrives_again(stage: Stage) -> Work:
    work = await _letter(stage, raw_message("Once"), stage.ada.address)
    await work()
    return work


@road("LMTP")
async def a_letter_fills_the_storage(stage: Stage) -> Work:
    await bounded(stage.ada, quota=10_000)
    await fill(stage.ada, 6_000)
    return await _letter(stage, raw_message("Full", body="x" * 2_000), stage.ada.address)


async def _asked(client: Client, document: str) -> None:
    (answer,) = (await client(document)).values()
    assert answer["errors"] == []


@road("LMTP")
async def a_letter_is_sent_on(stage: Stage) -> Work:
    await _asked(stage.root, """mutation { addressCreate(input: {address: "list@example.org",
      targets: ["ada@example.org", "dave@far.example"]}) { errors { message } } }""")  # fmt: skip
    return await _letter(stage, raw_message("To the list"), "list@example.org")


@road("LMTP")
async def a_letter_is_copied_by_a_rule(stage: Stage) -> Work:
    await rule(stage.root, stage.ada.address, "archive@far.example")
    return await _letter(stage, raw_message("Keep this"), stage.ada.address)


@road("LMTP")
async def a_letter_is_answered(stage: Stage) -> Work:
    await _asked(stage.ada, """mutation { autoreplySet(input: {set: {enabled: true, text: "Away."}})
      { errors { message } } }""")  # fmt: skip
    return await _letter(stage, raw_message("Are you there?"), stage.ada.address)


@road("LMTP")
async def a_letter_goes_to_junk(stage: Stage) -> Work:
    return await _letter(stage, raw_message("Offer", X_Spam_Flag="YES"), stage.ada.address)


@road("LMTP")
async def a_letter_is_run_through_a_script(stage: Stage) -> Work:
    await put(
        stage.ada,
        'require ["fileinto", "mailbox", "copy", "duplicate", "vacation", "imap4flags"];\n'
        "if duplicate { discard; }\n"
        'fileinto :create :flags "\\\\Seen" "Lists/New"; fileinto :copy "Nowhere";\n'
        'redirect :copy "dave@example.net"; vacation "I am away.";',
    )
    return await _letter(stage, raw_message("Hello there"), stage.ada.address)


@road("LMTP")
async def a_letter_is_filtered(stage: Stage) -> Work:
    await _asked(stage.ada, """mutation { filterCreate(input: {query: {subject: "list"}, action: {
      labels: ["x"], copyTo: [{specialUse: SENT}], targets: ["eve@example.net"]}})
      { errors { message } } }""")  # fmt: skip
    return await _letter(stage, raw_message("For the list"), stage.ada.address)


@road("LMTP")
async def a_letter_is_held(stage: Stage) -> Work:
    set_options(stage.world, spam_quarantine=75, quarantine_items=1)
    await hold(stage.ada, "Earlier")  # which goes as there is too much
    return await _letter(stage, raw_message("Offer", **SPAM), stage.ada.address)


# uploads


@road("HTTP", told=False)
async def bytes_are_uploaded(stage: Stage) -> Work:
    async def work() -> None:
        sent = await stage.ada.http.post(
            "/rest/uploads", content=b"x" * 5_000, headers=stage.ada.headers
        )
        assert sent.status_code == 201, sent.text

    return work


@road("HTTP", told=False)
async def bytes_are_uploaded_in_pieces(stage: Stage) -> Work:
    async def work() -> None:
        http, tus = stage.ada.http, {**stage.ada.headers, "Tus-Resumable": "1.0.0"}
        begun = await http.post("/rest/uploads", headers={**tus, "Upload-Length": "10"})
        for offset in (0, 5):
            piece = {
                "Upload-Offset": str(offset),
                "Content-Type": "application/offset+octet-stream",
            }
            done = await http.patch(
                begun.headers["location"], content=b"12345", headers={**tus, **piece}
            )
            assert done.status_code == 204, done.text

    return work


# what goes out


async def _queue(stage: Stage, replies: dict[str, str]) -> Work:
    there = await stage.stack.enter_async_context(listening(Server(replies)))
    key = await send(stage.ada)

    async def work() -> None:
        async with working(stage.world, relay(there)):
            await settled(stage.world, key)

    return work


@road("mail.outbound.worker.run_until_stopped")
async def a_message_is_sent(stage: Stage) -> Work:
    return await _queue(stage, {})


@road("mail.outbound.worker.run_until_stopped")
async def a_message_is_sent_and_copied_by_a_rule(stage: Stage) -> Work:
    await rule(stage.root, stage.ada.address, "archive@far.example", "SENDER")
    return await _queue(stage, {})


@road("mail.outbound.worker.run_until_stopped")
async def a_message_is_deferred(stage: Stage) -> Work:
    return await _queue(stage, {"carol": "450 4.2.1 Later", "dave": "450 4.2.1 Later"})


@road("mail.outbound.worker.run_until_stopped")
async def a_message_bounces(stage: Stage) -> Work:
    return await _queue(stage, {"carol": "550 5.1.1 No such user"})


# what goes on behind


async def _tidy(stage: Stage) -> Work:
    return lambda: housekeeping.run_round(stage.world)


@road("mail.maintenance.housekeeping.run_until_stopped")
async def messages_expire(stage: Stage) -> Work:
    soon = {"expires": stage.clock() + timedelta(seconds=1)}
    await change(stage, Message, soon, col(Message.uid) < LETTERS)
    stage.clock.tick(seconds=2)
    return await _tidy(stage)


async def _deleted(stage: Stage) -> None:
    given = {"select": {"mailbox": {"path": "INBOX"}, "uids": "1:2"}}
    assert (await Call("messageDelete", given)(stage.ada))["errors"] == []


@road("mail.maintenance.housekeeping.run_until_stopped", "messages", told=False)
async def the_archive_is_purged(stage: Stage) -> Work:
    await _deleted(stage)  # gone from the folders, and told of, when they were archived
    stage.clock.tick(days=40)
    return await _tidy(stage)


@road(
    "mail.maintenance.housekeeping.run_until_stopped",
    "auth_events",
    "setting_changes",
    "tasks",
    "files",
    told=False,
)
async def the_journal_and_the_logs_are_trimmed(stage: Stage) -> Work:
    await _deleted(stage)
    made = await CALLS["settingSet"](stage.ada, stage.root)
    assert (await made(stage.root))["errors"] == []
    stage.clock.tick(days=900)
    await change(stage, Message, {"purge_at": None}, col(Message.purge_at).is_not(None))
    return await _tidy(stage)


@road("mail.maintenance.housekeeping.run_until_stopped", "key_values", told=False)
async def values_expire(stage: Stage) -> Work:
    made = await CALLS["keyValueSet"](stage.ada, stage.root)
    assert (await made(stage.ada))["errors"] == []
    await change(stage, KeyValue, {"expires_at": stage.clock() - DAY}, col(KeyValue.id) > 0)
    return await _tidy(stage)


@road("mail.maintenance.housekeeping.run_until_stopped")
async def files_that_nobody_used_go(stage: Stage) -> Work:
    made = await CALLS["fileUpload"](stage.ada, stage.root)
    assert (await made(stage.ada))["errors"] == []
    stage.clock.tick(days=400)
    return await _tidy(stage)


@road("mail.maintenance.housekeeping.run_until_stopped")
async def what_nobody_let_in_goes_and_letters_are_due(stage: Stage) -> Work:
    await hold(stage.ada)
    stage.clock.tick(days=28)
    await hold(stage.ada, "Later")
    stage.clock.tick(days=2)
    return await _tidy(stage)


@road("mail.maintenance.snooze_worker.run_forever")
async def snoozed_messages_come_back(stage: Stage) -> Work:
    given = {
        "select": {"mailbox": {"path": "INBOX"}, "uids": "1:2"},
        "set": {"snoozedUntil": (stage.clock() + DAY).isoformat()},
    }
    assert (await Call("messageUpdate", given)(stage.ada))["errors"] == []
    stage.clock.tick(days=2)
    return lambda: snooze_worker.return_due_messages(stage.world)


@road("mail.search.index_worker.run", told=False)
async def words_are_indexed(stage: Stage) -> Work:
    async def work() -> None:
        while await index_worker.index_next_batch(stage.world):
            pass

    return work


@road("the command line", whole=["mailboxes"])
async def what_was_miscounted_is_repaired(stage: Stage) -> Work:
    wrong = {"total": 77, "unseen": 5}
    await change(stage, Mailbox, wrong, col(Mailbox.path) == "INBOX")

    async def work() -> None:
        report = await consistency.check_consistency(stage.world, repair=True)
        assert report.findings

    return work


@road("the command line", whole=["mailboxes"])
async def messages_out_of_place_are_repaired(stage: Stage) -> Work:
    async with stage.world.write_session(stage.ada.user.id) as session:
        these = update(Message).where(col(Message.user_id) == stage.ada.user.id)
        await (await session.connection()).execute(these.values(modseq=10**6))

    async def work() -> None:
        report = await consistency.check_consistency(stage.world, repair=True)
        assert report.findings

    return work


@road("resolvers.notifications.push_worker.run_worker", told=False)
async def new_mail_is_pushed(stage: Stage) -> Work:
    push_receivers.loose(stage.world)
    there = await stage.stack.enter_async_context(webhook_receiver.receiving())
    await push_receivers.made(stage.ada, **push_receivers.http(there))
    await receive(stage.ada, "News")
    worker = push_receivers.worker_of(stage.world)

    async def work() -> None:
        await push_receivers.pump(worker)
        assert there.got

    return work


@road("mail.scanners.training_worker.run_worker", told=False)
async def a_move_is_learned(stage: Stage) -> Work:
    there = await stage.stack.enter_async_context(webhook_receiver.receiving())
    limit(stage.world, rspamd_learn=f"http://127.0.0.1:{there.port}")
    given = {
        "select": {"mailbox": {"path": "INBOX"}, "uids": "1:2"},
        "to": {"specialUse": "JUNK"},
    }
    assert (await Call("messageMove", given)(stage.ada))["errors"] == []

    async def work() -> None:
        assert await training_worker.train_batch(stage.world)
        assert len(there.got) == 2

    return work


@road("resolvers.notifications.webhook_worker.run_worker", told=False)
async def a_webhook_is_posted(stage: Stage) -> Work:
    return await _post(stage, webhook_receiver.OK)


@road("resolvers.notifications.webhook_worker.run_worker", told=False)
async def a_webhook_is_switched_off(stage: Stage) -> Work:
    return await _post(stage, b"HTTP/1.1 410 Gone\r\n\r\n")


async def _post(stage: Stage, answer: bytes) -> Work:
    webhook_receiver.inward(stage.world)
    there = await stage.stack.enter_async_context(webhook_receiver.receiving())
    there.answer = answer
    stage.clock.tick(seconds=1)
    await webhook_receiver.made(stage.root, there.url, "message.received")
    await receive(stage.ada, "News")
    worker = webhook_receiver.worker_of(stage.world)

    async def work() -> None:
        await webhook_receiver.pump(worker)
        assert len(there.got) == 1

    return work


# tasks


async def _works(world: Environment) -> None:
    assert await tasks.run_next_task(world)
    while await tasks.run_next_task(world):
        pass


def queued(kind: str, name: str, told: bool = True, **more: Any) -> None:
    """The road of a task that a mutation begins."""

    async def prepare(stage: Stage) -> Work:
        made = await CALLS[name](stage.ada, stage.root)
        made = replace(made, input={**made.input, **more})
        client = made.by or (stage.root if made.by_root else stage.ada)
        while await tasks.run_next_task(client.world):
            pass
        assert (await made(client))["errors"] == []
        return lambda: _works(client.world)

    ROADS[f"the task {kind}"] = Road(prepare, kind, told)


LATE: Any = {"async": True}
for _kind, _name in (
    ("MESSAGE_UPDATE", "messageUpdate"),
    ("MESSAGE_MOVE", "messageMove"),
    ("MESSAGE_COPY", "messageCopy"),
    ("MESSAGE_DELETE", "messageDelete"),
):
    queued(_kind, _name, **LATE)
for _kind, _name in (
    ("ARCHIVE_RESTORE", "archiveRestore"),
    ("ACCOUNT_EXPORT", "accountExport"),
    ("ACCOUNT_IMPORT", "accountImport"),
    ("AUDIT_COPY", "auditCreate"),
    ("FILTER_APPLY", "filterApply"),
    ("SEARCH_INDEX_OPTIMIZE", "searchIndexOptimize"),
    ("SEARCH_INDEX_REBUILD", "searchIndexRebuild"),
    ("USERS_CREATE", "usersCreateFromFile"),
    ("WEBHOOK_REPLAY", "webhookReplay"),
):
    queued(_kind, _name)
queued("QUEUE_DELETE", "queueDelete", notifySender=True)


@road("QUEUE_FLUSH")
async def much_of_the_queue_is_tried_at_once(stage: Stage) -> Work:
    made = [await CALLS["queueFlush"](stage.ada, stage.root) for _ in range(2)]
    set_options(stage.world, bulk=1)
    answer = await replace(made[0], input={"all": True})(stage.root)
    assert answer["task"] == {"kind": "QUEUE_FLUSH"}
    return lambda: _works(stage.world)


@road("USER_DELETE", "users", "addresses", "mailboxes", "messages", "files", "submissions",
      "auth_events", "labels", "saved_searches", "key_values", "quarantine_items",
      "tasks")  # fmt: skip
async def an_account_is_purged(stage: Stage) -> Work:
    """Its end was told when it was asked for; its stream goes with it."""
    await hold(stage.ada)
    made = await CALLS["userPurge"](stage.ada, stage.root)
    client = made.by or (stage.root if made.by_root else stage.ada)
    assert (await made(client))["errors"] == []
    stage.clock.tick(days=90)
    return lambda: _works(stage.world)


@road("LIMIT_LETTER")
async def a_letter_tells_of_a_limit(stage: Stage) -> Work:
    await bounded(stage.ada, quota=10_000)
    await fill(stage.ada, 7_500, 600)
    return lambda: _works(stage.world)


@road("SECURITY_LETTER")
async def a_message_tells_of_a_reset_password(stage: Stage) -> Work:
    made = await CALLS["passwordReset"](stage.ada, stage.root)
    assert (await made(stage.root))["errors"] == []
    return lambda: _works(stage.world)


@road("QUARANTINE_LETTER")
async def a_letter_tells_of_what_is_held(stage: Stage) -> Work:
    await hold(stage.ada)
    stage.clock.tick(days=1)
    assert await quarantine.schedule_notifications(stage.world) == 1
    return lambda: _works(stage.world)


@road("resolvers.connectors.worker.run_worker")
async def mail_is_fetched_from_elsewhere(stage: Stage) -> Work:
    remote = await stage.stack.enter_async_context(open_at(three()))
    far = DovecotAccount(stage.folder, {"imap": remote.port})
    key = await connector_operations.connector(stage.ada, far, password=SECRET)
    return lambda: connector_operations.ran(stage.world, key)


@road("resolvers.domains.dkim_rotation.run_worker")
async def a_new_key_signs_and_an_old_one_goes(stage: Stage) -> Work:
    given = {"domains": ["example.org"], "privateKey": RAW}
    for selector in ("old", "dkim"):
        made = await Call("dkimKeySet", {**given, "selector": selector}, "keys { id }")(stage.root)
        assert made["errors"] == []
    stage.clock.tick(days=30)
    rotate = Call(
        "dkimKeyRotate", {"domains": ["example.org"]}, f"keys {{ {dkim_key_operations.KEY} }}"
    )
    (key,) = (await rotate(stage.root))["keys"]
    place = await stage.stack.enter_async_context(asking(dkim_key_operations.published([key])))
    dkim_key_operations.asks(stage.root, place)

    async def work() -> None:
        assert await dkim_rotation.process_due_keys(stage.world) == 2

    return work


@road("resolvers.certificates.acme_worker.run_worker")
async def a_certificate_is_not_issued(stage: Stage) -> Work:
    names = await stage.stack.enter_async_context(answering(Names({})))
    set_options(stage.world, acme_terms_agreed=True, dns_resolver=f"127.0.0.1:{names.port}")
    made = Call("certificateSet", {"serverName": "mx.example.org", "acme": True})
    assert (await made(stage.root))["errors"] == []

    async def work() -> None:
        assert await acme_worker.process_next_certificate(stage.world)

    return work


@road("MAILBOX_REPAIR", whole=["mailboxes"])
async def folders_are_repaired(stage: Stage) -> Work:
    await change(stage, Mailbox, {"total": 77}, col(Mailbox.path) == "INBOX")
    given = {"users": {"all": True}, "mailboxMasks": ["*"]}
    assert (await Call("mailboxRepair", given)(stage.root))["errors"] == []
    return lambda: _works(stage.world)


@road("QUOTA_RECALCULATE", whole=["users"])
async def what_accounts_have_used_is_counted_again(stage: Stage) -> Work:
    await change(stage, User, {"used": 5}, col(User.id) == stage.ada.user.id)
    given = {"users": {"all": True}}
    assert (await Call("quotaRecalculate", given)(stage.root))["errors"] == []
    return lambda: _works(stage.world)


@road("SEARCH_INDEX_BUILD")
async def the_index_is_filled(stage: Stage) -> Work:
    given = {"users": {"all": True}, "mailboxMasks": ["*"], "queue": True}
    assert (await Call("searchIndexBuild", given)(stage.root))["errors"] == []
    return lambda: _works(stage.world)


@road("MESSAGE_TIER_MOVE")
async def bytes_move_to_the_other_tier(stage: Stage) -> Work:
    stage.monkeypatch.setattr("resolvers.messages.bulk.storage_tiers.MAX_INLINE_MESSAGES", 0)
    made = await CALLS["messageTierMove"](stage.ada, stage.root)
    assert made.by
    client = made.by
    assert (await made(client))["errors"] == []
    return lambda: _works(client.world)


@road("MAILBOX_RETENTION")
async def a_new_retention_is_that_of_what_is_there(stage: Stage) -> Work:
    given = {
        "mailboxes": [{"path": "INBOX"}],
        "set": {"retention": "P1D"},
        "applyRetention": True,
    }
    assert (await Call("mailboxUpdate", given)(_few(stage, 1)))["errors"] == []
    return lambda: _works(stage.world)


@road("MESSAGE_DEDUPLICATE")
async def doubles_are_deleted(stage: Stage) -> Work:
    made = await CALLS["messageDeduplicate"](stage.ada, stage.root)
    assert (await made(_few(stage, 0)))["errors"] == []
    return lambda: _works(stage.world)


def _few(stage: Stage, bulk: int) -> Client:
    """Ada, where more messages than this are a task's work."""
    world = replace(stage.world, options=replace(stage.world.options, bulk=bulk))
    transport = httpx.ASGITransport(app=create_app(world, spool_folder=stage.folder / "few"))
    http = httpx.AsyncClient(transport=transport, base_url="http://test")
    return Client(http, world, stage.ada.user, stage.ada.secret)
