"""Shares that an administrator makes for a user are logged, and end with the maker's rights."""

import httpx
import pytest

from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from tests.conftest import GraphQLClient, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.lost_rights import (
    LOSSES,
    count_notices,
    load_audit_log_mutations,
    load_security_actions,
    lose_rights,
)
from tests.support.accounts.shared_mailboxes import (
    create_team_mailbox,
    run_mailbox_mutation,
    share_mailbox,
)
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

IMPERSONATE = [AdminPermission.IMPERSONATE]
OWN_RIGHTS = ("ADMIN", "READ", "WRITE", "CREATE")


@pytest.fixture
async def keeper(environment: Environment, http: httpx.AsyncClient) -> GraphQLClient:
    """A domain administrator, to whom ada gives the right to share a mailbox."""
    return await make_domain_admin(environment, http, "keeper", IMPERSONATE)


async def load_grantees(environment: Environment) -> list[str]:
    query = """SELECT username FROM mailbox_shares s JOIN users u ON u.id = s.user_id
      ORDER BY username"""
    return [username for (username,) in await select_rows(environment, query)]


async def share_by_administrator(
    ada: GraphQLClient, keeper: GraphQLClient, bob: GraphQLClient, *rights: str
) -> str:
    """Let the administrator share ada's mailbox with bob, and return the mailbox's id."""
    mailbox_id = await create_team_mailbox(ada)
    assert await share_mailbox(ada, keeper, *OWN_RIGHTS) == []
    assert await share_mailbox(keeper, bob, *rights, id=mailbox_id) == []
    return mailbox_id


@pytest.mark.parametrize("loss", LOSSES)
async def test_share_ends_when_its_maker_loses_its_rights(
    ada: GraphQLClient,
    bob: GraphQLClient,
    keeper: GraphQLClient,
    root: GraphQLClient,
    loss: str,
) -> None:
    environment = ada.environment
    await share_by_administrator(ada, keeper, bob, "READ")
    assert await load_grantees(environment) == ["bob", "keeper"]
    last, bobs_last = [
        await load_stream_position(environment, client.user.id) for client in (ada, bob)
    ]
    await lose_rights(root, keeper, loss)
    assert await load_grantees(environment) == ([] if loss == "deleted" else ["keeper"])
    assert (await load_audit_log_mutations(environment)).count("mailboxShareSet") == 2
    actions = await load_security_actions(environment, ada)
    assert actions[-2:] == ["MAILBOX_SHARE_SET", "MAILBOX_SHARE_DELETED"]
    kinds = [kind for kind, _ in await load_journal_entries(environment, ada.user.id, last)]
    assert EventType.MAILBOX_UPDATED in kinds
    kinds = [kind for kind, _ in await load_journal_entries(environment, bob.user.id, bobs_last)]
    assert EventType.MAILBOX_DELETED in kinds


async def test_share_by_administrator_is_reported_to_the_owner(
    ada: GraphQLClient, bob: GraphQLClient, keeper: GraphQLClient, environment: Environment
) -> None:
    await share_by_administrator(ada, keeper, bob, "READ")
    assert await load_security_actions(environment, ada) == ["MAILBOX_SHARE_SET"]
    assert await count_notices(environment, ada) == 1
    assert (await load_audit_log_mutations(environment)).count("mailboxShareSet") == 1


async def test_share_by_user_with_right_admin_is_not_of_an_administrator(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment, http: httpx.AsyncClient
) -> None:
    delegate = await make_domain_admin(environment, http, "delegate")  # without IMPERSONATE
    await share_by_administrator(ada, delegate, bob, "READ")
    assert await select_rows(environment, "SELECT made_by FROM mailbox_shares") == [(None,)] * 2
    assert await load_security_actions(environment, ada) == []


async def test_owner_takes_over_share_of_administrator(
    ada: GraphQLClient,
    bob: GraphQLClient,
    keeper: GraphQLClient,
    root: GraphQLClient,
    environment: Environment,
) -> None:
    await share_by_administrator(ada, keeper, bob, "READ")
    assert await share_mailbox(ada, bob, "READ") == []
    await lose_rights(root, keeper, "role")
    assert await load_grantees(environment) == ["bob", "keeper"]


async def test_administrator_who_only_removes_rights_does_not_take_over(
    ada: GraphQLClient,
    bob: GraphQLClient,
    keeper: GraphQLClient,
    root: GraphQLClient,
    environment: Environment,
) -> None:
    mailbox_id = await create_team_mailbox(ada)
    assert await share_mailbox(ada, keeper, *OWN_RIGHTS) == []
    assert await share_mailbox(ada, bob, "READ", "WRITE") == []
    assert await share_mailbox(keeper, bob, "READ", id=mailbox_id) == []
    await lose_rights(root, keeper, "role")
    assert await load_grantees(environment) == ["bob", "keeper"]


async def test_share_given_on_by_a_grantee_ends_with_the_share_of_the_administrator(
    ada: GraphQLClient,
    bob: GraphQLClient,
    keeper: GraphQLClient,
    root: GraphQLClient,
    environment: Environment,
) -> None:
    mailbox_id = await share_by_administrator(ada, keeper, bob, "ADMIN", "READ")
    carol = await make_client(environment, ada.http, "carol")
    assert await share_mailbox(bob, carol, "READ", id=mailbox_id) == []
    assert await load_grantees(environment) == ["bob", "carol", "keeper"]
    await lose_rights(root, keeper, "role")
    assert await load_grantees(environment) == ["keeper"]


async def test_share_of_child_mailbox_has_the_maker_of_the_parents_share(
    ada: GraphQLClient,
    bob: GraphQLClient,
    keeper: GraphQLClient,
    root: GraphQLClient,
    environment: Environment,
) -> None:
    await share_by_administrator(ada, keeper, bob, "READ")
    parent = {"id": await parent_id(ada)}
    payload = await run_mailbox_mutation(keeper, "mailboxCreate", paths=["Sub"], parent=parent)
    assert payload["errors"] == []
    assert await load_grantees(environment) == ["bob", "bob", "keeper", "keeper"]
    await lose_rights(root, keeper, "role")
    assert await load_grantees(environment) == ["keeper", "keeper"]


async def parent_id(owner: GraphQLClient) -> str:
    document = '{ mailbox(by: {path: "Team"}) { id } }'
    return str((await owner(document))["mailbox"]["id"])
