"""Test access of administrators to submissions of the users that they manage."""

from typing import Any

import httpx
import pytest

from graph.types import global_ids
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from tests.conftest import GraphQLClient, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.shared_mailboxes import share_mailbox
from tests.support.accounts.user_operations import execute_mutation, user_global_id

SUBMISSION_FIELDS = "id queueId state envelopeFrom recipients { recipient state }"
USER_SUBMISSIONS_QUERY = f"""query ($by: UserRef!) {{ user(by: $by) {{ id submissions {{
  totalCount nodes {{ {SUBMISSION_FIELDS} }} }} }} }}"""
ALL_SUBMISSIONS_QUERY = "{ users { nodes { id submissions { nodes { id } } } } }"
NODE_QUERY = (
    f"query ($id: ID!) {{ node(id: $id) {{ ... on Submission {{ {SUBMISSION_FIELDS} }} }} }}"
)

MAILBOX_SUBMISSIONS_QUERY = """query ($mailbox: MailboxRef!, $count: Int!) {
  mailbox(by: $mailbox) { messages(first: $count) { nodes {
    id submissions { id queueId state recipients { recipient } } } } } }"""


async def send_message(client: GraphQLClient) -> dict[str, Any]:
    fields = {"to": [{"address": "carol@example.net"}], "subject": "Secret", "text": "Hi."}
    answer = await execute_mutation(
        client, "messageSend", f"submissions {{ {SUBMISSION_FIELDS} }}", **fields
    )
    submission: dict[str, Any] = answer["submissions"][0]
    return submission


async def test_admin_sees_submissions_of_managed_users(
    ada: GraphQLClient,
    root: GraphQLClient,
    admin_client: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    submission = await send_message(ada)
    assert submission["recipients"] == [{"recipient": "carol@example.net", "state": "PENDING"}]
    domain_admin = await make_domain_admin(
        environment, http, "keeper", [AdminPermission.IMPERSONATE]
    )
    for client in (ada, root, admin_client, domain_admin):
        answer = await client(USER_SUBMISSIONS_QUERY, by={"id": user_global_id(ada)})
        assert answer["user"]["submissions"] == {"totalCount": 1, "nodes": [submission]}
        assert (await client(NODE_QUERY, id=submission["id"]))["node"] == submission


@pytest.mark.parametrize("field", ["submissions { nodes { id } }", "exports { nodes { id } }"])
async def test_forbidden_list_of_user_is_an_error(
    field: str,
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    submission = await send_message(ada)
    root_user = await make_client(environment, http, "top", role=Role.ROOT)
    without_permission = await make_domain_admin(environment, http, "bare")
    document = f"query ($by: UserRef!) {{ user(by: $by) {{ {field} }} }}"
    for client, owner in ((without_permission, ada), (admin_client, root_user)):
        (error,) = (await client.execute(document, by={"id": user_global_id(owner)}))["errors"]
        path = ["user", field.partition(" ")[0]]
        assert (error["extensions"]["code"], error["path"]) == ("FORBIDDEN", path)
    assert (await without_permission(NODE_QUERY, id=submission["id"]))["node"] is None


async def test_domain_admin_sees_no_submissions_of_other_domain(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, http: httpx.AsyncClient
) -> None:
    submission = await send_message(ada)
    await execute_mutation(root, "domainCreate", "domain { id }", name="example.net")
    other_domain_admin = await make_domain_admin(
        environment, http, "away", [AdminPermission.IMPERSONATE], domains=["example.net"]
    )
    assert (await other_domain_admin(USER_SUBMISSIONS_QUERY, by={"id": user_global_id(ada)}))[
        "user"
    ] is None
    assert (await other_domain_admin(NODE_QUERY, id=submission["id"]))["node"] is None
    users = (await other_domain_admin(ALL_SUBMISSIONS_QUERY))["users"]["nodes"]
    assert user_global_id(ada) not in {node["id"] for node in users}


async def test_submission_of_another_user_is_hidden(ada: GraphQLClient, bob: GraphQLClient) -> None:
    submission = await send_message(ada)
    assert (await bob(USER_SUBMISSIONS_QUERY, by={"id": user_global_id(ada)}))["user"] is None
    assert (await bob(NODE_QUERY, id=submission["id"]))["node"] is None


async def load_sent_messages(client: GraphQLClient, mailbox: Any, count: int) -> Any:
    answer = await client(MAILBOX_SUBMISSIONS_QUERY, mailbox=mailbox, count=count)
    return answer["mailbox"]["messages"]["nodes"]


async def test_message_submissions_need_constant_statements(
    ada: GraphQLClient, statements: list[str]
) -> None:
    for _ in range(20):
        await send_message(ada)
    await load_sent_messages(ada, {"path": "Sent"}, 1)  # fills the caches of the account
    statement_counts = set()
    for count in (1, 20):
        del statements[:]
        messages = await load_sent_messages(ada, {"path": "Sent"}, count)
        statement_counts.add(len(statements))
        assert [len(message["submissions"]) for message in messages] == [1] * count
    assert len(statement_counts) == 1
    (submission,) = messages[0]["submissions"]
    assert submission["recipients"] == [{"recipient": "carol@example.net"}]


async def test_message_submissions_are_hidden_from_users_of_a_shared_mailbox(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await send_message(ada)
    assert await share_mailbox(ada, bob, "READ", path="Sent") == []
    mailbox = {"id": global_ids.encode("Mailbox", (await ada.load_mailbox("Sent")).id)}
    (own_message,) = await load_sent_messages(ada, mailbox, 1)
    (shared_message,) = await load_sent_messages(bob, mailbox, 1)
    assert len(own_message["submissions"]) == 1
    assert shared_message == {"id": own_message["id"], "submissions": []}


MESSAGE_SUBMISSIONS_QUERY = """query ($by: MessageRef!) {
  message(by: $by) { submissions { queueId } } }"""


async def test_admin_sees_submissions_of_message(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, admin_client: GraphQLClient
) -> None:
    fields = {"to": [{"address": "carol@example.net"}], "subject": "Secret", "text": "Hi."}
    answer = await execute_mutation(
        ada, "messageSend", "messages { id } submissions { queueId }", **fields
    )
    by, submissions = {"id": answer["messages"][0]["id"]}, answer["submissions"]
    for client in (ada, root, admin_client):
        message = (await client(MESSAGE_SUBMISSIONS_QUERY, by=by))["message"]
        assert message["submissions"] == submissions
    assert (await bob(MESSAGE_SUBMISSIONS_QUERY, by=by))["message"] is None
