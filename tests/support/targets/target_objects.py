"""One object of each kind for an account, with a marker text that no other account has."""

import base64
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import insert, select, update
from sqlmodel import SQLModel, col

from graph.http.download_urls import attachment_id
from graph.types import global_ids
from graph.types.scalars import SCALARS, Cursor
from mail.recipients import address_resolution
from mail.storage import received_messages
from models.addresses.rewrites import BccRule, RecipientRewrite
from models.addresses.tables import Address, AddressKind, Contact
from models.admin.audit_log import AuditLogEntry
from models.admin.key_values import KeyValueEntry
from models.admin.legal_holds import HeldCopy, LegalHold, LegalHoldAccess
from models.admin.settings import SettingHistoryEntry
from models.admin.tasks import Task, UndoRecord
from models.auth.application_passwords import ApplicationPassword
from models.auth.credentials import AccessToken, ApiKey, Throttle
from models.auth.second_factors import RecoveryCode, WebauthnKey
from models.auth.security_log import SecurityEvent, SecurityEventAction, SecurityEventResult
from models.autoreply import Autoreply
from models.certificates import Certificate
from models.cluster.nodes import ClusterNode
from models.connectors import Connector, ConnectorRun
from models.domains.tables import Domain, DomainAlias
from models.files.tables import File, FileShare
from models.filters.sieve_scripts import SieveScript
from models.filters.tables import Filter
from models.identity_providers import IdentityLink, IdentityProvider
from models.mailboxes.shares import ALL_RIGHTS, MailboxShare, encode_rights
from models.mailboxes.tables import Mailbox, MailboxSubscription
from models.messages.labels import Label
from models.messages.message_trace import DeliveryTraceStep
from models.messages.tables import Message
from models.notifications.push_channels import PushChannel
from models.notifications.webhooks import Webhook, WebhookDelivery
from models.oauth.tables import OauthClient, OauthGrant
from models.queue.rate_limits import RateLimit, RateLimitHold
from models.queue.tables import DeliveryState, QueueEntry
from models.resources.tables import Resource
from models.routing.tables import ForwardingHost, RelayHost, TlsPolicy, Transport
from models.runtime.environment import Environment
from models.search.saved_searches import SavedSearch
from models.spam.quarantine import QuarantineItem
from models.spam.sender_rules import SenderRule, scope_of_user
from models.store.columns import ColumnRow, core_table, select_columns
from models.submission.compose_requests import ComposeRequest
from models.submission.identities import Identity
from models.submission.tables import Submission
from models.throttling.policy import POLICY_ID
from models.throttling.tables import NetworkBan
from models.transfer import Export
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.auth.credential_status import secret_digest
from resolvers.context import Context
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.create import NewMailboxes
from resolvers.viewer import Viewer
from tests.conftest import raw_message
from tests.support.lists.list_rows import placeholder_value

PAST, FUTURE = datetime(2029, 1, 1, tzinfo=UTC), datetime(2031, 1, 1, tzinfo=UTC)
Table = type[SQLModel]


