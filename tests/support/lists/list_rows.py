"""Rows for every list of the schema, at least five of each, in one store."""

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import JSON, Column, Float, Integer, LargeBinary, insert, select, update
from sqlmodel import SQLModel, col

from mail.search import index_worker
from models.addresses.rewrites import BccRule, RecipientRewrite
from models.addresses.tables import Address, AddressKind, Contact
from models.admin.audit_log import AuditLogEntry
from models.admin.key_values import KeyValueEntry
from models.admin.legal_holds import HeldCopy, LegalHold, LegalHoldAccess
from models.admin.settings import SettingHistoryEntry
from models.admin.tasks import Task, TaskKind
from models.auth.application_passwords import ApplicationPassword
from models.auth.credentials import AccessToken, ApiKey, Throttle
from models.auth.security_log import SecurityEvent
from models.certificates import Certificate
from models.cluster.nodes import AdministrativeNodeState, ClusterNode, NodeKind
from models.connectors import Connector, ConnectorRun
from models.domains.dkim_keys import DkimKey
from models.domains.tables import Domain, DomainAlias
from models.events.journal import Stream
from models.files.tables import File
from models.filters.sieve_scripts import SieveScript
from models.filters.tables import Filter
from models.mailboxes.shares import ALL_RIGHTS, MailboxShare, encode_rights
from models.messages.message_trace import DeliveryTraceStep
from models.messages.tables import Message
from models.notifications.webhooks import Webhook, WebhookDelivery
from models.oauth.tables import OauthClient, OauthGrant
from models.queue.rate_limits import RateLimit, RateLimitHold
from models.queue.tables import QueueEntry
from models.resources.tables import Booking, BookingPolicy, Resource
from models.routing.tables import ForwardingHost, RelayHost, TlsPolicy, Transport
from models.runtime.environment import Environment
from models.search.saved_searches import SavedSearch
from models.spam.quarantine import QuarantineItem
from models.spam.sender_rules import SenderRule, scope_of_domain
from models.store.columns import UtcDateTime, core_table
from models.submission.tables import Submission
from models.throttling.tables import NetworkBan
from models.transfer import Export
from models.users.tables import DeletedUser, DomainAdmin, User
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes.create import NewMailboxes
from tests.conftest import (
    GraphQLClient,
    ManualClock,
    client_context,
    deliver_to,
    make_user,
    raw_message,
)

ROWS_PER_LIST = 6
FIRST_TIME = datetime(2030, 1, 1, tzinfo=UTC)
SETTINGS = ("submission.maxRecipients", "undo.window")
TableClass = type[SQLModel]


def placeholder_value(column: Column[Any], row_number: int) -> Any:
    """A value for a column that has no default."""
    column_type: Any = column.type
    if enums := getattr(column_type, "enum_class", None):
        return next(iter(enums))
    values: dict[Any, Any] = {
        UtcDateTime: FIRST_TIME + timedelta(minutes=row_number),
        JSON: [],
        LargeBinary: b"",
        Float: float(row_number),
        Integer: row_number + 1,
    }
    matching_values = [value for cls, value in values.items() if isinstance(column_type, cls)]
    return matching_values[0] if matching_values else f"{column.name}{row_number}"


def _row(
    environment: Environment, table: TableClass, row_number: int, values: dict[str, Any]
) -> dict[str, Any]:
    row: dict[str, Any] = {}
    for column in core_table(table).c:
        if column.name in values:
            value = values[column.name]
            row[column.name] = value(row_number) if callable(value) else value
        elif column.name == "id":
            row["id"] = environment.new_id()
        elif column.default is None and not column.nullable:
            row[column.name] = placeholder_value(column, row_number)
    return row


