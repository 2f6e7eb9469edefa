"""Who sees quarantined messages: owners, administrators and API keys."""

import httpx
import pytest

from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Scope
from tests.conftest import GraphQLClient, make_api_key
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.operations.domain_operations import error_summary, run_mutation
from tests.support.operations.quarantine_operations import (
    QUARANTINE_CONTENTS_QUERY,
    QUARANTINE_DELETE,
    QUARANTINE_ITEM_QUERY,
    QUARANTINE_QUERY,
    QUARANTINE_RELEASE,
    QUARANTINE_RELEASE_ERRORS,
    USER_UPDATE,
    list_quarantined_subjects,
    make_mixed_message,
    quarantine_message,
    set_permissions_of_ada,
)

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def test_other_user_cannot_see_or_change_quarantine_item(
    ada: GraphQLClient, bob: GraphQLClient, http: httpx.AsyncClient
) -> None:
    item_id = await quarantine_message(ada)
    url = (await ada(QUARANTINE_CONTENTS_QUERY, id=item_id))["node"]["sourceUrl"]
    assert await list_quarantined_subjects(bob) == []
    assert await list_quarantined_subjects(bob, users={"usernames": ["bob"]}) == []
    answer = await bob.execute(QUARANTINE_QUERY, filter={"users": {"usernames": ["ada"]}})
    assert answer["errors"][0]["extensions"]["code"] == "NOT_FOUND"
    for document in (QUARANTINE_ITEM_QUERY, QUARANTINE_CONTENTS_QUERY):
        assert await bob(document, id=item_id) == {"node": None}
    for document in (QUARANTINE_RELEASE, QUARANTINE_DELETE):
        _, errors = await run_mutation(bob, document, quarantineItems=[{"id": item_id}])
        assert error_summary(errors)[:3] == ("NOT_FOUND", ["quarantineItems"], 0)
    path = url.partition("?")[0]
    assert (await http.get(path, headers=bob.headers)).status_code == 404
    assert (await http.get(path)).status_code == 401
    assert (await http.get(path, headers=ada.headers)).status_code == 200
    assert await list_quarantined_subjects(ada) == ["Offer"]


async def test_user_without_permission_cannot_see_quarantine(
    ada: GraphQLClient, root: GraphQLClient, http: httpx.AsyncClient
) -> None:
    item_id = await quarantine_message(ada, make_mixed_message())
    await set_permissions_of_ada(root, "QUARANTINE_ATTACHMENTS", "QUARANTINE_NOTIFICATION")
    for document in (QUARANTINE_QUERY, "{ viewer { user { quarantine { totalCount } } } }"):
        answer = await ada.execute(document)
        assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    assert await ada(QUARANTINE_ITEM_QUERY, id=item_id) == {"node": None}
    path = f"/rest/quarantine/{item_id}/message.eml"
    assert (await http.get(path, headers=ada.headers)).status_code == 404
    await set_permissions_of_ada(root, "QUARANTINE")
    assert await list_quarantined_subjects(ada) == ["Mixed"]
    answer = await ada.execute(QUARANTINE_CONTENTS_QUERY, id=item_id)
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    assert (await http.get(path, headers=ada.headers)).status_code == 403
    _, errors = await run_mutation(ada, USER_UPDATE, set={"quarantineNotification": "NEVER"})
    assert error_summary(errors)[::3] == ("FORBIDDEN", "QUARANTINE_NOTIFICATION")


async def test_api_key_with_mail_scope_cannot_read_quarantine(
    ada: GraphQLClient, http: httpx.AsyncClient
) -> None:
    item_id = await quarantine_message(ada)
    for scope, can_read in ((Scope.MAIL, False), (Scope.MAIL_READ, False), (Scope.READ, True)):
        secret = await make_api_key(
            ada.environment, f"few{scope}", user_id=ada.user.id, role=ada.user.role, scopes=[scope]
        )
        key_client = GraphQLClient(http, ada.environment, ada.user, secret)
        answer = await key_client.execute("query ($id: ID!) { node(id: $id) { id } }", id=item_id)
        assert bool(answer["data"]["node"]) is can_read
        status = await http.get(
            f"/rest/quarantine/{item_id}/message.eml", headers=key_client.headers
        )
        assert (status.status_code == 200) is can_read


