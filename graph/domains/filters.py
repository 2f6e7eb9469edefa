"""Input types of the filters of domains and alias domains."""

import strawberry
from strawberry import UNSET

from graph.types.errors import attribute_field
from graph.types.fields import Info
from graph.types.input_conditions import ConditionsInput
from graph.types.references import (
    UserRef,
    load_visible_user,
    optional_tuple,
    value_or_none,
)
from resolvers.domains.aliases import AliasDomainConditions
from resolvers.domains.loaders import DomainConditions


@strawberry.input(description="Conditions on alias domains.")
class AliasDomainFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Returns only alias domains with this text in their own name or in that of their domain "
        "(case and accents are ignored). At most 1,000 characters.",
        default=UNSET,
    )

    def to_conditions(self) -> AliasDomainConditions:
        """Convert the filter to conditions of the resolvers."""
        return AliasDomainConditions(query=self.query or None)


@strawberry.input(description="Conditions on domains. All must hold.")
class DomainFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Returns only domains with this text in the name, in Unicode form, or in the description "
        "(case and accents are ignored). At most 1,000 characters.",
        default=UNSET,
    )
    active: bool | None = attribute_field(
        "True returns only active domains, false only the others.", default=UNSET
    )
    backup_mx: bool | None = attribute_field(
        "True returns only domains for which the server is a backup MX, false only the others.",
        default=UNSET,
    )
    administered_by: UserRef | None = attribute_field(
        "Returns only domains that this user administers as DOMAIN_ADMIN: none if the caller "
        "can't see the user.",
        default=UNSET,
    )
    not_administered_by: UserRef | None = attribute_field(
        "Returns only domains that this user does not administer as DOMAIN_ADMIN: all if the "
        "caller can't see the user.",
        default=UNSET,
    )
    tags: list[str] | None = attribute_field(
        "Returns only domains with at least one of these tags (case is ignored). An empty list "
        "selects no domain.",
        default=UNSET,
    )

    async def resolve_conditions_or_match_nothing(self, info: Info) -> DomainConditions:
        """Convert the filter to conditions of the resolvers.

        An unknown user administers no domain.
        """

        async def resolve_user_id(ref: UserRef | None) -> int | None:
            if not ref:
                return None
            row = await load_visible_user(info, ref)
            return row.id if row else 0

        return DomainConditions(
            query=self.query or None,
            active=value_or_none(self.active),
            backup_mx=value_or_none(self.backup_mx),
            administered_by=await resolve_user_id(self.administered_by),
            not_administered_by=await resolve_user_id(self.not_administered_by),
            tags=optional_tuple(self.tags),
        )