async def add_rows(
    environment: Environment, table: TableClass, count: int = ROWS_PER_LIST, **values: Any
) -> list[int]:
    """Insert rows with these values. A callable value gets the number of the row."""
    unknown = values.keys() - {column.name for column in core_table(table).c}
    if unknown:
        raise ValueError(f"{core_table(table).name} has no columns {sorted(unknown)}")
    rows = [_row(environment, table, row_number, values) for row_number in range(count)]
    async with environment.write_session() as session:
        await (await session.connection()).execute(insert(core_table(table)), rows)
    return [row.get("id", 0) for row in rows]


async def _domain_id(environment: Environment, name: str) -> int:
    (row,) = await environment.database.read(select(col(Domain.id)).where(col(Domain.name) == name))
    return int(row.id)


async def add_list_rows(ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock) -> None:
    """Add rows for every list of ada, bob, their domain and the platform."""
    await _deliver_messages(ada, bob, clock)
    assert await index_worker.index_next_batch_and_record_contacts(ada.environment)
    await deliver_to(ada, raw_message("Waits", body="word1 is not in the index yet"))
    await _add_user_rows(ada.environment, [ada.user.id, bob.user.id])
    await add_rows(
        ada.environment,
        DeliveryTraceStep,
        at=lambda n: FIRST_TIME + timedelta(minutes=n),
        queue_id="queue1",
        normalized_address="ada@example.org",
        recipient_domain="example.org",
        sender="carol@example.com",
        normalized_sender_address="carol@example.com",
        sender_domain="example.com",
    )
    await _delete_users(ada)
    await _add_shares(ada, bob)
    await _add_domain_and_platform_rows(ada.environment, ada.user.id)


async def add_administered_domains(client: GraphQLClient) -> None:
    """Make a user administrator of the domains that have a relay host."""
    statement = select(col(Domain.id)).where(col(Domain.relay_host_id).is_not(None))
    ids = [row.id for row in await client.environment.database.read(statement)]
    await add_rows(
        client.environment,
        DomainAdmin,
        len(ids),
        user_id=client.user.id,
        domain_id=ids.__getitem__,
    )


async def _delete_users(ada: GraphQLClient) -> None:
    """Create users of the domain, and delete them so that they can be restored."""
    for number in range(ROWS_PER_LIST):
        user = await make_user(ada.environment, f"deleted{number}")
        async with ada.environment.write_session() as session:
            session.add(
                DeletedUser(
                    id=user.id,
                    username_key=f"deleted{number}",
                    domain_id=user.domain_id,
                    deleted_at=FIRST_TIME + timedelta(minutes=number),
                    purge_at=FIRST_TIME + timedelta(days=99),
                )
            )
            deleted = await session.get_one(User, user.id)
            deleted.deleted_at, deleted.active = FIRST_TIME, False
            deleted.username_key, deleted.domain_id = f"#{user.id}", None
            session.add(deleted)


async def _deliver_messages(ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock) -> None:
    """Deliver messages and one thread; move some to other mailboxes, and delete some."""
    first_id = hashlib.sha256(b"Letter 0word0 0").hexdigest()[:16]
    for client in (ada, bob):
        await mailbox_create.create_mailboxes(
            client_context(client), NewMailboxes(["Keep", "More"])
        )
        keep_mailbox = await client.load_mailbox("Keep")
        for number in range(ROWS_PER_LIST):
            await deliver_to(
                client, raw_message(f"Letter {number}", body=f"word{number % 3} {number}")
            )
            clock.tick(seconds=60)
        for number in range(3 * ROWS_PER_LIST):
            references = f"<{first_id}@example.com>"
            reply = raw_message(
                "Re: Letter 0", body=f"word{number % 3} answer {number}", References=references
            )
            await deliver_to(client, reply)
            clock.tick(seconds=60)
        own_messages = select(col(Message.id)).where(col(Message.user_id) == client.user.id)
        ids = [
            row.id
            for row in await client.environment.database.read(
                own_messages.order_by(col(Message.id))
            )
        ]
        await _update_messages(client.environment, ids[::3], seen=True, flagged=True)
        await _update_messages(client.environment, ids[10:16], mailbox_id=keep_mailbox.id)
        more_mailbox = await client.load_mailbox("More")
        await _update_messages(client.environment, ids[16:18], mailbox_id=more_mailbox.id)
        for number, key in enumerate(ids[18:]):
            deleted_columns = {
                "deleted_at": FIRST_TIME + timedelta(days=1, hours=number),
                "deleted_from": "INBOX",
                "purge_at": FIRST_TIME + timedelta(days=99),
            }
            await _update_messages(client.environment, [key], mailbox_id=None, **deleted_columns)


