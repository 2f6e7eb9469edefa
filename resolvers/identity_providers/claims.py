"""The claims of a provider about a user."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from mail.addresses.address_syntax import MAX_ADDRESS
from resolvers.identity_providers.errors import ProviderFailure
from resolvers.identity_providers.provider_records import ProviderConfig

EMAIL_CLAIM, VERIFIED_CLAIM = "email", "email_verified"
# Anyone can create a Google account with any address. `hd` names the organization of an account.
GOOGLE_ISSUER, HOSTED_DOMAIN_CLAIM = "https://accounts.google.com", "hd"
MAX_GROUPS = 10_000
MAX_DISPLAY_NAME_LENGTH = 255  # characters


@dataclass(frozen=True, slots=True)
class ProviderIdentity:
    """An account of a provider."""

    subject: str
    address: str | None  # None: the claim is missing, or its address is not verified
    name: str | None
    is_admin: bool  # it is in a group that grants DOMAIN_ADMIN
    is_ended: bool  # the claim of the provider ends the account
    session_id: str | None  # `sid`


def wanted_claim_names(provider: ProviderConfig) -> tuple[str, ...]:
    """Return the names of the claims that a sign-in needs."""
    row = provider.row
    names = [row.username_claim]
    if row.username_claim == EMAIL_CLAIM:
        names.append(VERIFIED_CLAIM)
    if provider.issuer == GOOGLE_ISSUER:
        names.append(HOSTED_DOMAIN_CLAIM)
    if row.admin_groups:
        names.append(row.groups_claim)
    if row.active_claim:
        names.append(row.active_claim)
    return tuple(names)


def identity_from_claims(provider: ProviderConfig, claims: Mapping[str, Any]) -> ProviderIdentity:
    """Return the account that checked claims are about.

    Raises ProviderFailure if the claim that ends accounts is configured and missing.
    """
    row, session_id = provider.row, claims.get("sid")
    groups = _group_names(claims.get(row.groups_claim)) if row.admin_groups else frozenset()
    return ProviderIdentity(
        subject=claims["sub"],
        address=_address_from_claims(provider, claims),
        name=_text_within_length_or_none(claims.get("name"), MAX_DISPLAY_NAME_LENGTH),
        is_admin=not groups.isdisjoint(row.admin_groups),
        is_ended=is_ended_by_claims(provider, claims),
        session_id=session_id if isinstance(session_id, str) and session_id else None,
    )


def is_ended_by_claims(provider: ProviderConfig, claims: Mapping[str, Any]) -> bool:
    """True if the claim that ends accounts is false. Raises ProviderFailure if it is missing."""
    name = provider.row.active_claim
    if not name:
        return False
    if name not in claims:
        raise ProviderFailure(f"The provider sends no claim {name}.")
    value = claims[name]
    return not value or (isinstance(value, str) and value.lower() in ("false", "no", "0"))


def _address_from_claims(provider: ProviderConfig, claims: Mapping[str, Any]) -> str | None:
    """Return the address that names the account; a name without "@" is one of the domain."""
    claim = provider.row.username_claim
    value = _text_within_length_or_none(claims.get(claim), MAX_ADDRESS)
    if value is None or not _is_address_verified(provider, claims):
        return None
    return value if "@" in value else f"{value}@{provider.domain_name}"


def _is_address_verified(provider: ProviderConfig, claims: Mapping[str, Any]) -> bool:
    """True if the provider vouches for the name of the account."""
    is_email = provider.row.username_claim == EMAIL_CLAIM
    if is_email and str(claims.get(VERIFIED_CLAIM)).lower() != "true":
        return False
    hosted_domain = claims.get(HOSTED_DOMAIN_CLAIM)
    return provider.issuer != GOOGLE_ISSUER or hosted_domain == provider.domain_name


def _text_within_length_or_none(value: object, max_length: int) -> str | None:
    """Return a printable text of 1 to `max_length` characters; None for any other value."""
    if not isinstance(value, str) or not 0 < len(value) <= max_length or not value.isprintable():
        return None
    return value


def _group_names(value: object) -> frozenset[str]:
    """Return the groups: the texts of a list, or one text."""
    if isinstance(value, str):
        return frozenset({value})
    items = value[:MAX_GROUPS] if isinstance(value, list) else []
    return frozenset(item for item in items if isinstance(item, str))
