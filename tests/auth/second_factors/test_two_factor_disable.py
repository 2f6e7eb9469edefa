"""Disabling second factors with userUpdate."""

import pytest

from models.runtime.environment import Environment
from tests.conftest import GraphQLClient
from tests.support.accounts.authenticators import enable_totp
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import try_update_users
from tests.support.stores.counter_check import select_rows

REASON_OPTIONS = {"reason": "the telephone is lost"}
FACTORS_QUERY = (
    "{ viewer { user { twoFactors { method } recoveryCodesLeft authLog { nodes { action } } } } }"
)
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def test_admin_disables_all_factors_of_users(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    await enable_totp(ada)
    _, errors = await try_update_users(
        root, ada, bob, name="X", disable2fa=True, options=REASON_OPTIONS
    )
    assert errors == []
    user = (await ada(FACTORS_QUERY))["viewer"]["user"]
    assert (user["twoFactors"], user["recoveryCodesLeft"]) == ([], 0)
    assert {"action": "TWO_FACTOR_DISABLE"} in user["authLog"]["nodes"]
    for table in ("totp_secrets", "recovery_codes"):
        assert await select_rows(environment, f"SELECT user_id FROM {table}") == []  # noqa: S608
    log_query = "SELECT target_id, before FROM audit_log WHERE mutation = 'userUpdate' ORDER BY id"
    before_by_user_id = {
        user_id: str(before) for user_id, before in await select_rows(environment, log_query)
    }
    assert "twoFactorMethods" in before_by_user_id[ada.user.id]
    assert "twoFactorMethods" not in before_by_user_id[bob.user.id]
    _, errors = await try_update_users(root, ada, disable2fa=True)  # no factor is enabled
    assert errors == []


async def test_disable2fa_without_reason_proof_or_right_is_refused(
    ada: GraphQLClient, bob: GraphQLClient, admin_client: GraphQLClient, root: GraphQLClient
) -> None:
    environment = root.environment
    domain_admin = await make_domain_admin(environment, root.http, "chief")
    for client in (ada, admin_client):
        await enable_totp(client)
    cases = [
        (root, ada, {}, "VALIDATION", ["options", "reason"]),
        (ada, ada, {"options": REASON_OPTIONS}, "FORBIDDEN", ["set", "disable2fa"]),
        (
            admin_client,
            admin_client,
            {"options": REASON_OPTIONS},
            "AUTHENTICATION_FAILED",
            ["set", "disable2fa"],
        ),
        (
            domain_admin,
            admin_client,
            {"options": REASON_OPTIONS},
            "FORBIDDEN",
            ["users", "ids", "0"],
        ),
        (bob, ada, {"options": REASON_OPTIONS}, "NOT_FOUND", ["users", "ids", "0"]),
    ]
    for client, target, extra, code, path in cases:
        _, errors = await try_update_users(client, target, name="X", disable2fa=True, **extra)
        assert [(error["code"], error["path"]) for error in errors] == [(code, path)]
    assert len(await select_rows(environment, "SELECT user_id FROM totp_secrets")) == 2
