"""Descriptions of all settings by topic, and the Markdown page docs/settings.md."""

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Le, MinLen
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from merganser.settings.settings import PREFIX, Settings
from merganser.settings.units import (
    format_duration_in_whole_units,
    format_size_in_whole_units,
    parse_size_if_text,
)
from merganser.settings.value_types import HOST_PORT_PATTERN
from resolvers.admin.setting_definitions import DEFINITIONS

INTRODUCTION = """# Settings

This page lists every setting by topic, the most important topics first. `merganser settings`
prints it. [Change settings](operating/settings.md) explains how to set them.

- Durations are written with a unit: `30 s`, `10 min`, `24 h`, `14 days`, `2 weeks`.
- Sizes are written with a unit: `64 MiB`, `1 GiB`, `500 MB`. A number without a unit counts bytes.
- Lists are separated by spaces. Switches are `on` or `off`.
- An empty variable has the same effect as none: the default applies.
- "Key" names the stored setting that you can change while the server runs. It overrides the
  variable."""

# Each topic with the beginnings of the names of its settings. The longest matching one decides.
TOPICS: dict[str, tuple[str, ...]] = {
    "Data and keys": (
        "data", "config", "database_url", "object_store_url", "cold_object_store_url", "blob_cache",
        "signing_secret", "encryption_keys_file", "bootstrap_key", "event_bus_url", "disk_reserve",
        "backup_target", "backup_max_age",
    ),
    "Names, listeners and TLS": (
        "hostname", "node_address", "public_url", "http_listen", "lmtp_listen", "smtp_listen",
        "submission_listen", "submission_tls_listen", "tls_", "acme_", "trusted_proxies",
        "smtp_trusted_proxies", "cors_origins", "dns_resolver", "shutdown_drain",
    ),
    "Accounts and domains": (
        "users_", "auto_create_domains", "new_domain_", "limits_", "quota_warning_emails",
        "mailboxes_", "addresses_", "filters_", "share_across_domains", "autoreply_",
        "app_passwords_", "welcome_folder", "key_value_", "metadata_",
    ),
    "Messages and files": (
        "message_max_size", "upload_max_size", "files_quota", "bulk_", "search_", "import_folder",
    ),
    "Sign-in and passwords": (
        "passwords_", "sign_in_", "tokens_", "oauth_", "identity_providers_",
        "totp_", "webauthn_", "breached_", "argon2_", "password_hashing_memory", "profile_",
    ),
    "Incoming mail": ("smtp_", "greylist_", "authentication_", "authserv_", "dmarc_", "arc_"),
    "Spam, viruses and quarantine": (
        "rspamd_", "clamd_", "virus_action", "outbound_scan", "spam_", "quarantine_",
    ),
    "Outgoing mail": (
        "next_hop", "submission_max_recipients", "queue_", "outbound_", "dkim_", "mta_sts_",
        "dnssec_trusted", "mx_", "forwards_",
    ),
    "Connectors, webhooks and push": ("connectors_", "webhooks_", "push_", "pushover_"),
    "Limits of HTTP and GraphQL": (
        "cost_", "concurrent_", "response_", "subscriptions_", "http_", "websocket_",
        "introspection", "allowed_documents", "compiled_executor", "row_cache_size",
    ),
    "Retention": (
        "deleted_messages_retention", "undo_window", "backup_restore_window", "journal_",
        "message_trace_retention", "security_log_retention", "audit_log_retention",
        "cluster_node_retention", "scim_deletion_grace_period",
        "files_retention", "exports_retention", "duplicate_delivery_retention",
        "idempotency_retention",
    ),
    "Logs, metrics and traces": ("log_", "logs_", "metrics_", "otlp_", "trace_"),
}  # fmt: skip
TOPIC_BY_PREFIX = {prefix: topic for topic, prefixes in TOPICS.items() for prefix in prefixes}
PREFIX_ORDER = list(TOPIC_BY_PREFIX)
KIND_NAMES: dict[type, str] = {
    bool: "`on`, `off`",
    timedelta: "duration",
    int: "number",
    float: "number",
    Path: "path",
    tuple: "list",
}
KEY_BY_SETTING = {definition.option: key for key, definition in DEFINITIONS.items()}


@dataclass(frozen=True, slots=True)
class SettingDescription:
    """The description of one setting as Markdown texts.

    `key` names the stored setting, if there is one.
    """

    variable: str
    values: str
    default: str
    meaning: str
    key: str | None


def settings_page(settings_class: type[Settings] = Settings) -> str:
    """Return all settings as a Markdown page with one table for each topic."""
    lines = [INTRODUCTION]
    for topic, settings in describe_settings_by_topic(settings_class).items():
        lines += [
            "",
            f"## {topic}",
            "",
            "| variable | value | default | meaning |",
            "|---|---|---|---|",
        ]
        lines += map(_table_row, settings)
    return "\n".join(lines)


