"""Registration of the enums of list orders, with the descriptions of their values."""

import strawberry

from resolvers.addresses.bcc_rules import BccRuleOrder
from resolvers.addresses.loaders import AddressOrder
from resolvers.addresses.recipient_rewrites import RecipientRewriteOrder
from resolvers.admin.audit_log import AuditLogOrder
from resolvers.admin.key_values import KeyValueEntryOrder
from resolvers.admin.legal_holds import HeldCopyOrder, LegalHoldAccessOrder, LegalHoldOrder
from resolvers.admin.settings import SettingHistoryEntryOrder, SettingOrder
from resolvers.admin.tasks import TaskOrder
from resolvers.auth.access_tokens import AccessTokenOrder
from resolvers.auth.api_keys.loaders import ApiKeyOrder
from resolvers.auth.app_password_pages import AppPasswordOrder
from resolvers.auth.security_event_pages import SecurityEventOrder
from resolvers.blobs.loaders import BlobOrder
from resolvers.cache.listing import CacheEntryOrder
from resolvers.certificates.loaders import CertificateOrder
from resolvers.cluster.affinities import UserAffinityOrder
from resolvers.cluster.loaders import ClusterNodeOrder
from resolvers.connectors.loaders import ConnectorOrder, ConnectorRunOrder
from resolvers.domains.aliases import AliasDomainOrder
from resolvers.domains.dkim_keys import DkimKeyOrder
from resolvers.domains.listing import DomainAddressOrder, DomainUserOrder
from resolvers.domains.loaders import DomainOrder
from resolvers.files.stored_files import FileOrder
from resolvers.filters.loaders import FilterOrder
from resolvers.filters.sieve_scripts import SieveScriptOrder
from resolvers.health.loaders import ComponentOrder
from resolvers.logs.loaders import LogOrder
from resolvers.messages.trace import DeliveryTraceStepOrder
from resolvers.metrics.set_orders import MetricSetOrder
from resolvers.notifications.webhook_lists import WebhookDeliveryOrder, WebhookOrder
from resolvers.oauth.client_loaders import OauthClientOrder
from resolvers.oauth.grants import OauthGrantOrder
from resolvers.queue.loaders import QueueEntryOrder
from resolvers.queue.rate_limits import RateLimitHoldOrder, RateLimitOrder
from resolvers.resources.bookings import BookingOrder
from resolvers.resources.loaders import ResourceOrder
from resolvers.routing.loaders import (
    ForwardingHostOrder,
    RelayHostOrder,
    TlsPolicyOrder,
    TransportOrder,
)
from resolvers.sessions.listing import SessionOrder, SessionSummaryOrder
from resolvers.spam.quarantine import QuarantineOrder
from resolvers.spam.sender_rules import SenderRuleOrder
from resolvers.submission.identities.pages import IdentityOrder
from resolvers.submission.loaders import SubmissionOrder
from resolvers.throttling.loaders import LoginPenaltyOrder, NetworkBanOrder
from resolvers.transfer.exports import UserExportOrder
from resolvers.users.deleted_listing import DeletedUserOrder
from resolvers.users.listing import UserOrder

