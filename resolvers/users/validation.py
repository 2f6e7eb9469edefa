"""Validation of the fields of users, and the permissions they need."""

import re
import unicodedata
from collections.abc import Callable, Collection, Mapping, Sequence
from datetime import timedelta
from typing import Any

from models.errors import Forbidden, Invalid, Problems
from models.users.roles import AdminPermission, Role, UserPermission
from models.users.tables import ProtocolScope
from resolvers.context import Context, Needs
from resolvers.mailboxes.loaders import seconds
from resolvers.submission.sender_patterns import checked_pattern
from resolvers.users import custom_data

NAME = 255  # characters
TAG = 128
LIST = 1000  # items
NETWORKS = 100
SPAM_LEVEL = 50
WHOLE = 1 << 53  # a JSON number is exact below it
COUNT = 1 << 31

# Columns that a USER can change of the own row; some need a permission.
OWN = frozenset(
    {
        *("name", "language", "password", "retention", "pub_key", "encrypt_messages"),
        *("meta_data", "spam_level", "tls_enforce_in", "tls_enforce_out"),
        "upload_sent_messages",
        *("targets", "encrypt_forwarded", "delimiter_action"),
    }
)
BY_USERS = {
    "spam_level": UserPermission.SPAM_SCORE,
    "tls_enforce_in": UserPermission.TLS_POLICY,
    "tls_enforce_out": UserPermission.TLS_POLICY,
    "delimiter_action": UserPermission.DELIMITER_ACTION,
}
BY_ADMINS = {
    "from_whitelist": AdminPermission.EXTEND_SENDER_ACL,
    "disabled_scopes": AdminPermission.PROTOCOL_ACCESS,
    "webmail_access": AdminPermission.WEBMAIL_ACCESS,
    "smtp_allowed_networks": AdminPermission.SMTP_IP_ACCESS,
    "spam_level": AdminPermission.SPAM_POLICY,
}

_ODD = re.compile("[\x00-\x1f\x7f\ud800-\udfff]")
_LANGUAGE = re.compile(r"[A-Za-z]{2,3}([_-][A-Za-z0-9]{1,8}){0,4}")


def checked(given: Mapping[str, Any], problems: Problems, at: Sequence[str] = ()) -> dict[str, Any]:
    """Return column values in stored form; None is a cleared value or the default.

    Unusable values are left out and added to `problems`, with paths that begin with `path_prefix`.
    """
    found = {}
    for name, value in given.items():
        with problems.caught():
            check = CHECKS.get(name)
            found[name] = check(value, [*at, camel(name)]) if check else value
    return found


def camel(name: str) -> str:
    """Return a column name as the schema has it, in camel case."""
    first, *rest = name.split("_")
    return first + "".join(word.capitalize() for word in rest)


def allow(ctx: Context, names: Collection[str], at: Sequence[str] = ()) -> None:
    """Raise Forbidden if the viewer lacks the permission for one of these columns."""
    for name in sorted(names):
        needs = Needs(admin_permission=BY_ADMINS.get(name), user_permission=BY_USERS.get(name))
        try:
            ctx.viewer.require(needs)
        except Forbidden as refusal:
            refusal.path = [*at, camel(name)]
            raise


def allow_quota(ctx: Context, quota: int | None, at: Sequence[str] = ()) -> None:
    """Raise Forbidden if the quota is unlimited and the viewer can't give that."""
    unlimited, viewer = AdminPermission.UNLIMITED_QUOTA, ctx.viewer
    if quota == 0 and not (viewer.role.includes(Role.ADMIN) or unlimited in viewer.permissions):
        text = f"to give unlimited storage needs {unlimited}"
        raise Forbidden(text, requires=unlimited, path=[*at, "quota"])


def _name(text: str | None, path: Sequence[str]) -> str | None:
    if not text:
        return None
    text = unicodedata.normalize("NFC", text)
    if len(text) > NAME or _ODD.search(text):
        words = f"at most {NAME} characters, and no control characters"
        raise Invalid(words, constraint="pattern", path=path)
    return text


def _language(text: str | None, path: Sequence[str]) -> str | None:
    if text and not _LANGUAGE.fullmatch(text):
        words = "a language is written as in de or pt-BR"
        raise Invalid(words, constraint="pattern", path=path)
    return text or None


def _tags(tags: Sequence[str] | None, path: Sequence[str]) -> list[str]:
    tags = _short(tags, path)
    for index, tag in enumerate(tags):
        if not 0 < len(tag.strip()) <= TAG or _ODD.search(tag):
            words = f"a tag has 1 to {TAG} characters, none of them a control character"
            raise Invalid(words, constraint="length", path=path, index=index)
    spelled = {tag.strip().casefold(): tag.strip() for tag in reversed(tags)}
    return sorted(spelled.values())


def _short(items: Sequence[str] | None, path: Sequence[str]) -> Sequence[str]:
    if len(items or ()) > LIST:
        raise Invalid(f"at most {LIST} items", constraint="max", path=path)
    return items or ()


def _senders(patterns: Sequence[str] | None, path: Sequence[str]) -> list[str]:
    found = [
        checked_pattern(text, path, index) for index, text in enumerate(_short(patterns, path))
    ]
    return list(dict.fromkeys(found))


def _scopes(scopes: Sequence[ProtocolScope] | None, _path: Sequence[str]) -> list[str]:
    return sorted({ProtocolScope(scope).value for scope in scopes or ()})


def _networks(networks: Sequence[str] | None, path: Sequence[str]) -> list[str]:
    if len(networks or ()) > NETWORKS:
        raise Invalid(f"at most {NETWORKS} items", constraint="max", path=path)
    return list(dict.fromkeys(networks or ()))


def _retention(life: timedelta | None, path: Sequence[str]) -> int | None:
    return seconds(life, path) if life else None


def spam_level(level: int | None, path: Sequence[str]) -> int:
    """Return the spam level in stored form; None: the default.

    Raises Invalid if it is out of range.
    """
    if level is None:
        return SPAM_LEVEL
    if not 0 <= level <= 100:  # noqa: PLR2004 - as documented
        raise Invalid("from 0 to 100", constraint="range", path=path)
    return level


def _below(most: int) -> Callable[[int | None, Sequence[str]], int | None]:
    """Return a check that a number is not negative and below the limit."""

    def check(number: int | None, path: Sequence[str]) -> int | None:
        if number is not None and not 0 <= number < most:
            words = f"not negative, and below 2^{most.bit_length() - 1}"
            raise Invalid(words, constraint="range", path=path)
        return number

    return check


CHECKS: dict[str, Callable[[Any, Sequence[str]], Any]] = {
    "name": _name,
    "language": _language,
    "tags": _tags,
    "from_whitelist": _senders,
    "disabled_scopes": _scopes,
    "smtp_allowed_networks": _networks,
    "retention": _retention,
    "spam_level": spam_level,
    "quota": _below(WHOLE),
    "recipients": _below(COUNT),
    "received_max": _below(COUNT),
    "forwards": _below(COUNT),
    "meta_data": custom_data.checked,
    "internal_data": custom_data.checked,
}