async def test_administrators_see_quarantine_of_managed_accounts(
    ada: GraphQLClient,
    root: GraphQLClient,
    admin_client: GraphQLClient,
    http: httpx.AsyncClient,
    environment: Environment,
) -> None:
    domain_admin = await make_domain_admin(environment, http, "chief", [AdminPermission.QUARANTINE])
    admin_without_permission = await make_domain_admin(environment, http, "bare")
    item_id = await quarantine_message(ada, make_mixed_message())
    await quarantine_message(admin_without_permission, "Own")
    # not the item of the other administrator of the domain
    assert await list_quarantined_subjects(domain_admin) == ["Mixed"]
    assert await list_quarantined_subjects(domain_admin, users={"usernames": ["bare"]}) == []
    assert await list_quarantined_subjects(domain_admin, users={"usernames": ["ada"]}) == ["Mixed"]
    assert (
        await list_quarantined_subjects(admin_client),
        await list_quarantined_subjects(root),
    ) == (["Own", "Mixed"], ["Own", "Mixed"])
    assert await list_quarantined_subjects(
        admin_client, users={"domains": [{"name": "example.org"}]}
    ) == [
        "Own",
        "Mixed",
    ]
    assert await list_quarantined_subjects(admin_without_permission) == ["Own"]
    assert await admin_without_permission(QUARANTINE_ITEM_QUERY, id=item_id) == {"node": None}
    for document in (QUARANTINE_RELEASE, QUARANTINE_DELETE):
        _, errors = await run_mutation(
            admin_without_permission, document, quarantineItems=[{"id": item_id}]
        )
        assert error_summary(errors)[:3] == ("NOT_FOUND", ["quarantineItems"], 0)
    _, errors = await run_mutation(
        admin_without_permission,
        USER_UPDATE,
        users={"usernames": ["ada"]},
        set={"quarantineNotification": "NEVER"},
    )
    assert error_summary(errors)[::3] == ("FORBIDDEN", "QUARANTINE")
    settings_key = await make_api_key(
        environment,
        "few",
        user_id=domain_admin.user.id,
        role=domain_admin.user.role,
        scopes=[Scope.SETTINGS],
    )
    for document in (QUARANTINE_RELEASE_ERRORS, QUARANTINE_DELETE):
        _, errors = await run_mutation(
            GraphQLClient(http, environment, domain_admin.user, settings_key),
            document,
            quarantineItems=[{"id": item_id}],
        )
        assert error_summary(errors)[::3] == ("FORBIDDEN", "FULL")
    assert await list_quarantined_subjects(ada) == ["Mixed"]


async def test_reading_item_of_another_user_is_in_their_security_log(
    ada: GraphQLClient, root: GraphQLClient, http: httpx.AsyncClient, environment: Environment
) -> None:
    domain_admin = await make_domain_admin(environment, http, "chief", [AdminPermission.QUARANTINE])
    item_id = await quarantine_message(ada, make_mixed_message())
    await list_quarantined_subjects(domain_admin)
    log = "{ viewer { user { securityLog { nodes { action } } } } }"

    async def logged_reads() -> list[str]:
        nodes = (await ada(log))["viewer"]["user"]["securityLog"]["nodes"]
        return [node["action"] for node in nodes if node["action"] == "MESSAGES_READ"]

    assert await logged_reads() == []
    item = (await domain_admin(QUARANTINE_CONTENTS_QUERY, id=item_id))["node"]
    assert item["text"] == "Look at this."
    assert len(await logged_reads()) == 1
    for client in (domain_admin, root):
        url = (await client("query ($id: ID!) { node(id: $id) { ... on QuarantineItem { sourceUrl"
                            " } } }", id=item_id))["node"]["sourceUrl"]  # fmt: skip
        assert (await http.get(url)).status_code == 200
    count = "{ viewer { user { securityLog { nodes { action count } } } } }"
    nodes = (await ada(count))["viewer"]["user"]["securityLog"]["nodes"]
    assert sum(node["count"] for node in nodes if node["action"] == "MESSAGES_READ") == 3
