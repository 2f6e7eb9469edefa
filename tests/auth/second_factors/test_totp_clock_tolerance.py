"""How wrong the clock of an authenticator may be: as a setting says, and a code is good once."""

from datetime import datetime, timedelta

import pytest

from resolvers.auth.second_factors import totp
from tests.conftest import Client, Clock
from tests.support.accounts.authenticators import code_of, seed_of, totp_on
from tests.support.accounts.two_factor_operations import codes
from tests.support.operations.setting_operations import put, refused


@pytest.mark.parametrize("far", [0, 3, 10])
async def test_how_wrong_a_clock_may_be_is_set_while_we_run(
    ada: Client, root: Client, clock: Clock, far: int
) -> None:
    await put(root, "auth.totpSteps", far)
    seed = await _seed(ada)
    for steps in (-far - 1, far + 1):
        early = await codes(ada, "totpEnable", token=code_of(ada.world, seed, steps))
        assert early == ["AUTHENTICATION_FAILED"]
    assert await codes(ada, "totpEnable", token=code_of(ada.world, seed, -far)) == []
    clock.tick(minutes=30)
    for steps in (-far - 1, far + 1):
        assert await codes(ada, "totpCheck", token=code_of(ada.world, seed, steps)) == [
            "AUTHENTICATION_FAILED"
        ]
    spent = range(-far, far + 1)
    for steps in spent:
        assert await codes(ada, "totpCheck", token=code_of(ada.world, seed, steps)) == []
    await put(root, "auth.totpSteps", 10)  # what is spent stays so
    clock.tick(minutes=5)  # and the failures that were counted are forgotten
    ahead = clock() - timedelta(minutes=5)
    for steps in spent[-10:]:
        token = totp.code_at(totp.decode_secret(seed), totp.step_at(ahead) + steps)
        assert await codes(ada, "totpCheck", token=token) == ["AUTHENTICATION_FAILED"]


async def _seed(ada: Client) -> str:
    """A seed with no two codes alike in this hour: about one in 300 has some."""
    while True:
        seed = await seed_of(ada)
        shown = [code_of(ada.world, seed, steps) for steps in range(-11, 72)]
        if len(set(shown)) == len(shown):
            return seed


@pytest.mark.parametrize("far", [-1, 11])
async def test_a_clock_is_wrong_by_five_minutes_at_most(root: Client, far: int) -> None:
    error = await refused(root, "auth.totpSteps", far)
    assert (error["path"], error["constraint"]) == (["value"], "min" if far < 0 else "max")


async def test_a_code_of_a_clock_that_is_fast_was_not_used_in_time_to_come(
    ada: Client, root: Client, clock: Clock
) -> None:
    await put(root, "auth.totpSteps", 10)
    seed, _ = await totp_on(ada)
    clock.tick(minutes=30)
    assert await codes(ada, "totpCheck", token=code_of(ada.world, seed, 10)) == []
    answer = await ada("{ user { twoFactors { lastUsedAt } } }")
    (factor,) = answer["user"]["twoFactors"]
    assert datetime.fromisoformat(factor["lastUsedAt"]) == clock()
