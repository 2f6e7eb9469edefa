"""Recovery codes: ten codes that replace a second factor, each valid once."""

import asyncio
import re
from typing import Any

from models.auth.second_factors import RecoveryCode
from models.auth.security_log import SecurityEvent
from models.errors import AuthenticationFailed
from resolvers.auth.second_factors import mutations as second_factors_mutations
from resolvers.auth.second_factors.second_factor_check import (
    SecondFactorProof,
    verify_and_use_up_second_factor,
)
from tests.conftest import GraphQLClient, ManualClock, client_context
from tests.support.accounts.authenticators import (
    enable_totp,
    make_assertion_response,
    register_security_key,
    totp_code,
)
from tests.support.accounts.two_factor_operations import (
    load_all_rows,
    load_user_row,
    make_pending_context,
    mutation_error_codes,
    run_auth_mutation,
)

CODES_LEFT_QUERY = "{ user { recoveryCodesLeft } }"


async def test_recovery_codes_are_not_stored_as_text(ada: GraphQLClient) -> None:
    _, recovery = await enable_totp(ada)
    rows = repr(await load_all_rows(ada.environment, RecoveryCode))
    for code in recovery:
        assert re.fullmatch(r"[a-z2-7]{4}(-[a-z2-7]{4}){3}", code)
        assert code not in rows
        assert code.replace("-", "") not in rows


async def test_recovery_code_works_once_in_any_spelling(ada: GraphQLClient) -> None:
    _, (first, second, *_) = await enable_totp(ada)
    assert (await ada(CODES_LEFT_QUERY))["user"]["recoveryCodesLeft"] == 10
    assert await mutation_error_codes(ada, "totpVerify", token=first) == []
    assert await mutation_error_codes(ada, "totpVerify", token=first) == ["AUTHENTICATION_FAILED"]
    assert (await ada(CODES_LEFT_QUERY))["user"]["recoveryCodesLeft"] == 9
    typed = f"  {second.upper().replace('-', ' ')} "
    assert await mutation_error_codes(ada, "totpVerify", token=typed) == []
    assert (await ada(CODES_LEFT_QUERY))["user"]["recoveryCodesLeft"] == 8
    events = [row.action for row in await load_all_rows(ada.environment, SecurityEvent)]
    assert "RECOVERY_CODE_USED" in events


async def test_concurrent_use_of_recovery_code_succeeds_once(ada: GraphQLClient) -> None:
    _, (code, *_) = await enable_totp(ada)
    user = await load_user_row(ada.environment, ada.user.id)

    async def try_code() -> bool:
        try:
            await verify_and_use_up_second_factor(
                client_context(ada), user, SecondFactorProof(totp=code)
            )
        except AuthenticationFailed:
            return False
        return True

    assert sum(await asyncio.gather(*(try_code() for _ in range(8)))) == 1


async def test_recovery_code_completes_pending_sign_in(ada: GraphQLClient) -> None:
    _, (code, *_) = await enable_totp(ada)
    ctx = await make_pending_context(ada)
    assert (
        await second_factors_mutations.prove_second_factor_and_complete_sign_in(
            ctx, None, SecondFactorProof(totp=code)
        )
        == ada.user.id
    )


async def test_recovery_code_of_other_user_is_refused(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    _, (code, *_) = await enable_totp(ada)
    await enable_totp(bob)
    assert await mutation_error_codes(bob, "totpVerify", token=code) == ["AUTHENTICATION_FAILED"]
    query = "query ($id: ID!) { user(by: {id: $id}) { recoveryCodesLeft } }"
    user_id = (await ada("{ user { id } }"))["user"]["id"]
    assert (await bob(query, id=user_id))["user"] is None


async def test_new_recovery_codes_need_proof_and_replace_old_ones(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    secret, (old_code, *_) = await enable_totp(ada)
    clock.tick(minutes=5)
    assert await mutation_error_codes(ada, "recoveryCodesCreate") == ["AUTHENTICATION_FAILED"]
    proof = {"totp": totp_code(ada.environment, secret)}
    payload = await run_auth_mutation(ada, "recoveryCodesCreate", "recoveryCodes", proof=proof)
    assert len(set(payload["recoveryCodes"])) == 10
    assert await mutation_error_codes(ada, "totpVerify", token=old_code) == [
        "AUTHENTICATION_FAILED"
    ]
    assert await mutation_error_codes(ada, "totpVerify", token=payload["recoveryCodes"][0]) == []


async def test_recovery_codes_need_a_factor_and_end_with_the_last(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    assert await mutation_error_codes(ada, "recoveryCodesCreate") == ["CONFLICT"]
    _, recovery = await enable_totp(ada)
    security_key = await register_security_key(ada, proof={"totp": recovery[0]})
    payload = await run_auth_mutation(ada, "totpDisable", proof={"totp": recovery[1]})
    assert payload["errors"] == []
    assert len(await load_all_rows(ada.environment, RecoveryCode)) == 10
    proof: dict[str, Any] = {"webauthn": await make_assertion_response(ada, security_key)}
    assert await mutation_error_codes(ada, "twoFactorDisable", proof=proof) == []
    assert await load_all_rows(ada.environment, RecoveryCode) == []
    user = {"username": "ada"}
    await run_auth_mutation(root, "externalTwoFactorEnable", user=user)
    assert await mutation_error_codes(ada, "recoveryCodesCreate") == ["CONFLICT"]
