"""Delivery to servers that reply wrongly, slowly, endlessly or never, at each SMTP step."""

from dataclasses import replace

import pytest

from mail.mime.header_encoding import NamedAddress
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.mail_servers.misbehaving_smtp_server import QUICK, Bad
from tests.support.mail_servers.queue_worker import State, send, settled, working

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
    server = Bad(step, behaviour, together=pipelining)
    async with server.listening() as route, working(environment, route, QUICK):
        row = (await settled(environment, await send(ada, CAROL)))["carol"]
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
    server = Bad()
    async with server.listening() as route, working(environment, route, QUICK):
        await settled(environment, await send(ada, CAROL))
        server.step, server.what, server.times = "MAIL", "hang up", 1
        row = (await settled(environment, await send(ada, CAROL)))["carol"]
    assert (row.state, row.attempts) == (State.RELAYED, 1)
    assert (server.connections, server.taken) == (2, 2)


async def test_connection_is_reused_up_to_message_limit(
    ada: GraphQLClient, environment: Environment
) -> None:
    options = replace(environment.options, send_connection_messages=3)
    server = Bad()
    async with (
        server.listening() as route,
        working(replace(environment, options=options), route, QUICK),
    ):
        for _ in range(7):
            await settled(environment, await send(ada, CAROL))
    assert (server.taken, server.connections) == (7, 3)
    assert server.said.count("QUIT") == 3


async def test_refused_transaction_is_reset_before_next_message(
    ada: GraphQLClient, environment: Environment
) -> None:
    server = Bad("RCPT", "550 5.1.1 No", 1)
    async with server.listening() as route, working(environment, route, QUICK):
        await settled(environment, await send(ada, CAROL))
        await settled(environment, await send(ada, CAROL))
    assert server.connections == 1
    assert [line[:4] for line in server.said] == [
        "EHLO", "MAIL", "RCPT", "RSET", "MAIL", "RCPT", "DATA", "QUIT",
    ]  # fmt: skip


async def test_pipelined_refusal_does_not_affect_next_message(
    ada: GraphQLClient, environment: Environment
) -> None:
    server = Bad(together=True)
    refusals = [("MAIL", "450 4.0.0 No"), ("RCPT", "550 5.1.1 No"), ("DATA", "451 4.0.0 No")]
    async with server.listening() as route, working(environment, route, QUICK):
        await settled(environment, await send(ada))
        for step, reply in refusals:
            server.step, server.what, server.times = step, reply, 2 if step == "RCPT" else 1
            rows = await settled(environment, await send(ada))
            assert {f"{row.last_code} {row.last_response}" for row in rows.values()} == {reply}
            server.step = ""
            rows = await settled(environment, await send(ada))
            assert {row.state for row in rows.values()} == {State.RELAYED}
        server.step, server.what, server.times = "RCPT", "450 4.2.1 Later", 1
        rows = await settled(environment, await send(ada))
        assert (rows["carol"].state, rows["dave"].state) == (State.DEFERRED, State.RELAYED)
    assert (server.connections, server.taken) == (1, 7)
