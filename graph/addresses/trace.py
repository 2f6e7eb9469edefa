"""Query of the delivery steps that mail for an address would take."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import strawberry
from strawberry import UNSET

from graph.addresses.recipient_rewrites import RecipientRewrite
from graph.addresses.types import Address
from graph.autoreply.types import Autoreply
from graph.domains.types import Domain, DomainAlias
from graph.filters.types import Filter
from graph.spam.sender_rules import SenderRule
from graph.types.errors import attribute_field
from graph.types.fields import Info, field, query
from graph.types.object_views import DerivedField, View
from graph.types.row_mapping import NodeView
from graph.users.types import User
from models.addresses.trace_stages import TraceStage
from models.users.roles import Role, Scope
from resolvers.addresses import trace

RECORD_TYPES: Mapping[str, type[NodeView]] = {
    "Address": Address,
    "Autoreply": Autoreply,
    "Domain": Domain,
    "DomainAlias": DomainAlias,
    "Filter": Filter,
    "RecipientRewrite": RecipientRewrite,
    "SenderRule": SenderRule,
    "User": User,
}


@strawberry.type(description="One decision on the way of a message.")
class TraceStep(View):
    stage: TraceStage = attribute_field("The kind of record that decides.")
    input: str = attribute_field("Before.")
    output: list[str] = attribute_field("After; empty = refused or dropped here.")
    matched: str | None = attribute_field("Address or pattern that was the best match.")

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "output": DerivedField(("output",), list)
    }

    @field("Record that decided.")
    async def record(self, info: Info) -> NodeView | None:
        if self.row.record is None:
            return None
        kind, key = self.row.record
        shape = RECORD_TYPES[kind]
        return shape.from_row_or_none(await info.context.load(shape.load_batch, key))


@strawberry.type
class AddressTraceQuery:
    @query(
        "Where mail to it would go, step by step. What is in no domain of the viewer's looks like "
        "what is not there.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
    )
    async def address_trace(
        self,
        info: Info,
        address: Annotated[
            str,
            strawberry.argument(
                description="Recipient address, in any spelling, with or without a label "
                "(`+label`)."
            ),
        ],
        sender: str | None = UNSET,
    ) -> list[TraceStep]:
        steps = await trace.trace_address(info.context, address, sender or None)
        return [TraceStep.from_row(step) for step in steps]
