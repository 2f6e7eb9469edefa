"""Validation and generation of application passwords."""

import hashlib
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from itertools import pairwise
from typing import Any

from mail.addresses.address_syntax import normalize_and_validate_address as checked_address
from models.errors import ErrorCollector, Forbidden, InvalidInput
from models.quantities import describe_duration
from models.runtime.environment import Environment
from models.runtime.options import Options
from models.users.roles import Role, Scope, expand_scopes
from models.validation_constraints import ValidationConstraint
from resolvers.auth import credential_makers
from resolvers.auth.passwords import foreign_hashes
from resolvers.users import apple_profiles

LENGTH = 16
SELECTOR_LENGTH = 5  # hex digits
PASSWORD_PATTERN = re.compile(rf"[a-z]{{{LENGTH}}}")
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MIN_DISTINCT_LETTERS = 6
MAX_DESCRIPTION_LENGTH = 255  # characters of a description
MAX_TYPED_LENGTH = 256  # characters, with spaces
MIN_LIFETIME, MAX_LIFETIME = timedelta(minutes=1), timedelta(days=3650)


class AppPasswordScope(StrEnum):
    """A scope that an application password can have."""

    IMAP = "IMAP"
    POP3 = "POP3"
    SMTP = "SMTP"
    SIEVE = "SIEVE"
    MAIL_READ = "MAIL_READ"
    MAIL = "MAIL"
    SUBMIT = "SUBMIT"
    ALL = "ALL"


ALL_SCOPES = frozenset(
    Scope(app_password_scope)
    for app_password_scope in AppPasswordScope
    if app_password_scope is not AppPasswordScope.ALL
)


@dataclass(frozen=True, slots=True)
class NewAppPassword:
    """An application password to create. A given password has exactly 16 letters a to z.

    With `is_hash`, `password` is the hash that another mail server has stored of one.
    """

    description: str
    scopes: Collection[AppPasswordScope] = (AppPasswordScope.ALL,)
    password: str | None = field(default=None, repr=False)
    is_hash: bool = False
    ttl: timedelta | None = None  # from the last use
    active: bool = True
    profile: bool = False  # also create a configuration profile for Apple devices
    address: str | None = None  # of the profile; default: the main address


@dataclass(frozen=True, slots=True)
class AppPasswordChanges:
    """Changes to application passwords; None leaves a field unchanged."""

    description: str | None = None
    active: bool | None = None
    scopes: Collection[AppPasswordScope] | None = None


def normalize_app_password(password: str) -> str | None:
    """Return a typed password without spaces and in lower case; None if it has another form."""
    if len(password) > MAX_TYPED_LENGTH:
        return None
    normal = "".join(password.split()).casefold()
    return normal if PASSWORD_PATTERN.fullmatch(normal) else None


def require_right_to_import_hash(role: Role, new_password: NewAppPassword) -> None:
    """Raise Forbidden if a hash is imported by another role than ROOT.

    Nobody can check whether the password of a hash is weak. It belongs to the user, so it has no
    maker with whom it ends.
    """
    if new_password.is_hash and role is not Role.ROOT:
        text = "Only ROOT can import hashes of application passwords."
        raise Forbidden(text, requires=Role.ROOT, path=["hashedPassword"])


def require_within_impersonation_and_expand_all(scopes: Sequence[str]) -> list[str]:
    """Return these scopes, ALL as those of userImpersonate.

    Raises Forbidden for a scope userImpersonate does not have.
    """
    if AppPasswordScope.ALL in scopes:
        return sorted(ALL_SCOPES & expand_scopes(credential_makers.IMPERSONATION_SCOPES))
    if not set(map(Scope, scopes)) <= expand_scopes(credential_makers.IMPERSONATION_SCOPES):
        text = (
            "An application password for another user can't exceed the scopes of a "
            "token of userImpersonate."
        )
        raise Forbidden(text, requires="the account itself", path=["scopes"])
    return list(scopes)


def validate_new_app_password_fields(new_password: NewAppPassword, options: Options) -> None:
    """Raise InvalidInput, with all errors, if the password can't be created as described."""
    problems = ErrorCollector()
    with problems.collecting():
        validate_description(new_password.description)
    with problems.collecting():
        scopes = validated_scopes_collapsed_to_all(new_password.scopes)
        if new_password.profile:
            apple_profiles.incoming_protocol_or_raise(options, scopes, scopes_field="scopes")
    with problems.collecting():
        validated_lifetime_seconds(new_password.ttl)
    with problems.collecting():
        if new_password.profile and new_password.address is not None:
            checked_address(new_password.address)
    with problems.collecting():
        if new_password.is_hash:
            _validate_given_hash(new_password)
        elif new_password.password is not None:
            _validate_given_password(new_password.password)
    problems.raise_collected()


