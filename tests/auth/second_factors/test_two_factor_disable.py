"""Disabling all second factors with twoFactorDisable."""

import pytest

from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.accounts.authenticators import enable_totp
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.two_factor_operations import mutation_error_codes, run_auth_mutation
from tests.support.accounts.user_operations import user_global_id
from tests.support.stores.counter_check import select_rows

REASON_OPTIONS = {"reason": "the telephone is lost"}
FACTORS_QUERY = """{ viewer { user { twoFactors { method } recoveryCodesLeft
  securityLog { nodes { action } } } } }"""
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def test_admin_disables_all_factors_of_a_user(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    await enable_totp(ada)
    user = {"id": user_global_id(ada)}
    payload = await run_auth_mutation(root, "twoFactorDisable", user=user, options=REASON_OPTIONS)
    assert payload["errors"] == []
    own_user = (await ada(FACTORS_QUERY))["viewer"]["user"]
    assert (own_user["twoFactors"], own_user["recoveryCodesLeft"]) == ([], 0)
    assert {"action": "TWO_FACTOR_DISABLED"} in own_user["securityLog"]["nodes"]
    for table in ("totp_secrets", "recovery_codes"):
        assert await select_rows(environment, f"SELECT user_id FROM {table}") == []  # noqa: S608
    log_query = "SELECT target_id, before FROM audit_log WHERE mutation = 'twoFactorDisable'"
    ((target_id, before),) = await select_rows(environment, log_query)
    assert (target_id, "twoFactorMethods" in str(before)) == (ada.user.id, True)


async def test_disabling_all_factors_without_reason_proof_or_right_is_refused(
    ada: GraphQLClient, bob: GraphQLClient, admin_client: GraphQLClient, root: GraphQLClient
) -> None:
    environment = root.environment
    domain_admin = await make_domain_admin(environment, root.http, "chief")
    for client in (ada, admin_client):
        await enable_totp(client)
    cases = [
        (root, ada, {}, "VALIDATION"),
        (ada, ada, {"options": REASON_OPTIONS}, "AUTHENTICATION_FAILED"),
        (admin_client, admin_client, {"options": REASON_OPTIONS}, "AUTHENTICATION_FAILED"),
        (domain_admin, admin_client, {"options": REASON_OPTIONS}, "FORBIDDEN"),
        (bob, ada, {"options": REASON_OPTIONS}, "NOT_FOUND"),
    ]
    for client, target, extra, code in cases:
        user = {"id": user_global_id(target)}
        assert await mutation_error_codes(client, "twoFactorDisable", user=user, **extra) == [code]
    assert len(await select_rows(environment, "SELECT user_id FROM totp_secrets")) == 2
