"""Query of the delivery steps that mail for an address would take."""

from collections.abc import Mapping
from typing import Annotated, ClassVar

import strawberry
from strawberry import UNSET

from graph.addresses.recipient_rewrites import RecipientRewrite
from graph.addresses.types import Address
from graph.autoreply.types import Autoreply
from graph.domains.types import AliasDomain, Domain
from graph.filters.types import Filter
from graph.resources.types import Resource
from graph.spam.sender_rules import SenderRule
from graph.types.errors import attribute_field
from graph.types.fields import Info, field, query
from graph.types.object_access import DOMAINS
from graph.types.object_views import DerivedField, View
from graph.types.row_mapping import NodeView
from graph.users.types import User
from models.addresses.trace_stages import TraceStage
from models.users.roles import Role, Scope
from resolvers.addresses import trace

MAX_STEPS = 1000
RECORD_TYPES: Mapping[str, type[NodeView]] = {
    "Address": Address,
    "Autoreply": Autoreply,
    "Domain": Domain,
    "AliasDomain": AliasDomain,
    "Filter": Filter,
    "RecipientRewrite": RecipientRewrite,
    "Resource": Resource,
    "SenderRule": SenderRule,
    "User": User,
}


@strawberry.type(description="Decision of the server about mail for an address.")
class TraceStep(View):
    stage: TraceStage = attribute_field("Step of the mail processing that the decision belongs to.")
    input: str = attribute_field(
        "Address before this decision; in the stage SENDER_RULE, the sender."
    )
    output: list[str] = attribute_field(
        "Addresses or targets after this decision; in the stage USER the username, in "
        "SENDER_RULE the mailbox `INBOX` or `Junk`. Empty: the mail is refused, dropped or "
        "deleted here. At most 100."
    )
    matched: str | None = attribute_field(
        "Address, or pattern of an address or sender rule, that matched best. Null: none matches, "
        "the caller can't see the rule, or the stage is neither ADDRESS nor SENDER_RULE."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "output": DerivedField(("output",), list)
    }

    @field(
        "Object that decides, such as an address or filter. Null: none does, or the caller can't "
        "see it, as a DOMAIN_ADMIN can't see recipient rewrites."
    )
    async def record(self, info: Info) -> NodeView | None:
        if self.row.record is None:
            return None
        kind, key = self.row.record
        shape = RECORD_TYPES[kind]
        return shape.from_row_or_none(await info.context.load(shape.load_batch, key))


@strawberry.type
class AddressTraceQuery:
    @query(
        "Returns the decisions that the server would make about mail for an address, step by "
        "step, without sending anything. Sieve scripts, forwarding targets of the user, BCC rules "
        "and limits are left out. Records that the caller can't see are treated as missing, or "
        "shown without `record`. If the caller can see no address that receives the mail, the "
        "last step is ADDRESS without output. If a rewrite or a backup MX sends the mail to "
        "another server, the trace has no step ADDRESS. At most the first 1,000 decisions are "
        "returned.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
        access=DOMAINS,
    )
    async def address_trace(
        self,
        info: Info,
        address: Annotated[
            str,
            strawberry.argument(
                description=(
                    "Recipient address, in any spelling, with or without a subaddress (`+label`). "
                    "For an invalid address the only step is ADDRESS without output."
                )
            ),
        ],
        sender: str | None = UNSET,
    ) -> list[TraceStep]:
        steps = await trace.trace_address(info.context, address, sender or None)
        return [TraceStep.from_row(step) for step in steps[:MAX_STEPS]]
