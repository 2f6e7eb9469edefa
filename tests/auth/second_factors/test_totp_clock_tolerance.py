"""The tolerated clock deviation of authenticators: the setting totp.driftSteps."""

from datetime import datetime, timedelta

import pytest

from resolvers.auth.second_factors import totp
from tests.conftest import GraphQLClient, ManualClock
from tests.support.accounts.authenticators import create_totp_secret, enable_totp, totp_code
from tests.support.accounts.two_factor_operations import mutation_error_codes
from tests.support.operations.platform.setting_operations import expect_refused_setting, set_setting


@pytest.mark.parametrize("max_steps", [0, 3, 10])
async def test_totp_steps_setting_applies_at_once(
    ada: GraphQLClient, root: GraphQLClient, clock: ManualClock, max_steps: int
) -> None:
    await set_setting(root, "totp.driftSteps", max_steps)
    secret = await _create_secret_with_unique_codes(ada)
    for steps in (-max_steps - 1, max_steps + 1):
        error_codes = await mutation_error_codes(
            ada, "totpEnable", token=totp_code(ada.environment, secret, steps)
        )
        assert error_codes == ["AUTHENTICATION_FAILED"]
    assert (
        await mutation_error_codes(
            ada, "totpEnable", token=totp_code(ada.environment, secret, -max_steps)
        )
        == []
    )
    clock.tick(minutes=30)
    for steps in (-max_steps - 1, max_steps + 1):
        assert await mutation_error_codes(
            ada, "totpVerify", token=totp_code(ada.environment, secret, steps)
        ) == ["AUTHENTICATION_FAILED"]
    used_steps = range(-max_steps, max_steps + 1)
    for steps in used_steps:
        assert (
            await mutation_error_codes(
                ada, "totpVerify", token=totp_code(ada.environment, secret, steps)
            )
            == []
        )
    await set_setting(root, "totp.driftSteps", 10)  # used codes stay used
    clock.tick(minutes=5)  # the counted failures expire
    checked_at = clock() - timedelta(minutes=5)
    for steps in used_steps[-10:]:
        code = totp.code_at(totp.decode_secret(secret), totp.step_at(checked_at) + steps)
        assert await mutation_error_codes(ada, "totpVerify", token=code) == [
            "AUTHENTICATION_FAILED"
        ]


async def _create_secret_with_unique_codes(ada: GraphQLClient) -> str:
    """Create a TOTP secret with different codes in this hour.

    About one of 300 secrets has equal codes.
    """
    while True:
        secret = await create_totp_secret(ada)
        totp_codes = [totp_code(ada.environment, secret, steps) for steps in range(-11, 72)]
        if len(set(totp_codes)) == len(totp_codes):
            return secret


@pytest.mark.parametrize("steps", [-1, 11])
async def test_totp_steps_setting_out_of_range_is_refused(root: GraphQLClient, steps: int) -> None:
    error = await expect_refused_setting(root, "totp.driftSteps", steps)
    assert (error["path"], error["constraint"]) == (["value"], "MIN" if steps < 0 else "MAX")


async def test_last_use_is_not_in_the_future_if_clock_is_fast(
    ada: GraphQLClient, root: GraphQLClient, clock: ManualClock
) -> None:
    await set_setting(root, "totp.driftSteps", 10)
    secret, _ = await enable_totp(ada)
    clock.tick(minutes=30)
    assert (
        await mutation_error_codes(ada, "totpVerify", token=totp_code(ada.environment, secret, 10))
        == []
    )
    response = await ada("{ user { twoFactors { lastUsedAt } } }")
    (factor,) = response["user"]["twoFactors"]
    assert datetime.fromisoformat(factor["lastUsedAt"]) == clock()
