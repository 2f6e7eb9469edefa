"""Test deliveryTrace: search of trace steps by sender, recipient and time."""

from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import insert, text

from mail.delivery.listener_backend import LocalBackend
from mail.storage import message_trace, received_messages
from models.logs.entries import LogComponent
from models.messages.message_trace import DeliveryTraceEventKind, DeliveryTraceStep
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import AdminPermission, Role
from tests.conftest import GraphQLClient, ManualClock, make_client, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import execute_mutation
from tests.support.case_loop import each_case
from tests.support.operations.bulk_operations import list_messages
from tests.support.stores.counter_check import select_rows
from tests.support.stores.query_plans import record_query_plans

EVENTS_QUERY = """query ($filter: DeliveryTraceFilter!, $first: Int, $after: String, $last: Int) {
  deliveryTrace(filter: $filter, first: $first, after: $after, last: $last) {
    nodes { at queueId event address sender MORE }
    totalCount pageInfo { hasNextPage endCursor } } }"""
CAROL = "carol@example.com"
STEP_COUNT = 20_000
TIME_ONLY_ERROR = (
    "A queue ID, Message-ID, sender or recipient is required: only an ADMIN can search by time "
    "alone."
)
RANGE_ERROR = "`since` must be earlier than `before`."
NEW_YEAR = "2030-01-01T00:00:00Z"
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def load_page(client: GraphQLClient, fields: str = "", **arguments: Any) -> Any:
    names = ("queueId", "sender", "recipient", "since", "before")
    filter_ = {name: arguments.pop(name) for name in names if name in arguments}
    variables = {"filter": filter_, **arguments}
    return (await client(EVENTS_QUERY.replace("MORE", fields), **variables))["deliveryTrace"]


async def load_events(client: GraphQLClient, **arguments: Any) -> list[str]:
    """Load the events, oldest first."""
    return [node["event"] for node in reversed((await load_page(client, **arguments))["nodes"])]


async def deliver_message(
    client: GraphQLClient, sender: str = CAROL, subject: str = "Hello"
) -> None:
    """Deliver a message through the local backend."""
    backend = LocalBackend(client.environment)
    accepted = await backend.accept_recipient(client.address, sender)
    await backend.deliver(raw_message(subject), [accepted], sender)


ADDRESS_CASES: list[tuple[dict[str, str], bool]] = [
    ({"recipient": "ada@example.org"}, True),
    ({"recipient": "A.da+x@EXAMPLE.org"}, True),
    ({"recipient": "example.org"}, True),
    ({"recipient": "@Example.Org"}, True),
    ({"sender": "carol@example.com"}, True),
    ({"sender": "Carol@example.com", "recipient": "example.org"}, True),
    ({"sender": "example.com"}, True),
    ({"recipient": "bob@example.org"}, False),
    ({"sender": "ada@example.org"}, False),
    ({"sender": "example.org"}, False),
    ({"recipient": "ada"}, False),
]