@dataclass
class TargetObjects:
    """The objects of one account: their ids by type, and other values by name."""

    environment: Environment
    user: ColumnRow
    address: str
    ids_by_kind: dict[str, int] = field(default_factory=dict)
    text_by_name: dict[str, str] = field(default_factory=dict)

    @property
    def marker(self) -> str:
        """The text in all objects of the account."""
        return f"mark{self.user.username}"

    def value(self, name: str) -> str:
        """The global ID of the object of this type, or the value of this name."""
        if name in self.ids_by_kind:
            return str(global_ids.encode(name, self.ids_by_kind[name]))
        if name in self.text_by_name:
            return self.text_by_name[name]
        domain = self.user.domain_id
        stream_ids = {"cursor": self.user.id, "domainCursor": domain}
        if name in stream_ids:
            serialize: Any = SCALARS[Cursor].serialize
            return str(serialize({stream_ids[name]: 0}))
        domain_name = self.address.rpartition("@")[2]
        texts = {"mark": self.marker, "address": self.address, "login": str(self.user.username)}
        texts |= {"domain": domain_name, "temporary": f"{self.marker}@{domain_name}"}
        return {**texts, "raw": "Subject: x\r\n\r\nx\r\n"}[name]

    def evidence_words(self) -> list[str]:
        """Texts and ids that prove that a response has data of the account."""
        object_texts = [
            self.text_by_name[name]
            for name in ("deleted", "draft", "Attachment")
            if name in self.text_by_name
        ]
        return [self.marker, *object_texts, *map(self.value, self.ids_by_kind)]

    async def insert_row(self, object_type: str, table: Table, /, **values: Any) -> int:
        """Insert a row that the account owns; its other texts are the marker."""
        row: dict[str, Any] = {}
        for column in core_table(table).c:
            if column.name in values:
                row[column.name] = values[column.name]
            elif column.name == "user_id":
                row["user_id"] = self.user.id
            elif column.name == "id":
                row["id"] = self.environment.new_id()
            elif column.default is None and not column.nullable:
                value = placeholder_value(column, 0)
                row[column.name] = self.marker if type(value) is str else value
        async with self.environment.write_session() as session:
            await (await session.connection()).execute(insert(core_table(table)), row)
        if object_type:
            self.ids_by_kind[object_type] = row["id"]
        return int(row.get("id", 0))


async def create_target_objects(
    environment: Environment, user: ColumnRow, address: str, sharer: ColumnRow
) -> TargetObjects:
    """Create one object of each kind for this account. `sharer` shares a mailbox with it."""
    target = TargetObjects(environment, user, address, {"User": user.id})
    await _mail(target)
    await _sharing(target, sharer)
    await _rules(target)
    await _credentials(target)
    await _sending(target)
    await _account(target)
    await _domain(target)
    await _identity_provider(target)
    await _platform(target)
    return target


async def _mail(target: TargetObjects) -> None:
    """Create a mailbox, messages of each kind, files and searches."""
    kept_id, archived_id = await _store_messages(target)
    statement = select(*select_columns(Message)).where(col(Message.id) == kept_id)
    (message,) = await target.environment.database.read(statement)
    target.text_by_name["inbox"] = str(global_ids.encode("Mailbox", message.mailbox_id))
    target.text_by_name["uid"] = str(message.uid)
    target.ids_by_kind["Thread"] = message.thread_id
    deleted_columns = {
        "deleted_at": target.environment.now(),
        "deleted_from": "INBOX",
        "purge_at": FUTURE,
    }
    await _change(target, archived_id, mailbox_id=None, **deleted_columns)
    await _insert_mail_rows(target, message)
    await _insert_legal_hold_and_task_rows(target, message)


async def _store_messages(target: TargetObjects) -> tuple[int, int]:
    """Create a mailbox, and store a received message, a draft and a message to delete.

    Returns the ids of the received message and of the one to delete.
    """
    environment, user = target.environment, target.user
    owner_context = Context(environment, Viewer(user.id, user.role, frozenset({Scope.FULL})))
    await mailbox_create.create_mailboxes(owner_context, NewMailboxes([target.marker]))
    mailbox = await mailbox_loaders.require_own_or_shared_mailbox(
        owner_context, mailbox_loaders.MailboxSelector(path=target.marker)
    )
    target.ids_by_kind["Mailbox"] = mailbox.id
    recipient = await address_resolution.load_recipient_below_limits(environment, target.address)
    stored: list[int] = []
    for name in ("kept", "draft", "archived"):
        sender = target.address if name == "draft" else "Carol <carol@example.com>"
        text = f"{target.marker} text {name}"
        raw = _message_with_attachment(f"{target.marker} {name}", text, sender)
        inserted = await received_messages.store_once_for_recipient(
            environment,
            await received_messages.parse_storable_message(raw),
            recipient,
            "carol@example.com",
        )
        stored.append(inserted.message_id)
    kept, draft, archived = stored
    target.ids_by_kind |= {"Message": kept, "DeletedMessage": archived}
    target.text_by_name["draft"] = str(global_ids.encode("Message", draft))
    target.text_by_name["Attachment"] = str(attachment_id(kept, 0))
    await _change(target, draft, draft=True, seen=True)
    return kept, archived


