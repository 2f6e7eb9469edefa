"""Validation of the fields of users, and the permissions they need."""

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any

from models.errors import ErrorCollector, Forbidden, InvalidInput
from models.users.roles import AdminPermission, Role, UserPermission
from models.users.tables import ProtocolScope
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context, GuardRule
from resolvers.mailboxes.loaders import retention_seconds
from resolvers.submission.sender_patterns import normalize_pattern
from resolvers.users import custom_data
from resolvers.users.limit_values import LimitValue, stored_limit

MAX_NAME_LENGTH = 255  # characters
MAX_TAG_LENGTH = 128
MAX_LIST_LENGTH = 1000  # items
MAX_NETWORKS = 100
DEFAULT_SPAM_LEVEL = 50
SCHEMA_PATHS = {  # of columns whose path is not their name in camel case
    "public_metadata": ("metadata",),
    "second_factors": ("twoFactorMethods",),
    "received_per_hour": ("limits", "receivedPerHour"),
    "recipients_per_day": ("limits", "recipientsPerDay"),
    "forwards_per_day": ("limits", "forwardsPerDay"),
}
JSON_INTEGER_LIMIT = 1 << 53  # a JSON number is exact below it
COUNT_LIMIT = 1 << 31

# Columns that a USER can change of the own row; some need a permission.
OWN_COLUMNS = frozenset(
    {
        *("name", "language", "password", "retention", "openpgp_public_key", "encrypt_messages"),
        *("public_metadata", "spam_level", "require_inbound_tls", "require_outbound_tls"),
        "upload_sent_messages",
        *("forward_to", "encrypt_forwarded", "subaddress_action"),
    }
)
USER_PERMISSION_BY_COLUMN = {
    "spam_level": UserPermission.SPAM_SCORE,
    "require_inbound_tls": UserPermission.TLS_POLICY,
    "require_outbound_tls": UserPermission.TLS_POLICY,
    "subaddress_action": UserPermission.SUBADDRESS_ACTION,
}
ADMIN_PERMISSION_BY_COLUMN = {
    "allowed_senders": AdminPermission.ALLOWED_SENDERS,
    "disabled_scopes": AdminPermission.PROTOCOL_ACCESS,
    "webmail_access": AdminPermission.WEBMAIL_ACCESS,
    "smtp_allowed_networks": AdminPermission.SUBMISSION_NETWORKS,
    "spam_level": AdminPermission.SPAM_POLICY,
}

_CONTROL_OR_SURROGATE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,3}([_-][A-Za-z0-9]{1,8}){0,4}")


def validate_columns(
    values: Mapping[str, Any], problems: ErrorCollector, path_prefix: Sequence[str] = ()
) -> dict[str, Any]:
    """Return column values in stored form; None is a cleared value or the default.

    Unusable values are left out and added to `problems`, with paths that begin with `path_prefix`.
    """
    validated = {}
    for name, value in values.items():
        with problems.collecting():
            check = VALIDATORS.get(name)
            validated[name] = check(value, [*path_prefix, *schema_path(name)]) if check else value
    return validated


def schema_path(column: str) -> tuple[str, ...]:
    """Return the path of a column in the inputs of the schema."""
    first, *rest = column.split("_")
    return SCHEMA_PATHS.get(column, (first + "".join(part.capitalize() for part in rest),))


def schema_name(column: str) -> str:
    """Return the path of a column in the schema as one text, such as limits.receivedPerHour."""
    return ".".join(schema_path(column))


def require_column_permissions(
    ctx: Context, columns: Collection[str], path_prefix: Sequence[str] = ()
) -> None:
    """Raise Forbidden if the viewer lacks the permission for one of these columns."""
    for column in sorted(columns):
        guard = GuardRule(
            admin_permission=ADMIN_PERMISSION_BY_COLUMN.get(column),
            user_permission=USER_PERMISSION_BY_COLUMN.get(column),
        )
        try:
            ctx.viewer.require(guard)
        except Forbidden as refusal:
            refusal.path = [*path_prefix, *schema_path(column)]
            raise


def require_unlimited_quota_permission(
    ctx: Context, quota: int | None, path_prefix: Sequence[str] = ()
) -> None:
    """Raise Forbidden if the quota is unlimited and the viewer can't give that."""
    unlimited, viewer = AdminPermission.UNLIMITED_QUOTA, ctx.viewer
    if quota == 0 and not (viewer.role.includes(Role.ADMIN) or unlimited in viewer.permissions):
        text = f"to give unlimited storage needs {unlimited}"
        raise Forbidden(text, requires=unlimited, path=[*path_prefix, "quota"])


