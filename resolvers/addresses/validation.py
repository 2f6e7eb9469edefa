"""Validate the text and the columns of addresses."""

import unicodedata
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mail.addresses.address_syntax import (
    MAX_ADDRESS,
    MAX_FIXED_PART,
    normalize_and_validate_address,
    normalize_and_validate_domain,
)
from mail.text import confusables
from models.addresses.tables import TRAINING_KINDS, AddressKind
from models.errors import ErrorCollector, InvalidInput
from models.validation_constraints import ValidationConstraint
from resolvers import sql_text
from resolvers.context import Context
from resolvers.users import custom_data
from resolvers.users.limit_values import LimitValue, validated_stored_limit
from resolvers.users.validation import schema_path

MAX_NAME_LENGTH = 128  # characters
MAX_COMMENT_LENGTH = 1000
FORWARDS_PER_DAY_END = 1 << 31
ALL_DOMAINS_SIGN = "*"  # in place of the domain part: all domains of the platform


def validate_address_text(
    text: str, *, allows_wildcard: bool, path: Sequence[str] = ("address",)
) -> str:
    """Return the text of an address or catch-all as stored. Raises InvalidInput.

    `@domain` means `*@domain`. A catch-all has one `*`: as the whole local part, at its begin
    or end, or in place of the domain.
    """
    text = unicodedata.normalize("NFC", text.strip())
    text = f"*{text}" if text.startswith("@") else text
    local, _, domain = text.rpartition("@")
    if "*" not in text:
        address: str = _check_with_path(path, normalize_and_validate_address, text)
        if "+" in address.rpartition("@")[0]:
            message = "An address must not contain a subaddress (+)."
            raise InvalidInput(message, constraint=ValidationConstraint.SUBADDRESS, path=path)
        _check_with_path(path, confusables.refuse_confusable_address, address)
        return address
    if not allows_wildcard:
        message = "An address with * requires allowWildcard: true."
        raise InvalidInput(message, constraint=ValidationConstraint.WILDCARD, path=path)
    fixed_part = local.strip("*")
    is_one_wildcard = (
        local in (fixed_part, f"{fixed_part}*", f"*{fixed_part}")
        and text.count("*") == 1
        and "*" not in fixed_part
    )
    if (
        not is_one_wildcard
        or (domain == ALL_DOMAINS_SIGN and not fixed_part)
        or "+" in fixed_part
        or len(text) > MAX_ADDRESS
    ):
        message = "A pattern must be *@domain, *suffix@domain, prefix*@domain or name@*."
        raise InvalidInput(message, constraint=ValidationConstraint.PATTERN, path=path)
    if domain != ALL_DOMAINS_SIGN:
        domain = _check_with_path(path, normalize_and_validate_domain, domain)
        if len(fixed_part.replace(".", "")) > MAX_FIXED_PART:
            message = (
                f"The local part of a pattern has at most {MAX_FIXED_PART} characters besides *."
            )
            raise InvalidInput(message, constraint=ValidationConstraint.MAX, path=path)
    if fixed_part:
        # dots do not count, so a fixed part may begin or end with one
        fixed_without_dots = fixed_part.replace(".", "")
        _check_with_path(
            path,
            normalize_and_validate_address,
            f"{fixed_without_dots}@{'x' if domain == ALL_DOMAINS_SIGN else domain}",
        )
        _check_with_path(path, confusables.refuse_confusable_address, f"{fixed_part}@{domain}")
    return f"{local}@{domain}"


def _check_with_path(path: Sequence[str], check: Callable[..., Any], *arguments: Any) -> Any:
    """Return the result of a check; an InvalidInput that it raises gets this path."""
    try:
        return check(*arguments)
    except InvalidInput as refusal:
        refusal.path = list(path)
        raise


def validate_address_columns(
    ctx: Context, columns: Mapping[str, Any], problems: ErrorCollector, path: Sequence[str] = ()
) -> dict[str, Any]:
    """Return the columns in their stored form.

    Adds an error to `problems` for each invalid value.
    """
    validated = {}
    max_size = ctx.environment.options.metadata_max_size
    for name, value in columns.items():
        value_path, check = [*path, *schema_path(name)], COLUMN_VALIDATORS.get(name)
        with problems.collecting():
            if name in custom_data.COLUMNS:
                validated[name] = custom_data.validate_custom_data(value, value_path, max_size)
            else:
                validated[name] = check(value, value_path) if check else value
    return validated