# The objects of each list, and the order of those that are equal; empty if none are equal.
_LISTS = {
    AccessTokenOrder: ("access tokens", "creation"),
    AddressOrder: ("addresses", "creation"),
    ApiKeyOrder: ("API keys", "creation"),
    AppPasswordOrder: ("application passwords", "creation"),
    AuditLogOrder: ("audit log entries", "creation"),
    OauthClientOrder: ("OAuth clients", "creation"),
    OauthGrantOrder: ("OAuth grants", "creation"),
    SecurityEventOrder: ("security events", "creation"),
    BccRuleOrder: ("BCC rules", "creation"),
    BlobOrder: ("objects", ""),
    BookingOrder: ("bookings", "creation"),
    CacheEntryOrder: ("cache entries", ""),
    CertificateOrder: ("certificates", "creation"),
    ComponentOrder: ("components", ""),
    ConnectorOrder: ("connectors", "creation"),
    ConnectorRunOrder: ("connector runs", "creation"),
    DeletedUserOrder: ("deleted accounts", "creation"),
    DkimKeyOrder: ("DKIM keys", "creation"),
    DomainAddressOrder: ("addresses of a domain", "creation"),
    AliasDomainOrder: ("alias domains", "creation"),
    ClusterNodeOrder: ("nodes", "creation"),
    DomainOrder: ("domains", "creation"),
    DomainUserOrder: ("accounts or administrators of a domain", "creation"),
    FileOrder: ("files", "creation"),
    FilterOrder: ("filters", "creation"),
    ForwardingHostOrder: ("forwarding hosts", "creation"),
    HeldCopyOrder: ("copies of a legal hold", ""),
    IdentityOrder: ("identities", "ID"),
    KeyValueEntryOrder: ("entries of a key-value store", ""),
    LegalHoldAccessOrder: ("accesses to a legal hold", "creation"),
    LegalHoldOrder: ("legal holds", "creation"),
    LogOrder: ("log entries", ""),
    LoginPenaltyOrder: ("delays", "creation"),
    DeliveryTraceStepOrder: ("steps of messages", "creation"),
    MetricSetOrder: ("sets of usage counters", "key"),
    NetworkBanOrder: ("bans", "creation"),
    QuarantineOrder: ("quarantined messages", "arrival"),
    QueueEntryOrder: ("queue entries", "creation"),
    RateLimitHoldOrder: ("users who can't send at present", "creation of the account"),
    RateLimitOrder: ("rate limits", "creation of the user or domain"),
    RecipientRewriteOrder: ("recipient rewrites", "creation"),
    RelayHostOrder: ("relay hosts", "creation"),
    ResourceOrder: ("resources", "creation"),
    SenderRuleOrder: ("sender rules", "creation"),
    SessionOrder: ("sessions", "creation of the session"),
    SessionSummaryOrder: ("numbers of sessions by user and service", "service"),
    SettingHistoryEntryOrder: ("changes of a setting", "creation"),
    SettingOrder: ("settings", ""),
    SieveScriptOrder: ("Sieve scripts", "creation"),
    SubmissionOrder: ("submissions", "creation"),
    TaskOrder: ("tasks", "creation"),
    TlsPolicyOrder: ("TLS policies", "creation"),
    TransportOrder: ("transports", "creation"),
    UserExportOrder: ("exports", "creation"),
    UserAffinityOrder: ("user affinities", ""),
    UserOrder: ("accounts", "creation"),
    WebhookDeliveryOrder: ("webhook deliveries", "creation"),
    WebhookOrder: ("webhooks", "creation"),
}
_COMMON_DESCRIPTIONS = {
    "CREATED_AT_ASC": "Sorted by time of creation, the oldest first.",
    "CREATED_AT_DESC": "Sorted by time of creation, the newest first.",
}
_DESCRIPTIONS = {
    "AddressOrder": {
        "LOCAL_PART_ASC": "Sorted by local part, in ascending order. Case and dots are ignored.",
        "LOCAL_PART_DESC": "Sorted by local part, in descending order. Case and dots are ignored.",
    },
    "AuditLogOrder": {
        "AT_ASC": "Sorted by time of the mutation, the oldest first.",
        "AT_DESC": "Sorted by time of the mutation, the newest first.",
    },
    "SecurityEventOrder": {
        "CREATED_AT_ASC": "Sorted by time of the first of the equal events, the oldest first.",
        "CREATED_AT_DESC": "Sorted by time of the first of the equal events, the newest first.",
    },
    "BlobOrder": {
        "PATH_ASC": "Sorted by path in byte order, in ascending order.",
        "PATH_DESC": "Sorted by path in byte order, in descending order.",
    },
    "BookingOrder": {
        "STARTS_AT_ASC": "Sorted by start, the earliest first.",
        "STARTS_AT_DESC": "Sorted by start, the latest first.",
    },
    "CacheEntryOrder": {
        "LAST_USED_AT_ASC": "Sorted by time of the last use, the entry used longest ago first.",
        "LAST_USED_AT_DESC": "Sorted by time of the last use, the entry used last first.",
        "NAME_ASC": "Sorted by name, in ascending order.",
        "NAME_DESC": "Sorted by name, in descending order.",
        "SIZE_ASC": "Sorted by size, the smallest entry first.",
        "SIZE_DESC": "Sorted by size, the largest entry first.",
    },
    "ConnectorOrder": {
        "USER_ASC": "Sorted by user, in the order in which the accounts were created.",
        "USER_DESC": "Sorted by user. The account that was created last is first.",
    },
    "ConnectorRunOrder": {
        "CREATED_ASC": "Sorted by creation of the run, the oldest first.",
        "CREATED_DESC": "Sorted by creation of the run, the newest first.",
    },
    "DeletedUserOrder": {
        "DELETED_AT_ASC": "Sorted by time of deletion, the account deleted first is first.",
        "DELETED_AT_DESC": "Sorted by time of deletion, the account deleted last is first.",
    },
    "DkimKeyOrder": {
        "DOMAIN_ASC": "Sorted by name of the domain that signs, in ascending order.",
        "DOMAIN_DESC": "Sorted by name of the domain that signs, in descending order.",
    },
    "DomainAddressOrder": {
        "LOCAL_PART_ASC": "Sorted by local part, in ascending order. Case and dots are ignored.",
        "LOCAL_PART_DESC": "Sorted by local part, in descending order. Case and dots are ignored.",
    },
    "AliasDomainOrder": {
        "ALIAS_ASC": "Sorted by name of the alias domain, in ascending order.",
        "ALIAS_DESC": "Sorted by name of the alias domain, in descending order.",
    },
    "DomainOrder": {
        "NAME_ASC": "Sorted by domain name, in ascending order.",
        "NAME_DESC": "Sorted by domain name, in descending order.",
        "USER_COUNT_ASC": "Sorted by number of users, the smallest first.",
        "USER_COUNT_DESC": "Sorted by number of users, the largest first.",
    },
    "DomainUserOrder": {
        "USERNAME_ASC": "Sorted by username, in ascending order. Case and dots are ignored.",
        "USERNAME_DESC": "Sorted by username, in descending order. Case and dots are ignored.",
    },
    "FilterOrder": {
        "POSITION_ASC": "Sorted by `position`, the filter that runs first is first. In the list "
        "of all users it needs the condition `user`.",
        "POSITION_DESC": "Sorted by `position`, the filter that runs last is first. In the list "
        "of all users it needs the condition `user`.",
    },
    "ForwardingHostOrder": {
        "HOST_ASC": "Sorted by `host` as text, in ascending order.",
        "HOST_DESC": "Sorted by `host` as text, in descending order.",
    },
    "HeldCopyOrder": {
        "POSITION_ASC": "Sorted by `position`, the copy that was made first is first.",
        "POSITION_DESC": "Sorted by `position`, the copy that was made last is first.",
    },
    "IdentityOrder": {
        "ADDRESS_ASC": "Sorted by the local part, in ascending order. Case and dots are ignored.",
        "ADDRESS_DESC": "Sorted by the local part, in descending order. Case and dots are ignored.",
    },
    "KeyValueEntryOrder": {
        "KEY_ASC": "Sorted by key, in ascending byte order.",
        "KEY_DESC": "Sorted by key, in descending byte order.",
    },
    "LegalHoldAccessOrder": {
        "AT_ASC": "Sorted by time of the access, the oldest first.",
        "AT_DESC": "Sorted by time of the access, the newest first.",
    },
    "LogOrder": {
        "AT_ASC": (
            "Sorted in the order in which the entries were stored, the oldest first. It can differ "
            "from that of `at`."
        ),
        "AT_DESC": (
            "Sorted in the order in which the entries were stored, the newest first. It can differ "
            "from that of `at`."
        ),
    },
    "ClusterNodeOrder": {
        "HOST_ASC": "Sorted by host, from A to Z.",
        "HOST_DESC": "Sorted by host, from Z to A.",
        "STATE_CHANGED_AT_ASC": "Sorted by `stateChangedAt`, the earliest change first.",
        "STATE_CHANGED_AT_DESC": "Sorted by `stateChangedAt`, the latest change first.",
    },
    "UserAffinityOrder": {
        "USERNAME_ASC": "Sorted by username, in ascending order. Case and dots are ignored.",
        "USERNAME_DESC": "Sorted by username, in descending order. Case and dots are ignored.",
    },
    "LoginPenaltyOrder": {
        "LAST_PENALTY_AT_ASC": "Sorted by begin, the oldest delay first.",
        "LAST_PENALTY_AT_DESC": "Sorted by begin, the newest delay first.",
    },
    "DeliveryTraceStepOrder": {
        "AT_ASC": "Sorted by time of the step, the oldest first.",
        "AT_DESC": "Sorted by time of the step, the newest first.",
    },
    "MetricSetOrder": {
        "KEY_ASC": "Sorted by key, in ascending byte order. Domains, users and sessions are in the "
        "order in which they were created, and `other` is first.",
        "KEY_DESC": "Sorted by key, in descending byte order. Domains, users and sessions are in "
        "the reverse order of their creation, and `other` is last.",
    }
    | {
        order.value: f"Sorted by the value of {order.counter_name}, the "
        f"{'highest' if order.is_descending else 'lowest'} first. The list must be of a `type` "
        "that has this counter."
        for order in MetricSetOrder
        if order.counter_name is not None
    },
    "NetworkBanOrder": {
        "STARTED_AT_ASC": "Sorted by begin, the oldest ban first.",
        "STARTED_AT_DESC": "Sorted by begin, the newest ban first.",
        "ENDS_AT_ASC": "Sorted by end, the ban that ends first is first.",
        "ENDS_AT_DESC": "Sorted by end, the ban that ends last is first.",
    },
    "OauthClientOrder": {
        "NAME_ASC": "Sorted by name, in ascending order. Case matters.",
        "NAME_DESC": "Sorted by name, in descending order. Case matters.",
    },
    "QuarantineOrder": {
        "CREATED_AT_ASC": "Sorted by arrival, the oldest message first.",
        "CREATED_AT_DESC": "Sorted by arrival, the newest message first.",
        "SCORE_ASC": "Sorted by spam score, the lowest first.",
        "SCORE_DESC": "Sorted by spam score, the highest first.",
        "SIZE_ASC": "Sorted by size, the smallest message first.",
        "SIZE_DESC": "Sorted by size, the largest message first.",
    },
    "QueueEntryOrder": {
        "ARRIVED_AT_ASC": "Sorted by time of submission, the oldest entry first.",
        "ARRIVED_AT_DESC": "Sorted by time of submission, the newest entry first.",
        "SIZE_ASC": "Sorted by size of the message, the smallest first.",
        "SIZE_DESC": "Sorted by size of the message, the largest first.",
    },
    "RateLimitOrder": {
        "CREATED_ASC": "Sorted by creation of the user or domain, the oldest first.",
        "CREATED_DESC": "Sorted by creation of the user or domain, the newest first.",
    },
    "RateLimitHoldOrder": {
        "HELD_AT_ASC": "Sorted by `heldAt`, the oldest hold first.",
        "HELD_AT_DESC": "Sorted by `heldAt`, the newest hold first.",
    },
    "ResourceOrder": {
        "NAME_ASC": "Sorted by name, in ascending order. Case and accents are ignored.",
        "NAME_DESC": "Sorted by name, in descending order. Case and accents are ignored.",
    },
    "ComponentOrder": {
        "NAME_ASC": "Sorted by name, then by node and process ID, in ascending order.",
        "NAME_DESC": "Sorted by name, then by node and process ID, in descending order.",
    },
    "SenderRuleOrder": {
        "PATTERN_ASC": "Sorted by pattern, in ascending byte order.",
        "PATTERN_DESC": "Sorted by pattern, in descending byte order.",
    },
    "SessionOrder": {
        "CONNECTED_AT_ASC": "Sorted by time of the connection, the oldest session first.",
        "CONNECTED_AT_DESC": "Sorted by time of the connection, the newest session first.",
    },
    "SessionSummaryOrder": {
        "USER_ASC": "Sorted by user, in the order in which the accounts were created. Sessions "
        "without a user are first.",
        "USER_DESC": "Sorted by user. The account that was created last is first, sessions "
        "without a user are last.",
    },
    "SettingHistoryEntryOrder": {
        "AT_ASC": "Sorted by time of the change, the oldest first.",
        "AT_DESC": "Sorted by time of the change, the newest first.",
    },
    "SettingOrder": {
        "KEY_ASC": "Sorted by key, in ascending order.",
        "KEY_DESC": "Sorted by key, in descending order.",
    },
    "SieveScriptOrder": {
        "NAME_ASC": "Sorted by name, in ascending order. Case matters.",
        "NAME_DESC": "Sorted by name, in descending order. Case matters.",
    },
    "TlsPolicyOrder": {
        "DESTINATION_ASC": "Sorted by destination, in ascending order.",
        "DESTINATION_DESC": "Sorted by destination, in descending order.",
    },
    "TransportOrder": {
        "DESTINATION_ASC": "Sorted by destination, in ascending order.",
        "DESTINATION_DESC": "Sorted by destination, in descending order.",
    },
    "WebhookDeliveryOrder": {
        "CREATED_ASC": "Sorted by creation of the delivery, the oldest first.",
        "CREATED_DESC": "Sorted by creation of the delivery, the newest first.",
    },
    "UserOrder": {
        "USERNAME_ASC": "Sorted by username, in ascending order. Case and dots are ignored.",
        "USERNAME_DESC": "Sorted by username, in descending order. Case and dots are ignored.",
        "CREATED_AT_ASC": "Sorted by time of creation, the oldest account first.",
        "CREATED_AT_DESC": "Sorted by time of creation, the newest account first.",
        "STORAGE_USED_ASC": "Sorted by used storage, the smallest account first.",
        "STORAGE_USED_DESC": "Sorted by used storage, the largest account first.",
        "LAST_LOGIN_AT_ASC": "Sorted by last sign-in, the oldest first. Accounts without one are "
        "first.",
        "LAST_LOGIN_AT_DESC": "Sorted by last sign-in, the latest first. Accounts without one are "
        "last.",
    },
}
ORDER_VALUE_DESCRIPTIONS = {
    enum.__name__: _COMMON_DESCRIPTIONS | _DESCRIPTIONS.get(enum.__name__, {}) for enum in _LISTS
}

for _enum, (_objects, _tie) in _LISTS.items():
    _tie_sentence = f" Equal ones are ordered by {_tie}, in the same direction." if _tie else ""
    strawberry.enum(_enum, description=f"Order of a list of {_objects}.{_tie_sentence}")
