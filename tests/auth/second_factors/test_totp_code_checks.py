"""Checks of TOTP codes: tolerance, single use and limits of guesses."""
# ruff: noqa: S106 - the tokens are codes of tests
# ruff: noqa: RUF001 - the tests use digits of other scripts

import asyncio
from typing import Any

import pytest

from models.errors import AuthenticationFailed, RateLimited, RequestError
from resolvers.auth.second_factors.second_factor_check import (
    SecondFactorProof,
    TwoFactorMethod,
    verify_and_use_up_second_factor,
)
from tests.conftest import GraphQLClient, ManualClock, client_context, make_client
from tests.support.accounts.authenticators import enable_totp, totp_code
from tests.support.accounts.two_factor_operations import (
    load_user_row,
    mutation_error_codes,
    run_auth_mutation,
)
from tests.support.case_loop import each_case


@pytest.mark.parametrize("steps", [-2, -1, 0, 1, 2])
async def test_totp_code_may_deviate_by_one_step(
    ada: GraphQLClient, clock: ManualClock, steps: int
) -> None:
    secret, _ = await enable_totp(ada)
    clock.tick(minutes=5)
    payload = await run_auth_mutation(
        ada, "totpVerify", "valid", token=totp_code(ada.environment, secret, steps)
    )
    assert payload["valid"] is (abs(steps) <= 1)
    assert [e["code"] for e in payload["errors"]] == (
        [] if abs(steps) <= 1 else ["AUTHENTICATION_FAILED"]
    )


@pytest.mark.parametrize("delay", [0, 1, 29, 30, 59])
async def test_totp_code_is_valid_until_end_of_next_step(
    ada: GraphQLClient, clock: ManualClock, delay: int
) -> None:
    secret, _ = await enable_totp(ada)
    clock.tick(minutes=5)
    code = totp_code(ada.environment, secret)
    clock.tick(seconds=delay)
    assert await mutation_error_codes(ada, "totpVerify", token=code) == []


async def test_used_totp_code_invalidates_itself_and_earlier_codes(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    secret, _ = await enable_totp(ada)
    assert await mutation_error_codes(
        ada, "totpVerify", token=totp_code(ada.environment, secret)
    ) == [
        "AUTHENTICATION_FAILED"  # the same code has enabled TOTP
    ]
    clock.tick(minutes=5)
    spaced_code = (
        f" {totp_code(ada.environment, secret)[:3]} {totp_code(ada.environment, secret)[3:]} "
    )
    assert await mutation_error_codes(ada, "totpVerify", token=spaced_code) == []
    for steps in (0, -1):
        error_codes = await mutation_error_codes(
            ada, "totpVerify", token=totp_code(ada.environment, secret, steps)
        )
        assert error_codes == ["AUTHENTICATION_FAILED"]
    assert (
        await mutation_error_codes(ada, "totpVerify", token=totp_code(ada.environment, secret, 1))
        == []
    )


async def test_concurrent_use_of_totp_code_succeeds_once(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    secret, _ = await enable_totp(ada)
    clock.tick(minutes=5)
    code = totp_code(ada.environment, secret)
    user = await load_user_row(ada.environment, ada.user.id)

    async def try_code() -> Any:
        try:
            return await verify_and_use_up_second_factor(
                client_context(ada), user, SecondFactorProof(totp=code)
            )
        except AuthenticationFailed:
            return None

    results = await asyncio.gather(*(try_code() for _ in range(8)))
    assert sorted(results, key=str) == [None] * 7 + [TwoFactorMethod.TOTP]


async def test_totp_failures_are_counted_per_user(ada: GraphQLClient, clock: ManualClock) -> None:
    secret, _ = await enable_totp(ada)
    clock.tick(minutes=5)
    for _ in range(12):
        assert await mutation_error_codes(ada, "totpVerify", token="000000") == [
            "AUTHENTICATION_FAILED"
        ]
    valid_code = totp_code(ada.environment, secret)
    assert await mutation_error_codes(ada, "totpVerify", token=valid_code) == ["RATE_LIMITED"]
    other_client = await make_client(ada.environment, ada.http, "bert")
    await enable_totp(other_client)  # other users are not throttled
    clock.tick(seconds=121)
    assert (
        await mutation_error_codes(ada, "totpVerify", token=totp_code(ada.environment, secret))
        == []
    )


async def test_concurrent_totp_guesses_are_limited(ada: GraphQLClient, clock: ManualClock) -> None:
    await enable_totp(ada)
    clock.tick(minutes=5)
    user = await load_user_row(ada.environment, ada.user.id)

    async def guess_code() -> type[RequestError]:
        with pytest.raises(RequestError) as refusal:
            await verify_and_use_up_second_factor(
                client_context(ada), user, SecondFactorProof(totp="000000")
            )
        return type(refusal.value)

    errors = await asyncio.gather(*(guess_code() for _ in range(30)))
    assert errors.count(AuthenticationFailed) <= 12
    with pytest.raises(RateLimited):
        await verify_and_use_up_second_factor(
            client_context(ada), user, SecondFactorProof(totp="000000")
        )


async def test_malformed_totp_code_is_a_wrong_code(ada: GraphQLClient) -> None:
    await enable_totp(ada)
    for case in each_case(["", "0", "x" * 10_000, "-00001", "1e5   ", "٠" * 6]):
        with case as code:
            assert await mutation_error_codes(ada, "totpVerify", token=code) == [
                "AUTHENTICATION_FAILED"
            ]


async def test_totp_verify_refuses_idempotency_key(ada: GraphQLClient) -> None:
    secret, _ = await enable_totp(ada)
    code = totp_code(ada.environment, secret, 1)
    options = {"idempotencyKey": "x"}
    assert await mutation_error_codes(ada, "totpVerify", token=code, options=options) == [
        "VALIDATION"
    ]
    assert await mutation_error_codes(ada, "totpVerify", token=code) == []
