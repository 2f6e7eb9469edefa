"""The GraphQL type of the object that an event is about."""

from models.auth.security_log import SECURITY_EVENT_TYPES
from models.events.event_types import EventType

_TYPE_NAME_BY_PREFIX = {
    "MAILBOX_": "Mailbox",
    "MESSAGE_": "Message",
    "SUBMISSION_": "Submission",
    "ADDRESS_": "Address",
    "FILE_": "File",
    "FILTER_": "Filter",
    "IDENTITY_": "Identity",
    "USER_": "User",
    "LIMIT_": "User",
    "DOMAIN_": "Domain",
    "TASK_": "Task",
    "SETTING_": "SettingHistoryEntry",
    "KEY_VALUE_": "KeyValueEntry",
    "LABEL_": "Label",
    "AUTOREPLY_": "Autoreply",
    "SIEVE_": "SieveScript",
    "THREAD_": "Thread",
    "SAVED_SEARCH_": "SavedSearch",
    "SENDER_RULE_": "SenderRule",
    "QUARANTINE_": "QuarantineItem",
    "CONNECTOR_": "Connector",
    "DKIM_KEY_": "DkimKey",
    "RELAY_HOST_": "RelayHost",
    "TRANSPORT_": "Transport",
    "TLS_POLICY_": "TlsPolicy",
    "FORWARDING_HOST_": "ForwardingHost",
    "RESOURCE_": "Resource",
    "CLUSTER_NODE_": "ClusterNode",
    "OAUTH_CLIENT_": "OauthClient",
    "CLUSTER_AFFINITY_": "User",
    "BAN_CREATED": "NetworkBan",
    "BAN_LIFTED": "NetworkBan",
    "BAN_POLICY_": "BanPolicy",
    "COMPOSE_": "ComposeRequest",
    "CERTIFICATE_": "Certificate",
}
TYPE_NAME_BY_EVENT_TYPE = {
    event_type: name
    for event_type in EventType
    if event_type not in SECURITY_EVENT_TYPES
    for prefix, name in _TYPE_NAME_BY_PREFIX.items()
    if event_type.startswith(prefix)
} | dict.fromkeys(SECURITY_EVENT_TYPES, "SecurityEvent")
