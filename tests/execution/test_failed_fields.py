"""A field that fails is null, and the other fields of the request have their values."""

import pytest

from tests.conftest import GraphQLClient
from tests.support.case_loop import each_case

pytestmark = pytest.mark.usefixtures("each_executor")


async def test_invalid_argument_leaves_siblings(ada: GraphQLClient) -> None:
    cases: list[str] = [
        "messages(first: 999) { totalCount }",
        'messages(after: "x") { totalCount }',
        'message(by: {id: "box_AAAAAAAAAAE"}) { id }',
        'user(by: {id: "usr_x"}) { id }',
        'mailbox(by: {id: "box_!"}) { id }',
        'changes(after: "1.7.1") { hasMore }',
    ]
    for case in each_case(cases):
        with case as field:
            document = f"{{ viewer {{ user {{ username }} }} failed: {field} }}"
            await ada.execute(document)
            # a plan is made when a document is seen for the second time
            answer = await ada.execute(document)
            assert answer["data"] == {"viewer": {"user": {"username": "ada"}}, "failed": None}
            assert [error["path"] for error in answer["errors"]] == [["failed"]]


async def test_malformed_id_is_a_single_null_in_nodes(ada: GraphQLClient) -> None:
    mailboxes = (await ada("{ viewer { user { mailboxes { nodes { id } } } } }"))["viewer"]["user"]
    mailbox_id = mailboxes["mailboxes"]["nodes"][0]["id"]
    document = "query ($ids: [ID!]!) { nodes(ids: $ids) { id } viewer { role } }"
    global_ids = ["set_x", mailbox_id, "nonsense", mailbox_id]
    await ada.execute(document, ids=global_ids)
    answer = await ada.execute(document, ids=global_ids)
    assert answer["data"] == {
        "nodes": [None, {"id": mailbox_id}, None, {"id": mailbox_id}],
        "viewer": {"role": "USER"},
    }
    assert [(error["path"], error["extensions"]["code"]) for error in answer["errors"]] == [
        (["nodes", 0], "BAD_ID"),
        (["nodes", 2], "BAD_ID"),
    ]
