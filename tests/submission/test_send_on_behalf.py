"""Test what an administrator who sends for a user sees of the submission."""

from typing import Any

import httpx
import pytest

from models.runtime.environment import Environment
from models.users.roles import AdminPermission
from models.users.tables import User
from resolvers.auth import authentication
from tests.conftest import GraphQLClient
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import execute_mutation
from tests.support.operations.bulk_operations import undo_mutation
from tests.support.operations.domain_operations import create_domain, make_domain_user
from tests.support.stores.counter_check import select_rows

CAROL, DAVE = "carol@example.net", "dave@example.net"
SUBMISSION_FIELDS = "{ id queueId recipients { recipient state } }"
ADA = {"username": "ada"}
pytestmark = pytest.mark.usefixtures("verify_consistency", "ada")


async def send_message(client: GraphQLClient, **fields: Any) -> Any:
    recipients = {} if "mailMerge" in fields else {"to": [{"address": CAROL}, {"address": DAVE}]}
    return await execute_mutation(
        client,
        "messageSend",
        f"submissions {SUBMISSION_FIELDS}",
        subject="Hi",
        text="x",
        **recipients,
        **fields,
    )


async def load_submission(client: GraphQLClient, answer: Any) -> list[Any]:
    """Load the submission as a client sees it, by ID and by queue ID."""
    document = "query ($by: SubmissionRef!) { submission(by: $by) { recipients { recipient } } }"
    references = [{name: answer["submissions"][0][name]} for name in ("id", "queueId")]
    return [(await client(document, by=reference))["submission"] for reference in references]


async def test_send_on_behalf_returns_recipients(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, http: httpx.AsyncClient
) -> None:
    domain_admin = await make_domain_admin(environment, http, "dora", [AdminPermission.IMPERSONATE])
    recipients = [{"recipient": CAROL}, {"recipient": DAVE}]
    for client in (root, domain_admin):
        answer = await send_message(client, user=ADA)
        assert answer["errors"] == []
        (submission,) = answer["submissions"]
        assert submission["recipients"] == [
            {**recipient, "state": "PENDING"} for recipient in recipients
        ]
        assert await load_submission(client, answer) == [None, None]
        assert await load_submission(ada, answer) == [{"recipients": recipients}] * 2


async def test_merge_on_behalf_returns_recipients_of_each_message(root: GraphQLClient) -> None:
    merge = [{"to": [{"address": DAVE}]}, {"to": [{"address": CAROL}]}]
    answer = await send_message(root, user=ADA, mailMerge=merge)
    assert answer["errors"] == []
    recipients = [submission["recipients"] for submission in answer["submissions"]]
    assert recipients == [
        [{"recipient": DAVE, "state": "PENDING"}], [{"recipient": CAROL, "state": "PENDING"}],
    ]  # fmt: skip


async def test_submit_on_behalf_returns_recipients(ada: GraphQLClient, root: GraphQLClient) -> None:
    document = """mutation ($input: DraftSaveInput!) { draftSave(input: $input) {
        message { id } errors { code } } }"""
    arguments = {"set": {"text": "x", "to": [{"address": CAROL}]}}
    draft_id = (await ada(document, input=arguments))["draftSave"]["message"]["id"]
    draft = {"id": draft_id}
    answer = await execute_mutation(
        root, "draftSend", f"submissions {SUBMISSION_FIELDS}", message=draft
    )
    assert answer["errors"] == []
    (submission,) = answer["submissions"]
    assert [recipient["recipient"] for recipient in submission["recipients"]] == [CAROL]


async def test_send_on_behalf_needs_permission(
    bob: GraphQLClient, root: GraphQLClient, environment: Environment, http: httpx.AsyncClient
) -> None:
    await create_domain(root, "else.example")
    await make_domain_user(environment, "eve@else.example")
    other_domain_admin = await make_domain_admin(
        environment, http, "dan", [AdminPermission.IMPERSONATE], domains=["else.example"]
    )
    without_permission = await make_domain_admin(environment, http, "dot")
    for client in (bob, other_domain_admin, without_permission):
        refused = await send_message(client, user=ADA)
        assert refused["submissions"] == []
        assert [error["code"] for error in refused["errors"]] in (
            ["NOT_FOUND"], ["FORBIDDEN"],
        )  # fmt: skip
    answer = await send_message(root, user=ADA)
    for client in (bob, other_domain_admin, without_permission, root):
        assert await load_submission(client, answer) == [None, None]


UNDO_FIELDS = "undo { token } messages { id } submissions { id state }"


async def load_sent_messages(client: GraphQLClient) -> Any:
    document = """{ viewer { user { messages { nodes { id subject draft mailbox { path } } }
        submissions { nodes { state } } } } }"""
    user = (await client(document))["viewer"]["user"]
    return user["messages"]["nodes"], [row["state"] for row in user["submissions"]["nodes"]]


@pytest.mark.parametrize("is_draft", [False, True])
async def test_administrator_undoes_what_it_sent_for_a_user(
    ada: GraphQLClient,
    bob: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
    is_draft: bool,
) -> None:
    domain_admin = await make_domain_admin(environment, http, "dora", [AdminPermission.IMPERSONATE])
    content: dict[str, Any] = {"to": [{"address": CAROL}], "subject": "Hi", "text": "x"}
    if is_draft:
        draft = await execute_mutation(ada, "draftSave", "message { id }", set=content)
        content = {"message": {"id": draft["message"]["id"]}}
    else:
        content["user"] = ADA
    mutation = "draftSend" if is_draft else "messageSend"
    sent = await execute_mutation(
        domain_admin, mutation, UNDO_FIELDS, undoWindow="PT30S", **content
    )
    assert sent["errors"] == []
    for client in (ada, bob):
        undone = await undo_mutation(client, sent)
        assert [error["code"] for error in undone["errors"]] == ["NOT_FOUND"]
    undone = await undo_mutation(domain_admin, sent)
    assert (undone["errors"], undone["restoredCount"]) == ([], 1)
    ((message,), states) = await load_sent_messages(ada)
    assert (message["draft"], message["mailbox"], states) == (
        True, {"path": "Drafts"}, ["CANCELLED"],
    )  # fmt: skip
    mutations = await select_rows(environment, "SELECT mutation FROM audit_log")
    assert ("undo",) in mutations


async def test_undo_of_send_for_a_user_needs_the_permission_again(
    ada: GraphQLClient, environment: Environment, http: httpx.AsyncClient
) -> None:
    domain_admin = await make_domain_admin(environment, http, "dora", [AdminPermission.IMPERSONATE])
    content: dict[str, Any] = {"to": [{"address": CAROL}], "subject": "Hi", "text": "x"}
    sent = await execute_mutation(
        domain_admin, "messageSend", UNDO_FIELDS, user=ADA, undoWindow="PT30S", **content
    )
    async with environment.write_session(domain_admin.user.id) as session:
        (await session.get_one(User, domain_admin.user.id)).admin_permissions = []
    authentication.drop_cached_credentials(environment, domain_admin.user.id)
    undone = await undo_mutation(domain_admin, sent)
    assert [error["code"] for error in undone["errors"]] == ["FORBIDDEN"]
    assert (await load_sent_messages(ada))[1] == ["UNDOABLE"]
