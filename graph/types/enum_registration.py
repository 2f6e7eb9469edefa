"""Registration of the enums of lower layers as GraphQL enums, with their descriptions.

Modules that define types import this module first: strawberry must know an enum before the first
field that has it.
"""

import strawberry

import graph.types.order_enums  # noqa: F401 - registers the orders of lists
from mail.archives.archive_writer import ExportFormat
from mail.autoreply import NoReplyReason
from mail.compose.message_draft import Priority
from mail.connectors.remote_server import ConnectorStage
from mail.domains.dns_advice import DnsState
from mail.tls.acme_client import RevocationReason
from models import errors
from models.addresses.rewrites import BccDirection
from models.addresses.tables import AddressKind
from models.addresses.trace_stages import TraceStage
from models.admin.legal_holds import CopyOrigin, LegalHoldAccessAction
from models.admin.tasks import TaskKind, TaskState
from models.auth.security_log import AuthProtocol, SecurityEventAction, SecurityEventResult
from models.certificates import AcmeState
from models.cluster.nodes import (
    AdministrativeNodeState,
    ClusterNodeState,
    NodeKind,
    NodeSyncState,
)
from models.connectors import AuthMechanism, ConnectorProtocol, ConnectorSecurity
from models.domains.dkim_keys import DkimAlgorithm, DkimKeyState
from models.domains.dns_record_values import DnsRecordKind, DnsRecordPurpose
from models.events.event_types import ChangeType, EventType, WebhookEventType
from models.files.blobs import StorageTier
from models.files.tables import FileAttachmentMode
from models.logs.entries import LogComponent, LogLevel
from models.mailboxes.shares import ShareRight
from models.mailboxes.tables import SpecialUse
from models.messages.authentication import AuthenticationResultCode
from models.messages.message_trace import DeliveryTraceEventKind
from models.messages.mime_values import AttachmentDisposition, CalendarMethod
from models.messages.tables import MessageRelationKind
from models.metrics.names import MetricName, MetricSetKind, StatisticName
from models.notifications.push_channels import PushKind
from models.notifications.webhooks import WebhookDeliveryState
from models.oauth.tables import OauthGrantType, OauthScope
from models.queue.forward_target_kinds import ForwardTargetKind
from models.queue.rate_values import RatePeriod
from models.queue.tables import DeliveryState
from models.resources.tables import BookingPolicy, ResourceKind
from models.routing.tables import TlsPolicyLevel
from models.runtime.components import ComponentKind, ComponentState
from models.sessions.live_sessions import SessionService
from models.spam.sender_rules import SenderAction
from models.submission.tables import SubmissionState
from models.throttling.policy import BanCause
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
from resolvers.admin.setting_types import SettingKind
from resolvers.auth.app_password_validation import AppPasswordScope
from resolvers.auth.second_factors.second_factor_check import TwoFactorMethod
from resolvers.auth.second_factors.webauthn import Ceremony
from resolvers.blobs.loaders import BlobCompression
from resolvers.cache.entries import CacheKind
from resolvers.changes.stream_reader import ResyncReason
from resolvers.connectors.options import OptionName
from resolvers.identity_providers.provider_check import IdentityProviderTestStepKind
from resolvers.queue.loaders import QueueName
from resolvers.submission.message_source import QuotePosition

