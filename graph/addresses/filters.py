"""Input type of the filter of addresses."""

import strawberry
from strawberry import UNSET

from graph.types.errors import attribute_field
from graph.types.fields import Info
from graph.types.input_conditions import ConditionsInput
from graph.types.references import (
    DomainRef,
    UserRef,
    domain_selector_from_ref,
    load_visible_user,
    optional_tuple,
    value_or_none,
)
from models.addresses.tables import AddressKind
from resolvers.addresses.loaders import AddressConditions


@strawberry.input(
    description="Conditions on addresses. All must hold. An empty list matches no address."
)
class AddressFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Returns only addresses that contain this text, at most 1,000 characters. Case and "
        "accents are ignored.",
        default=UNSET,
    )
    forward: str | None = attribute_field(
        "Returns only addresses with this text in a forwarding target, at most 1,000 characters. "
        "Case and accents are ignored.",
        default=UNSET,
    )
    tags: list[str] | None = attribute_field(
        "Returns only addresses with at least one of these tags (case is ignored). At most 100.",
        default=UNSET,
    )
    required_tags: list[str] | None = attribute_field(
        "Returns only addresses with all of these tags (case is ignored). At most 100.",
        default=UNSET,
    )
    kinds: list[AddressKind] | None = attribute_field(
        "Returns only addresses of one of these kinds.", default=UNSET
    )
    domain: DomainRef | None = attribute_field(
        "Returns only addresses in this domain. An address of all domains (`name@*`) is in none.",
        default=UNSET,
    )
    user: UserRef | None = attribute_field(
        "Returns only addresses whose mail this user gets. The list is empty if the caller can't "
        "see such a user. `User.addresses` and `User.temporaryAddresses` refuse this "
        "condition.",
        default=UNSET,
    )
    active: bool | None = attribute_field(
        "True returns only active addresses, false only the others. Expiry does not matter.",
        default=UNSET,
    )
    wildcard: bool | None = attribute_field(
        "True returns only addresses with `*`, false only the others.", default=UNSET
    )
    temporary: bool | None = attribute_field(
        "True returns only temporary addresses, those that expire or that "
        "`temporaryAddressCreate` made; false only the others.",
        default=UNSET,
    )

    async def resolve_conditions_or_match_nothing(self, info: Info) -> AddressConditions:
        """Convert the filter to conditions of the resolvers.

        An unknown user selects no address.
        """
        user = await load_visible_user(info, self.user) if self.user else None
        return AddressConditions(
            query=self.query or None,
            forward=self.forward or None,
            tags=optional_tuple(self.tags),
            required_tags=optional_tuple(self.required_tags),
            kinds=optional_tuple(self.kinds),
            domain=domain_selector_from_ref(self.domain, path="filter") if self.domain else None,
            user_id=(user.id if user else 0) if self.user else None,
            active=value_or_none(self.active),
            wildcard=value_or_none(self.wildcard),
            temporary=value_or_none(self.temporary),
        )
