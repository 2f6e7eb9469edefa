"""One object of each kind for an account, with a word that occurs in no other account."""

import base64
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert, select, update
from sqlmodel import SQLModel, col

from graph.types import global_ids
from graph.types.scalars import SCALARS, Cursor
from mail.recipients import address_resolution
from mail.storage import received_messages
from models.addresses.rewrites import BccRule, RecipientRewrite
from models.addresses.tables import Address, Contact
from models.admin.admin_log import AdminLogEntry
from models.admin.audits import Audit, AuditAccess, AuditCopy
from models.admin.key_values import KeyValue
from models.admin.settings import SettingChange
from models.admin.tasks import Task, UndoRecord
from models.auth.application_passwords import ApplicationPassword
from models.auth.credentials import AccessToken, ApiKey
from models.auth.second_factors import RecoveryCode, WebauthnKey
from models.auth.security_log import SecurityEvent
from models.autoreply import Autoreply
from models.certificates import Certificate
from models.connectors import Connector, ConnectorRun
from models.domains.tables import AliasDomain, Domain
from models.files.tables import File, FileShare
from models.filters.sieve_scripts import SieveScript
from models.filters.tables import Filter
from models.mailboxes.shares import ALL_RIGHTS, MailboxShare, encode_rights
from models.mailboxes.tables import Mailbox, MailboxSubscription
from models.messages.labels import Label
from models.messages.message_trace import DeliveryTraceStep
from models.messages.tables import Message
from models.notifications.push_channels import PushChannel
from models.notifications.webhooks import Webhook, WebhookDelivery
from models.queue.rate_limits import RateHold, RateLimit
from models.queue.tables import DeliveryState, QueueEntry
from models.routing.tables import ForwardingHost, RelayHost, TlsPolicy, Transport
from models.runtime.environment import Environment
from models.search.saved_searches import SavedSearch
from models.spam.quarantine import QuarantineItem
from models.spam.sender_rules import SenderRule, place_of_user
from models.store.columns import ColumnRow, core_table, select_columns
from models.submission.compose_requests import ComposeRequest
from models.submission.identities import Identity
from models.submission.tables import Submission
from models.transfer import Export
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.auth.credential_status import secret_digest
from resolvers.context import Context, Viewer
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes
from tests.conftest import raw_message
from tests.support.lists.list_rows import placeholder

BEFORE, LATER = datetime(2029, 1, 1, tzinfo=UTC), datetime(2031, 1, 1, tzinfo=UTC)
Table = type[SQLModel]


@dataclass
class Specimens:
    """The objects of one account, by the kind of their ids."""

    world: Environment
    user: ColumnRow
    address: str
    keys: dict[str, int] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)

    @property
    def mark(self) -> str:
        """The word that is in each text of the account's objects."""
        return f"mark{self.user.username}"

    def value(self, name: str) -> str:
        """The id of the object of this kind, or the text of this name."""
        if name in self.keys:
            return str(global_ids.encode(name, self.keys[name]))
        if name in self.texts:
            return self.texts[name]
        domain = self.user.domain_id
        streams = {"cursor": self.user.id, "domainCursor": domain}
        if name in streams:
            write: Any = SCALARS[Cursor].serialize
            return str(write({streams[name]: 0}))
        domain_name = self.address.rpartition("@")[2]
        texts = {"mark": self.mark, "address": self.address, "login": str(self.user.username)}
        texts |= {"domain": domain_name, "temporary": f"{self.mark}@{domain_name}"}
        return {**texts, "raw": "Subject: x\r\n\r\nx\r\n"}[name]

    def words(self) -> list[str]:
        """What shows in an answer that it holds data of the account."""
        kept = [self.texts[name] for name in ("deleted", "draft") if name in self.texts]
        return [self.mark, *kept, *map(self.value, self.keys)]

    async def add(self, kind: str, table: Table, /, **given: Any) -> int:
        """Insert a row; its texts are the mark, its owner the account."""
        row: dict[str, Any] = {}
        for column in core_table(table).c:
            if column.name in given:
                row[column.name] = given[column.name]
            elif column.name == "user_id":
                row["user_id"] = self.user.id
            elif column.name == "id":
                row["id"] = self.world.new_id()
            elif column.default is None and not column.nullable:
                value = placeholder(column, 0)
                row[column.name] = self.mark if type(value) is str else value
        async with self.world.write_session() as session:
            await (await session.connection()).execute(insert(core_table(table)), row)
        if kind:
            self.keys[kind] = row["id"]
        return int(row.get("id", 0))


async def furnish(
    world: Environment, user: ColumnRow, address: str, sharer: ColumnRow
) -> Specimens:
    """Make one object of each kind for this account. `sharer` shares a folder with it."""
    made = Specimens(world, user, address, {"User": user.id})
    await _mail(made)
    await _sharing(made, sharer)
    await _rules(made)
    await _credentials(made)
    await _sending(made)
    await _account(made)
    await _domain(made)
    await _platform(made)
    return made


