"""Second factors that userUpdate turns off."""

import pytest

from models.runtime.environment import Environment
from tests.conftest import Client
from tests.support.accounts.authenticators import totp_on
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import change
from tests.support.stores.counter_check import rows

WHY = {"reason": "the telephone is lost"}
FACTORS = (
    "{ viewer { user { twoFactors { method } recoveryCodesLeft authLog { nodes { action } } } } }"
)
pytestmark = pytest.mark.usefixtures("examined")


async def test_an_administrator_turns_all_factors_off(
    ada: Client, bob: Client, root: Client, world: Environment
) -> None:
    await totp_on(ada)
    _, errors = await change(root, ada, bob, name="X", disable2fa=True, options=WHY)
    assert errors == []
    seen = (await ada(FACTORS))["viewer"]["user"]
    assert (seen["twoFactors"], seen["recoveryCodesLeft"]) == ([], 0)
    assert {"action": "2fa disable"} in seen["authLog"]["nodes"]
    for table in ("totp_seeds", "recovery_codes"):
        assert await rows(world, f"SELECT user_id FROM {table}") == []  # noqa: S608
    log = "SELECT target_id, before FROM admin_log WHERE mutation = 'userUpdate' ORDER BY id"
    told = {key: str(before) for key, before in await rows(world, log)}
    assert "second_factors" in told[ada.user.id]
    assert "second_factors" not in told[bob.user.id]
    _, errors = await change(root, ada, disable2fa=True)  # none is on
    assert errors == []


async def test_who_may_not_is_refused(ada: Client, bob: Client, over: Client, root: Client) -> None:
    world = root.world
    chief = await make_domain_admin(world, root.http, "chief")
    for client in (ada, over):
        await totp_on(client)
    tries = [
        (root, ada, {}, "VALIDATION", ["options", "reason"]),
        (ada, ada, {"options": WHY}, "FORBIDDEN", ["set", "disable2fa"]),
        (over, over, {"options": WHY}, "AUTHENTICATION_FAILED", ["set", "disable2fa"]),
        (chief, over, {"options": WHY}, "FORBIDDEN", ["users"]),
        (bob, ada, {"options": WHY}, "NOT_FOUND", ["users", "ids"]),
    ]
    for client, who, more, code, path in tries:
        _, errors = await change(client, who, name="X", disable2fa=True, **more)
        assert [(error["code"], error["path"]) for error in errors] == [(code, path)]
    assert len(await rows(world, "SELECT user_id FROM totp_seeds")) == 2
