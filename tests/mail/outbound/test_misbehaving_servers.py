"""Servers that answer wrongly, slowly, endlessly or not at all, at each step."""

from dataclasses import replace

import pytest

from mail.mime.header_encoding import NamedAddress
from models.runtime.environment import Environment
from tests.conftest import Client
from tests.support.mail_servers.misbehaving_smtp_server import QUICK, Bad
from tests.support.mail_servers.queue_worker import State, send, settled, working

STEPS = ("GREETING", "EHLO", "MAIL", "RCPT", "DATA", "DOT")
CAROL = NamedAddress("carol@example.net")


@pytest.mark.parametrize(
    "what", ["silence", "hang up", "endless", "long", "drip", "garbage", "999 x"]
)
@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("together", [False, True], ids=["in turn", "together"])
async def test_whatever_it_does_the_mail_waits_and_nothing_hangs(
    ada: Client, world: Environment, *, together: bool, step: str, what: str
) -> None:
    bad = Bad(step, what, together=together)
    async with bad.listening() as route, working(world, route, QUICK):
        row = (await settled(world, await send(ada, CAROL)))["carol"]
    gone = (step, what) in {("EHLO", "garbage"), ("EHLO", "999 x"), ("GREETING", "999 x")}
    if row.state is State.RELAYED:  # it was of no consequence
        assert gone
        return
    assert (row.state, row.lease) == (State.DEFERRED, None)
    assert 400 <= row.last_code < 500
    assert len(row.last_response) <= 600
    assert row.last_response.isprintable()
    # Only behind the dot the other side may have it in spite of all.
    assert (row.final_dot_at is not None) is (step == "DOT" and what != "999 x")


async def test_a_connection_that_died_meanwhile_costs_no_attempt(
    ada: Client, world: Environment
) -> None:
    there = Bad()
    async with there.listening() as route, working(world, route, QUICK):
        await settled(world, await send(ada, CAROL))
        there.step, there.what, there.times = "MAIL", "hang up", 1
        row = (await settled(world, await send(ada, CAROL)))["carol"]
    assert (row.state, row.attempts) == (State.RELAYED, 1)
    assert (there.connections, there.taken) == (2, 2)


async def test_connections_are_used_again_up_to_their_number(
    ada: Client, world: Environment
) -> None:
    options = replace(world.options, send_connection_messages=3)
    there = Bad()
    async with there.listening() as route, working(replace(world, options=options), route, QUICK):
        for _ in range(7):
            await settled(world, await send(ada, CAROL))
    assert (there.taken, there.connections) == (7, 3)
    assert there.said.count("QUIT") == 3


async def test_what_was_refused_is_taken_back_before_the_next(
    ada: Client, world: Environment
) -> None:
    there = Bad("RCPT", "550 5.1.1 No", 1)
    async with there.listening() as route, working(world, route, QUICK):
        await settled(world, await send(ada, CAROL))
        await settled(world, await send(ada, CAROL))
    assert there.connections == 1
    assert [line[:4] for line in there.said] == [
        "EHLO", "MAIL", "RCPT", "RSET", "MAIL", "RCPT", "DATA", "QUIT",
    ]  # fmt: skip


async def test_commands_go_together_where_that_is_offered(ada: Client, world: Environment) -> None:
    """Whoever is refused, and whatever: the next message begins anew."""
    there = Bad(together=True)
    refusals = [("MAIL", "450 4.0.0 No"), ("RCPT", "550 5.1.1 No"), ("DATA", "451 4.0.0 No")]
    async with there.listening() as route, working(world, route, QUICK):
        await settled(world, await send(ada))
        for step, what in refusals:
            there.step, there.what, there.times = step, what, 2 if step == "RCPT" else 1
            rows = await settled(world, await send(ada))
            assert {f"{row.last_code} {row.last_response}" for row in rows.values()} == {what}
            there.step = ""
            rows = await settled(world, await send(ada))
            assert {row.state for row in rows.values()} == {State.RELAYED}
        there.step, there.what, there.times = "RCPT", "450 4.2.1 Later", 1
        rows = await settled(world, await send(ada))
        assert (rows["carol"].state, rows["dave"].state) == (State.DEFERRED, State.RELAYED)
    assert (there.connections, there.taken) == (1, 7)
