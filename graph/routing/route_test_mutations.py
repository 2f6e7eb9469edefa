"""Mutation that tests a route."""

import strawberry
from strawberry import UNSET

from graph.routing.references import RelayHostRef, TransportRef, load_transport_id
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import AtomicExclusion, mutation
from graph.types.object_references import id_from_ref
from graph.types.references import value_or_none
from graph.types.scalars import EmailAddress
from models.users.roles import Role, Scope
from resolvers.routing import route_tests
from resolvers.routing.route_tests import RouteTestRequest


@strawberry.input(description="Input of routeTest: a recipient, a way, or a recipient by this way.")
class RouteTestInput(Options):
    relay_host: RelayHostRef | None = attribute_field(
        "Sends by this relay host, even if it is not active.", default=UNSET
    )
    transport: TransportRef | None = attribute_field(
        "Sends by this transport, even if it is not active.", default=UNSET
    )
    sender: EmailAddress | None = attribute_field(
        "Of the envelope; absent = nobody.", default=UNSET
    )
    recipient: EmailAddress | None = attribute_field(
        "Of the envelope; absent = none is named.", default=UNSET
    )


@strawberry.type(description="Answer of routeTest.")
class RouteTestPayload(MutationPayload):
    ok: bool = attribute_field("A message would be taken now.", default=False)
    log: list[str] = attribute_field(
        "Which way was found and why, and what was said; no password.", default_factory=list
    )


@strawberry.type
class RouteTestMutation:
    @mutation(
        "Finds the way of a message, connects, and names sender and recipient; nothing is sent. "
        "At most a minute.",
        atomic_exclusion=AtomicExclusion("a try of a way out"),
        role=Role.ADMIN,
        scope=Scope.FULL,
    )
    async def route_test(self, info: Info, input: RouteTestInput) -> RouteTestPayload:
        is_dry_run = bool(input.options and input.options.validate_only)
        request = RouteTestRequest(
            id_from_ref(input.relay_host, "relayHost") if input.relay_host else None,
            await load_transport_id(info, input.transport, "transport")
            if input.transport
            else None,
            value_or_none(input.sender),
            value_or_none(input.recipient),
        )
        result = await route_tests.run_route_test(info.context, request, is_dry_run=is_dry_run)
        return RouteTestPayload(ok=result.is_accepted, log=list(result.log_lines))
