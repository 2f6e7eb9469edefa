"""Sample calls of mutations of users, legal holds, autoreplies, limits and addresses."""

from graph.types import global_ids
from models.users.roles import Role
from tests.conftest import GraphQLClient, deliver_to, make_client
from tests.support.sample_mutations.mailbox_and_message_mutations import message_send
from tests.support.sample_mutations.mutation_call import MutationCall, register_call


@register_call
async def legal_hold_create(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {
        "user": _user_ref(ada),
        "expiresAt": "2031-01-01T00:00:00Z",
        "reason": "as ordered",
    }
    return MutationCall(
        "legalHoldCreate", input_fields, "legalHold { username messageCount }", by_root=True
    )


@register_call
async def legal_hold_end(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    create = await legal_hold_create(ada, root)
    payload = await MutationCall(create.name, create.input, "legalHold { id }")(root)
    input_fields = {"legalHolds": [{"id": payload["legalHold"]["id"]}]}
    return MutationCall("legalHoldEnd", input_fields, "deletedIds", journaled=False, by_root=True)


@register_call
async def autoreply_set(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"set": {"enabled": True, "text": "I am away."}}
    return MutationCall(
        "autoreplySet", input_fields, "autoreplies { enabled text } users { username }"
    )


@register_call
async def autoreply_delete(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    assert (await (await autoreply_set(ada, root))(ada))["errors"] == []
    input_fields = {"users": {"ids": [_user_ref(ada)["id"]]}}
    return MutationCall("autoreplyDelete", input_fields, "users { username }")


@register_call
async def user_sync_reset(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall("userSyncReset", {}, "users { username }", nudges_clients=True)


@register_call
async def quota_recalculate(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"users": {"ids": [_user_ref(ada)["id"]]}}
    payload = "quotaResults { storageUsed }"  # the stored numbers are correct
    return MutationCall("quotaRecalculate", input_fields, payload, journaled=False, by_root=True)


@register_call
async def user_password_reset(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall("userPasswordReset", {"user": _user_ref(ada)}, by_root=True)


@register_call
async def rate_limit_reset(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    assert (await (await rate_limit_set(ada, root))(root))["errors"] == []
    assert (await (await message_send(ada, root))(ada))["errors"] == []
    input_fields = {"users": {"ids": [_user_ref(ada)["id"]]}}
    return MutationCall("rateLimitReset", input_fields, "rateLimits { used }", by_root=True)


@register_call
async def rate_limit_set(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {
        "users": {"ids": [_user_ref(ada)["id"]]},
        "rateLimit": {"messages": 100, "per": "DAY"},
    }
    return MutationCall("rateLimitSet", input_fields, "rateLimits { messages per }", by_root=True)


@register_call
async def user_usage_reset(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await deliver_to(ada, "Hello")
    assert (await (await message_send(ada, root))(ada))["errors"] == []
    input_fields = {"users": {"ids": [_user_ref(ada)["id"]]}}
    payload = "users { limits { recipientsPerDay { used } receivedPerHour { used } } }"
    return MutationCall("userUsageReset", input_fields, payload, by_root=True)


@register_call
async def user_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"address": "eve@example.org", "password": "correct horse"}
    return MutationCall("userCreate", input_fields, "user { username }", by_root=True)


@register_call
async def users_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    users = [{"address": f"n{nth}@example.org", "passwordDisabled": True} for nth in range(2)]
    payload = "userCount users { username }"
    return MutationCall("usersCreate", {"users": users}, payload, by_root=True)


@register_call
async def users_create_from_file(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    administrator = await make_client(ada.environment, ada.http, "filer", role=Role.ADMIN)
    content = b"address,passwordDisabled\nn@example.org,true\n"
    response = await ada.http.post("/rest/uploads", content=content, headers=administrator.headers)
    input_fields = {"file": response.json()["id"]}
    return MutationCall(
        "usersCreateFromFile", input_fields, "task { kind state }", other_caller=administrator
    )


@register_call
async def user_delete(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"users": {"ids": [_user_ref(ada)["id"]]}, "purgeAt": "2031-01-01T00:00:00Z"}
    return MutationCall("userDelete", input_fields, "deletedIds", by_root=True)


@register_call
async def user_purge(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    return MutationCall(
        "userPurge", {"users": {"ids": [_user_ref(ada)["id"]]}}, "purgedIds", by_root=True
    )


@register_call
async def user_restore(ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    assert (await (await user_delete(ada, root))(root))["errors"] == []
    input_fields = {"user": {"username": "ada"}}
    return MutationCall(
        "userRestore", input_fields, "user { username } recoveredAddresses", by_root=True
    )


@register_call
async def user_permissions_set(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"users": {"ids": [_user_ref(ada)["id"]]}, "permissions": ["APP_PASSWORDS"]}
    return MutationCall("userPermissionsSet", input_fields, "users { permissions }", by_root=True)


@register_call
async def user_role_set(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    role_fields = {"role": "DOMAIN_ADMIN", "administers": [{"name": "example.org"}]}
    input_fields = {"users": {"ids": [_user_ref(ada)["id"]]}, **role_fields}
    return MutationCall(
        "userRoleSet", input_fields, "users { role administers { nodes { name } } }", by_root=True
    )


@register_call
async def user_update(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    changes = {"name": "Ada L.", "metadata": {"born": 1815}, "language": "en"}
    return MutationCall("userUpdate", {"set": changes}, "users { username name }")


def _user_ref(client: GraphQLClient) -> dict[str, str]:
    return {"id": global_ids.encode("User", client.user.id)}


@register_call
async def address_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"address": "Sales.Team@example.org", "user": {"username": "ada"}, "main": True}
    return MutationCall("addressCreate", input_fields, "address { address main }", by_root=True)


@register_call
async def addresses_create(_ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    user = {"username": "ada"}
    addresses = [{"address": f"alias{nth}@example.org", "user": user} for nth in range(2)]
    return MutationCall(
        "addressesCreate", {"addresses": addresses}, "addresses { address main }", by_root=True
    )


@register_call
async def addresses_create_from_file(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    administrator = await make_client(ada.environment, ada.http, "filer", role=Role.ADMIN)
    content = b"address,user\nalias@example.org,ada\n"
    response = await ada.http.post("/rest/uploads", content=content, headers=administrator.headers)
    input_fields = {"file": response.json()["id"]}
    return MutationCall(
        "addressesCreateFromFile", input_fields, "task { kind state }", other_caller=administrator
    )


@register_call
async def temporary_address_create(ada: GraphQLClient, _root: GraphQLClient) -> MutationCall:
    input_fields = {"user": _user_ref(ada), "validity": "P30D", "forSite": "shop.example"}
    payload = "address { forSite expiresAt }"
    return MutationCall("temporaryAddressCreate", input_fields, payload)


@register_call
async def address_update(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    await _create_forwarding_address(root)
    changes = {"active": False, "forwardTo": ["smtps://u:secret@relay.example:465"]}
    input_fields = {"addresses": [{"address": "list@example.org"}], "set": changes}
    return MutationCall(
        "addressUpdate", input_fields, "addresses { active forwardTo }", by_root=True
    )


@register_call
async def address_delete(_ada: GraphQLClient, root: GraphQLClient) -> MutationCall:
    input_fields = {"addresses": [{"id": await _create_forwarding_address(root)}]}
    return MutationCall("addressDelete", input_fields, "deletedIds", by_root=True)


async def _create_forwarding_address(root: GraphQLClient) -> str:
    input_fields = {"address": "list@example.org", "forwardTo": ["carol@far.example"]}
    payload = await MutationCall("addressCreate", input_fields, "address { id }")(root)
    assert payload["errors"] == []
    return str(payload["address"]["id"])
