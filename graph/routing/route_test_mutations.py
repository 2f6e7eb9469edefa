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


@strawberry.input(
    description="Input of routeTest. A recipient, a relay host or a transport is required, "
    "and not both of the last two."
)
class RouteTestInput(Options):
    relay_host: RelayHostRef | None = attribute_field(
        (
            "Relay host to connect to, even if it is not active. Not allowed with `transport`. "
            "Default: `transport`, else the route of the recipient."
        ),
        default=UNSET,
    )
    transport: TransportRef | None = attribute_field(
        "Transport to connect by, even if it is not active, or does not match the recipient. "
        "Default: `relayHost`, else the route of the recipient.",
        default=UNSET,
    )
    sender: EmailAddress | None = attribute_field(
        "Envelope sender for MAIL FROM. The relay host of its domain is used if `relayHost` and "
        "`transport` are absent and no transport matches the recipient. Default: the null sender "
        "<>.",
        default=UNSET,
    )
    recipient: EmailAddress | None = attribute_field(
        "Envelope recipient for RCPT TO. Required without `relayHost` and `transport`. "
        "Default: RCPT is not sent.",
        default=UNSET,
    )


@strawberry.type(description="Payload of routeTest.")
class RouteTestPayload(MutationPayload):
    ok: bool = attribute_field(
        "True if the server accepted the sender and, if given, the recipient, or if the recipient "
        "is in a local domain. Also true for a valid input with `validateOnly`. False: `log` has "
        "the reason.",
        default=False,
    )
    log: list[str] = attribute_field(
        "Steps of the route selection and the SMTP dialogue, without passwords. Empty with "
        "`validateOnly`.",
        default_factory=list,
    )


@strawberry.type
class RouteTestMutation:
    @mutation(
        "Selects the route of a message, connects to the first server that answers, signs in if "
        "configured, and sends MAIL and RCPT, but no message. It tries at most 6 servers, and "
        "takes at most one minute. A missing route, a failed connection and a refusal by the "
        "server are no errors: `ok` is false. For a recipient in a local domain nothing is "
        "connected and `ok` is true, unless `relayHost` or `transport` is given. With "
        "`validateOnly`, nothing is connected. A process runs at most 4 tests at once, else "
        "RATE_LIMITED.",
        atomic_exclusion=AtomicExclusion("A route test"),
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