def describe_settings_by_topic(
    settings_class: type[Settings] = Settings,
) -> dict[str, list[SettingDescription]]:
    """Return the settings by topic, the most important first. Hidden settings are omitted."""
    names = [
        name
        for name, field_info in settings_class.model_fields.items()
        if not schema_extra(field_info).get("hidden")
    ]
    prefix_by_name = {name: _longest_prefix(name) for name in names}
    names.sort(key=lambda name: PREFIX_ORDER.index(prefix_by_name[name]))  # stable
    descriptions: dict[str, list[SettingDescription]] = {topic: [] for topic in TOPICS}
    for name in names:
        description = _describe_setting(name, settings_class.model_fields[name])
        descriptions[TOPIC_BY_PREFIX[prefix_by_name[name]]].append(description)
    return descriptions


def _longest_prefix(name: str) -> str:
    """Return the longest beginning of the name in TOPICS. Raises ValueError if there is none."""
    return max(filter(name.startswith, PREFIX_ORDER), key=len)


def _describe_setting(name: str, field_info: FieldInfo) -> SettingDescription:
    return SettingDescription(
        variable=(PREFIX + name).upper(),
        values=_allowed_values_text(field_info),
        default=schema_extra(field_info).get("default") or _default_text(field_info),
        meaning=field_info.description or "",
        key=KEY_BY_SETTING.get(name),
    )


def _table_row(setting: SettingDescription) -> str:
    key = f" Key: `{setting.key}`." if setting.key else ""
    meaning = setting.meaning + key
    return f"| `{setting.variable}` | {setting.values} | {setting.default} | {meaning} |"


def schema_extra(field_info: FieldInfo) -> dict[str, Any]:
    """Return the additions of a setting to its declaration, such as the text of its default."""
    extra = field_info.json_schema_extra
    return extra if isinstance(extra, dict) else {}


def _default_text(field_info: FieldInfo) -> str:
    value = field_info.default
    if value in (None, "", ()) and not isinstance(value, bool):
        return "none"
    if isinstance(value, tuple):
        return ", ".join(format_setting_value(item, field_info) for item in value)
    return format_setting_value(value, field_info)


def format_setting_value(value: object, field_info: FieldInfo) -> str:
    """Format a value or a bound of a setting with its unit."""
    if isinstance(value, bool):
        return "on" if value else "off"
    if isinstance(value, timedelta):
        return format_duration_in_whole_units(value)
    if isinstance(value, int) and _is_size(field_info):
        return format_size_in_whole_units(value)
    return str(value)


def _is_size(field_info: FieldInfo) -> bool:
    validators = [*field_info.metadata]
    for union_member in get_args(field_info.annotation):
        validators += getattr(union_member, "__metadata__", ())
    return any(
        isinstance(validator, BeforeValidator) and validator.func is parse_size_if_text
        for validator in validators
    )


def _allowed_values_text(field_info: FieldInfo) -> str:
    """Describe the values of a setting: the kind, and the range if it has one."""
    annotation = field_info.annotation
    if get_origin(annotation) is Literal:
        return ", ".join(f"`{choice}`" for choice in get_args(annotation))
    if get_origin(annotation) in (Union, UnionType):
        annotation = next(kind for kind in get_args(annotation) if kind is not type(None))
    kind = _kind_name(annotation, field_info)
    return ", ".join(filter(None, (kind, _range_text(field_info))))


def _kind_name(annotation: Any, field_info: FieldInfo) -> str:
    if HOST_PORT_PATTERN in _pattern_constraints(field_info):
        return "host:port"
    if _is_size(field_info):
        return "size"
    return KIND_NAMES.get(get_origin(annotation) or annotation, "text")


def _pattern_constraints(field_info: FieldInfo) -> list[str]:
    return [
        pattern
        for constraint in field_info.metadata
        if isinstance(pattern := getattr(constraint, "pattern", None), str)
    ]


def _range_text(field_info: FieldInfo) -> str:
    minima = [constraint.ge for constraint in field_info.metadata if isinstance(constraint, Ge)]
    maxima = [constraint.le for constraint in field_info.metadata if isinstance(constraint, Le)]
    lengths = [c.min_length for c in field_info.metadata if isinstance(c, MinLen)]
    if lengths and not minima and field_info.annotation is not tuple:
        return f"at least {lengths[0]} characters"
    min_level: Any = max(minima, default=None)  # type: ignore[type-var]
    most: Any = min(maxima, default=None)  # type: ignore[type-var]
    if most is not None:
        first, last = (format_setting_value(level, field_info) for level in (min_level, most))
        return f"{first} to {last}"
    return f"at least {format_setting_value(min_level, field_info)}" if min_level else ""