async def _update_messages(environment: Environment, ids: Sequence[int], **values: Any) -> None:
    async with environment.write_session() as session:
        message_update = update(core_table(Message)).where(col(Message.id).in_(ids))
        await (await session.connection()).execute(message_update.values(**values))


async def _add_user_rows(environment: Environment, users: Sequence[int]) -> None:
    """Add rows to the lists of users."""
    domain = await _domain_id(environment, "example.org")
    message_query = select(
        col(Message.blob_id), col(Message.mime_structure), col(Message.size)
    ).limit(1)
    (message,) = await environment.database.read(message_query)
    for user in users:
        await add_rows(
            environment,
            SecurityEvent,
            action=lambda n: ["SIGN_IN_ATTEMPTED", "TOKEN_REVOKED"][n % 2],
            result="SUCCESS",
            fold=lambda n, user=user: f"{user} {n}",
            user_id=user,
        )
        await _add_address_rows(environment, user, domain)
        await _add_content_rows(environment, user, message.blob_id)
        await add_rows(
            environment,
            QuarantineItem,
            domain_id=domain,
            queue_id=lambda n, user=user: f"q{user}{n}",
            recipient="ada@example.org",
            mime_structure=message.mime_structure,
            size=message.size,
            sha256="",
            user_id=user,
            blob_id=message.blob_id,
        )
        await add_rows(
            environment, KeyValueEntry, stream_id=user, store="default", value='"1"', level=""
        )
        await _add_connector_and_webhook_rows(environment, user)
        await _add_credential_and_export_rows(environment, user)
        await _add_submission_and_legal_hold_rows(environment, user, message.blob_id)


async def _add_address_rows(environment: Environment, user: int, domain: int) -> None:
    """Add temporary and other addresses of a user."""
    temporary: dict[str, Any] = {"expires_at": FIRST_TIME + timedelta(days=99), "masked": True}
    await add_rows(
        environment,
        Address,
        local=lambda n: f"t{n}u{user}",
        display_address=lambda n: f"t{n}u{user}@example.org",
        domain_id=domain,
        user_id=user,
        **temporary,
    )
    await add_rows(
        environment,
        Address,
        local=lambda n: f"a{n}u{user}",
        display_address=lambda n: f"a{n}u{user}@example.org",
        domain_id=domain,
        user_id=user,
    )


async def _add_content_rows(environment: Environment, user: int, blob_id: int) -> None:
    """Add filters, files, scripts, searches and contacts of a user."""
    await add_rows(environment, Filter, name=lambda n: f"filter {n}", user_id=user)
    await add_rows(environment, File, content_type="text/plain", user_id=user, blob_id=blob_id)
    await add_rows(environment, SieveScript, content="keep;", user_id=user)
    await add_rows(
        environment,
        SavedSearch,
        filter={"seen": False},
        folded=lambda n: f"name{n}",
        user_id=user,
    )
    await add_rows(environment, Contact, key=lambda n: f"address{n}", user_id=user)


