"""Input type of the filter of users."""

from datetime import datetime

import strawberry
from strawberry import UNSET

from graph.types.errors import attribute_field
from graph.types.input_conditions import ConditionsInput
from graph.types.references import (
    DomainRef,
    domain_selector_from_ref,
    optional_tuple,
    value_or_none,
)
from models.users.roles import Role
from resolvers.users.listing import UserConditions


@strawberry.input(
    description=(
        "Conditions on accounts. All must hold. An empty list matches no account. A filter without "
        "a condition is an error."
    )
)
class UserFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Returns only accounts with this text in the username, display name or main address (case "
        "is ignored). A text of 1 or 2 characters must be the beginning of the username or main "
        "address. At most 1,000 characters.",
        default=UNSET,
    )
    forward: str | None = attribute_field(
        "Returns only accounts with this text in a forwarding target (case is ignored). At most "
        "1,000 characters.",
        default=UNSET,
    )
    tags: list[str] | None = attribute_field(
        "Returns only accounts with at least one of these tags (case is ignored). At most 100.",
        default=UNSET,
    )
    required_tags: list[str] | None = attribute_field(
        "Returns only accounts with all of these tags (case is ignored). At most 100.",
        default=UNSET,
    )
    patterns: list[str] | None = attribute_field(
        "Returns only accounts whose username matches one of these patterns: `*` matches any "
        "characters, `?` one character. Case and dots are ignored. At most 100, each of at most "
        "128 characters.",
        default=UNSET,
    )
    roles: list[Role] | None = attribute_field(
        "Returns only accounts with one of these roles.", default=UNSET
    )
    domain: DomainRef | None = attribute_field(
        "Returns only accounts with the main address in this domain.", default=UNSET
    )
    active: bool | None = attribute_field(
        "True returns only active accounts, false only disabled ones.", default=UNSET
    )
    suspended: bool | None = attribute_field(
        "True returns only suspended accounts, false only the others.", default=UNSET
    )
    created_since: datetime | None = attribute_field(
        "Returns only accounts created at this time or later.", default=UNSET
    )
    created_before: datetime | None = attribute_field(
        "Returns only accounts created before this time.", default=UNSET
    )
    not_signed_in_since: datetime | None = attribute_field(
        "Returns only accounts whose last sign-in (`lastLoginAt`) was before this time, and "
        "accounts that never signed in.",
        default=UNSET,
    )
    quota_reached: bool | None = attribute_field(
        "True returns only accounts whose used storage is at least their quota, false only the "
        "others. Accounts with unlimited storage are among the others.",
        default=UNSET,
    )
    has_second_factor: bool | None = attribute_field(
        "True returns only accounts with a second factor (2FA, MFA), false only accounts without "
        "one.",
        default=UNSET,
    )

    def to_conditions(self) -> UserConditions:
        """Convert the filter to conditions of the resolvers."""
        return UserConditions(
            query=self.query or None,
            target_part=self.forward or None,
            tags=optional_tuple(self.tags),
            required_tags=optional_tuple(self.required_tags),
            patterns=optional_tuple(self.patterns),
            roles=optional_tuple(self.roles),
            domain=domain_selector_from_ref(self.domain, path="filter") if self.domain else None,
            active=value_or_none(self.active),
            suspended=value_or_none(self.suspended),
            created_since=self.created_since or None,
            created_before=self.created_before or None,
            not_signed_in_since=self.not_signed_in_since or None,
            is_quota_full=value_or_none(self.quota_reached),
            has_second_factor=value_or_none(self.has_second_factor),
        )
