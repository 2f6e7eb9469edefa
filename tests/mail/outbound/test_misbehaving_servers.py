"""Delivery to servers that reply wrongly, slowly, endlessly or never, at each SMTP step."""

from dataclasses import replace

import pytest

from mail.mime.header_encoding import NamedAddress
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.mail_servers.misbehaving_smtp_server import SHORT_TIMEOUTS, MisbehavingSmtpServer
from tests.support.mail_servers.queue_worker import (
    State,
    queue_message,
    run_queue_worker,
    wait_until_tried,
)

STEPS = ("GREETING", "EHLO", "MAIL", "RCPT", "DATA", "DOT")
CAROL = NamedAddress("carol@example.net")


@pytest.mark.parametrize(
    "behaviour", ["silence", "hang up", "endless", "long", "drip", "garbage", "999 x"]
)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("pipelining", [False, True], ids=["in turn", "together"])
async def test_message_is_deferred_if_server_misbehaves(
    ada: GraphQLClient, environment: Environment, *, pipelining: bool, step: str, behaviour: str
) -> None:
    server = MisbehavingSmtpServer(step, behaviour, offers_pipelining=pipelining)
    async with server.run_server() as route, run_queue_worker(environment, route, SHORT_TIMEOUTS):
        row = (await wait_until_tried(environment, await queue_message(ada, CAROL)))["carol"]
    is_ignorable = (step, behaviour) in {
        ("EHLO", "garbage"),
        ("EHLO", "999 x"),
        ("GREETING", "999 x"),
    }
    if row.state is State.RELAYED:  # the client ignores this reply
        assert is_ignorable
        return
    assert (row.state, row.lease) == (State.DEFERRED, None)
    assert 400 <= row.last_code < 500
    assert len(row.last_response) <= 600
    assert row.last_response.isprintable()
    # Only after the final dot the server can have accepted the message without a reply.
    assert (row.final_dot_at is not None) is (step == "DOT" and behaviour != "999 x")


async def test_closed_pooled_connection_costs_no_attempt(
    ada: GraphQLClient, environment: Environment
) -> None:
    server = MisbehavingSmtpServer()
    async with server.run_server() as route, run_queue_worker(environment, route, SHORT_TIMEOUTS):
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
        run_queue_worker(replace(environment, options=options), route, SHORT_TIMEOUTS),
    ):
        for _ in range(7):
            await wait_until_tried(environment, await queue_message(ada, CAROL))
    assert (server.accepted_message_count, server.connection_count) == (7, 3)
    assert server.received_lines.count("QUIT") == 3


async def test_refused_transaction_is_reset_before_next_message(
    ada: GraphQLClient, environment: Environment
) -> None:
    server = MisbehavingSmtpServer("RCPT", "550 5.1.1 No", 1)
    async with server.run_server() as route, run_queue_worker(environment, route, SHORT_TIMEOUTS):
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
    async with server.run_server() as route, run_queue_worker(environment, route, SHORT_TIMEOUTS):
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