async def test_received_message_is_found_by_sender_or_recipient(
    ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    await deliver_message(ada)
    for case in each_case(ADDRESS_CASES):
        with case as (addresses, is_found):
            assert await load_events(admin_client, **addresses) == (
                ["ACCEPTED", "CLASSIFIED", "STORED"] if is_found else []
            )


async def test_trace_step_links_to_stored_message(
    ada: GraphQLClient, admin_client: GraphQLClient, root: GraphQLClient
) -> None:
    await deliver_message(ada)
    (message,) = await list_messages(ada)
    for client in (admin_client, root):
        result = await load_page(client, "message { id }", recipient=ada.address)
        assert [node["message"] for node in result["nodes"]] == [{"id": message["id"]}, None, None]
    document = """query ($id: String!) { deliveryTrace(filter: {queueId: $id}, orderBy: AT_ASC) {
      nodes { event sender message { id } } } }"""
    steps = (await admin_client(document, id=result["nodes"][0]["queueId"]))["deliveryTrace"][
        "nodes"
    ]
    assert steps[-1] == {"event": "STORED", "sender": CAROL, "message": {"id": message["id"]}}
    arguments = {"select": {"ids": [message["id"]]}}
    assert (await execute_mutation(ada, "messageDelete", "deletedCount", **arguments))[
        "errors"
    ] == []
    result = await load_page(admin_client, "message { id }", recipient=ada.address)
    assert [node["message"] for node in result["nodes"]] == [None] * 3


async def test_sent_message_is_found_by_each_recipient(
    ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    recipients = [{"address": "dave@far.example"}, {"address": "Eve@other.example"}]
    arguments = {"to": recipients, "subject": "Hi", "text": "x"}
    sent = await execute_mutation(
        ada, "messageSend", "submissions { queueId } messages { id }", **arguments
    )
    assert sent["errors"] == []
    filters: list[dict[str, str]] = [
        {"recipient": "dave@far.example"},
        {"recipient": "eve@other.example"},
        {"recipient": "other.example", "sender": ada.address},
    ]
    for filter_ in filters:
        (node,) = (await load_page(admin_client, "message { id }", **filter_))["nodes"]
        assert (node["event"], node["sender"]) == ("QUEUED", ada.address)
        assert (node["queueId"], node["message"]) == (
            sent["submissions"][0]["queueId"], sent["messages"][0],
        )  # fmt: skip
    assert await load_events(admin_client, sender="example.org") == ["QUEUED", "QUEUED"]


async def test_steps_of_one_message_have_pages_and_conditions(
    ada: GraphQLClient, admin_client: GraphQLClient, clock: ManualClock
) -> None:
    recipients = [{"address": "dave@far.example"}, {"address": "eve@other.example"}]
    sent = await execute_mutation(
        ada, "messageSend", "submissions { queueId }", to=recipients, subject="Hi", text="x"
    )
    queue_id = sent["submissions"][0]["queueId"]
    all_steps = await load_page(admin_client, queueId=queue_id)
    assert sorted(node["event"] for node in all_steps["nodes"]) == ["PENDING", "PENDING", "QUEUED"]
    assert all_steps["totalCount"] == 3
    first_page = await load_page(admin_client, queueId=queue_id, first=2)
    second_page = await load_page(
        admin_client, queueId=queue_id, first=2, after=first_page["pageInfo"]["endCursor"]
    )
    assert first_page["nodes"] + second_page["nodes"] == all_steps["nodes"]
    assert [page["pageInfo"]["hasNextPage"] for page in (first_page, second_page)] == [True, False]
    last_page = await load_page(admin_client, queueId=queue_id, last=1)
    assert last_page["nodes"] == all_steps["nodes"][-1:]
    for conditions, count in (
        ({"recipient": "other.example"}, 2),
        ({"recipient": "Eve@other.example"}, 2),
        ({"sender": "example.org"}, 3),
        ({"sender": "far.example"}, 0),
        ({"since": (clock() + timedelta(seconds=1)).isoformat()}, 0),
        ({"before": (clock() + timedelta(seconds=1)).isoformat()}, 3),
    ):
        steps = await load_page(admin_client, queueId=queue_id, **conditions)
        assert (len(steps["nodes"]), steps["totalCount"]) == (count, count), conditions


async def test_trace_time_range_and_pages(
    ada: GraphQLClient, admin_client: GraphQLClient, clock: ManualClock
) -> None:
    start = clock()
    for subject in "abc":
        await deliver_message(ada, subject=subject)
        clock.tick(seconds=3600)
    hour = timedelta(hours=1)
    times = {"since": (start + hour).isoformat(), "before": (start + 2 * hour).isoformat()}
    assert (await load_page(admin_client, sender=CAROL, **times))["totalCount"] == 3
    assert (await load_page(admin_client, sender=CAROL, since=times["since"]))["totalCount"] == 6
    all_events = await load_page(admin_client, sender=CAROL)
    assert (all_events["totalCount"], len(all_events["nodes"])) == (9, 9)
    paged_nodes, after = list[Any](), None
    while True:
        current_page = await load_page(
            admin_client, sender=CAROL, first=2, **({"after": after} if after else {})
        )
        paged_nodes += current_page["nodes"]
        after = current_page["pageInfo"]["endCursor"]
        if not current_page["pageInfo"]["hasNextPage"]:
            break
    assert paged_nodes == all_events["nodes"]
    assert (await load_page(admin_client, sender=CAROL, last=2))["nodes"] == all_events["nodes"][
        -2:
    ]


async def test_domain_admin_sees_trace_events_of_own_domain(
    ada: GraphQLClient, admin_client: GraphQLClient, environment: Environment, root: GraphQLClient
) -> None:
    without_permission = await make_domain_admin(environment, root.http, "bare")
    with_permission = await make_domain_admin(
        environment, root.http, "acting", [AdminPermission.IMPERSONATE]
    )
    other_domain = {"name": "far.example"}
    assert (await execute_mutation(root, "domainCreate", "domain { id }", **other_domain))[
        "errors"
    ] == []
    other_domain_admin = await make_domain_admin(
        environment, root.http, "other", domains=["far.example"]
    )
    await deliver_message(ada)
    (message,) = await list_messages(ada)
    for client, expected_message in (
        (without_permission, None),
        (with_permission, {"id": message["id"]}),
    ):
        result = await load_page(client, "message { id }", sender=CAROL)
        assert [node["message"] for node in result["nodes"]] == [expected_message, None, None]
    assert await load_events(other_domain_admin, sender=CAROL) == []
    root_user = await make_client(environment, root.http, "top", role=Role.ROOT)
    for client in (ada, root_user):
        arguments = {"to": [{"address": "dave@far.example"}], "subject": "Hi", "text": "x"}
        assert (await execute_mutation(client, "messageSend", "messages { id }", **arguments))[
            "errors"
        ] == []
    for client, expected_count in (
        (without_permission, 1),
        (admin_client, 2),
        (other_domain_admin, 0),
    ):
        result = await load_page(client, sender="example.org")
        assert (result["totalCount"], len(result["nodes"])) == (expected_count, expected_count)
    result = await load_page(admin_client, "message { id }", sender=root_user.address)
    assert [node["message"] for node in result["nodes"]] == [None]
    (error,) = (await ada.execute(EVENTS_QUERY.replace("MORE", ""), filter={"sender": "x"}))[
        "errors"
    ]
    assert error["extensions"]["code"] == "FORBIDDEN"


def address_error(name: str) -> str:
    return f"`{name}` must be an address or a domain of at most 1000 characters."


INVALID_TRACE_FILTERS: list[tuple[dict[str, str], str]] = [
    ({"sender": "x" * 1001}, address_error("sender")),
    ({"sender": "carol@"}, address_error("sender")),
    ({"recipient": "a\tb"}, address_error("recipient")),
    ({"recipient": "a@b c"}, address_error("recipient")),
    ({"recipient": "@"}, address_error("recipient")),
    ({"sender": CAROL, "since": NEW_YEAR, "before": NEW_YEAR}, RANGE_ERROR),
]


async def test_invalid_trace_filter_is_refused(admin_client: GraphQLClient) -> None:
    """Only the field with the bad filter reports an error."""
    document = (
        'query ($filter: DeliveryTraceFilter!) { good: deliveryTrace(filter: {sender: "x"}) '
        "{ nodes { at } } bad: deliveryTrace(filter: $filter) { nodes { at } } }"
    )
    for case in each_case(INVALID_TRACE_FILTERS):
        with case as (arguments, expected):
            (error,) = (await admin_client.execute(document, filter=arguments))["errors"]
            assert (error["message"], error["path"]) == (expected, ["bad"])
            assert error["extensions"]["code"] == "BAD_USER_INPUT"


async def test_only_admin_can_search_trace_by_time_alone(
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    environment: Environment,
    root: GraphQLClient,
    clock: ManualClock,
) -> None:
    await deliver_message(ada, subject="early")
    clock.tick(seconds=3600)
    since = clock().isoformat()
    await deliver_message(ada)
    for client in (admin_client, root):
        assert await load_events(client, since=since) == ["ACCEPTED", "CLASSIFIED", "STORED"]
        assert len(await load_events(client, before=since)) == 3
    local = await make_domain_admin(environment, root.http, "local")
    (error,) = (await local.execute(EVENTS_QUERY.replace("MORE", ""), filter={"since": since}))[
        "errors"
    ]
    assert (error["extensions"]["code"], error["message"]) == ("BAD_USER_INPUT", TIME_ONLY_ERROR)
    assert await load_events(local, since=since, recipient="example.org") == await load_events(
        admin_client, since=since
    )


async def test_trace_shows_addresses_as_given(
    ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    await deliver_message(ada, "Carol.Ann+news@Example.com")
    result = await load_page(admin_client, sender="carolann@example.com")
    assert [node["sender"] for node in result["nodes"]] == ["Carol.Ann+news@Example.com"] * 3
    await deliver_message(ada, "")
    assert [
        node["sender"] for node in (await load_page(admin_client, recipient=ada.address))["nodes"]
    ] == [
        *[None] * 3,
        *["Carol.Ann+news@Example.com"] * 3,
    ]


async def test_long_addresses_are_stored_and_found(
    ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    """No address is too long for the indexes of PostgreSQL."""
    long_address = f"{'ü' * 900}@{'ö' * 900}.example"
    recorder = message_trace.TraceRecorder("long", long_address)
    for address in (long_address, "ö" * 1000, "x@" + "\0" * 900 + "ö" * 900):
        recorder.record_step(ada.environment, DeliveryTraceEventKind.ACCEPTED, (address, None))
    recorder.schedule_write(
        ada.environment, await received_messages.parse_storable_message(raw_message("Hello"))
    )
    await message_trace.write_pending_trace_steps(ada.environment)
    assert len(await select_rows(ada.environment, "SELECT id FROM delivery_trace_steps")) == 3
    assert len((await load_page(admin_client, sender="ü" * 900 + "@x.example"))["nodes"]) == 3


async def test_trace_statement_count_is_independent_of_lists_and_messages(
    ada: GraphQLClient, admin_client: GraphQLClient, statements: list[str]
) -> None:
    for _ in range(20):
        await deliver_message(ada)
    await message_trace.write_pending_trace_steps(ada.environment)

    async def count_statements(lists: int, first: int) -> int:
        fields = " ".join(
            f'l{nth}: deliveryTrace(filter: {{sender: "{CAROL}", since: "200{nth % 10}-01-01'
            f'T00:00:00Z"}}, first: {first + nth}) {{ nodes {{ at message {{ id imap {{ uid }} }} '
            "} }"
            for nth in range(lists)
        )
        del statements[:]
        result = await admin_client("{ " + fields + " }")
        assert len(result["l0"]["nodes"]) == first
        assert any(node["message"] for node in result["l0"]["nodes"])
        return len(statements)

    await count_statements(1, 3)  # the first request also looks up the credential
    expected = await count_statements(1, 3)
    assert await count_statements(1, 60) == expected
    assert await count_statements(20, 3) == expected


async def store_steps(environment: Environment, *, analyze: bool) -> datetime:
    """Store trace steps, one per second. Return the time of the first."""
    first_time = environment.now()
    steps = [
        {
            "id": environment.new_id(),
            "at": first_time + timedelta(seconds=nth),
            "queue_id": f"q{nth}",
            "component": LogComponent.MTA,
            "event": "ACCEPTED",
            "domain_id": nth % 3,
            "normalized_sender_address": f"s{nth % 50}@s{nth % 7}.example",
            "sender_domain": f"s{nth % 7}.example",
            "normalized_address": f"r{nth % 50}@r{nth % 7}.example",
            "recipient_domain": f"r{nth % 7}.example",
        }
        for nth in range(STEP_COUNT)
    ]
    async with environment.write_session() as session:
        connection = await session.connection()
        await connection.execute(insert(core_table(DeliveryTraceStep)), steps)
        if analyze:
            await connection.execute(text("ANALYZE"))
    await message_trace.write_pending_trace_steps(environment)
    return first_time


@pytest.mark.parametrize("analyze", [False, True])
async def test_each_trace_filter_uses_an_index(
    admin_client: GraphQLClient, environment: Environment, root: GraphQLClient, analyze: bool
) -> None:
    """A page is read in order from one index, for any number of steps."""
    if not analyze and environment.database.dialect == "postgresql":
        pytest.skip("PostgreSQL has statistics of a table of this size")
    first_time = await store_steps(environment, analyze=analyze)
    local = await make_domain_admin(environment, root.http, "local")
    address, domain = "s1@s1.example", "r1.example"
    cases: list[tuple[str, dict[str, str]]] = [
        ("delivery_trace_steps_of_sender", {"sender": address}),
        ("delivery_trace_steps_of_sender", {"sender": address, "recipient": domain}),
        ("delivery_trace_steps_of_sender_domain", {"sender": "s1.example"}),
        ("delivery_trace_steps_of_recipient", {"recipient": "r1@r1.example"}),
        (
            "delivery_trace_steps_of_recipient",
            {"recipient": "r1@r1.example", "sender": "s1.example"},
        ),
        ("delivery_trace_steps_of_recipient_domain", {"recipient": domain}),
    ]
    since = {"since": (first_time + timedelta(seconds=STEP_COUNT // 2)).isoformat()}
    with record_query_plans(environment) as plans:

        async def assert_uses_index(client: GraphQLClient, index: str, **filter_: Any) -> str:
            first = await load_page(client, **filter_, first=20)
            plan = ""
            after = first["pageInfo"]["endCursor"]
            for extra in ({}, {"after": after} if after else {}):
                request = load_page(client, **filter_, **extra, first=20)
                plan = await plans.explain_select(
                    request, "delivery_trace_steps", containing="ORDER BY"
                )
                assert index in plan, plan
                assert "Seq Scan on delivery_trace_steps" not in plan, plan
                assert "TEMP B-TREE" not in plan, plan
            return plan

        for index, filter_ in cases:
            for client in (admin_client, local):
                for extra in ({}, since):
                    plan = await assert_uses_index(client, f"{index} ", **filter_, **extra)
                    # PostgreSQL may sort the few steps of one sender and one recipient
                    assert "Sort" not in plan or len(filter_) > 1, plan
        plan = await assert_uses_index(admin_client, "ix_delivery_trace_steps_at ", **since)
        assert "Sort" not in plan or "Incremental Sort" in plan, plan  # PostgreSQL: by id