def collect_column_combination_errors(
    address: Any, problems: ErrorCollector, path: Sequence[str] = (), *, spam_filter_learns: bool
) -> None:
    """Add an error to `problems` for each combination of columns that is not allowed.

    `spam_filter_learns` is true if a spam filter is configured that can be trained.
    """
    kind, targets = AddressKind(address.kind), list(address.forward_to)
    with problems.collecting():
        if kind is AddressKind.RESOURCE:
            message = "An address of the kind RESOURCE is created by resourceCreate only."
            raise InvalidInput(
                message, constraint=ValidationConstraint.ADDRESS_KIND, path=[*path, "kind"]
            )
    with problems.collecting():
        if kind in TRAINING_KINDS and not spam_filter_learns:
            message = "This kind requires a configured spam filter that can be trained."
            raise InvalidInput(
                message, constraint=ValidationConstraint.UNSUPPORTED, path=[*path, "kind"]
            )
    with problems.collecting():
        if kind is AddressKind.FORWARD and not targets:
            message = "An address of the kind FORWARD requires at least one target."
            raise InvalidInput(
                message, constraint=ValidationConstraint.REQUIRED, path=[*path, "forwardTo"]
            )
        if kind is not AddressKind.FORWARD and targets:
            message = f"An address of the kind {kind} can't have targets: the kind must be FORWARD."
            raise InvalidInput(
                message, constraint=ValidationConstraint.EXCLUSIVE, path=[*path, "forwardTo"]
            )
    with problems.collecting():
        if kind is not AddressKind.FORWARD and address.forwards_per_day is not None:
            message = (
                f"An address of the kind {kind} can't have this limit: the kind must be FORWARD."
            )
            raise InvalidInput(
                message,
                constraint=ValidationConstraint.EXCLUSIVE,
                path=[*path, "limits", "forwardsPerDay"],
            )
    with problems.collecting():
        if address.main and not can_be_main(address):
            message = "A main address must have the kind MAILBOX, no * and no expiry time."
            raise InvalidInput(
                message, constraint=ValidationConstraint.MAIN_ADDRESS, path=[*path, "main"]
            )


def can_be_main(address: Any) -> bool:
    """True if the address may be the main address of its user."""
    is_single_address = "*" not in address.local and address.domain_id is not None
    return is_single_address and address.kind == AddressKind.MAILBOX and address.expires_at is None


def _validate_address_name(text: str | None, path: Sequence[str]) -> str | None:
    name = sql_text.validated_trimmed_text(text, max_length=MAX_NAME_LENGTH, path=path)
    if name and not name.isprintable():
        raise InvalidInput(
            "The name must not contain control characters.",
            constraint=ValidationConstraint.PATTERN,
            path=path,
        )
    return name


def _validate_comment(text: str | None, path: Sequence[str]) -> str | None:
    return sql_text.validated_trimmed_text(text, max_length=MAX_COMMENT_LENGTH, path=path)


def _validate_tags(tags: Sequence[str] | None, path: Sequence[str]) -> list[str]:
    return sql_text.validated_distinct_tags(tags or (), path=path)


def _validate_forwards_per_day(limit: LimitValue, path: Sequence[str]) -> int | None:
    return validated_stored_limit(limit, FORWARDS_PER_DAY_END, path)


def _require_true_or_false(value: bool | None, path: Sequence[str]) -> bool:
    if value is None:
        message = "Must be true or false, not null."
        raise InvalidInput(message, constraint=ValidationConstraint.REQUIRED, path=path)
    return value


COLUMN_VALIDATORS: Mapping[str, Callable[[Any, Sequence[str]], Any]] = {
    "name": _validate_address_name,
    "tags": _validate_tags,
    "forwards_per_day": _validate_forwards_per_day,
    "active": _require_true_or_false,
    "send_as": _require_true_or_false,
    "public_comment": _validate_comment,
    "private_comment": _validate_comment,
}
