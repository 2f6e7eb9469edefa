"""No secret lies in the store, the logs or an answer where it does not belong."""

import json
import logging
from typing import Any

import pytest

from tests.conftest import Client, Clock
from tests.support.accounts.authenticators import SoftKey, code_of, made, signed, totp_on
from tests.support.accounts.two_factor_operations import ask, codes
from tests.support.operations.quarantine_operations import set_options
from tests.support.stores.stored_secrets import encoded_forms, stored_text

GIVEN = "qwmzrtpkvbnhjdfg"
IMPORTED = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"


@pytest.mark.usefixtures("bob")
async def test_no_secret_is_left_anywhere(
    ada: Client, root: Client, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    once = {"idempotencyKey": "once"}
    set_options(ada.world, imap_server="imap.example.org:993")  # for profiles
    secrets: list[str] = []
    answers: list[Any] = []

    shown = await ask(ada, "totpSetup", "seed otpauthUrl", options=once)
    secrets.append(shown["seed"])
    answers.append(await ask(ada, "totpSetup", "seed otpauthUrl qrCode", options=once))
    code = code_of(ada.world, shown["seed"])
    done = await ask(ada, "totpEnable", "recoveryCodes", token=code)
    secrets += done["recoveryCodes"]
    clock.tick(minutes=5)
    tokens = (code_of(ada.world, shown["seed"]), done["recoveryCodes"][0], "000000")
    answers += [await ask(ada, "totpCheck", "valid", token=token) for token in tokens]
    key = SoftKey()
    proof = {"totp": done["recoveryCodes"][1]}
    response = await made(ada, key)
    answers.append(await ask(ada, "webauthnRegister", name="k", response=response, proof=proof))
    proof = {"webauthn": await signed(ada, key)}
    more = await ask(ada, "recoveryCodesCreate", "recoveryCodes", proof=proof)
    secrets += more["recoveryCodes"]

    for given in ({}, {"password": GIVEN}, {"generateMobileconfig": True}):
        options = {"idempotencyKey": f"app {sorted(given)}"}
        asked = {"description": "Phone", "options": options, **given}
        new = await ask(ada, "appPasswordCreate", "password", **asked)
        secrets.append(new["password"])
        answers.append(await ask(ada, "appPasswordCreate", "password mobileconfig", **asked))
    weak = await ask(ada, "appPasswordCreate", description="x", password="z" * 16)
    answers.append(weak)
    secrets += [GIVEN, "z" * 16]

    user = {"username": "bob"}
    answers.append(await ask(root, "totpImport", user=user, seed=IMPORTED, options=once))
    again = await codes(root, "totpImport", user=user, seed=IMPORTED)
    assert again == ["CONFLICT"]
    secrets.append(IMPORTED)
    reason = {"reason": "lost"}
    answers.append(await ask(root, "twoFactorDisable", user=user, options=reason))
    answers.append(await ada("{ user { twoFactors { method } appPasswords { description } } }"))

    whole = await stored_text(ada.world)
    logs = "\n".join(
        f"{record.getMessage()} {record.__dict__}"
        for record in caplog.records
        if not record.name.startswith(("httpx", "aiosqlite", "asyncio"))
    )
    told = json.dumps(answers)
    assert "totp check" in whole  # it is the store that was read
    assert logs
    for secret in secrets:
        for form in encoded_forms(secret):
            assert form not in whole, "in the store"
            assert form not in logs, "in a log"
            assert form not in told, "in an answer"


async def test_what_is_sealed_holds_for_its_account_only(ada: Client, bob: Client) -> None:
    """Whoever may write to the store cannot give one account's seed to another."""
    from sqlalchemy import update
    from sqlmodel import col

    from models.auth.second_factors import TotpSecret
    from models.runtime.secret_box import DecryptionError
    from resolvers.auth.second_factors.second_factor_check import (
        SecondFactorProof,
        check_second_factor,
    )
    from tests.conftest import context
    from tests.support.accounts.two_factor_operations import all_of, row_of

    seed, _ = await totp_on(ada)
    await totp_on(bob)
    hers = next(r for r in await all_of(ada.world, TotpSecret) if r.user_id == ada.user.id)
    async with ada.world.write_session() as session:
        his = col(TotpSecret.user_id) == bob.user.id
        await session.exec(update(TotpSecret).where(his).values(seed=hers.seed))
    user = await row_of(ada.world, bob.user.id)
    with pytest.raises(DecryptionError):
        await check_second_factor(
            context(bob), user, SecondFactorProof(totp=code_of(ada.world, seed, 1))
        )


async def test_repr_of_what_holds_secrets_tells_none(ada: Client) -> None:
    from resolvers.auth.app_passwords import NewAppPassword
    from resolvers.auth.second_factors.second_factor_check import SecondFactorProof

    assert GIVEN not in repr(NewAppPassword("x", password=GIVEN))
    assert "123456" not in repr(SecondFactorProof(totp="123456"))
    assert ada.world.secret_box.newest_key_name not in repr(ada.world)