async def _add_credential_and_export_rows(environment: Environment, user: int) -> None:
    """Add access tokens, application passwords and exports of a user."""
    statement = select(col(User.auth_version)).where(col(User.id) == user)
    (row,) = await environment.database.read(statement)
    far_end = FIRST_TIME + timedelta(days=99)
    await add_rows(
        environment,
        AccessToken,
        digest=lambda n: f"{user} {n}",
        auth_version=row.auth_version,
        expires_at=far_end,
        user_id=user,
    )
    await add_rows(
        environment,
        ApplicationPassword,
        ttl=lambda n: 3600 if n % 2 else None,
        active=lambda n: n % 3 > 0,
        user_id=user,
    )
    await add_rows(environment, Export, task_id=0, format="JSON", expires_at=far_end, user_id=user)


async def _add_connector_and_webhook_rows(environment: Environment, user: int) -> None:
    """Add connectors and webhooks of a user, with runs and deliveries of the first two."""
    connector_ids = await add_rows(environment, Connector, host="imap.example.com", user_id=user)
    for row_id in connector_ids[:2]:
        await add_rows(environment, ConnectorRun, connector_id=row_id, user_id=user)
    webhook_ids = await add_rows(
        environment, Webhook, types=["MESSAGE_ADDED"], url="https://example.com/", user_id=user
    )
    for row_id in webhook_ids[:2]:
        await add_rows(
            environment,
            WebhookDelivery,
            webhook_id=row_id,
            number=lambda n: n,
            stream_id=user,
            type="MESSAGE_ADDED",
            body={
                "user": None, "domain": None, "origin": None,
                "objects": [],
            },
        )  # fmt: skip


async def _add_submission_and_legal_hold_rows(
    environment: Environment, user: int, blob_id: int
) -> None:
    """Add submissions with queue entries, and legal holds with copies."""
    submission_ids = await add_rows(
        environment,
        Submission,
        tenant_id=user,
        queue_id=lambda n: f"s{user}{n}",
        envelope_from="ada@example.org",
        user_id=user,
        blob_id=blob_id,
    )
    for row_id in submission_ids:
        await add_rows(
            environment,
            QueueEntry,
            1,
            submission_id=row_id,
            recipient="eve@example.com",
            domain="example.com",
            next_at=FIRST_TIME,
            user_id=user,
        )
    for row_id in (
        await add_rows(environment, LegalHold, username="ada", copied=True, user_id=user)
    )[:2]:
        await add_rows(environment, LegalHoldAccess, legal_hold_id=row_id, action="LIST")
        await add_rows(
            environment,
            HeldCopy,
            legal_hold_id=row_id,
            position=lambda n: n + 1,
            origin_id=lambda n: n,
        )


async def _add_shares(ada: GraphQLClient, bob: GraphQLClient) -> None:
    """Let ada and bob share mailboxes with each other."""
    for owner, grantee in ((ada, bob), (bob, ada)):
        paths = [f"Shared {number}" for number in range(ROWS_PER_LIST)]
        await mailbox_create.create_mailboxes(client_context(owner), NewMailboxes(paths))
        mailbox_ids = [(await owner.load_mailbox(path)).id for path in paths]
        await add_rows(
            owner.environment,
            MailboxShare,
            mailbox_id=mailbox_ids.__getitem__,
            user_id=grantee.user.id,
            owner_id=owner.user.id,
            rights=encode_rights(ALL_RIGHTS),
            since=0,
        )


async def _add_resource_rows(environment: Environment, domain: int) -> None:
    """Add resources of a domain with bookings."""
    address_ids = await add_rows(
        environment,
        Address,
        local=lambda n: f"room{n}",
        display_address=lambda n: f"room{n}@d{domain}.example",
        domain_id=domain,
        kind=AddressKind.RESOURCE,
    )
    resource_ids = await add_rows(
        environment,
        Resource,
        domain_id=domain,
        address_id=address_ids.__getitem__,
        booking_policy=BookingPolicy.UNLIMITED_SHOW_BUSY,
    )
    for resource_id in resource_ids[:2]:
        await add_rows(environment, Booking, resource_id=resource_id)


