"""Registration of the enums of lower layers as GraphQL enums, with their descriptions.

Modules that define types import this module first: strawberry must know an enum before the first
field that has it.
"""

import strawberry

from mail.archives.archive_writer import ExportFormat
from mail.autoreply import NoReplyReason
from mail.compose.message_builder import Priority
from mail.connectors.remote_server import ConnectorStage
from mail.domains.dns_advice import DnsState
from mail.tls.acme_client import RevocationReason
from models import errors
from models.addresses.rewrites import BccDirection
from models.addresses.tables import AddressKind
from models.addresses.trace_stages import TraceStage
from models.admin.legal_holds import CopyOrigin, LegalHoldAccessAction
from models.admin.tasks import TaskKind, TaskState
from models.auth.security_log import AuthEventAction, AuthEventResult, AuthProtocol
from models.connectors import AuthMechanism, ConnectorProtocol, ConnectorSecurity
from models.domains.dkim_keys import DkimAlgorithm, DkimKeyState
from models.domains.dns_record_values import DnsRecordKind, DnsRecordPurpose
from models.events.event_types import EventType
from models.files.blobs import StorageTier
from models.files.tables import FileAttachmentMode
from models.mailboxes.shares import ShareRight
from models.mailboxes.tables import SpecialUse
from models.messages.authentication import AuthenticationResultCode
from models.messages.message_trace import LogComponent, MessageTraceEventKind
from models.messages.mime_values import AttachmentDisposition, CalendarMethod
from models.notifications.push_channels import PushKind
from models.notifications.webhooks import WebhookDeliveryState
from models.queue.forward_target_kinds import ForwardTargetKind
from models.queue.rate_values import RatePeriod
from models.queue.tables import DeliveryState
from models.routing.tables import TlsPolicyLevel
from models.spam.sender_rules import SenderAction
from models.submission.tables import SubmissionState
from models.users.list_formats import UserFileFormat
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from models.users.tables import (
    Frequency,
    LimitKind,
    LimitSource,
    ProtocolScope,
    SubaddressAction,
    UsageKind,
    UsageLevel,
)
from models.validation_constraints import ValidationConstraint
from models.warning_codes import WarningCode
from resolvers.addresses.loaders import AddressOrder
from resolvers.admin.audit_log import AuditLogOrder
from resolvers.admin.setting_types import SettingKind
from resolvers.auth.app_password_validation import AppPasswordScope
from resolvers.auth.second_factors.second_factor_check import TwoFactorMethod
from resolvers.auth.second_factors.webauthn import Ceremony
from resolvers.changes.stream_reader import ResyncReason
from resolvers.connectors.options import OptionName
from resolvers.domains.loaders import DomainOrder
from resolvers.filters.loaders import FilterOrder
from resolvers.queue.loaders import QueueEntryOrder, QueueName
from resolvers.spam.quarantine import QuarantineOrder
from resolvers.submission.message_source import MessageRelationKind, QuotePosition
from resolvers.users.listing import UserOrder

