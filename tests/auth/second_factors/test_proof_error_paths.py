"""Errors of wrong proofs name the input field that has the proof."""

from typing import Any

import pytest

from tests.conftest import GraphQLClient
from tests.support.accounts.authenticators import create_totp_secret, enable_totp
from tests.support.accounts.two_factor_operations import make_token_client, run_auth_mutation

WRONG_CODE = "00000000"  # too long to be right by chance


async def error_paths(client: GraphQLClient, name: str, **input_values: Any) -> list[Any]:
    payload = await run_auth_mutation(client, name, **input_values)
    assert [error["code"] for error in payload["errors"]] == ["AUTHENTICATION_FAILED"]
    return [error["path"] for error in payload["errors"]]


async def test_wrong_code_of_new_secret_has_path(ada: GraphQLClient) -> None:
    await create_totp_secret(ada)
    assert await error_paths(ada, "totpEnable", token=WRONG_CODE) == [["token"]]


async def test_wrong_code_of_verification_has_path(ada: GraphQLClient) -> None:
    await enable_totp(ada)
    pending = await make_token_client(ada, pending=True)
    assert await error_paths(pending, "totpVerify", token=WRONG_CODE) == [["token"]]
    assert await error_paths(pending, "webauthnVerify", response={}) == [["response"]]


@pytest.mark.parametrize(
    ("proof", "path"),
    [
        (None, ["proof"]),
        ({"totp": WRONG_CODE}, ["proof", "totp"]),
        ({"webauthn": {}}, ["proof", "webauthn"]),
    ],
)
async def test_wrong_proof_of_change_has_path(
    ada: GraphQLClient, proof: dict[str, Any] | None, path: list[str]
) -> None:
    await enable_totp(ada)
    assert await error_paths(ada, "totpDisable", proof=proof) == [path]
