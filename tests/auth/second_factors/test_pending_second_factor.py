"""Sign-ins that wait for a second factor."""

import asyncio
from datetime import timedelta
from typing import Any

import httpx
import pytest

from models.errors import AuthenticationFailed, Unauthenticated
from models.runtime.environment import World
from models.users.roles import Role
from resolvers.auth import access_tokens, authentication
from resolvers.auth.second_factors.second_factor_check import Proof
from resolvers.auth.sign_in import Attempt
from resolvers.context import Context, Viewer
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from tests.auth.conftest import MASTER, PASSWORD, TOKEN, Town
from tests.auth.test_http_credentials import VIEWER, sent
from tests.conftest import Client, Clock, make_key
from tests.support.accounts import authenticators

SIGN_IN = """
mutation ($name: String!, $totp: String, $webauthn: JSON) {
  authenticate(input: {username: $name, password: "correct horse battery", token: true,
      totp: $totp, webauthn: $webauthn}) {
    token expiresAt require2fa
    errors { code path ... on AuthenticationFailedError { require2fa } }
  }
}
"""


async def pending(town: Town, **more: Any) -> tuple[str, Viewer]:
    await town.change("ada", second_factors=["TOTP"])
    secret = await town.token("ada", **more)
    return secret, await town.viewer(secret)


async def test_a_pending_token_is_nobody_yet(town: Town) -> None:
    secret, viewer = await pending(town)
    assert (viewer.role, viewer.user_id, viewer.scopes) == (Role.PUBLIC, 0, frozenset())
    assert viewer.pending_for == town.users["ada"]
    assert (await town.row("ada")).last_login_at is None
    ctx = Context(town.world, viewer)
    assert await access_tokens.revoke(ctx, all=True) == 0
    assert await access_tokens.tokens_of(ctx, [town.users["ada"]]) != [[]]  # its own, and no other
    assert await access_tokens.revoke(ctx) == 1
    assert await town.refused(secret)


async def test_a_pending_token_ends_after_ten_minutes_however_it_is_used(town: Town) -> None:
    secret, viewer = await pending(town)
    assert viewer.ends_at == town.clock() + timedelta(minutes=10)
    for _ in range(9):
        town.clock.tick(seconds=66)
        assert (await town.viewer(secret)).pending_for
        await authentication.settle(town.world)
    town.clock.tick(seconds=6)
    assert await town.refused(secret)


async def test_what_is_proved_makes_it_a_full_one_that_lasts_as_was_asked(town: Town) -> None:
    secret, viewer = await pending(town, ttl=timedelta(hours=1))
    town.clock.tick(minutes=5)
    ctx = Context(town.world, viewer)
    async with ctx.write(town.users["ada"]) as session:
        await authentication.complete(ctx, session)
    full = await town.viewer(secret)
    assert (full.user_id, full.scopes, full.pending_for) == (town.users["ada"], MASTER, 0)
    assert (await town.row("ada")).last_login_at == town.clock()
    assert await authentication.ended(town.world, viewer)
    town.clock.tick(minutes=59)
    assert not await town.refused(secret)
    await authentication.settle(town.world)
    town.clock.tick(hours=1)
    assert await town.refused(secret)


@pytest.mark.parametrize("change", [{"disabled": True}, {"suspended": True}, {"auth_version": 9}])
async def test_nothing_is_completed_for_who_may_not_sign_in(
    town: Town, change: dict[str, Any]
) -> None:
    secret, viewer = await pending(town)
    await town.change("ada", **change)
    ctx = Context(town.world, viewer)
    with pytest.raises(AuthenticationFailed):
        async with ctx.write(town.users["ada"]) as session:
            await authentication.complete(ctx, session)
    town.clock.tick(seconds=5)
    assert await town.refused(secret)


async def test_who_has_signed_in_completes_nothing(town: Town) -> None:
    ctx = Context(town.world, await town.viewer(await town.token("ada")))
    async with ctx.write(town.users["ada"]) as session:
        await authentication.complete(ctx, session)
    assert ctx.viewer.user_id


async def test_without_a_token_it_is_only_said_that_a_factor_is_missing(town: Town) -> None:
    await town.change("ada", second_factors=["TOTP", "WEBAUTHN"])
    done = await town.enter("ada")
    assert (done.require2fa, done.token) == (["TOTP", "WEBAUTHN"], None)


