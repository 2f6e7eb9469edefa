"""Test that a page in an order of one mailbox is read by the index of the order."""

from typing import Any

import pytest
from sqlalchemy import text

from tests.conftest import GraphQLClient, deliver_to
from tests.support.accounts.large_account import copy_message
from tests.support.stores.query_plans import record_query_plans

PAGE = """query ($order: MessageOrder!, $first: Int, $after: String, $last: Int,
  $before: String) {
  viewer { user { mailbox(by: {path: "INBOX"}) { messages(orderBy: $order, first: $first,
    after: $after, last: $last, before: $before) {
    nodes { id subject } pageInfo { endCursor } } } } } }"""


async def load_page(client: GraphQLClient, **arguments: Any) -> Any:
    return (await client(PAGE, **arguments))["viewer"]["user"]["mailbox"]["messages"]


@pytest.mark.parametrize(
    ("order", "index"),
    [("DATE", "date"), ("FROM", "sender"), ("SIZE", "size"), ("SUBJECT", "subject")],
)
async def test_page_is_read_in_index_order(ada: GraphQLClient, order: str, index: str) -> None:
    await deliver_to(ada, "Hello duck")
    await copy_message(ada, 3000, base=1 << 40)
    async with ada.environment.database.engine.begin() as connection:
        await connection.execute(text("ANALYZE"))
    name = f"{order}_ASC"
    cursor = (await load_page(ada, order=name, first=20))["pageInfo"]["endCursor"]
    with record_query_plans(ada.environment) as recorder:
        for arguments in ({"first": 20, "after": cursor}, {"last": 20, "before": cursor}):
            plans = await recorder.explain_selects(
                load_page(ada, order=name, **arguments),
                "messages",
                containing="message_sort_keys",
            )
            assert plans
            for plan in plans:
                assert f"message_sort_keys_by_{index}" in plan, plan
                assert "TEMP B-TREE" not in plan, plan
                assert "Sort Key" not in plan, plan
