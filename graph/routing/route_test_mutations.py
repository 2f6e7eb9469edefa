"""Mutation that tests a route."""

import strawberry
from strawberry import UNSET

from graph.types import global_ids
from graph.types.errors import MutationPayload, Options, leaf
from graph.types.fields import Info
from graph.types.mutations import Alone, mutation
from graph.types.references import plain
from graph.types.scalars import EmailAddress
from models.users.roles import Role, Scope
from resolvers.routing import route_tests
from resolvers.routing.route_tests import Tried


@strawberry.input(description="Input of routeTest: a recipient, a way, or a recipient by this way.")
class RouteTestInput(Options):
    relay_host: strawberry.ID | None = leaf(
        "By this relay host, also if not active.", default=UNSET
    )
    transport: strawberry.ID | None = leaf("By this transport, also if not active.", default=UNSET)
    sender: EmailAddress | None = leaf("Of the envelope; absent = nobody.", default=UNSET)
    recipient: EmailAddress | None = leaf("Of the envelope; absent = none is named.", default=UNSET)


@strawberry.type(description="Answer of routeTest.")
class RouteTestPayload(MutationPayload):
    ok: bool = leaf("A message would be taken now.", default=False)
    log: list[str] = leaf(
        "Which way was found and why, and what was said; no password.", default_factory=list
    )


def _key(kind: str, id: str | None, path: str) -> int | None:
    """Return the row id of an optional global ID. Raises Invalid if it is not one of the type."""
    return global_ids.decode(kind, id, path=path) if id else None


@strawberry.type
class RouteTestMutation:
    @mutation(
        "Finds the way of a message, connects, and names sender and recipient; nothing is sent. "
        "At most a minute.",
        alone=Alone("a try of a way out"),
        role=Role.ADMIN,
        scope=Scope.MASTER,
    )
    async def route_test(self, info: Info, input: RouteTestInput) -> RouteTestPayload:
        is_dry_run = bool(input.options and input.options.validate_only)
        request = Tried(
            _key("RelayHost", plain(input.relay_host), "relayHost"),
            _key("Transport", plain(input.transport), "transport"),
            plain(input.sender),
            plain(input.recipient),
        )
        result = await route_tests.tried(info.context, request, trial=is_dry_run)
        return RouteTestPayload(ok=result.ok, log=list(result.log))
