"""Who can see, add and disable the second factors of a user."""

from typing import Any

import pytest

from models.admin.audit_log import AuditLogEntry
from models.auth.second_factors import TotpSecret
from models.auth.security_log import SecurityEvent
from models.errors import Forbidden, NotFound
from models.users.roles import Role
from resolvers.auth.second_factors import loaders as second_factor_loaders
from resolvers.auth.second_factors import mutations as second_factors_mutations
from resolvers.auth.second_factors.second_factor_check import SecondFactorProof
from tests.conftest import GraphQLClient, make_client, make_user
from tests.support.accounts.authenticators import (
    create_totp_secret,
    enable_totp,
    make_assertion_response,
    register_security_key,
    totp_code,
)
from tests.support.accounts.two_factor_operations import (
    FAILED_CODES,
    VIEWER_FIELDS,
    load_all_rows,
    load_domain_admin_context,
    load_user_row,
    mutation_error_codes,
    run_auth_mutation,
)


async def test_own_factor_is_disabled_only_with_proof(ada: GraphQLClient) -> None:
    secret, recovery = await enable_totp(ada)
    empty_assertion: dict[str, Any] = {"webauthn": {}}
    for name in ("totpDisable", "twoFactorDisable"):
        for proof in (None, {}, {"totp": "000000"}, empty_assertion):
            arguments = {"proof": proof, "options": {"reason": "because"}}
            assert await mutation_error_codes(ada, name, **arguments) == ["AUTHENTICATION_FAILED"]
    assert (await load_user_row(ada.environment, ada.user.id)).second_factors == ["TOTP"]
    payload = await run_auth_mutation(
        ada, "totpDisable", VIEWER_FIELDS, proof={"totp": recovery[0]}
    )
    assert payload["user"]["twoFactorMethods"] == []
    assert await load_all_rows(ada.environment, TotpSecret) == []
    assert await mutation_error_codes(ada, "totpDisable") == ["CONFLICT"]
    assert await mutation_error_codes(
        ada, "totpVerify", token=totp_code(ada.environment, secret, 1)
    ) == ["CONFLICT"]


