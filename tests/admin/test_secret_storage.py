"""Secrets are not in the database, logs or answers in clear."""

import json
import logging
from dataclasses import dataclass, field
from typing import Any

import pytest

from tests.conftest import GraphQLClient, ManualClock
from tests.support.accounts.authenticators import (
    SoftwareAuthenticator,
    enable_totp,
    make_assertion_response,
    make_registration_response,
    totp_code,
)
from tests.support.accounts.two_factor_operations import mutation_error_codes, run_auth_mutation
from tests.support.operations.quarantine_operations import set_options
from tests.support.stores.stored_secrets import encoded_forms, stored_text

GIVEN_PASSWORD = "qwmzrtpkvbnhjdfg"  # noqa: S105 - of the test
IDEMPOTENT_OPTIONS = {"idempotencyKey": "once"}
IMPORTED_SECRET = "GEZDGNBVGY3TQOJQGEZDGNBVGY3TQOJQ"  # noqa: S105 - of the test


@dataclass
class SecretsAndAnswers:
    """The secrets of a test, and the answers that must not contain them."""

    secrets: list[str] = field(default_factory=list)
    answers: list[Any] = field(default_factory=list)


async def use_second_factors(
    ada: GraphQLClient, clock: ManualClock, recorded: SecretsAndAnswers
) -> None:
    """Set up and use TOTP, a security key and recovery codes."""
    setup = await run_auth_mutation(
        ada, "totpSetup", "secret otpauthUrl", options=IDEMPOTENT_OPTIONS
    )
    repeated_setup = await run_auth_mutation(
        ada, "totpSetup", "secret otpauthUrl qrCode", options=IDEMPOTENT_OPTIONS
    )
    code = totp_code(ada.environment, setup["secret"])
    enabled = await run_auth_mutation(ada, "totpEnable", "recoveryCodes", token=code)
    clock.tick(minutes=5)
    tokens = (totp_code(ada.environment, setup["secret"]), enabled["recoveryCodes"][0], "000000")
    verifications = [
        await run_auth_mutation(ada, "totpVerify", "valid", token=token) for token in tokens
    ]
    key = SoftwareAuthenticator()
    proof = {"totp": enabled["recoveryCodes"][1]}
    response = await make_registration_response(ada, key)
    registration = await run_auth_mutation(
        ada, "webauthnRegister", name="k", response=response, proof=proof
    )
    proof = {"webauthn": await make_assertion_response(ada, key)}
    new_codes = await run_auth_mutation(ada, "recoveryCodesCreate", "recoveryCodes", proof=proof)
    recorded.secrets += [setup["secret"], *enabled["recoveryCodes"], *new_codes["recoveryCodes"]]
    recorded.answers += [repeated_setup, *verifications, registration]


async def create_app_passwords(ada: GraphQLClient, recorded: SecretsAndAnswers) -> None:
    """Create generated and chosen app passwords, and repeat each request."""
    for arguments in ({}, {"password": GIVEN_PASSWORD}, {"generateMobileconfig": True}):
        options = {"idempotencyKey": f"app {sorted(arguments)}"}
        password_input = {"description": "Phone", "options": options, **arguments}
        app_password = await run_auth_mutation(
            ada, "appPasswordCreate", "password", **password_input
        )
        recorded.secrets.append(app_password["password"])
        recorded.answers.append(
            await run_auth_mutation(
                ada, "appPasswordCreate", "password mobileconfig", **password_input
            )
        )
    weak_password = await run_auth_mutation(
        ada, "appPasswordCreate", description="x", password="z" * 16
    )
    recorded.answers.append(weak_password)
    recorded.secrets += [GIVEN_PASSWORD, "z" * 16]


@pytest.mark.usefixtures("bob")
async def test_secrets_are_not_in_database_logs_or_repeated_answers(
    ada: GraphQLClient, root: GraphQLClient, clock: ManualClock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    set_options(ada.environment, profile_imap_server="imap.example.org:993")  # for mobile profiles
    recorded = SecretsAndAnswers()
    await use_second_factors(ada, clock, recorded)
    await create_app_passwords(ada, recorded)
    totp_import = {"user": {"username": "bob"}, "secret": IMPORTED_SECRET}
    recorded.answers.append(
        await run_auth_mutation(root, "totpImport", **totp_import, options=IDEMPOTENT_OPTIONS)
    )
    assert await mutation_error_codes(root, "totpImport", **totp_import) == ["CONFLICT"]
    recorded.secrets.append(IMPORTED_SECRET)
    recorded.answers += [
        await run_auth_mutation(
            root, "twoFactorDisable", user={"username": "bob"}, options={"reason": "lost"}
        ),
        await ada("{ user { twoFactors { method } appPasswords { nodes { description } } } }"),
    ]

    database_text = await stored_text(ada.environment)
    logs = "\n".join(
        f"{record.getMessage()} {record.__dict__}"
        for record in caplog.records
        if not record.name.startswith(("httpx", "aiosqlite", "asyncio"))
    )
    answer_text = json.dumps(recorded.answers)
    assert "TOTP_CHECKED" in database_text  # confirms that the text of the database was read
    assert logs
    for secret in recorded.secrets:
        for encoded in encoded_forms(secret):
            assert encoded not in database_text, "in the store"
            assert encoded not in logs, "in a log"
            assert encoded not in answer_text, "in an answer"


async def test_encrypted_totp_secret_is_bound_to_its_user(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    """A copied row of another user can't be decrypted."""
    from sqlalchemy import update
    from sqlmodel import col

    from models.auth.second_factors import TotpSecret
    from models.runtime.secret_box import DecryptionError
    from resolvers.auth.second_factors.second_factor_check import (
        SecondFactorProof,
        verify_and_use_up_second_factor,
    )
    from tests.conftest import client_context
    from tests.support.accounts.two_factor_operations import load_all_rows, load_user_row

    totp_secret, _ = await enable_totp(ada)
    await enable_totp(bob)
    adas_secret = next(
        secret_row
        for secret_row in await load_all_rows(ada.environment, TotpSecret)
        if secret_row.user_id == ada.user.id
    )
    async with ada.environment.write_session() as session:
        is_bobs = col(TotpSecret.user_id) == bob.user.id
        await session.exec(update(TotpSecret).where(is_bobs).values(seed=adas_secret.seed))
    user = await load_user_row(ada.environment, bob.user.id)
    with pytest.raises(DecryptionError):
        await verify_and_use_up_second_factor(
            client_context(bob),
            user,
            SecondFactorProof(totp=totp_code(ada.environment, totp_secret, 1)),
        )


async def test_repr_hides_secrets(ada: GraphQLClient) -> None:
    from resolvers.auth.app_password_validation import NewAppPassword
    from resolvers.auth.second_factors.second_factor_check import SecondFactorProof

    assert GIVEN_PASSWORD not in repr(NewAppPassword("x", password=GIVEN_PASSWORD))
    assert "123456" not in repr(SecondFactorProof(totp="123456"))
    assert ada.environment.secret_box.newest_key_name not in repr(ada.environment)
