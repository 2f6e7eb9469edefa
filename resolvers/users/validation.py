"""Validation of the fields of users, and the permissions they need."""

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any

from mail.spam.verdict import DEFAULT_JUNK_POINTS, DEFAULT_REJECT_POINTS
from models.errors import ErrorCollector, Forbidden, InvalidInput
from models.users.roles import AdminPermission, Role, UserPermission
from models.users.tables import ProtocolScope
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.mailboxes.retention import validated_retention_seconds
from resolvers.submission.sender_patterns import validated_sender_pattern
from resolvers.users import custom_data
from resolvers.users.limit_values import LimitValue, validated_stored_limit
from resolvers.viewer import GuardRule

MAX_NAME_LENGTH = 255  # characters
MAX_TAG_LENGTH = 128
MAX_LIST_LENGTH = 1000  # items
MAX_NETWORKS = 100
DEFAULT_SPAM_LEVEL = 50
MAX_SPAM_POINTS = 10_000
SCHEMA_PATHS = {  # of columns whose path is not their name in camel case
    "public_metadata": ("metadata",),
    "second_factors": ("twoFactorMethods",),
    "received_per_hour": ("limits", "receivedPerHour"),
    "recipients_per_day": ("limits", "recipientsPerDay"),
    "forwards_per_day": ("limits", "forwardsPerDay"),
    "spam_level": ("spam", "level"),
    "junk_score": ("spam", "junkScore"),
    "reject_score": ("spam", "rejectScore"),
}
INHERITING_FIELDS = {  # that set a column to None
    "quota": "inheritQuota",
    "received_per_hour": "inheritLimits",
    "recipients_per_day": "inheritLimits",
    "forwards_per_day": "inheritLimits",
}
JSON_INTEGER_LIMIT = 1 << 53  # a JSON number is exact below it
COUNT_LIMIT = 1 << 31

# Columns that a USER can change of the own row; some need a permission.
OWN_COLUMNS = frozenset(
    {
        *("name", "language", "password", "retention", "openpgp_public_key", "encrypt_messages"),
        *("spam_level", "junk_score", "reject_score", "quarantine_notification"),
        *("public_metadata", "require_inbound_tls", "require_outbound_tls"),
        "upload_sent_messages",
        *("forward_to", "encrypt_forwarded", "subaddress_action"),
    }
)
USER_PERMISSION_BY_COLUMN = {
    "spam_level": UserPermission.SPAM_POLICY,
    "junk_score": UserPermission.SPAM_POLICY,
    "reject_score": UserPermission.SPAM_POLICY,
    "quarantine_notification": UserPermission.QUARANTINE_NOTIFICATION,
    "require_inbound_tls": UserPermission.TLS_POLICY,
    "require_outbound_tls": UserPermission.TLS_POLICY,
    "subaddress_action": UserPermission.SUBADDRESS_ACTION,
}
ADMIN_PERMISSION_BY_COLUMN = {
    "allowed_senders": AdminPermission.ALLOWED_SENDERS,
    "disabled_scopes": AdminPermission.PROTOCOL_ACCESS,
    "webmail_access": AdminPermission.WEBMAIL_ACCESS,
    "allow_local": AdminPermission.PROTOCOL_ACCESS,
    "smtp_allowed_networks": AdminPermission.SUBMISSION_NETWORKS,
    "spam_level": AdminPermission.SPAM_POLICY,
    "junk_score": AdminPermission.SPAM_POLICY,
    "reject_score": AdminPermission.SPAM_POLICY,
}
# Permissions that an administrator needs only for other users.
ADMIN_PERMISSION_FOR_OTHERS_BY_COLUMN = {"quarantine_notification": AdminPermission.QUARANTINE}

_CONTROL_OR_SURROGATE = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_LANGUAGE_TAG = re.compile(r"[A-Za-z]{2,3}([_-][A-Za-z0-9]{1,8}){0,4}")