def _validate_name(text: str | None, path: Sequence[str]) -> str | None:
    if not text:
        return None
    text = unicodedata.normalize("NFC", text)
    if len(text) > MAX_NAME_LENGTH or _CONTROL_OR_SURROGATE.search(text):
        error_text = f"at most {MAX_NAME_LENGTH} characters, and no control characters"
        raise InvalidInput(error_text, constraint=ValidationConstraint.PATTERN, path=path)
    return text


def _validate_language(text: str | None, path: Sequence[str]) -> str | None:
    if text and not _LANGUAGE_TAG.fullmatch(text):
        error_text = "a language is written as in de or pt-BR"
        raise InvalidInput(error_text, constraint=ValidationConstraint.PATTERN, path=path)
    return text or None


def _validate_tags(tags: Sequence[str] | None, path: Sequence[str]) -> list[str]:
    tags = _require_short_list(tags, path)
    for index, tag in enumerate(tags):
        if not 0 < len(tag.strip()) <= MAX_TAG_LENGTH or _CONTROL_OR_SURROGATE.search(tag):
            error_text = (
                f"a tag has 1 to {MAX_TAG_LENGTH} characters, none of them a control character"
            )
            raise InvalidInput(
                error_text, constraint=ValidationConstraint.LENGTH, path=path, index=index
            )
    spelling_by_tag = {tag.strip().casefold(): tag.strip() for tag in reversed(tags)}
    return sorted(spelling_by_tag.values())


def _require_short_list(items: Sequence[str] | None, path: Sequence[str]) -> Sequence[str]:
    if len(items or ()) > MAX_LIST_LENGTH:
        raise InvalidInput(
            f"at most {MAX_LIST_LENGTH} items", constraint=ValidationConstraint.MAX, path=path
        )
    return items or ()


def _validate_sender_patterns(patterns: Sequence[str] | None, path: Sequence[str]) -> list[str]:
    validated = [
        normalize_pattern(text, path, index)
        for index, text in enumerate(_require_short_list(patterns, path))
    ]
    return list(dict.fromkeys(validated))


def _stored_scopes(scopes: Sequence[ProtocolScope] | None, _path: Sequence[str]) -> list[str]:
    return sorted({ProtocolScope(scope).value for scope in scopes or ()})


def _validate_networks(networks: Sequence[str] | None, path: Sequence[str]) -> list[str]:
    if len(networks or ()) > MAX_NETWORKS:
        raise InvalidInput(
            f"at most {MAX_NETWORKS} items", constraint=ValidationConstraint.MAX, path=path
        )
    return list(dict.fromkeys(networks or ()))


def _retention_seconds(retention: timedelta | None, path: Sequence[str]) -> int | None:
    if retention is None:
        return None
    if not retention:
        raise InvalidInput(
            "at least a second; null: for ever", constraint=ValidationConstraint.RANGE, path=path
        )
    return retention_seconds(retention, path)


def validate_spam_level(level: int | None, path: Sequence[str]) -> int:
    """Return the spam level in stored form; None: the default.

    Raises Invalid if it is out of range.
    """
    if level is None:
        return DEFAULT_SPAM_LEVEL
    if not 0 <= level <= 100:  # noqa: PLR2004 - as documented
        raise InvalidInput("from 0 to 100", constraint=ValidationConstraint.RANGE, path=path)
    return level


def _limit_validator(end: int) -> Callable[[LimitValue, Sequence[str]], int | None]:
    """Return a check of a limit from 1 to below `end`, which returns its stored form."""
    return lambda limit, path: stored_limit(limit, end, path)


VALIDATORS: dict[str, Callable[[Any, Sequence[str]], Any]] = {
    "name": _validate_name,
    "language": _validate_language,
    "tags": _validate_tags,
    "allowed_senders": _validate_sender_patterns,
    "disabled_scopes": _stored_scopes,
    "smtp_allowed_networks": _validate_networks,
    "retention": _retention_seconds,
    "spam_level": validate_spam_level,
    "quota": _limit_validator(JSON_INTEGER_LIMIT),
    "recipients_per_day": _limit_validator(COUNT_LIMIT),
    "received_per_hour": _limit_validator(COUNT_LIMIT),
    "forwards_per_day": _limit_validator(COUNT_LIMIT),
    "public_metadata": custom_data.validate_custom_data,
    "private_metadata": custom_data.validate_custom_data,
}