def _message_with_attachment(subject: str, text: str, sender: str) -> bytes:
    boundary = "part-of-target"
    body = (
        f"--{boundary}\r\nContent-Type: text/plain\r\n\r\n{text}\r\n"
        f"--{boundary}\r\nContent-Type: text/plain\r\n"
        f"Content-Disposition: attachment; filename=notes.txt\r\n\r\n{text}\r\n--{boundary}--"
    )
    content_type = f'multipart/mixed; boundary="{boundary}"'
    return raw_message(
        subject, body=body, From=sender, MIME_Version="1.0", Content_Type=content_type
    )


async def _insert_mail_rows(target: TargetObjects, message: ColumnRow) -> None:
    """Insert a quarantined message and a file with the content of this message, and searches."""
    content = {"blob_id": message.blob_id, "size": message.size}
    await target.insert_row(
        "QuarantineItem",
        QuarantineItem,
        domain_id=target.user.domain_id,
        recipient=target.address,
        subject=target.marker,
        mime_structure=message.mime_structure,
        sha256=message.sha256,
        **content,
    )
    await target.insert_row(
        "ContactSuggestion",
        Contact,
        key=f"{target.marker}@example.com",
        address=f"{target.marker}@example.com",
        folded_name=target.marker,
        name=target.marker,
    )
    file = await target.insert_row("File", File, digest=message.sha256, **content)
    await target.insert_row("FileShare", FileShare, file_id=file)
    await target.insert_row("SavedSearch", SavedSearch, filter={"seen": False})
    await target.insert_row("Label", Label)
    await target.insert_row("", MailboxSubscription, path=f"{target.marker}/gone")


async def _insert_legal_hold_and_task_rows(target: TargetObjects, message: ColumnRow) -> None:
    """Insert a legal hold with a copy of this message, an export with its task, and an undo."""
    await target.insert_row(
        "LegalHold", LegalHold, username=target.marker, copied=True, expires=FUTURE, end=PAST
    )
    legal_hold = {"legal_hold_id": target.ids_by_kind["LegalHold"]}
    await target.insert_row("LegalHoldAccess", LegalHoldAccess, **legal_hold, action="LIST")
    await target.insert_row(
        "HeldCopy", HeldCopy, **legal_hold, blob_id=message.blob_id, origin_id=message.id
    )
    task = await target.insert_row(
        "Task", Task, kind="USER_EXPORT", state="QUEUED", not_before=FUTURE
    )
    await target.insert_row("UserExport", Export, task_id=task, expires_at=FUTURE, format="JSON")
    target.text_by_name["undo"] = f"undo {target.marker}"
    before = {"kind": "MESSAGE_UPDATE", "messages": {}}
    await target.insert_row(
        "",
        UndoRecord,
        digest=secret_digest(target.text_by_name["undo"]),
        expires_at=FUTURE,
        before=before,
    )


async def _change(target: TargetObjects, message_id: int, **values: Any) -> None:
    """Change columns of a message."""
    async with target.environment.write_session(target.user.id) as session:
        statement = (
            update(core_table(Message)).where(col(Message.id) == message_id).values(**values)
        )
        await (await session.connection()).execute(statement)


async def _sharing(target: TargetObjects, sharer: ColumnRow) -> None:
    """Share a mailbox of another account with this one."""
    sharer_context = Context(
        target.environment, Viewer(sharer.id, sharer.role, frozenset({Scope.FULL}))
    )
    path = f"{target.marker} shared"
    await mailbox_create.create_mailboxes(sharer_context, NewMailboxes([path]))
    statement = select(col(Mailbox.id)).where(col(Mailbox.path) == path)
    (row,) = await target.environment.database.read(statement)
    rights = {"rights": encode_rights(ALL_RIGHTS), "since": 0, "owner_id": sharer.id}
    await target.insert_row("", MailboxShare, mailbox_id=row.id, **rights)