strawberry.enum(AddressKind, description="What happens to mail for an address.")
strawberry.enum(
    AppPasswordScope, description="A protocol or right that an application password can have."
)
strawberry.enum(AttachmentDisposition, description="Disposition of a MIME part (RFC 2183).")
strawberry.enum(
    AuthenticationResultCode, description="Result of an authentication method (RFC 8601)."
)
strawberry.enum(CalendarMethod, description="iTIP method of a calendar (RFC 5546).")
strawberry.enum(CopyOrigin, description="How a message came to be copied.")
strawberry.enum(BccDirection, description="Whose mail is copied.")
strawberry.enum(Ceremony, name="WebauthnCeremony", description="Purpose of a WebAuthn challenge.")
strawberry.enum(
    EventType,
    description="The type of an event. New types can be added: clients must ignore types that "
    "they do not know.",
)
strawberry.enum(SubaddressAction, description="What becomes of mail to an address with a label.")
strawberry.enum(DeliveryState, description="How far a delivery to one recipient has come.")
strawberry.enum(DkimAlgorithm, description="What a key signs with.")
strawberry.enum(DkimKeyState, description="Where a key stands in its life.")
strawberry.enum(DnsState, description="How what DNS says compares with what it should.")
strawberry.enum(
    ExportFormat,
    description="How an account is written into a file. All but MBOX have folders, flags, dates, "
    "free data and settings beside the messages.",
)
strawberry.enum(FileAttachmentMode, description="How somebody gets a file.")
strawberry.enum(ForwardTargetKind, description="How a forwarded message reaches its target.")
strawberry.enum(Frequency, description="How often something is written to somebody.")
strawberry.enum(
    LegalHoldAccessAction,
    description="What an administrator did with the copies of a legal hold.",
)
strawberry.enum(LimitKind, description="What is limited.")
strawberry.enum(LimitSource, description="Who has set a limit.")
strawberry.enum(LogComponent, description="A part of the server that decides about mail.")
strawberry.enum(
    OptionName, name="ConnectorOptionName", description="Name of a custom option of a connector."
)
strawberry.enum(WebhookDeliveryState, description="How far a post has come.")
strawberry.enum(
    ConnectorProtocol,
    name="ConnectorProtocol",
    description="Protocol of the source of a connector.",
)
strawberry.enum(ProtocolScope, description="A protocol of mail programs.")
strawberry.enum(PushKind, description="By which service a user is told.")
strawberry.enum(RatePeriod, description="In what time.")
strawberry.enum(
    RevocationReason,
    name="RevocationReason",
    description="Why a certificate is revoked (RFC 5280).",
)
strawberry.enum(
    MessageRelationKind,
    description="How a message is related to the message it replies to or forwards.",
)
strawberry.enum(ResyncReason, description="Why a stream cannot go on from a cursor.")
strawberry.enum(AuthMechanism, description="SASL mechanism for signing in on a remote server.")
strawberry.enum(
    ConnectorSecurity,
    name="ConnectorSecurity",
    description="Encryption of the connection to a remote server.",
)
strawberry.enum(SenderAction, description="What becomes of a sender's mail.")
strawberry.enum(ShareRight, description="What somebody may do in another's folder (RFC 4314).")
strawberry.enum(
    NoReplyReason,
    name="AutoreplySuppression",
    description="Why a message gets no automatic answer.",
)
strawberry.enum(SpecialUse, description="Role of a folder.")
strawberry.enum(
    ConnectorStage, name="ConnectorStage", description="Where a run is, or where it failed."
)
strawberry.enum(
    StorageTier, description="Where bodies lie: where they are read fast, or where they cost less."
)
strawberry.enum(
    SubmissionState, description="Where a submission stands: the sum of its deliveries."
)
strawberry.enum(TaskKind, description="What a task does. Later versions can add values.")
strawberry.enum(TaskState, description="Where a task stands.")
strawberry.enum(TlsPolicyLevel, description="How much encryption the way to a destination has.")
strawberry.enum(TwoFactorMethod, description="Method by which a second factor is proved.")
strawberry.enum(UsageKind, description="A counter that begins anew.")
strawberry.enum(
    UsageLevel,
    description="How far a limit is used up. The marks are the settings limits.warningPercent and "
    "limits.criticalPercent.",
)
strawberry.enum(UserFileFormat, description="Format of a file with accounts.")
strawberry.enum(
    AddressOrder,
    description="Order of a list of addresses. Equal ones are ordered by creation.",
)
strawberry.enum(
    AuditLogOrder, description="Order of the audit log. Entries of the same time keep their order."
)
strawberry.enum(
    DomainOrder, description="Order of a list of domains. Equal ones are ordered by creation."
)
strawberry.enum(
    FilterOrder, description="Order of a list of filters. Equal ones are ordered by creation."
)
strawberry.enum(
    QuarantineOrder,
    description="Order of a list of quarantined messages. Equal ones are ordered by arrival.",
)
strawberry.enum(
    QueueEntryOrder,
    description="Order of a list of queue entries. Equal ones are ordered by creation.",
)
strawberry.enum(
    UserOrder, description="Order of a list of accounts. Equal ones are ordered by creation."
)
strawberry.enum(errors.ErrorCode, name="ErrorCode", description="Why; clients switch on it.")
strawberry.enum(
    Role,
    description="Role of a user or credential. Each role includes the earlier ones: PUBLIC, "
    "USER, DOMAIN_ADMIN, ADMIN, ROOT.",
)
strawberry.enum(Scope, description="A right or protocol that a credential is valid for.")
strawberry.enum(AdminPermission, description="What a DOMAIN_ADMIN may do for users of the domains.")
strawberry.enum(UserPermission, description="What a USER may change himself.")
strawberry.enum(QueueName, description="Where in the queue something stands.")
strawberry.enum(Priority, description="How much its sender hurries.")
strawberry.enum(QuotePosition, description="Where a reply or forward quotes the original message.")
strawberry.enum(
    ValidationConstraint,
    description="The rule that a refused input value breaks. Later versions can add values.",
)
strawberry.enum(
    MessageTraceEventKind,
    description="What happened to a message for one recipient. Later versions can add values.",
)
strawberry.enum(
    TraceStage,
    description="The kind of record that decides in an address trace. Later versions can add "
    "values.",
)
strawberry.enum(SettingKind, description="The kind of the value of a setting.")
strawberry.enum(WarningCode, description="The reason of a warning. Later versions can add values.")
strawberry.enum(DnsRecordKind, description="The type of a DNS record.")
strawberry.enum(
    DnsRecordPurpose,
    description="What a DNS record of a domain is for. Later versions can add values.",
)
strawberry.enum(
    AuthEventAction,
    description="What was done with an account or a credential. Later versions can add values.",
)
strawberry.enum(AuthEventResult, description="The result of a security event.")
strawberry.enum(AuthProtocol, description="The protocol through which a client signs in.")
