"""Query of the delivery steps that mail for an address would take."""

from collections.abc import Mapping
from typing import ClassVar

import strawberry
from strawberry import UNSET

from graph.addresses.recipient_rewrites import RecipientRewrite
from graph.addresses.types import Address
from graph.autoreply.types import Autoreply
from graph.domains.types import DomainAlias
from graph.filters.types import Filter
from graph.spam.sender_rules import SenderRule
from graph.types.errors import leaf
from graph.types.fields import Info, field, query
from graph.types.object_views import Made, View
from graph.types.row_mapping import Shape
from graph.users.types import User
from models.users.roles import Role, Scope
from resolvers.addresses import trace

RECORDS: Mapping[str, type[Shape]] = {
    "Address": Address,
    "Autoreply": Autoreply,
    "DomainAlias": DomainAlias,
    "Filter": Filter,
    "RecipientRewrite": RecipientRewrite,
    "SenderRule": SenderRule,
    "User": User,
}


@strawberry.type(description="One decision on the way of a message.")
class TraceStep(View):
    stage: str = leaf(
        "RECIPIENT_REWRITE, DOMAIN_ALIAS, BACKUP_MX: it goes on to other servers, ADDRESS, "
        "ACCOUNT, SENDER_RULE, FILTER: one that may send it on, or drop it; or AUTOREPLY: it may "
        "be answered. More may come."
    )
    input: str = leaf("Before.")
    output: list[str] = leaf("After; empty = refused or dropped here.")
    matched: str | None = leaf("Address or pattern that was the best match.")

    made: ClassVar[Mapping[str, Made]] = {"output": Made(("output",), list)}

    @field("Record that decided.")
    async def record(self, info: Info) -> Shape | None:
        if self.row.record is None:
            return None
        kind, key = self.row.record
        shape = RECORDS[kind]
        return shape.maybe(await info.context.load(shape.batch, key))


@strawberry.type
class AddressTraceQuery:
    @query(
        "Where mail to it would go, step by step. What is in no domain of the viewer's looks like "
        "what is not there.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
    )
    async def address_trace(
        self, info: Info, address: str, sender: str | None = UNSET
    ) -> list[TraceStep]:
        steps = await trace.trace(info.context, address, sender or None)
        return [TraceStep.of(step) for step in steps]
