"""Validate the targets of forwarding addresses: mail addresses, relays and webhooks."""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import quote, unquote, urlsplit

import idna
from sqlalchemy import select
from sqlmodel import col

from mail.addresses.address_syntax import normalize_and_validate_address, normalized_address
from mail.network import outbound_http
from mail.recipients.forward_targets import MASKED_TEXT
from models.domains.tables import DomainAlias
from models.errors import ErrorCollector, InvalidInput
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context

MAX_TARGETS = 100  # targets of an address
MAX_TARGET_LENGTH = 2048  # characters
RELAY_SCHEMES = ("smtp", "smtps")
HIDDEN_PASSWORD_PART = f":{MASKED_TEXT}@"


@dataclass(frozen=True, slots=True)
class TargetsWithRelayPasswords:
    """Targets in the form shown to users, and relay URLs with password by their shown form."""

    shown_targets: Sequence[str] = ()
    relays_with_password: Mapping[str, str] = field(default_factory=dict)


def validate_forward_targets(
    ctx: Context,
    targets: Sequence[str],
    stored_relays_with_password: Mapping[str, str],
    path: Sequence[str],
) -> TargetsWithRelayPasswords:
    """Validate targets and return them in their stored form, each once.

    A relay URL with the hidden password keeps the password of `stored_relays_with_password`. Raises
    InvalidInput with the index of each target that is not allowed.
    """
    if len(targets) > MAX_TARGETS:
        raise InvalidInput(
            f"At most {MAX_TARGETS} targets are allowed.",
            constraint=ValidationConstraint.MAX,
            path=path,
        )
    problems = ErrorCollector()
    shown_by_key = dict[str, str]()
    relays_with_password = dict[str, str]()
    for index, target in enumerate(targets):
        with problems.collecting():
            try:
                target_text, relay_with_password = _validate_forward_target(
                    ctx, target.strip(), stored_relays_with_password, path
                )
            except InvalidInput as refusal:
                refusal.path, refusal.index = list(path), index
                raise
            shown_by_key.setdefault(target_text.casefold(), target_text)
            if relay_with_password and shown_by_key[target_text.casefold()] == target_text:
                relays_with_password[target_text] = relay_with_password
    problems.raise_collected()
    return TargetsWithRelayPasswords(list(shown_by_key.values()), relays_with_password)


class _ValidatedTarget(NamedTuple):
    """A target in the form shown to users, and the relay URL with its password if it has one."""

    shown: str
    relay_with_password: str | None = None


def _validate_forward_target(
    ctx: Context, target: str, stored_relays_with_password: Mapping[str, str], path: Sequence[str]
) -> _ValidatedTarget:
    """Return a target as shown, and with its password if it is a relay that has one.

    Raises InvalidInput if the target is not allowed.
    """
    if len(target) > MAX_TARGET_LENGTH or not target.isprintable():
        message = f"A target has at most {MAX_TARGET_LENGTH:,} printable characters."
        raise InvalidInput(message, constraint=ValidationConstraint.LENGTH, path=path)
    scheme, colon, _ = target.partition("://")
    if not colon:
        if "*" in target:
            raise InvalidInput(
                "A target must not contain `*`.", constraint=ValidationConstraint.PATTERN, path=path
            )
        return _ValidatedTarget(normalize_and_validate_address(target, allows_quotes=True))
    allows_private = ctx.environment.options.forwards_allow_private_networks
    if scheme.lower() in outbound_http.DEFAULT_PORTS:
        outbound_http.parse_http_target(target, allow_private=allows_private, error_path=path)
        return _ValidatedTarget(target)
    if HIDDEN_PASSWORD_PART in target and target in stored_relays_with_password:
        return _ValidatedTarget(target, stored_relays_with_password[target])
    return _validate_relay(target, allows_private=allows_private, path=path)


def _validate_relay(
    relay_url: str, *, allows_private: bool, path: Sequence[str]
) -> _ValidatedTarget:
    """Return a relay URL as shown, and with its password if it has one.

    Raises InvalidInput if the URL is not allowed.
    """
    try:
        parts = urlsplit(relay_url)
        port, host = parts.port, outbound_http.ascii_host(parts.hostname or "")
        user, password = (unquote(part or "") for part in (parts.username, parts.password))
    except (ValueError, idna.IDNAError):
        raise InvalidInput(
            "The target must be a valid URL of a relay, such as smtp://host:port.",
            constraint=ValidationConstraint.URL,
            path=path,
        ) from None
    if (
        parts.scheme not in RELAY_SCHEMES
        or not host
        or parts.path.strip("/")
        or not host.isprintable()
    ):
        message = "A target must be an address or a URL with smtp, smtps, http or https."
        raise InvalidInput(message, constraint=ValidationConstraint.URL, path=path)
    if parts.query or parts.fragment or port == 0 or " " in relay_url:
        raise InvalidInput(
            "The URL of a relay must have only a host, a port and credentials.",
            constraint=ValidationConstraint.URL,
            path=path,
        )
    if bool(user) != bool(password) or not (user + password).isprintable():
        raise InvalidInput(
            "The URL of a relay must have both a username and a password, or neither.",
            constraint=ValidationConstraint.URL,
            path=path,
        )
    if password == MASKED_TEXT:
        message = "The URL of a relay must contain the password itself, not the masked one."
        raise InvalidInput(message, constraint=ValidationConstraint.SECRET, path=path)
    outbound_http.require_public_host_name(host, allow_private=allows_private, error_path=path)
    host_and_port = f"[{host}]" if ":" in host else host
    host_and_port = host_and_port if port is None else f"{host_and_port}:{port}"
    if not user:
        return _ValidatedTarget(f"{parts.scheme}://{host_and_port}")
    prefix = f"{parts.scheme}://{quote(user, safe='')}"
    return _ValidatedTarget(
        f"{prefix}{HIDDEN_PASSWORD_PART}{host_and_port}",
        f"{prefix}:{quote(password, safe='')}@{host_and_port}",
    )


async def load_alias_names_by_domain(
    ctx: Context, domain_ids: Collection[int | None]
) -> dict[int, set[str]]:
    """Load the names of the alias domains of these domains, by domain id."""
    names_by_domain: defaultdict[int, set[str]] = defaultdict(set)
    known_ids = {key for key in domain_ids if key}
    statement = select(col(DomainAlias.domain_id), col(DomainAlias.alias))
    for row in (
        await ctx.read(statement.where(col(DomainAlias.domain_id).in_(known_ids)))
        if known_ids
        else ()
    ):
        names_by_domain[row.domain_id].add(row.alias)
    return names_by_domain


def refuse_self_forward(
    address: Any, alias_names: Mapping[int, set[str]], path: Sequence[str]
) -> None:
    """Raise InvalidInput if an address forwards to itself under any name of its domain."""
    local, domain_name = normalized_address(address.display_address)
    domain_names = {domain_name, *alias_names.get(address.domain_id, ())}
    for index, target in enumerate(address.forward_to):
        target_address = normalized_address(target)
        if (
            "://" not in target
            and target_address.local_part == local
            and target_address.domain in domain_names
        ):
            message = "An address can't forward to itself."
            raise InvalidInput(
                message, constraint=ValidationConstraint.SELF, path=path, index=index
            )