def validate_user_columns(
    ctx: Context,
    values: Mapping[str, Any],
    problems: ErrorCollector,
    path_prefix: Sequence[str] = (),
) -> dict[str, Any]:
    """Return column values in stored form; None is a cleared value or the default.

    Unusable values are left out and added to `problems`, with paths that begin with `path_prefix`.
    """
    validated = {}
    max_size = ctx.environment.options.metadata_max_size
    for name, value in values.items():
        path, check = [*path_prefix, *schema_path(name)], VALIDATORS.get(name)
        with problems.collecting():
            if name in custom_data.COLUMNS:
                validated[name] = custom_data.validate_custom_data(value, path, max_size)
            else:
                validated[name] = check(value, path) if check else value
    return validated


def patch_path(columns: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """Return the path of the field of a patch that sets this column."""
    if column in INHERITING_FIELDS and column in columns and columns[column] is None:
        return (INHERITING_FIELDS[column],)
    return schema_path(column)


def schema_path(column: str) -> tuple[str, ...]:
    """Return the path of a column in the inputs of the schema."""
    first, *rest = column.split("_")
    return SCHEMA_PATHS.get(column, (first + "".join(part.capitalize() for part in rest),))


def schema_name(column: str) -> str:
    """Return the path of a column in the schema as one text, such as limits.receivedPerHour."""
    return ".".join(schema_path(column))


def require_column_permissions(
    ctx: Context,
    columns: Collection[str],
    path_prefix: Sequence[str] = (),
    *,
    of_others: bool = False,
) -> None:
    """Raise Forbidden if the viewer lacks the permission for one of these columns.

    `of_others` is true if users other than the viewer are changed.
    """
    permissions_for_others = ADMIN_PERMISSION_FOR_OTHERS_BY_COLUMN if of_others else {}
    admin_permissions = ADMIN_PERMISSION_BY_COLUMN | permissions_for_others
    for column in sorted(columns):
        guard = GuardRule(
            admin_permission=admin_permissions.get(column),
            user_permission=USER_PERMISSION_BY_COLUMN.get(column),
        )
        ctx.viewer.require(guard, path=[*path_prefix, *schema_path(column)])


def domain_of_username(username_key: str) -> str | None:
    """Return the domain of a normalized username that is an address, or else None."""
    return username_key.rpartition("@")[2] if "@" in username_key else None


def username_in_others_domain_error(path_prefix: Sequence[str] = ()) -> Forbidden:
    """Return the error for a username that is an address in a domain of other administrators."""
    text = "Requires the role ADMIN: the username is an address in another domain of this server."
    return Forbidden(text, requires=Role.ADMIN, path=[*path_prefix, "username"])


def require_unlimited_quota_permission(
    ctx: Context, quota: int | None, path_prefix: Sequence[str] = ()
) -> None:
    """Raise Forbidden if the quota is unlimited and the viewer can't give that."""
    unlimited, viewer = AdminPermission.UNLIMITED_QUOTA, ctx.viewer
    if quota == 0 and not (viewer.role.includes(Role.ADMIN) or unlimited in viewer.permissions):
        text = f"Requires the permission {unlimited} to give unlimited storage."
        raise Forbidden(text, requires=unlimited, path=[*path_prefix, "quota"])


def _validated_full_name(text: str | None, path: Sequence[str]) -> str | None:
    if not text:
        return None
    text = unicodedata.normalize("NFC", text)
    if len(text) > MAX_NAME_LENGTH or _CONTROL_OR_SURROGATE.search(text):
        error_text = f"The name has at most {MAX_NAME_LENGTH} characters and no control characters."
        raise InvalidInput(error_text, constraint=ValidationConstraint.PATTERN, path=path)
    return text


def _validate_language(text: str | None, path: Sequence[str]) -> str | None:
    if text and not _LANGUAGE_TAG.fullmatch(text):
        error_text = "The language must be a language tag such as de or pt-BR."
        raise InvalidInput(error_text, constraint=ValidationConstraint.PATTERN, path=path)
    return text or None


def _validate_tags(tags: Sequence[str] | None, path: Sequence[str]) -> list[str]:
    tags = _require_short_list(tags, path)
    for index, tag in enumerate(tags):
        if not 0 < len(tag.strip()) <= MAX_TAG_LENGTH or _CONTROL_OR_SURROGATE.search(tag):
            error_text = (
                f"A tag has from 1 to {MAX_TAG_LENGTH} characters, and no control characters."
            )
            raise InvalidInput(
                error_text, constraint=ValidationConstraint.LENGTH, path=path, index=index
            )
    spelling_by_tag = {tag.strip().casefold(): tag.strip() for tag in reversed(tags)}
    return sorted(spelling_by_tag.values())


def _require_short_list(items: Sequence[str] | None, path: Sequence[str]) -> Sequence[str]:
    if len(items or ()) > MAX_LIST_LENGTH:
        raise InvalidInput(
            f"At most {MAX_LIST_LENGTH} items are allowed.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )
    return items or ()


def _validate_sender_patterns(patterns: Sequence[str] | None, path: Sequence[str]) -> list[str]:
    validated = [
        validated_sender_pattern(text, path, index)
        for index, text in enumerate(_require_short_list(patterns, path))
    ]
    return list(dict.fromkeys(validated))


def _stored_scopes(scopes: Sequence[ProtocolScope] | None, _path: Sequence[str]) -> list[str]:
    return sorted({ProtocolScope(scope).value for scope in scopes or ()})


def _validated_networks(networks: Sequence[str] | None, path: Sequence[str]) -> list[str]:
    if len(networks or ()) > MAX_NETWORKS:
        raise InvalidInput(
            f"At most {MAX_NETWORKS} networks are allowed.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )
    return list(dict.fromkeys(networks or ()))


def _retention_seconds(retention: timedelta | None, path: Sequence[str]) -> int | None:
    return None if retention is None else validated_retention_seconds(retention, path)


def _validate_spam_level(level: int | None, path: Sequence[str]) -> int:
    if level is None:
        return DEFAULT_SPAM_LEVEL
    if not 0 <= level <= 100:  # noqa: PLR2004 - as documented
        raise InvalidInput(
            "Must be from 0 to 100.", constraint=ValidationConstraint.RANGE, path=path
        )
    return level


def _validate_spam_points(points: float | None, path: Sequence[str]) -> float | None:
    if points is not None and not 0 < points <= MAX_SPAM_POINTS:
        text = f"Must be above 0 and at most {MAX_SPAM_POINTS:,}."
        raise InvalidInput(text, constraint=ValidationConstraint.RANGE, path=path)
    return points


def require_reject_score_not_below_junk_score(
    junk_score: float | None, reject_score: float | None, path_prefix: Sequence[str] = ()
) -> None:
    """Raise InvalidInput if mail is refused at fewer points than it is spam at.

    None: the default.
    """
    junk = DEFAULT_JUNK_POINTS if junk_score is None else junk_score
    reject = DEFAULT_REJECT_POINTS if reject_score is None else reject_score
    if junk > reject:
        text = f"The reject score {reject:g} must not be below the junk score {junk:g}."
        path = [*path_prefix, *schema_path("reject_score")]
        raise InvalidInput(text, constraint=ValidationConstraint.RANGE, path=path)


def _limit_validator(end: int) -> Callable[[LimitValue, Sequence[str]], int | None]:
    """Return a check of a limit from 1 to below `end`, which returns its stored form."""
    return lambda limit, path: validated_stored_limit(limit, end, path)


VALIDATORS: dict[str, Callable[[Any, Sequence[str]], Any]] = {
    "name": _validated_full_name,
    "language": _validate_language,
    "tags": _validate_tags,
    "allowed_senders": _validate_sender_patterns,
    "disabled_scopes": _stored_scopes,
    "smtp_allowed_networks": _validated_networks,
    "retention": _retention_seconds,
    "spam_level": _validate_spam_level,
    "junk_score": _validate_spam_points,
    "reject_score": _validate_spam_points,
    "quota": _limit_validator(JSON_INTEGER_LIMIT),
    "recipients_per_day": _limit_validator(COUNT_LIMIT),
    "received_per_hour": _limit_validator(COUNT_LIMIT),
    "forwards_per_day": _limit_validator(COUNT_LIMIT),
}