async def _mail(made: Specimens) -> None:
    """A folder, a message, a draft, an archived one, a held one, files and searches."""
    world, user = made.world, made.user
    own = Context(world, Viewer(user.id, user.role, frozenset({Scope.MASTER})))
    await mailbox_loaders.create_mailboxes(own, NewMailboxes([made.mark]))
    box = await mailbox_loaders.require_mailbox(
        own, mailbox_loaders.MailboxSelector(path=made.mark)
    )
    made.keys["Mailbox"] = box.id
    to = await address_resolution.load_recipient(world, made.address)
    stored: list[int] = []
    for place in ("kept", "draft", "archived"):
        sender = made.address if place == "draft" else "Carol <carol@example.com>"
        text = f"{made.mark} text {place}"
        raw = raw_message(f"{made.mark} {place}", body=text, From=sender)
        placed = await received_messages.store_for_recipient(
            world, await received_messages.read_message(raw), to, "carol@example.com"
        )
        stored.append(placed.message_id)
    kept, draft, archived = stored
    made.keys |= {"Message": kept, "ArchivedMessage": archived}
    (first,) = await world.database.read(
        select(*select_columns(Message)).where(col(Message.id) == kept)
    )
    made.texts["inbox"] = str(global_ids.encode("Mailbox", first.mailbox_id))
    made.texts["uid"] = str(first.uid)
    made.texts["draft"] = str(global_ids.encode("Message", draft))
    past = {"archived_at": world.now(), "archived_from": "INBOX", "purge_at": LATER}
    await _change(made, archived, mailbox_id=None, **past)
    await _change(made, draft, draft=True, seen=True)
    asked = select(
        col(Message.thread_id),
        col(Message.blob_id),
        col(Message.structure),
        col(Message.size),
        col(Message.digest),
    )
    (row,) = await world.database.read(asked.where(col(Message.id) == kept))
    made.keys["Thread"] = row.thread_id
    blob = {"blob_id": row.blob_id}
    inside: Any = {**blob, "structure": row.structure, "size": row.size, "digest": row.digest}
    await made.add(
        "QuarantineItem",
        QuarantineItem,
        domain_id=user.domain_id,
        recipient=made.address,
        subject=made.mark,
        **inside,
    )
    await made.add(
        "AddressRegisterEntry",
        Contact,
        key=f"{made.mark}@example.com",
        address=f"{made.mark}@example.com",
        called=made.mark,
        name=made.mark,
    )
    digest = {"digest": row.digest, "size": row.size}
    file = await made.add("File", File, **blob, **digest)
    await made.add("FileShare", FileShare, file_id=file)
    await made.add("SavedSearch", SavedSearch, filter={"seen": False})
    await made.add("Label", Label)
    await made.add("", MailboxSubscription, path=f"{made.mark}/gone")
    await made.add("Audit", Audit, username=made.mark, copied=True, expires=LATER, end=BEFORE)
    audit = {"audit_id": made.keys["Audit"]}
    await made.add("AuditAccess", AuditAccess, **audit, action="list")
    await made.add("AuditedMessage", AuditCopy, **audit, **blob, origin_id=kept)
    task = await made.add("Task", Task, kind="EXPORT", state="QUEUED", not_before=LATER)
    await made.add("AccountExport", Export, task_id=task, expires_at=LATER, format="JSON")
    made.texts["undo"] = f"undo {made.mark}"
    before = {"kind": "MESSAGE_UPDATE", "messages": {}}
    await made.add(
        "", UndoRecord, digest=secret_digest(made.texts["undo"]), expires_at=LATER, before=before
    )


async def _change(made: Specimens, key: int, **values: Any) -> None:
    async with made.world.write_session(made.user.id) as session:
        changed = update(core_table(Message)).where(col(Message.id) == key).values(**values)
        await (await session.connection()).execute(changed)


async def _sharing(made: Specimens, sharer: ColumnRow) -> None:
    """A folder of another account that is shared with this one."""
    own = Context(made.world, Viewer(sharer.id, sharer.role, frozenset({Scope.MASTER})))
    path = f"{made.mark} shared"
    await mailbox_loaders.create_mailboxes(own, NewMailboxes([path]))
    box = select(col(Mailbox.id)).where(col(Mailbox.path) == path)
    (row,) = await made.world.database.read(box)
    rights = {"rights": encode_rights(ALL_RIGHTS), "since": 0, "owner_id": sharer.id}
    await made.add("", MailboxShare, mailbox_id=row.id, **rights)


