"""Delivery to servers that reply wrongly, slowly, endlessly or never, at each SMTP step."""

import asyncio
from collections.abc import Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from itertools import product
from typing import Any

from mail.mime.header_encoding import NamedAddress
from mail.routing.mx_hosts import OutboundSettings
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case
from tests.support.loop_clock import LoopClock
from tests.support.mail_servers.misbehaving_smtp_server import MisbehavingSmtpServer
from tests.support.mail_servers.queue_worker import (
    WORKER_LIMITS,
    State,
    load_queue_entries,
    poll_until,
    queue_message,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.route_rows import add_transport
from tests.support.time_limits import HANG_SECONDS

STEPS = ("GREETING", "EHLO", "MAIL", "RCPT", "DATA", "DOT")
BEHAVIOURS = ("silence", "hang up", "endless", "long", "drip", "garbage", "999 x")
IGNORABLE_BEHAVIOURS = {("EHLO", "garbage"), ("EHLO", "999 x"), ("GREETING", "999 x")}
CAROL = NamedAddress("carol@example.net")


def is_misbehaviour_committed(server: MisbehavingSmtpServer) -> bool:
    return server.fault_count < MisbehavingSmtpServer.fault_count


def is_refusal(server: MisbehavingSmtpServer) -> bool:
    """True if the server replies with a code; a timeout would end the message otherwise."""
    return server.fault == "999 x"


async def load_tried_rows(environment: Environment, submission_ids: Sequence[int]) -> list[Any]:
    """Read the queue entry of each submission; None for those that are not tried yet."""
    entries = [
        (await load_queue_entries(environment, submission_id))["carol"]
        for submission_id in submission_ids
    ]
    return [entry if entry.lease is None and entry.last_code else None for entry in entries]


async def test_message_is_deferred_if_server_misbehaves(
    ada: GraphQLClient, environment: Environment
) -> None:
    loop_clock = LoopClock()
    servers = [
        MisbehavingSmtpServer(step, behaviour, offers_pipelining=pipelining)
        for pipelining, step, behaviour in product([False, True], STEPS, BEHAVIOURS)
    ]
    limits = replace(WORKER_LIMITS, max_destinations=len(servers))
    async with AsyncExitStack() as running_servers:
        submission_ids = []
        for number, server in enumerate(servers):
            await running_servers.enter_async_context(server.run_server())
            domain = f"s{number}.example.net"
            await add_transport(environment, domain, f"[127.0.0.1]:{server.port}")
            submission_ids.append(await queue_message(ada, NamedAddress(f"carol@{domain}")))
        async with run_queue_worker(environment, OutboundSettings(), limits):

            async def is_only_timeout_left() -> bool:
                rows = await load_tried_rows(environment, submission_ids)
                return all(
                    row is not None
                    or (is_misbehaviour_committed(server) and not is_refusal(server))
                    for server, row in zip(servers, rows, strict=True)
                )

            await poll_until(is_only_timeout_left)
            while None in (rows := await load_tried_rows(environment, submission_ids)):
                loop_clock.advance(HANG_SECONDS)
                await asyncio.sleep(0.2)
    for case in each_case(zip(servers, rows, strict=True)):
        with case as (server, row):
            is_ignorable = (server.step, server.fault) in IGNORABLE_BEHAVIOURS
            if row.state is State.RELAYED:  # the client ignores this reply
                assert is_ignorable
                continue
            assert (row.state, row.lease) == (State.DEFERRED, None)
            assert 400 <= row.last_code < 500
            assert len(row.last_response) <= 600
            assert row.last_response.isprintable()
            # Only after the final dot the server can have accepted the message without a reply.
            is_in_doubt = server.step == "DOT" and not is_refusal(server)
            assert (row.final_dot_at is not None) is is_in_doubt


async def test_closed_pooled_connection_costs_no_attempt(
    ada: GraphQLClient, environment: Environment
) -> None:
    server = MisbehavingSmtpServer()
    async with server.run_server() as route, run_queue_worker(environment, route):
        await wait_until_tried(environment, await queue_message(ada, CAROL))
        server.step, server.fault, server.fault_count = "MAIL", "hang up", 1
        row = (await wait_until_tried(environment, await queue_message(ada, CAROL)))["carol"]
    assert (row.state, row.attempts) == (State.RELAYED, 1)
    assert (server.connection_count, server.accepted_message_count) == (2, 2)


async def test_connection_is_reused_up_to_message_limit(
    ada: GraphQLClient, environment: Environment
) -> None:
    options = replace(environment.options, outbound_messages_per_connection=3)
    server = MisbehavingSmtpServer()
    async with (
        server.run_server() as route,
        run_queue_worker(replace(environment, options=options), route),
    ):
        for _ in range(7):
            await wait_until_tried(environment, await queue_message(ada, CAROL))
    assert (server.accepted_message_count, server.connection_count) == (7, 3)
    assert server.received_lines.count("QUIT") == 3


async def test_refused_transaction_is_reset_before_next_message(
    ada: GraphQLClient, environment: Environment
) -> None:
    server = MisbehavingSmtpServer("RCPT", "550 5.1.1 No", 1)
    async with server.run_server() as route, run_queue_worker(environment, route):
        await wait_until_tried(environment, await queue_message(ada, CAROL))
        await wait_until_tried(environment, await queue_message(ada, CAROL))
    assert server.connection_count == 1
    assert [line[:4] for line in server.received_lines] == [
        "EHLO", "MAIL", "RCPT", "RSET", "MAIL", "RCPT", "DATA", "QUIT",
    ]  # fmt: skip


async def test_pipelined_refusal_does_not_affect_next_message(
    ada: GraphQLClient, environment: Environment
) -> None:
    server = MisbehavingSmtpServer(offers_pipelining=True)
    refusals = [("MAIL", "450 4.0.0 No"), ("RCPT", "550 5.1.1 No"), ("DATA", "451 4.0.0 No")]
    async with server.run_server() as route, run_queue_worker(environment, route):
        await wait_until_tried(environment, await queue_message(ada))
        for step, reply in refusals:
            server.step, server.fault, server.fault_count = step, reply, 2 if step == "RCPT" else 1
            rows = await wait_until_tried(environment, await queue_message(ada))
            assert {f"{row.last_code} {row.last_response}" for row in rows.values()} == {reply}
            server.step = ""
            rows = await wait_until_tried(environment, await queue_message(ada))
            assert {row.state for row in rows.values()} == {State.RELAYED}
        server.step, server.fault, server.fault_count = "RCPT", "450 4.2.1 Later", 1
        rows = await wait_until_tried(environment, await queue_message(ada))
        assert (rows["carol"].state, rows["dave"].state) == (State.DEFERRED, State.RELAYED)
    assert (server.connection_count, server.accepted_message_count) == (1, 7)
