"""Test a route for an ADMIN: the SMTP dialog up to the recipient, without a message."""

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta

from mail.addresses.address_syntax import normalize_and_validate_address
from mail.outbound import route_test
from mail.outbound.route_test import RouteTestResult
from mail.routing.mx_hosts import outbound_settings_from_options
from models.errors import Forbidden, InvalidInput, RateLimited
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context

MAX_CONCURRENT_TESTS = 4  # per process; each takes at most a minute
_RUNNING_TESTS: set[object] = set()


@dataclass(frozen=True, slots=True)
class RouteTestRequest:
    """The route to test, a recipient, or a recipient by this route."""

    relay_host_id: int | None = None
    transport_id: int | None = None
    sender: str | None = None
    recipient: str | None = None


async def run_route_test(
    ctx: Context, test_input: RouteTestRequest, *, is_dry_run: bool = False
) -> RouteTestResult:
    """Test a route and return the result. A dry run validates the input only.

    Raises InvalidInput, NotFound, RateLimited if too many tests are running, and Forbidden
    inside a transaction, which would stay open as long.
    """
    if test_input.relay_host_id is not None and test_input.transport_id is not None:
        raise InvalidInput(
            "A relay host and a transport can't be combined.",
            constraint=ValidationConstraint.EXCLUSIVE,
            path=["transport"],
        )
    if (
        test_input.relay_host_id is None
        and test_input.transport_id is None
        and not test_input.recipient
    ):
        message = "A recipient, a relay host or a transport is required."
        raise InvalidInput(message, constraint=ValidationConstraint.REQUIRED, path=["recipient"])
    sender = (
        normalize_and_validate_address(test_input.sender, path="sender")
        if test_input.sender
        else ""
    )
    recipient = (
        normalize_and_validate_address(test_input.recipient, path="recipient")
        if test_input.recipient
        else None
    )
    if ctx.is_writing:
        raise Forbidden("An @atomic request can't run a route test.")
    if is_dry_run:
        return RouteTestResult(is_accepted=True)
    with _test_slot_or_raise_rate_limited(MAX_CONCURRENT_TESTS):
        return await route_test.run_route_test(
            ctx.environment,
            outbound_settings_from_options(ctx.environment),
            sender,
            recipient,
            test_input.relay_host_id,
            test_input.transport_id,
        )


@contextmanager
def _test_slot_or_raise_rate_limited(limit: int) -> Generator[None]:
    """Hold one of the test slots of this process. Raises RateLimited if none is free."""
    if len(_RUNNING_TESTS) >= limit:
        message = f"{limit} route tests are running: retry later."
        raise RateLimited(message, retry_after=timedelta(seconds=30))
    slot = object()
    _RUNNING_TESTS.add(slot)
    try:
        yield
    finally:
        _RUNNING_TESTS.discard(slot)