async def _add_ban_rows(environment: Environment) -> None:
    """Add bans in force, and delays after failed sign-ins."""
    far_end = FIRST_TIME + timedelta(days=99)
    network: dict[str, Any] = {
        "network": lambda n: f"203.0.113.{n}/32",
        "first_ip": lambda n: f"{0xFFFF_CB00_7100 + n:032x}",
        "last_ip": lambda n: f"{0xFFFF_CB00_7100 + n:032x}",
    }
    await add_rows(
        environment, NetworkBan, ends_at=lambda n: far_end - timedelta(days=n % 3), **network
    )
    await add_rows(
        environment,
        Throttle,
        until=far_end,
        wait_since=lambda n: FIRST_TIME + timedelta(minutes=n),
        **network,
    )


async def _add_domains(
    environment: Environment, count: int = ROWS_PER_LIST, **values: Any
) -> list[int]:
    """Insert domains with their streams, which mutations lock."""
    domain_ids = await add_rows(environment, Domain, count, **values)
    await add_rows(environment, Stream, count, id=domain_ids.__getitem__, last=0, pruned_position=0)
    return domain_ids


async def _add_domain_and_platform_rows(environment: Environment, user: int) -> None:
    """Add rows to the lists of domains and of the platform."""
    domain_id = await _domain_id(environment, "example.org")
    other_domain_ids = await _add_domains(environment, 2, name=lambda n: f"d{n}.example")
    other_domain_id = other_domain_ids[0]
    users = [(await make_user(environment, f"user{number}")).id for number in range(ROWS_PER_LIST)]
    await add_rows(environment, DomainAdmin, user_id=users.__getitem__, domain_id=domain_id)
    for owner_domain_id in (domain_id, other_domain_id):
        await add_rows(
            environment,
            SenderRule,
            scope=scope_of_domain(owner_domain_id),
            pattern=lambda n: f"p{n}.example",
            domain_id=owner_domain_id,
        )
        await add_rows(environment, BccRule, local=lambda n: f"l{n}", domain_id=owner_domain_id)
        await _add_resource_rows(environment, owner_domain_id)
        await add_rows(
            environment,
            DomainAlias,
            alias=lambda n, owner_domain_id=owner_domain_id: f"alias{n}d{owner_domain_id}.example",
            domain_id=owner_domain_id,
        )
    relay_host_ids = await add_rows(environment, RelayHost)
    domain_ids = [
        key
        for number, relay_host_id in enumerate(relay_host_ids[:2])
        for key in await _add_domains(
            environment,
            name=lambda n, number=number: f"more{number}{n}.example",
            relay_host_id=relay_host_id,
        )
    ]
    count = len(domain_ids)
    await add_rows(environment, DomainAdmin, count, user_id=user, domain_id=domain_ids.__getitem__)
    client_ids = await add_rows(environment, OauthClient)
    await add_rows(environment, OauthGrant, user_id=user, client_id=client_ids.__getitem__)
    for table in (AuditLogEntry, ApiKey, Certificate, ForwardingHost, TlsPolicy, Transport):
        await add_rows(environment, table)
    await _add_ban_rows(environment)
    await add_rows(
        environment,
        ClusterNode,
        host=lambda n: f"mx{n}.example.org",
        state_changed_at=lambda n: FIRST_TIME + timedelta(minutes=n % 3),
        kind=NodeKind.BACKEND,
        state=AdministrativeNodeState.UP,
    )
    await add_rows(environment, DkimKey, domain_id=domain_id, public="AAAA")
    await add_rows(environment, RecipientRewrite, target="eve@example.com")
    await add_rows(environment, RateLimit, id=users.__getitem__, user_id=users.__getitem__)
    await add_rows(
        environment, RateLimitHold, id=users.__getitem__, until=FIRST_TIME + timedelta(days=9)
    )
    await add_rows(environment, Task, user_id=user, kind=TaskKind.USER_EXPORT)
    for setting in SETTINGS:
        await add_rows(
            environment, SettingHistoryEntry, key=setting, before={"value": 1}, after={"value": 2}
        )
