"""Wrong passwords close an account for the network they come from, not for its user."""

import base64
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from models.auth.security_log import AuthEvent
from models.errors import AuthenticationFailed, RateLimited
from models.messages.tables import Message
from models.runtime.environment import World
from models.users.roles import Scope
from resolvers.admin import tasks
from resolvers.auth import authentication
from resolvers.auth.sign_in import Attempt
from tests.auth.conftest import Town, fail
from tests.conftest import Clock, make_user

STRANGER, HOME, HOME6 = "203.0.113.5", "198.51.100.7", "2001:db8:1:2::7"
OLD = "the password until now"


def networks(many: int) -> list[str]:
    """Addresses in as many networks."""
    return [f"203.{n // 250}.{n % 250}.1" for n in range(many)]


async def test_a_stranger_closes_an_account_for_the_own_network_alone(town: Town) -> None:
    await fail(town, "ada", 12, ip=STRANGER)
    for ip in (STRANGER, "203.0.113.77"):
        with pytest.raises(RateLimited):
            await town.enter("ada", ip=ip)
    for other in (HOME, HOME6, None):
        assert (await town.enter("ada", ip=other)).user.id == town.users["ada"]


@pytest.mark.parametrize("home", [HOME, HOME6])
async def test_guesses_from_many_networks_close_it_for_unknown_networks(
    town: Town, home: str
) -> None:
    await town.enter("ada", ip=home)
    await authentication.settle(town.world)
    for ip in networks(10):
        await fail(town, "ada", 10, ip=ip)
    with pytest.raises(RateLimited):
        await town.enter("ada", ip="192.0.2.200")
    await town.enter("ada", ip=home)
    with pytest.raises(AuthenticationFailed):
        await town.enter("ada", "wrong", ip=home)
    await town.enter("ada", ip=home)
    await fail(town, "ada", 12, ip=home)
    with pytest.raises(RateLimited):
        await town.enter("ada", ip=home)


async def test_a_device_with_a_token_makes_its_network_known(town: Town) -> None:
    world = replace(town.world, options=replace(town.world.options, authlog_for=timedelta()))
    here = Town(world, town.clock, town.domain_id, town.users)
    await here.token("ada")  # from 192.0.2.1
    for ip in networks(10):
        await fail(here, "ada", 10, ip=ip)
    with pytest.raises(RateLimited):
        await here.enter("ada", ip=HOME)
    assert await here.enter("ada", ip="192.0.2.9")


async def test_all_ways_to_sign_in_count_together(town: Town) -> None:
    for scope in (Scope.SMTP, Scope.IMAP, Scope.MASTER):
        for _ in range(4):
            attempt = Attempt(scope=scope, protocol=str(scope))
            with pytest.raises(AuthenticationFailed):
                await town.enter("ada", "wrong", attempt, ip=STRANGER)
    basic = base64.b64encode(b"ada:wrong").decode()
    with pytest.raises(RateLimited):
        await authentication.sign_in(town.world, {"authorization": f"Basic {basic}"}, ip=STRANGER)
    with pytest.raises(RateLimited):
        await town.enter("ada", attempt=Attempt(scope=Scope.SMTP), ip=STRANGER)


async def test_the_user_is_told_once_a_day(world: World, clock: Clock) -> None:
    eve = await make_user(world, "eve", password=OLD)
    town = Town(world, clock)

    async def told() -> tuple[int, int]:
        await authentication.settle(world)
        while await tasks.work(world):
            pass
        mine: Any = select(col(AuthEvent.count).label("many")).where(
            col(AuthEvent.user_id) == eve.id, col(AuthEvent.action) == "password guessing"
        )
        letters = select(col(Message.id)).where(
            col(Message.user_id) == eve.id,
            col(Message.subject) == "Somebody tries to guess your password",
        )
        events = [row.many for row in await world.database.read(mine)]
        return sum(events), len(await world.database.read(letters))

    await fail(town, "eve", 11, ip=STRANGER)
    assert await told() == (0, 0)
    await fail(town, "eve", 1, ip=STRANGER)
    assert await told() == (1, 1)
    await fail(town, "eve", 12, ip=HOME)
    assert await told() == (2, 1)
    town.clock.tick(days=1, minutes=1)
    await fail(town, "eve", 12, ip=STRANGER)
    assert (await told())[1] == 2
