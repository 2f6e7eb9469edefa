"""Mutations that delete and restore users, and what deleted users have."""

from typing import Any

import pytest

from graph.types import global_ids
from mail.recipients import address_resolution
from models.errors import AuthenticationFailed, NotFound
from models.runtime.environment import Environment
from resolvers.auth import authentication
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient

USER_DELETE = """
mutation ($input: UserDeleteInput!) { userDelete(input: $input) {
  deletedIds tasks { id state totalCount doneCount }
  errors { code path message ... on ForbiddenError { requires } } } }
"""
USER_RESTORE = """
mutation ($input: UserRestoreInput!) { userRestore(input: $input) {
  user { id username active address { address } domain { name userCount } }
  recoveredAddresses lostAddresses
  errors { code path message ... on LimitReachedError { limit used } } } }
"""
DELETED_USER_QUERY = """
query ($by: UserRef!) { deletedUser(by: $by) {
  userId username storageUsed tags deletedAt purgeAt recoverableAddresses
  recoverableAddressCount } }
"""
LATER = "2030-02-01T00:00:00Z"
PASSWORD = "correct horse"  # noqa: S105 - a password of tests


async def delete_users(client: GraphQLClient, user: Any, **extra: Any) -> tuple[Any, list[Any]]:
    selection = user if isinstance(user, dict) else {"ids": [global_ids.encode("User", user)]}
    payload = (await client(USER_DELETE, input={"users": selection, **extra}))["userDelete"]
    return payload, payload["errors"]


async def restore_user(client: GraphQLClient, **by: Any) -> tuple[Any, list[Any]]:
    payload = (await client(USER_RESTORE, input={"user": by}))["userRestore"]
    return payload, payload["errors"]


async def load_deleted_user(client: GraphQLClient, **by: Any) -> Any:
    return (await client(DELETED_USER_QUERY, by=by))["deletedUser"]


async def assert_user_is_unknown(
    environment: Environment, root: GraphQLClient, user_id: int, name: str
) -> None:
    """Check that no query, list, delivery or sign-in finds this user."""
    document = "query ($by: UserRef!) { user(by: $by) { id } }"
    global_id = global_ids.encode("User", user_id)
    for user_ref in ({"id": global_id}, {"username": name}, {"address": f"{name}@example.org"}):
        assert await root(document, by=user_ref) == {"user": None}
    assert await root("query ($id: ID!) { node(id: $id) { id } }", id=global_id) == {"node": None}
    user_list = await root("{ users(first: 250) { nodes { id } totalCount } }")
    assert global_id not in [node["id"] for node in user_list["users"]["nodes"]]
    assert user_list["users"]["totalCount"] == len(user_list["users"]["nodes"])
    with pytest.raises(NotFound):
        await address_resolution.load_recipient_below_limits(environment, f"{name}@example.org")
    with pytest.raises(AuthenticationFailed):
        await authentication.authenticate_user_by_password(
            Context(environment, Viewer()), name, PASSWORD
        )