async def _rules(target: TargetObjects) -> None:
    """Create filters, addresses, connectors, webhooks and rules of the account."""
    local, domain = target.address.split("@")
    action, query = {"seen": True}, {"subject": target.marker}
    await target.insert_row(
        "Filter", Filter, name=target.marker, query=query, action=action, order=1
    )
    await target.insert_row("SieveScript", SieveScript, content=f"# {target.marker}\r\nkeep;\r\n")
    await target.insert_row(
        "Autoreply", Autoreply, id=target.user.id, text=target.marker, enabled=True
    )
    await target.insert_row(
        "Identity",
        Identity,
        local=target.marker,
        domain=domain,
        display_address=f"{target.marker}@{domain}",
        name=target.marker,
    )
    await target.insert_row(
        "Address",
        Address,
        local=target.marker,
        domain_id=target.user.domain_id,
        display_address=f"{target.marker}@{domain}",
        expires_at=FUTURE,
        masked=True,
    )
    await target.insert_row("PushChannel", PushChannel, title=target.marker)
    server_columns = {"host": "imap.example.com", "protocol": "IMAP", "security": "TLS"}
    connector = await target.insert_row(
        "Connector", Connector, **server_columns, auth_mechanism="PLAIN"
    )
    await target.insert_row(
        "ConnectorRun", ConnectorRun, connector_id=connector, error=target.marker
    )
    webhook = await target.insert_row(
        "Webhook", Webhook, types=None, url=f"https://{target.marker}.example/"
    )
    await target.insert_row(
        "WebhookDelivery",
        WebhookDelivery,
        webhook_id=webhook,
        stream_id=target.user.id,
        expires_at=FUTURE,
    )
    await target.insert_row(
        "SenderRule",
        SenderRule,
        scope=scope_of_user(target.user.id),
        pattern=f"{target.marker}.example",
    )
    await target.insert_row(
        "BccRule",
        BccRule,
        local=local,
        domain_id=target.user.domain_id,
        bcc_to=f"{target.marker}@example.com",
    )


async def _credentials(target: TargetObjects) -> None:
    """Create credentials and an entry of the security log."""
    owner = {"user_id": target.user.id}
    await target.insert_row("AppPassword", ApplicationPassword)
    client_id = await target.insert_row("", OauthClient, client_id=f"{target.marker}-client")
    await target.insert_row("OauthGrant", OauthGrant, client_id=client_id, scopes=[])
    await target.insert_row("ApiKey", ApiKey, role=target.user.role, **owner)
    await target.insert_row("AccessToken", AccessToken, auth_version=1, expires_at=FUTURE)
    identifier = base64.urlsafe_b64encode(target.marker.encode()).decode().rstrip("=")
    await target.insert_row("WebauthnKey", WebauthnKey, credential_id=identifier)
    await target.insert_row("", RecoveryCode)
    await target.insert_row(
        "SecurityEvent",
        SecurityEvent,
        action=SecurityEventAction.SIGN_IN_ATTEMPTED,
        result=SecurityEventResult.FAILURE,
        detail={"text": target.marker},
        **owner,
    )


async def _sending(target: TargetObjects) -> None:
    """Create a submission with a deferred queue entry, and rate limits."""
    statement = select(col(Message.blob_id)).where(col(Message.id) == target.ids_by_kind["Message"])
    (row,) = await target.environment.database.read(statement)
    submission_id = await target.insert_row(
        "Submission",
        Submission,
        tenant_id=target.user.tenant_id,
        blob_id=row.blob_id,
        envelope_from=f"{target.marker}@example.org",
        send_at=FUTURE,
        undoable_until=FUTURE,
    )
    target.ids_by_kind["QueueEntry"] = submission_id
    target.text_by_name["queueId"] = target.marker
    await target.insert_row(
        "",
        QueueEntry,
        submission_id=submission_id,
        recipient=f"{target.marker}@example.com",
        domain="example.com",
        state=DeliveryState.DEFERRED,
        attempts=1,
        next_at=FUTURE,
        expires_at=FUTURE,
    )
    await target.insert_row(
        "",
        DeliveryTraceStep,
        at=target.environment.now(),
        detail=target.marker,
        submission_id=submission_id,
        address=target.address,
        normalized_address=target.address,
        domain_id=target.user.domain_id,
    )
    await target.insert_row("RateLimit", RateLimit, id=target.user.id, value=7)
    await target.insert_row("RateLimitHold", RateLimitHold, id=target.user.id, until=FUTURE)