strawberry.enum(AcmeState, description="State of the order of a certificate by ACME (RFC 8555).")
strawberry.enum(
    AddressKind, description="Kind of an address, which decides what happens to its mail."
)
strawberry.enum(
    AppPasswordScope, description="A protocol or right that an application password can have."
)
strawberry.enum(OauthGrantType, description="A way in which an OAuth client gets tokens.")
strawberry.enum(
    IdentityProviderTestStepKind,
    description="Part of an identity provider that a step of identityProviderTest tests.",
)
strawberry.enum(OauthScope, description="A scope that an OAuth client can request.")
strawberry.enum(AttachmentDisposition, description="Disposition of a MIME part (RFC 2183).")
strawberry.enum(
    AuthenticationResultCode, description="Result of an authentication method (RFC 8601)."
)
strawberry.enum(CalendarMethod, description="iTIP method of a calendar (RFC 5546).")
strawberry.enum(ComponentKind, description="Kind of a component of a server process.")
strawberry.enum(ComponentState, description="State of a component of a server process.")
strawberry.enum(CopyOrigin, description="Reason why a legal hold has a copy of a message.")
strawberry.enum(
    BookingPolicy, description="Rule that decides which invitations a resource accepts."
)
strawberry.enum(ResourceKind, description="Kind of a resource that can be booked.")
strawberry.enum(
    AdministrativeNodeState, description="State of a node that an administrator has set."
)
strawberry.enum(ClusterNodeState, description="State of a node.")
strawberry.enum(NodeKind, name="ClusterNodeKind", description="Kind of a node.")
strawberry.enum(
    NodeSyncState,
    name="ClusterNodeSyncState",
    description="State of the server of a node compared with the last change of the node.",
)
strawberry.enum(BanCause, description="Cause of the ban of a network.")
strawberry.enum(BccDirection, description="Side of a message that a BCC rule compares.")
strawberry.enum(Ceremony, name="WebauthnCeremony", description="Purpose of a WebAuthn challenge.")
strawberry.enum(
    ChangeType,
    description="Type of an event of an account: an `EventType` that `changes` can return. Later "
    "versions can add values.",
)
strawberry.enum(
    WebhookEventType,
    description="Type of an event by which a webhook selects what it receives: an `EventType` that "
    "the journal records. Later versions can add values.",
)
strawberry.enum(
    EventType,
    description="Type of an event. New types can be added: clients must ignore types that they "
    "do not know.",
)
strawberry.enum(
    SubaddressAction,
    description=(
        "Treatment of mail to an address with a subaddress (RFC 5233), such as "
        "`user+label@example.com`."
    ),
)
strawberry.enum(DeliveryState, description="State of the delivery to one recipient.")
strawberry.enum(DkimAlgorithm, description="Signature algorithm of a DKIM key.")
strawberry.enum(DkimKeyState, description="State of a DKIM key.")
strawberry.enum(
    DnsState, description="Result of the comparison of an expected DNS record with DNS."
)
strawberry.enum(
    ExportFormat,
    description="File format of an account export. All formats but MBOX contain mailboxes, flags, "
    "dates, custom data and settings in addition to the messages.",
)
strawberry.enum(
    FileAttachmentMode, description="Way in which a recipient of a message gets a stored file."
)
strawberry.enum(
    ForwardTargetKind, description="Way in which a forwarded message reaches its target."
)
strawberry.enum(MetricName, description="Name of a usage counter.")
strawberry.enum(MetricSetKind, description="Kind of what usage counters count the usage of.")
strawberry.enum(StatisticName, description="Name of a statistic.")
strawberry.enum(Frequency, description="Interval of the digests of quarantined messages.")
strawberry.enum(
    LegalHoldAccessAction,
    description="Kind of an access to the copies of a legal hold.",
)
strawberry.enum(
    LimitKind,
    description="Kind of a limit that the event LIMIT_REACHED reports, also STORAGE and RATE, "
    "which no counter of UsageKind has.",
)
strawberry.enum(SessionService, description="Service that a session uses.")
strawberry.enum(LimitSource, description="Owner of a limit that applies to an account.")
strawberry.enum(LogComponent, description="Part of the server that writes log entries.")
strawberry.enum(LogLevel, description="Severity of a log entry.")
strawberry.enum(
    OptionName, name="ConnectorOptionName", description="Name of a custom option of a connector."
)
strawberry.enum(WebhookDeliveryState, description="State of the delivery of an event to a webhook.")
strawberry.enum(
    ConnectorProtocol,
    name="ConnectorProtocol",
    description="Protocol of the source of a connector.",
)
strawberry.enum(ProtocolScope, description="Protocol of mail programs.")
strawberry.enum(PushKind, description="Service that delivers push notifications.")
strawberry.enum(RatePeriod, description="Length of the time window of a rate limit.")
strawberry.enum(
    RevocationReason,
    name="RevocationReason",
    description="Reason for the revocation of a certificate (RFC 5280).",
)
strawberry.enum(
    MessageRelationKind,
    description="Relation of a message to the message that it replies to or forwards.",
)
strawberry.enum(ResyncReason, description="Reason why a stream can't continue after a cursor.")
strawberry.enum(AuthMechanism, description="SASL mechanism for signing in on a remote server.")
strawberry.enum(
    ConnectorSecurity,
    name="ConnectorSecurity",
    description="Encryption of the connection to a remote server.",
)
strawberry.enum(SenderAction, description="Treatment of mail of a sender.")
strawberry.enum(ShareRight, description="Right of another user on a shared mailbox (RFC 4314).")
strawberry.enum(
    NoReplyReason,
    name="AutoreplySuppression",
    description="Reason why a message gets no autoreply.",
)
strawberry.enum(SpecialUse, description="Special use of a mailbox (RFC 6154).")
strawberry.enum(
    ConnectorStage,
    name="ConnectorStage",
    description="Stage that a connector run is at, or at which it failed.",
)
strawberry.enum(StorageTier, description="Storage tier of message bodies.")
strawberry.enum(CacheKind, description="Kind of a cache entry.")
strawberry.enum(BlobCompression, description="Compression of the content of an object.")
strawberry.enum(
    SubmissionState,
    description="State of a submission, derived from the deliveries to its recipients.",
)
strawberry.enum(TaskKind, description="Kind of a task. Later versions can add values.")
strawberry.enum(TaskState, description="State of a task.")
strawberry.enum(TlsPolicyLevel, description="TLS that is required for mail to a destination.")
strawberry.enum(
    TwoFactorMethod, description=("Method by which a second factor (2FA, MFA) is proved.")
)
strawberry.enum(
    UsageKind,
    description="Kind of a counter that userUsageReset sets to 0, also AUTOREPLIES, whose limit no "
    "event reports as a LimitKind.",
)
strawberry.enum(
    UsageLevel,
    description="Level that tells how much of a limit is used.",
)
strawberry.enum(UserFileFormat, description="Format of a file with a list, such as of accounts.")
strawberry.enum(
    errors.ErrorCode, name="ErrorCode", description="Stable code of an error, for programs."
)
strawberry.enum(
    Role,
    description="Role of a user or credential. Each role includes the earlier ones: PUBLIC, "
    "USER, DOMAIN_ADMIN, ADMIN, ROOT.",
)
strawberry.enum(Scope, description="A right or protocol that a credential is valid for.")
strawberry.enum(
    AdminPermission,
    description="Permission of a DOMAIN_ADMIN for users of the administered domains.",
)
strawberry.enum(UserPermission, description="Permission of a USER for the account.")
strawberry.enum(QueueName, description="Queue of a queue entry.")
strawberry.enum(Priority, description="Priority of a message.")
strawberry.enum(
    QuotePosition,
    description="Position of the quote of the original message in a reply or forward.",
)
strawberry.enum(
    ValidationConstraint,
    description="Rule that a refused input value breaks. Later versions can add values.",
)
strawberry.enum(
    DeliveryTraceEventKind,
    description="Event of a message for one recipient. Later versions can add values.",
)
strawberry.enum(
    TraceStage,
    description="Kind of the record that decides in an address trace. Later versions can add "
    "values.",
)
strawberry.enum(SettingKind, description="Kind of the value of a setting.")
strawberry.enum(WarningCode, description="Reason of a warning. Later versions can add values.")
strawberry.enum(DnsRecordKind, description="Type of a DNS record. Later versions can add values.")
strawberry.enum(
    DnsRecordPurpose,
    description="Purpose of a DNS record of a domain. Later versions can add values.",
)
strawberry.enum(
    SecurityEventAction,
    description="Action on an account or a credential. Later versions can add values.",
)
strawberry.enum(SecurityEventResult, description="Result of a security event.")
strawberry.enum(AuthProtocol, description="Protocol through which a client signs in.")