async def test_a_factor_that_an_application_checks_is_its_to_check(town: Town) -> None:
    await town.change("ada", second_factors=["CUSTOM"])
    assert (await town.viewer(await town.token("ada"))).pending_for
    front = Viewer(role=Role.ADMIN, scopes=MASTER, api_key_id=7)
    done = await authentication.authenticate(Context(town.world, front), "ada", PASSWORD, TOKEN)
    assert done.require2fa == ["CUSTOM"]
    assert done.token
    assert (await town.viewer(done.token)).user_id == town.users["ada"]


async def test_the_second_factor_at_once_and_later(
    world: World, http: httpx.AsyncClient, clock: Clock
) -> None:
    boss = Context(world, Viewer(role=Role.ROOT, scopes=MASTER))
    new = NewUser(address="eve@example.org", username="eve", password=PASSWORD)
    user = await creation_create.create(boss, new)
    eve = Client(http, world, user, await make_key(world, "eve", user_id=user.id))
    seed, (recovery, *_) = await authenticators.totp_on(eve)

    def code(steps: int) -> str:
        return authenticators.code_of(world, seed, steps)

    clock.tick(minutes=5)
    wrong = (await sent(http, SIGN_IN, name="eve", totp="000000"))["data"]["authenticate"]
    assert (wrong["token"], wrong["errors"]) == (
        None,
        [{"code": "AUTHENTICATION_FAILED", "path": [], "require2fa": ["TOTP"]}],
    )
    whole = (await sent(http, SIGN_IN, name="eve", totp=code(0)))["data"]["authenticate"]
    assert (whole["require2fa"], whole["errors"]) == ([], [])
    assert (await sent(http, VIEWER, whole["token"]))["data"]["viewer"]["role"] == "USER"
    again = (await sent(http, SIGN_IN, name="eve", totp=code(0)))["data"]["authenticate"]
    assert again["token"] is None  # a code works once
    by_code = (await sent(http, SIGN_IN, name="eve", totp=recovery))["data"]["authenticate"]
    assert by_code["token"]

    half = (await sent(http, SIGN_IN, name="eve"))["data"]["authenticate"]
    assert (half["require2fa"], half["expiresAt"]) == (["TOTP"], "2030-01-01T00:15:00Z")
    viewer = (await sent(http, VIEWER, half["token"]))["data"]["viewer"]
    assert (viewer["role"], viewer["user"], viewer["token"]["current"]) == ("PUBLIC", None, True)
    refused = await sent(http, "{ user { id } }", half["token"])
    assert [error["extensions"]["code"] for error in refused["errors"]] == ["UNAUTHENTICATED"]
    clock.tick(seconds=60)
    check = authenticators.document("totpCheck", "valid")
    proved = await sent(http, check, half["token"], input={"token": code(0)})
    assert proved["data"]["totpCheck"]["valid"] is True
    assert (await sent(http, VIEWER, half["token"]))["data"]["viewer"]["role"] == "USER"


async def test_a_pending_token_fetches_no_bytes(town: Town) -> None:
    _, viewer = await pending(town)
    with pytest.raises(Unauthenticated):
        viewer.require_scope(next(iter(MASTER)))


async def test_right_and_wrong_at_once_open_no_more_than_they_may(town: Town) -> None:
    """Of many guesses at once no right one is heard behind twelve wrong ones."""
    words = [f"guess {nth}" for nth in range(30)]
    words[15] = PASSWORD
    tries = [town.enter("ada", word, ip=None) for word in words]
    answers = await asyncio.gather(*tries, return_exceptions=True)
    failures = sum(isinstance(answer, AuthenticationFailed) for answer in answers)
    opened = [answer for answer in answers if isinstance(answer, authentication.Authenticated)]
    assert failures <= 12 * (1 + len(opened))
    assert all(isinstance(answer, Exception) or answer in opened for answer in answers)


async def test_a_proof_is_not_needed_where_no_factor_is_on(town: Town) -> None:
    attempt = Attempt(token=True, proof=Proof(totp="000000"))
    assert (await town.enter("ada", attempt=attempt)).token
