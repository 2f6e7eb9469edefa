"""Rows for every list of the schema: five or more of each, in one store."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import JSON, Column, Float, Integer, LargeBinary, insert, select, update
from sqlmodel import SQLModel, col

from mail.search import index_worker
from models.addresses.rewrites import BccRule, RecipientRewrite
from models.addresses.tables import Address, Contact
from models.admin.admin_log import AdminLogEntry
from models.admin.audits import Audit, AuditAccess, AuditCopy
from models.admin.key_values import KeyValue
from models.admin.settings import SettingChange
from models.admin.tasks import Task
from models.auth.credentials import ApiKey
from models.auth.security_log import SecurityEvent
from models.certificates import Certificate
from models.connectors import Connector, ConnectorRun
from models.domains.dkim_keys import DkimKey
from models.domains.tables import AliasDomain, Domain
from models.events.journal import ChangeKind
from models.files.tables import File
from models.filters.sieve_scripts import SieveScript
from models.filters.tables import Filter
from models.mailboxes.shares import ALL_RIGHTS, MailboxShare, encode_rights
from models.messages.message_trace import DeliveryTraceStep
from models.messages.tables import Message
from models.notifications.webhooks import Webhook, WebhookDelivery
from models.queue.rate_limits import RateHold, RateLimit
from models.queue.tables import QueueEntry
from models.routing.tables import ForwardingHost, RelayHost, TlsPolicy, Transport
from models.runtime.environment import Environment
from models.search.saved_searches import SavedSearch
from models.spam.quarantine import QuarantineItem
from models.spam.sender_rules import SenderRule, place_of_domain
from models.store.columns import UtcDateTime, core_table
from models.submission.tables import Submission
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes
from tests.conftest import Client, Clock, context, make_user, raw_message, receive

MANY = 6  # rows of each list
START = datetime(2030, 1, 1, tzinfo=UTC)
SETTINGS = ("submission.maxRecipients", "undo.window")
Table = type[SQLModel]


def placeholder(column: Column[Any], nth: int) -> Any:
    """A value for a column that has no default."""
    kind: Any = column.type
    if enums := getattr(kind, "enum_class", None):
        return next(iter(enums))
    values: dict[Any, Any] = {
        UtcDateTime: START + timedelta(minutes=nth),
        JSON: [],
        LargeBinary: b"",
        Float: float(nth),
        Integer: nth + 1,
    }
    known = [value for cls, value in values.items() if isinstance(kind, cls)]
    return known[0] if known else f"{column.name}{nth}"


def _row(world: Environment, table: Table, nth: int, given: dict[str, Any]) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for column in core_table(table).c:
        if column.name in given:
            value = given[column.name]
            row[column.name] = value(nth) if callable(value) else value
        elif column.name == "id":
            row["id"] = world.new_id()
        elif column.default is None and not column.nullable:
            row[column.name] = placeholder(column, nth)
    return row


async def add(world: Environment, table: Table, many: int = MANY, **given: Any) -> list[int]:
    """Insert rows with these values, or values made by functions of the row's number."""
    rows = [_row(world, table, nth, given) for nth in range(many)]
    async with world.write_session() as session:
        await (await session.connection()).execute(insert(core_table(table)), rows)
    return [row.get("id", 0) for row in rows]


async def _domain_id(world: Environment, name: str) -> int:
    (row,) = await world.database.read(select(col(Domain.id)).where(col(Domain.name) == name))
    return int(row.id)


async def fill(ada: Client, bob: Client, clock: Clock) -> None:
    """Give ada, bob, their domain and the platform rows for every list."""
    await _mail(ada, bob, clock)
    assert await index_worker.index_next_batch(ada.world)
    await receive(ada, raw_message("Waits", body="word1 is not in the index yet"))
    await _of_users(ada.world, [ada.user.id, bob.user.id])
    await add(
        ada.world,
        DeliveryTraceStep,
        at=lambda n: START + timedelta(minutes=n),
        compared="ada@example.org",
        recipient_domain="example.org",
        sender="carol@example.com",
        sender_compared="carol@example.com",
        sender_domain="example.com",
    )
    await _shares(ada, bob)
    await _of_platform(ada.world, ada.user.id)


async def _mail(ada: Client, bob: Client, clock: Clock) -> None:
    """Deliver letters and one conversation; keep some elsewhere, and archive some."""
    first = hashlib.sha256(b"Letter 0word0 0").hexdigest()[:16]
    for client in (ada, bob):
        await mailbox_loaders.create_mailboxes(context(client), NewMailboxes(["Keep", "More"]))
        keep = await client.box("Keep")
        for nth in range(MANY):
            await receive(client, raw_message(f"Letter {nth}", body=f"word{nth % 3} {nth}"))
            clock.tick(seconds=60)
        for nth in range(3 * MANY):
            told = f"<{first}@example.com>"
            answer = raw_message(
                "Re: Letter 0", body=f"word{nth % 3} answer {nth}", References=told
            )
            await receive(client, answer)
            clock.tick(seconds=60)
        mine = select(col(Message.id)).where(col(Message.user_id) == client.user.id)
        ids = [row.id for row in await client.world.database.read(mine.order_by(col(Message.id)))]
        await _change(client.world, ids[::3], seen=True, flagged=True)
        await _change(client.world, ids[10:16], mailbox_id=keep.id)
        for nth, key in enumerate(ids[18:]):
            gone = {
                "archived_at": START + timedelta(days=1, hours=nth),
                "archived_from": "INBOX",
                "purge_at": START + timedelta(days=99),
            }
            await _change(client.world, [key], mailbox_id=None, **gone)