async def _rules(made: Specimens) -> None:
    """What decides where mail of the account goes, and what else is done with it."""
    local, domain = made.address.split("@")
    action, query = {"seen": True}, {"subject": made.mark}
    await made.add("Filter", Filter, name=made.mark, query=query, action=action, order=1)
    await made.add("SieveScript", SieveScript, content=f"# {made.mark}\r\nkeep;\r\n")
    await made.add("Autoreply", Autoreply, id=made.user.id, text=made.mark, enabled=True)
    await made.add(
        "Identity",
        Identity,
        local=made.mark,
        domain=domain,
        shown=f"{made.mark}@{domain}",
        name=made.mark,
    )
    await made.add(
        "Address",
        Address,
        local=made.mark,
        domain_id=made.user.domain_id,
        shown=f"{made.mark}@{domain}",
        expires_at=LATER,
        masked=True,
    )
    await made.add("PushChannel", PushChannel, title=made.mark)
    secret = {"host": "imap.example.com", "protocol": "IMAP", "security": "TLS"}
    connector = await made.add("Connector", Connector, **secret, mechanism="PLAIN")
    await made.add("ConnectorRun", ConnectorRun, connector_id=connector, error=made.mark)
    hook = await made.add("Webhook", Webhook, types=["*"], url=f"https://{made.mark}.example/")
    await made.add(
        "WebhookDelivery",
        WebhookDelivery,
        webhook_id=hook,
        stream_id=made.user.id,
        expires_at=LATER,
    )
    await made.add(
        "SenderRule", SenderRule, place=place_of_user(made.user.id), pattern=f"{made.mark}.example"
    )
    await made.add(
        "BccRule",
        BccRule,
        local=local,
        domain_id=made.user.domain_id,
        bcc_to=f"{made.mark}@example.com",
    )


async def _credentials(made: Specimens) -> None:
    owner = {"user_id": made.user.id}
    await made.add("AppPassword", ApplicationPassword)
    await made.add("ApiKey", ApiKey, role=made.user.role, **owner)
    await made.add("AccessToken", AccessToken, auth_version=1, expires_at=LATER)
    identifier = base64.urlsafe_b64encode(made.mark.encode()).decode().rstrip("=")
    await made.add("WebauthnKey", WebauthnKey, credential_id=identifier)
    await made.add("", RecoveryCode)
    await made.add(
        "AuthEvent",
        SecurityEvent,
        action="authenticate",
        result="fail",
        detail={"text": made.mark},
        **owner,
    )


async def _sending(made: Specimens) -> None:
    """A message that waits in the queue, and rates."""
    of = select(col(Message.blob_id)).where(col(Message.id) == made.keys["Message"])
    (row,) = await made.world.database.read(of)
    sent = await made.add(
        "Submission",
        Submission,
        tenant_id=made.user.tenant_id,
        blob_id=row.blob_id,
        envelope_from=f"{made.mark}@example.org",
        send_time=LATER,
        undo_until=LATER,
    )
    made.keys["QueueEntry"] = sent
    made.texts["queueId"] = made.mark
    await made.add(
        "",
        QueueEntry,
        submission_id=sent,
        recipient=f"{made.mark}@example.com",
        domain="example.com",
        state=DeliveryState.DEFERRED,
        attempts=1,
        next_at=LATER,
        expires_at=LATER,
    )
    await made.add(
        "",
        DeliveryTraceStep,
        at=made.world.now(),
        detail=made.mark,
        submission_id=sent,
        address=made.address,
        compared=made.address,
        domain_id=made.user.domain_id,
    )
    await made.add("RateLimit", RateLimit, id=made.user.id, value=7)
    await made.add("RateHold", RateHold, id=made.user.id, until=LATER)


async def _account(made: Specimens) -> None:
    """Requests, values and log entries of the account, and what its record says."""
    await made.add(
        "ComposeRequest", ComposeRequest, written={"subject": made.mark}, expires_at=LATER
    )
    await made.add(
        "KeyValue", KeyValue, stream_id=made.user.id, store="default", level="", value=made.mark
    )
    await made.add(
        "AdminLogEntry",
        AdminLogEntry,
        mutation="userUpdate",
        target_kind="User",
        target_id=made.user.id,
        domain_id=made.user.domain_id,
        role=Role.ROOT,
        reason=made.mark,
    )
    values = {
        "second_factors": ["WEBAUTHN"],
        "internal_data": {"word": made.mark},
        "meta_data": {"word": made.mark},
        "key_info": {
            "name": made.mark,
            "address": None,
            "fingerprint": made.mark,
            "expires_at": None,
        },
    }
    async with made.world.write_session(made.user.id) as session:
        changed = update(core_table(User)).where(col(User.id) == made.user.id).values(**values)
        await (await session.connection()).execute(changed)


async def _domain(made: Specimens) -> None:
    """Objects of the account's domain."""
    domain = made.user.domain_id
    assert domain is not None
    made.keys["Domain"] = domain
    async with made.world.write_session() as session:
        limited = update(core_table(Domain)).where(col(Domain.id) == domain)
        await (await session.connection()).execute(limited.values(max_user_quota=10**15))
    await made.add("DomainAlias", AliasDomain, alias=f"{made.mark}.example", domain_id=domain)


async def _platform(made: Specimens) -> None:
    """Objects of no account: who sees them does not depend on the target."""
    for table in (Certificate, ForwardingHost, RelayHost, TlsPolicy, Transport):
        await made.add(table.__name__, table)
    await made.add("RecipientRewrite", RecipientRewrite, target="eve@example.com")
    await made.add("SettingChange", SettingChange, key="undo.window")
