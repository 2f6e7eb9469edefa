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
from tests.conftest import Client, Clock, context
from tests.support.accounts.authenticators import code_of, key_on, signed, totp_on
from tests.support.accounts.two_factor_operations import all_of, ask, codes, row_of, waiting

CODES_LEFT_QUERY = "{ user { recoveryCodesLeft } }"


async def test_recovery_codes_are_not_stored_as_text(ada: Client) -> None:
    _, recovery = await totp_on(ada)
    rows = repr(await all_of(ada.world, RecoveryCode))
    for code in recovery:
        assert re.fullmatch(r"[a-z2-7]{4}(-[a-z2-7]{4}){3}", code)
        assert code not in rows
        assert code.replace("-", "") not in rows


async def test_recovery_code_works_once_in_any_spelling(ada: Client) -> None:
    _, (first, second, *_) = await totp_on(ada)
    assert (await ada(CODES_LEFT_QUERY))["user"]["recoveryCodesLeft"] == 10
    assert await codes(ada, "totpCheck", token=first) == []
    assert await codes(ada, "totpCheck", token=first) == ["AUTHENTICATION_FAILED"]
    assert (await ada(CODES_LEFT_QUERY))["user"]["recoveryCodesLeft"] == 9
    typed = f"  {second.upper().replace('-', ' ')} "
    assert await codes(ada, "totpCheck", token=typed) == []
    assert (await ada(CODES_LEFT_QUERY))["user"]["recoveryCodesLeft"] == 8
    events = [row.action for row in await all_of(ada.world, SecurityEvent)]
    assert "recovery code check" in events


async def test_concurrent_use_of_recovery_code_succeeds_once(ada: Client) -> None:
    _, (code, *_) = await totp_on(ada)
    user = await row_of(ada.world, ada.user.id)

    async def try_code() -> bool:
        try:
            await verify_and_use_up_second_factor(context(ada), user, SecondFactorProof(totp=code))
        except AuthenticationFailed:
            return False
        return True

    assert sum(await asyncio.gather(*(try_code() for _ in range(8)))) == 1


async def test_recovery_code_completes_pending_sign_in(ada: Client) -> None:
    _, (code, *_) = await totp_on(ada)
    ctx = await waiting(ada)
    assert (
        await second_factors_mutations.prove_second_factor(ctx, None, SecondFactorProof(totp=code))
        == ada.user.id
    )


async def test_recovery_code_of_other_user_is_refused(ada: Client, bob: Client) -> None:
    _, (code, *_) = await totp_on(ada)
    await totp_on(bob)
    assert await codes(bob, "totpCheck", token=code) == ["AUTHENTICATION_FAILED"]
    query = "query ($id: ID!) { user(by: {id: $id}) { recoveryCodesLeft } }"
    user_id = (await ada("{ user { id } }"))["user"]["id"]
    assert (await bob(query, id=user_id))["user"] is None


async def test_new_recovery_codes_need_proof_and_replace_old_ones(
    ada: Client, clock: Clock
) -> None:
    secret, (old_code, *_) = await totp_on(ada)
    clock.tick(minutes=5)
    assert await codes(ada, "recoveryCodesCreate") == ["AUTHENTICATION_FAILED"]
    proof = {"totp": code_of(ada.world, secret)}
    payload = await ask(ada, "recoveryCodesCreate", "recoveryCodes", proof=proof)
    assert len(set(payload["recoveryCodes"])) == 10
    assert await codes(ada, "totpCheck", token=old_code) == ["AUTHENTICATION_FAILED"]
    assert await codes(ada, "totpCheck", token=payload["recoveryCodes"][0]) == []


async def test_recovery_codes_need_a_factor_and_end_with_the_last(
    ada: Client, root: Client
) -> None:
    assert await codes(ada, "recoveryCodesCreate") == ["CONFLICT"]
    _, recovery = await totp_on(ada)
    security_key = await key_on(ada, proof={"totp": recovery[0]})
    payload = await ask(ada, "totpDisable", proof={"totp": recovery[1]})
    assert payload["errors"] == []
    assert len(await all_of(ada.world, RecoveryCode)) == 10
    proof: dict[str, Any] = {"webauthn": await signed(ada, security_key)}
    assert await codes(ada, "twoFactorDisable", proof=proof) == []
    assert await all_of(ada.world, RecoveryCode) == []
    user = {"username": "ada"}
    await ask(root, "customTwoFactorEnable", user=user)
    assert await codes(ada, "recoveryCodesCreate") == ["CONFLICT"]