async def test_admin_needs_a_reason_to_disable_factors(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    for name in ("totpDisable", "twoFactorDisable"):
        await enable_totp(ada)
        user = {"id": (await ada("{ user { id } }"))["user"]["id"]}
        payload = await run_auth_mutation(root, name, user=user)
        assert [(e["code"], e["path"]) for e in payload["errors"]] == [
            ("VALIDATION", ["options", "reason"])
        ]
        payload = await run_auth_mutation(
            root, name, VIEWER_FIELDS, user=user, options={"reason": "lost his phone"}
        )
        assert payload["user"] == {"username": "ada", "twoFactorMethods": []}
        entry = (await load_all_rows(ada.environment, AuditLogEntry))[-1]
        assert (entry.mutation, entry.target_id) == (name, ada.user.id)
        assert (entry.before, entry.after) == (
            {"twoFactorMethods": ["TOTP"]},
            {"twoFactorMethods": []},
        )
        assert entry.reason == "lost his phone"
        ada.environment.clock.read.tick(minutes=5)  # type: ignore[attr-defined]
    events = {
        (row.action, row.result) for row in await load_all_rows(ada.environment, SecurityEvent)
    }
    assert {("TOTP_SECRET_CREATED", "SUCCESS"), ("TOTP_ENABLED", "SUCCESS")} <= events
    assert {("TOTP_DISABLED", "SUCCESS"), ("TWO_FACTOR_DISABLED", "SUCCESS")} <= events
    maker_ids = {
        row.by
        for row in await load_all_rows(ada.environment, SecurityEvent)
        if row.action == "TOTP_DISABLED"
    }
    assert maker_ids != {None}


async def test_admin_client_can_pass_on_the_proof_of_a_user(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    secret, _ = await enable_totp(ada)
    user = {"username": "ada"}
    proof = {"totp": totp_code(ada.environment, secret, 1)}
    assert await mutation_error_codes(root, "totpDisable", user=user, proof=proof) == []


@pytest.mark.parametrize("name", ["totpDisable", "twoFactorDisable", "externalTwoFactorDisable"])
async def test_disabling_factors_of_unknown_user_is_not_found(
    root: GraphQLClient, name: str
) -> None:
    for user in ({"username": "nobody"}, {"address": "nobody@example.org"}):
        arguments = {"user": user, "options": {"reason": "because"}}
        assert await mutation_error_codes(root, name, **arguments) == ["NOT_FOUND"]


async def test_factors_of_other_user_are_hidden_and_unchangeable(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    secret, _ = await enable_totp(ada)
    user_id = (await ada("{ user { id } }"))["user"]["id"]
    proof = {"totp": totp_code(ada.environment, secret, 1)}
    reason = {"reason": "because"}
    for user in ({"id": user_id}, {"username": "ada"}, {"address": "ada@example.org"}):
        for name, arguments in (
            ("totpSetup", {}),
            ("totpEnable", {"token": "000000"}),
            ("totpVerify", {"token": totp_code(ada.environment, secret, 1)}),
            ("totpDisable", {"proof": proof}),
            ("twoFactorDisable", {"options": reason}),
        ):
            assert await mutation_error_codes(bob, name, user=user, **arguments) == ["NOT_FOUND"], (
                name
            )
    assert (await load_user_row(ada.environment, ada.user.id)).second_factors == ["TOTP"]
    await make_user(ada.environment, "zoe")
    other_admin = await load_domain_admin_context(bob, domain="elsewhere.example")
    for operation in (
        second_factors_mutations.create_pending_totp_secret(other_admin, ada.user.id, None, None),
        second_factors_mutations.disable_totp(other_admin, ada.user.id, SecondFactorProof()),
        second_factors_mutations.disable_all_factors(other_admin, ada.user.id, SecondFactorProof()),
        second_factors_mutations.enable_external_factor(other_admin, ada.user.id),
        second_factors_mutations.prove_second_factor_and_complete_sign_in(
            other_admin, ada.user.id, SecondFactorProof(totp="000000")
        ),
        second_factors_mutations.create_webauthn_challenge(other_admin, ada.user.id, None),
    ):
        with pytest.raises(NotFound):
            await operation
    assert await second_factor_loaders.load_visible_enabled_factors(other_admin, [ada.user.id]) == [
        []
    ]
    own_admin = await load_domain_admin_context(bob)
    own_admin.reason = "lost"
    assert (
        await second_factors_mutations.disable_all_factors(
            own_admin, ada.user.id, SecondFactorProof()
        )
        == ada.user.id
    )


async def test_domain_admin_cannot_disable_factors_of_admin(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    admin = await make_client(ada.environment, ada.http, "boss", role=Role.ADMIN)
    await enable_totp(admin)
    ctx = await load_domain_admin_context(bob)
    ctx.reason = "because"
    with pytest.raises(Forbidden):
        await second_factors_mutations.disable_all_factors(ctx, admin.user.id, SecondFactorProof())
    assert (await load_user_row(ada.environment, admin.user.id)).second_factors == ["TOTP"]


async def test_user_adds_another_factor_only_with_a_proof(
    ada: GraphQLClient, root: GraphQLClient
) -> None:
    await run_auth_mutation(root, "externalTwoFactorEnable", user={"username": "ada"})
    secret = await create_totp_secret(ada)
    assert await mutation_error_codes(
        ada, "totpEnable", token=totp_code(ada.environment, secret)
    ) == ["FORBIDDEN"]
    arguments = {"user": {"username": "ada"}, "token": totp_code(ada.environment, secret)}
    assert await mutation_error_codes(root, "totpEnable", **arguments) == []
    assert (await load_user_row(ada.environment, ada.user.id)).second_factors == [
        "TOTP",
        "EXTERNAL",
    ]


async def test_admin_imports_a_factor_of_the_own_account_only_with_a_proof(
    admin_client: GraphQLClient,
) -> None:
    security_key = await register_security_key(admin_client)
    arguments: dict[str, Any] = {
        "user": {"username": admin_client.user.username},
        "secret": "GEZDGNBVGY3TQOJQ",
    }
    assert await mutation_error_codes(admin_client, "totpImport", **arguments) == FAILED_CODES
    proof = {"webauthn": await make_assertion_response(admin_client, security_key)}
    payload = await run_auth_mutation(
        admin_client, "totpImport", VIEWER_FIELDS, **arguments, proof=proof
    )
    assert payload["user"]["twoFactorMethods"] == ["TOTP", "WEBAUTHN"]