async def _account(target: TargetObjects) -> None:
    """Create entries of logs and stores, and fill in the columns of the user."""
    await target.insert_row(
        "ComposeRequest", ComposeRequest, content={"subject": target.marker}, expires_at=FUTURE
    )
    await target.insert_row(
        "KeyValueEntry",
        KeyValueEntry,
        stream_id=target.user.id,
        store="default",
        level="",
        value=target.marker,
    )
    await target.insert_row(
        "AuditLogEntry",
        AuditLogEntry,
        mutation="userUpdate",
        target_kind="User",
        target_id=target.user.id,
        domain_id=target.user.domain_id,
        role=Role.ROOT,
        reason=target.marker,
    )
    values = {
        "second_factors": ["WEBAUTHN"],
        "private_metadata": {"word": target.marker},
        "public_metadata": {"word": target.marker},
        "openpgp_key": {
            "name": target.marker,
            "address": None,
            "fingerprint": target.marker,
            "expires_at": None,
        },
    }
    async with target.environment.write_session(target.user.id) as session:
        statement = update(core_table(User)).where(col(User.id) == target.user.id).values(**values)
        await (await session.connection()).execute(statement)


async def _domain(target: TargetObjects) -> None:
    """Create objects of the account's domain."""
    domain = target.user.domain_id
    assert domain is not None
    target.ids_by_kind["Domain"] = domain
    async with target.environment.write_session() as session:
        statement = update(core_table(Domain)).where(col(Domain.id) == domain)
        await (await session.connection()).execute(statement.values(max_user_quota=10**15))
    await target.insert_row(
        "AliasDomain", DomainAlias, alias=f"{target.marker}.example", domain_id=domain
    )
    local = f"{target.marker}-room"
    address_id = await target.insert_row(
        "",
        Address,
        local=local,
        display_address=f"{local}@{target.address.rpartition('@')[2]}",
        user_id=None,
        domain_id=domain,
        kind=AddressKind.RESOURCE,
    )
    await target.insert_row(
        "Resource", Resource, local=local, domain_id=domain, address_id=address_id
    )


async def _identity_provider(target: TargetObjects) -> None:
    """Link the account to the provider of its domain; accounts of a domain share the provider."""
    domain_id, database = target.user.domain_id, target.environment.database
    statement = select(col(IdentityProvider.id)).where(col(IdentityProvider.domain_id) == domain_id)
    rows = await database.read(statement)
    columns = {"domain_id": domain_id, "issuer": "https://10.0.0.1", "scopes": ["openid"]}
    provider_id = rows[0].id if rows else await target.insert_row("", IdentityProvider, **columns)
    await target.insert_row("", IdentityLink, provider_id=provider_id)


async def _platform(target: TargetObjects) -> None:
    """Create objects of no account; who can read them does not depend on the target."""
    for table in (Certificate, ForwardingHost, RelayHost, TlsPolicy, Transport):
        await target.insert_row(table.__name__, table)
    await target.insert_row("OauthClient", OauthClient, scopes=[])
    target.ids_by_kind["BanPolicy"] = POLICY_ID
    await target.insert_row("ClusterNode", ClusterNode)
    await target.insert_row("NetworkBan", NetworkBan, ends_at=FUTURE)
    await target.insert_row("LoginPenalty", Throttle, until=FUTURE, wait_since=PAST)
    await target.insert_row("RecipientRewrite", RecipientRewrite, target="eve@example.com")
    await target.insert_row("SettingHistoryEntry", SettingHistoryEntry, key="undo.window")