def validated_values_of_changes(changes: AppPasswordChanges) -> dict[str, Any]:
    """Return the new values by column. Raises InvalidInput if one is wrong or none is given."""
    values: dict[str, Any] = {}
    if changes.description is not None:
        values["description"] = validate_description(changes.description)
    if changes.scopes is not None:
        values["scopes"] = validated_scopes_collapsed_to_all(changes.scopes)
    if changes.active is not None:
        values["active"] = changes.active
    if not values:
        raise InvalidInput(
            "At least one field is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["set"],
        )
    return values


def validate_description(text: str) -> str:
    """Return a description, trimmed.

    Raises InvalidInput if it is empty, too long or not printable.
    """
    text = text.strip()
    if not 0 < len(text) <= MAX_DESCRIPTION_LENGTH or not text.isprintable():
        raise InvalidInput(
            f"The description has from 1 to {MAX_DESCRIPTION_LENGTH} printable characters.",
            constraint=ValidationConstraint.PATTERN,
            path=["description"],
        )
    return text


def validated_scopes_collapsed_to_all(scopes: Collection[AppPasswordScope]) -> list[str]:
    """Return the scopes in stored form: ALL alone, if it is given or all others are."""
    if not scopes:
        raise InvalidInput(
            "At least one scope is required.",
            constraint=ValidationConstraint.REQUIRED,
            path=["scopes"],
        )
    scope_set = set(scopes)
    if AppPasswordScope.ALL in scope_set or len(scope_set) == len(ALL_SCOPES):
        return [AppPasswordScope.ALL.value]
    return [
        app_password_scope.value
        for app_password_scope in AppPasswordScope
        if app_password_scope in scope_set
    ]


def validated_lifetime_seconds(lifetime: timedelta | None) -> int | None:
    """Return a lifetime in seconds. Raises InvalidInput if it is out of range."""
    if lifetime is None:
        return None
    if lifetime < MIN_LIFETIME:
        raise InvalidInput(
            f"The validity must be at least {describe_duration(MIN_LIFETIME)}.",
            constraint=ValidationConstraint.MIN,
            path=["ttl"],
        )
    if lifetime > MAX_LIFETIME:
        raise InvalidInput(
            f"The validity must be at most {describe_duration(MAX_LIFETIME)}.",
            constraint=ValidationConstraint.MAX,
            path=["ttl"],
        )
    return int(lifetime.total_seconds())


def _validate_given_hash(new_password: NewAppPassword) -> None:
    """Raise InvalidInput if a given hash is missing or unknown, or a profile is requested."""
    if new_password.password is None:
        raise InvalidInput(
            "A hash is required.", constraint=ValidationConstraint.REQUIRED, path=["password"]
        )
    if new_password.profile:
        raise InvalidInput(
            "A profile contains the password, which a hash does not reveal.",
            constraint=ValidationConstraint.EXCLUSIVE,
            path=["generateMobileconfig"],
        )
    foreign_hashes.validate_foreign_hash(new_password.password)


def _validate_given_password(text: str) -> None:
    """Raise InvalidInput if a given password has another form or is easy to guess."""
    if not PASSWORD_PATTERN.fullmatch(text):
        raise InvalidInput(
            f"The password must have exactly {LENGTH} lower-case letters from a to z.",
            constraint=ValidationConstraint.PATTERN,
            path=["password"],
        )
    if _is_weak(text):
        raise InvalidInput(
            "The password is too easy to guess.",
            constraint=ValidationConstraint.WEAK,
            path=["password"],
        )


def _is_weak(text: str) -> bool:
    """True if a password has few letters, a repeated part, or is the alphabet in one direction."""
    codes = [ord(character) for character in text]
    steps = {(later - earlier) % 26 for earlier, later in pairwise(codes)}
    has_repeated_part = any(text[size:] == text[:-size] for size in range(1, LENGTH // 2 + 1))
    return len(set(text)) < MIN_DISTINCT_LETTERS or len(steps) == 1 or has_repeated_part


def generate_password(environment: Environment) -> str:
    """Return a random password, in which each letter is equally likely."""
    while True:
        unbiased_bytes = [
            byte for byte in environment.random_bytes(4 * LENGTH) if byte < 256 - 256 % len(LETTERS)
        ]
        text = "".join(LETTERS[byte % len(LETTERS)] for byte in unbiased_bytes[:LENGTH])
        if PASSWORD_PATTERN.fullmatch(text) and not _is_weak(text):
            return text


def password_selector(normalized: str) -> str:
    """Return the first hex digits of the SHA-256, by which a password is looked up.

    It reveals 20 of the password's 75 bits; a guess still costs one hash.
    """
    return hashlib.sha256(normalized.encode()).hexdigest()[:SELECTOR_LENGTH]
