"""Wrong passwords close an account for the network they come from, not for its user."""

import base64
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from models.auth.security_log import SecurityEvent
from models.errors import AuthenticationFailed, RateLimited
from models.messages.tables import Message
from models.runtime.environment import Environment
from models.users.roles import Scope
from resolvers.admin import tasks
from resolvers.auth import authentication
from resolvers.auth.sign_in import SignInRequest
from tests.conftest import Clock, make_user
from tests.support.accounts.sign_in_environment import SignInEnvironment, fail_sign_ins

STRANGER, HOME, HOME6 = "203.0.113.5", "198.51.100.7", "2001:db8:1:2::7"
OLD = "the password until now"


def networks(many: int) -> list[str]:
    """Addresses in as many networks."""
    return [f"203.{n // 250}.{n % 250}.1" for n in range(many)]


async def test_a_stranger_closes_an_account_for_the_own_network_alone(
    sign_in_environment: SignInEnvironment,
) -> None:
    await fail_sign_ins(sign_in_environment, "ada", 12, ip=STRANGER)
    for ip in (STRANGER, "203.0.113.77"):
        with pytest.raises(RateLimited):
            await sign_in_environment.sign_in("ada", ip=ip)
    for other in (HOME, HOME6, None):
        assert (
            await sign_in_environment.sign_in("ada", ip=other)
        ).user.id == sign_in_environment.users["ada"]


@pytest.mark.parametrize("home", [HOME, HOME6])
async def test_guesses_from_many_networks_close_it_for_unknown_networks(
    sign_in_environment: SignInEnvironment, home: str
) -> None:
    await sign_in_environment.sign_in("ada", ip=home)
    await authentication.wait_for_background_tasks(sign_in_environment.world)
    for ip in networks(10):
        await fail_sign_ins(sign_in_environment, "ada", 10, ip=ip)
    with pytest.raises(RateLimited):
        await sign_in_environment.sign_in("ada", ip="192.0.2.200")
    await sign_in_environment.sign_in("ada", ip=home)
    with pytest.raises(AuthenticationFailed):
        await sign_in_environment.sign_in("ada", "wrong", ip=home)
    await sign_in_environment.sign_in("ada", ip=home)
    await fail_sign_ins(sign_in_environment, "ada", 12, ip=home)
    with pytest.raises(RateLimited):
        await sign_in_environment.sign_in("ada", ip=home)


async def test_a_device_with_a_token_makes_its_network_known(
    sign_in_environment: SignInEnvironment,
) -> None:
    world = replace(
        sign_in_environment.world,
        options=replace(sign_in_environment.world.options, authlog_for=timedelta()),
    )
    here = SignInEnvironment(
        world, sign_in_environment.clock, sign_in_environment.domain_id, sign_in_environment.users
    )
    await here.create_token("ada")  # from 192.0.2.1
    for ip in networks(10):
        await fail_sign_ins(here, "ada", 10, ip=ip)
    with pytest.raises(RateLimited):
        await here.sign_in("ada", ip=HOME)
    assert await here.sign_in("ada", ip="192.0.2.9")


async def test_all_ways_to_sign_in_count_together(sign_in_environment: SignInEnvironment) -> None:
    for scope in (Scope.SMTP, Scope.IMAP, Scope.MASTER):
        for _ in range(4):
            attempt = SignInRequest(scope=scope, protocol=str(scope))
            with pytest.raises(AuthenticationFailed):
                await sign_in_environment.sign_in("ada", "wrong", attempt, ip=STRANGER)
    basic = base64.b64encode(b"ada:wrong").decode()
    with pytest.raises(RateLimited):
        await authentication.authenticate_request(
            sign_in_environment.world, {"authorization": f"Basic {basic}"}, ip=STRANGER
        )
    with pytest.raises(RateLimited):
        await sign_in_environment.sign_in(
            "ada", attempt=SignInRequest(scope=Scope.SMTP), ip=STRANGER
        )


async def test_the_user_is_told_once_a_day(world: Environment, clock: Clock) -> None:
    eve = await make_user(world, "eve", password=OLD)
    sign_in_environment = SignInEnvironment(world, clock)

    async def told() -> tuple[int, int]:
        await authentication.wait_for_background_tasks(world)
        while await tasks.run_next_task(world):
            pass
        mine: Any = select(col(SecurityEvent.count).label("many")).where(
            col(SecurityEvent.user_id) == eve.id, col(SecurityEvent.action) == "password guessing"
        )
        letters = select(col(Message.id)).where(
            col(Message.user_id) == eve.id,
            col(Message.subject) == "Somebody tries to guess your password",
        )
        events = [row.many for row in await world.database.read(mine)]
        return sum(events), len(await world.database.read(letters))

    await fail_sign_ins(sign_in_environment, "eve", 11, ip=STRANGER)
    assert await told() == (0, 0)
    await fail_sign_ins(sign_in_environment, "eve", 1, ip=STRANGER)
    assert await told() == (1, 1)
    await fail_sign_ins(sign_in_environment, "eve", 12, ip=HOME)
    assert await told() == (2, 1)
    sign_in_environment.clock.tick(days=1, minutes=1)
    await fail_sign_ins(sign_in_environment, "eve", 12, ip=STRANGER)
    assert (await told())[1] == 2