async def _change(world: Environment, ids: Sequence[int], **values: Any) -> None:
    async with world.write_session() as session:
        changed = update(core_table(Message)).where(col(Message.id).in_(ids))
        await (await session.connection()).execute(changed.values(**values))


async def _of_users(world: Environment, users: Sequence[int]) -> None:
    """Add rows to the lists of accounts."""
    domain = await _domain_id(world, "example.org")
    known = select(col(Message.blob_id), col(Message.structure), col(Message.size)).limit(1)
    (letter,) = await world.database.read(known)
    for user in users:
        of: dict[str, Any] = {"user_id": user, "blob_id": letter.blob_id}
        await add(
            world,
            SecurityEvent,
            action=lambda n: ["LOGIN", "LOGOUT"][n % 2],
            result="SUCCESS",
            fold=lambda n, user=user: f"{user} {n}",
            **of,
        )
        temporary: dict[str, Any] = {"expires_at": START + timedelta(days=99), "masked": True}
        await add(
            world,
            Address,
            local=lambda n, user=user: f"t{n}u{user}",
            shown=lambda n, user=user: f"t{n}u{user}@example.org",
            domain_id=domain,
            **of,
            **temporary,
        )
        await add(
            world,
            Address,
            local=lambda n, user=user: f"a{n}u{user}",
            shown=lambda n, user=user: f"a{n}u{user}@example.org",
            domain_id=domain,
            **of,
        )
        await add(world, Filter, name=lambda n: f"filter {n}", **of)
        await add(world, File, content_type="text/plain", **of)
        await add(world, SieveScript, content="keep;", **of)
        await add(world, SavedSearch, filter={"seen": False}, folded=lambda n: f"name{n}", **of)
        await add(
            world,
            QuarantineItem,
            domain_id=domain,
            queue_id=lambda n, user=user: f"q{user}{n}",
            recipient="ada@example.org",
            structure=letter.structure,
            size=letter.size,
            digest="",
            **of,
        )
        await add(world, Contact, key=lambda n: f"address{n}", **of)
        await add(world, KeyValue, stream_id=user, store="default", value='"1"', level="")
        for key in (await add(world, Connector, host="imap.example.com", **of))[:2]:
            await add(world, ConnectorRun, connector_id=key, **of)
        for key in (
            await add(world, Webhook, types=["messageAdded"], url="https://example.com/", **of)
        )[:2]:
            await add(
                world,
                WebhookDelivery,
                webhook_id=key,
                number=lambda n: n,
                stream_id=user,
                type="messageAdded",
                body={
                    "user": None, "domain": None, "origin": None,
                    "kind": ChangeKind.MESSAGE_ADDED, "objects": [],
                },
            )  # fmt: skip
        sent = await add(
            world,
            Submission,
            tenant_id=user,
            queue_id=lambda n, user=user: f"s{user}{n}",
            envelope_from="ada@example.org",
            **of,
        )
        for key in sent:
            await add(
                world,
                QueueEntry,
                1,
                submission_id=key,
                recipient="eve@example.com",
                domain="example.com",
                next_at=START,
                **of,
            )
        for key in (await add(world, Audit, username="ada", copied=True, **of))[:2]:
            await add(world, AuditAccess, audit_id=key, action="list")
            await add(
                world, AuditCopy, audit_id=key, position=lambda n: n + 1, origin_id=lambda n: n
            )


async def _shares(ada: Client, bob: Client) -> None:
    """Let ada and bob share folders with each other."""
    for owner, other in ((ada, bob), (bob, ada)):
        paths = [f"Shared {nth}" for nth in range(MANY)]
        await mailbox_loaders.create_mailboxes(context(owner), NewMailboxes(paths))
        keys = [(await owner.box(path)).id for path in paths]
        await add(
            owner.world,
            MailboxShare,
            mailbox_id=keys.__getitem__,
            user_id=other.user.id,
            owner_id=owner.user.id,
            rights=encode_rights(ALL_RIGHTS),
            since=0,
        )


async def _of_platform(world: Environment, user: int) -> None:
    """Add rows to the lists of domains and of the platform."""
    domain = await _domain_id(world, "example.org")
    other = (await add(world, Domain, 2, name=lambda n: f"d{n}.example"))[0]
    users = [(await make_user(world, f"user{nth}")).id for nth in range(MANY)]
    for key in (domain, other):
        await add(
            world,
            SenderRule,
            place=place_of_domain(key),
            pattern=lambda n: f"p{n}.example",
            domain_id=key,
        )
        await add(world, BccRule, local=lambda n: f"l{n}", domain_id=key)
        await add(
            world, AliasDomain, alias=lambda n, key=key: f"alias{n}d{key}.example", domain_id=key
        )
    await add(world, Domain, name=lambda n: f"more{n}.example")
    for table in (
        AdminLogEntry,
        ApiKey,
        Certificate,
        ForwardingHost,
        RelayHost,
        TlsPolicy,
        Transport,
    ):
        await add(world, table)
    await add(world, DkimKey, domain_id=domain, public="AAAA")
    await add(world, RecipientRewrite, target="eve@example.com")
    await add(world, RateLimit, id=users.__getitem__, user_id=users.__getitem__)
    await add(world, RateHold, id=users.__getitem__, until=START + timedelta(days=9))
    await add(world, Task, user_id=user, kind="export")
    for setting in SETTINGS:
        await add(world, SettingChange, key=setting, before={"value": 1}, after={"value": 2})
