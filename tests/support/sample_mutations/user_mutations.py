"""Calls about accounts, and what their administrators do to them."""

from graph.types import global_ids
from models.users.roles import Role
from tests.conftest import Client, make_client, receive
from tests.support.sample_mutations.mailbox_and_message_mutations import message_send
from tests.support.sample_mutations.mutation_call import Call, call


@call
async def audit_create(ada: Client, _root: Client) -> Call:
    given = {"user": _ref(ada), "expires": "2031-01-01T00:00:00Z", "reason": "as ordered"}
    return Call("auditCreate", given, "audit { username messageCount }", by_root=True)


@call
async def audit_delete(ada: Client, root: Client) -> Call:
    create = await audit_create(ada, root)
    made = await Call(create.name, create.input, "audit { id }")(root)
    given = {"ids": [made["audit"]["id"]]}
    return Call("auditDelete", given, "deletedIds", journaled=False, by_root=True)


@call
async def autoreply_set(_ada: Client, _root: Client) -> Call:
    given = {"set": {"enabled": True, "text": "I am away."}}
    return Call("autoreplySet", given, "autoreplies { enabled text } users { username }")


@call
async def autoreply_delete(ada: Client, root: Client) -> Call:
    assert (await (await autoreply_set(ada, root))(ada))["errors"] == []
    given = {"users": {"ids": [_ref(ada)["id"]]}}
    return Call("autoreplyDelete", given, "users { username }")


@call
async def client_state_reset(_ada: Client, _root: Client) -> Call:
    return Call("clientStateReset", {}, "users { username }", nudges=True)


@call
async def quota_recalculate(ada: Client, _root: Client) -> Call:
    given = {"users": {"ids": [_ref(ada)["id"]]}}
    payload = "results { storageUsed }"  # nothing of it has drifted
    return Call("quotaRecalculate", given, payload, journaled=False, by_root=True)


@call
async def password_reset(ada: Client, _root: Client) -> Call:
    return Call("passwordReset", {"user": _ref(ada)}, by_root=True)


@call
async def rate_limit_reset(ada: Client, root: Client) -> Call:
    assert (await (await rate_limit_set(ada, root))(root))["errors"] == []
    assert (await (await message_send(ada, root))(ada))["errors"] == []
    given = {"users": {"ids": [_ref(ada)["id"]]}}
    return Call("rateLimitReset", given, "rateLimits { used }", by_root=True)


@call
async def rate_limit_set(ada: Client, _root: Client) -> Call:
    given = {"users": {"ids": [_ref(ada)["id"]]}, "value": 100, "frame": "DAY"}
    return Call("rateLimitSet", given, "rateLimits { value frame }", by_root=True)


@call
async def spam_policy_set(_ada: Client, _root: Client) -> Call:
    return Call("spamPolicySet", {"junkScore": 5}, "users { username spam { junkScore } }")


@call
async def usage_reset(ada: Client, root: Client) -> Call:
    await receive(ada, "Hello")
    assert (await (await message_send(ada, root))(ada))["errors"] == []
    given = {"users": {"ids": [_ref(ada)["id"]]}}
    payload = "users { limits { recipients { used } received { used } } }"
    return Call("usageReset", given, payload, by_root=True)


@call
async def user_create(_ada: Client, _root: Client) -> Call:
    given = {"address": "eve@example.org", "password": "correct horse"}
    return Call("userCreate", given, "user { username }", by_root=True)


@call
async def users_create(_ada: Client, _root: Client) -> Call:
    users = [{"address": f"n{nth}@example.org", "passwordDisabled": True} for nth in range(2)]
    payload = "userCount users { username }"
    return Call("usersCreate", {"users": users}, payload, by_root=True)


@call
async def users_create_from_file(ada: Client, _root: Client) -> Call:
    boss = await make_client(ada.world, ada.http, "filer", role=Role.ADMIN)
    content = b"address,passwordDisabled\nn@example.org,true\n"
    sent = await ada.http.post("/rest/uploads", content=content, headers=boss.headers)
    given = {"file": sent.json()["id"]}
    return Call("usersCreateFromFile", given, "task { kind state }", by=boss)


@call
async def user_delete(ada: Client, _root: Client) -> Call:
    given = {"users": {"ids": [_ref(ada)["id"]]}, "deleteAfter": "2031-01-01T00:00:00Z"}
    return Call("userDelete", given, "deletedIds", by_root=True)


@call
async def user_purge(ada: Client, _root: Client) -> Call:
    return Call("userPurge", {"users": {"ids": [_ref(ada)["id"]]}}, "purged", by_root=True)


@call
async def user_restore(ada: Client, root: Client) -> Call:
    assert (await (await user_delete(ada, root))(root))["errors"] == []
    given = {"by": {"username": "ada"}}
    return Call("userRestore", given, "user { username } recoveredAddresses", by_root=True)


@call
async def user_permissions_set(ada: Client, _root: Client) -> Call:
    given = {"users": {"ids": [_ref(ada)["id"]]}, "permissions": ["APP_PASSWDS"]}
    return Call("userPermissionsSet", given, "users { permissions }", by_root=True)


@call
async def user_role_set(ada: Client, _root: Client) -> Call:
    charge = {"role": "DOMAIN_ADMIN", "administers": [{"name": "example.org"}]}
    given = {"users": {"ids": [_ref(ada)["id"]]}, **charge}
    return Call("userRoleSet", given, "users { role administers { name } }", by_root=True)


@call
async def user_update(_ada: Client, _root: Client) -> Call:
    given = {"name": "Ada L.", "metaData": {"born": 1815}, "language": "en"}
    return Call("userUpdate", {"set": given}, "users { username name }")


def _ref(client: Client) -> dict[str, str]:
    return {"id": global_ids.encode("User", client.user.id)}


@call
async def address_create(_ada: Client, _root: Client) -> Call:
    given = {"address": "Sales.Team@example.org", "user": {"username": "ada"}, "main": True}
    return Call("addressCreate", given, "address { address main }", by_root=True)


@call
async def address_create_temporary(ada: Client, _root: Client) -> Call:
    given = {"user": _ref(ada), "validity": "P30D", "forDomain": "shop.example"}
    payload = "address { forDomain expiresAt }"
    return Call("addressCreateTemporary", given, payload)


@call
async def address_update(_ada: Client, root: Client) -> Call:
    await _list(root)
    changes = {"active": False, "targets": ["smtps://u:secret@relay.example:465"]}
    given = {"addresses": [{"address": "list@example.org"}], "set": changes}
    return Call("addressUpdate", given, "addresses { active targets }", by_root=True)


@call
async def address_delete(_ada: Client, root: Client) -> Call:
    given = {"ids": [await _list(root)]}
    return Call("addressDelete", given, "deletedIds", by_root=True)


async def _list(root: Client) -> str:
    given = {"address": "list@example.org", "targets": ["carol@far.example"]}
    made = await Call("addressCreate", given, "address { id }")(root)
    assert made["errors"] == []
    return str(made["address"]["id"])
