"""The mutation `routeTest` with an SMTP server on loopback. No message is sent."""

from typing import Any

import pytest

from models.runtime.environment import Environment
from resolvers.routing import route_tests
from tests.conftest import GraphQLClient
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.domain_operations import ERRORS, error_summary, run_mutation
from tests.support.sample_mutations import SAMPLE_CALLS, MutationCall
from tests.support.stores.counter_check import select_rows

TEST = f"""mutation ($input: RouteTestInput!) {{ routeTest(input: $input) {{
  ok log {ERRORS} }} }}"""
RELAY_PASSWORD = "not secret at all"  # noqa: S105 - of the test


async def create_relay_host(root: GraphQLClient, port: int, **changes: Any) -> str:
    """Create a relay host on loopback and return its ID."""
    relay_input = {"host": f"127.0.0.1:{port}", "tls": False, **changes}
    payload = await MutationCall("relayHostCreate", relay_input, "relayHost { id }")(root)
    assert payload["errors"] == []
    return str(payload["relayHost"]["id"])


async def create_transport(root: GraphQLClient, port: int) -> str:
    """Create a transport to loopback and return its ID."""
    transport_input = {
        "destination": ".far.example",
        "nextHop": f"127.0.0.1:{port}",
        "active": False,
    }
    payload = await MutationCall("transportCreate", transport_input, "transport { id }")(root)
    assert payload["errors"] == []
    return str(payload["transport"]["id"])


async def test_route_is_tested_up_to_the_recipient(
    root: GraphQLClient, environment: Environment
) -> None:
    async with run_smtp_server(
        FakeSmtpServer(rcpt_replies={"eve": "550 5.1.1 Nobody"})
    ) as smtp_server:
        routes: list[dict[str, Any]] = [
            {"relayHost": {"id": await create_relay_host(root, smtp_server.port)}},
            {"transport": {"id": await create_transport(root, smtp_server.port)}},
        ]
        for route in routes:
            for name, ok in (("carol", True), ("eve", False)):
                arguments = {
                    **route,
                    "sender": "ada@example.org",
                    "recipient": f"{name}@far.example",
                }
                answer, errors = await run_mutation(root, TEST, **arguments)
                assert errors == []
                assert answer["ok"] is ok, answer["log"]
                assert any(f"RCPT TO:<{name}@far.example>" in line for line in answer["log"])
            answer, errors = await run_mutation(root, TEST, **route)
            assert (errors, answer["ok"]) == ([], True)
        assert smtp_server.messages == []
    answer, errors = await run_mutation(root, TEST, **routes[0])
    assert (errors, answer["ok"]) == ([], False)
    assert await select_rows(environment, "SELECT id FROM submissions") == []


@pytest.mark.usefixtures("ada")
async def test_log_contains_no_password(root: GraphQLClient) -> None:
    async with run_smtp_server(FakeSmtpServer()) as smtp_server:
        relay_id = await create_relay_host(
            root, smtp_server.port, username="us", password=RELAY_PASSWORD
        )
        answer, errors = await run_mutation(
            root, TEST, relayHost={"id": relay_id}, recipient="carol@far.example"
        )
    assert (errors, answer["ok"]) == ([], False)  # a password is not sent without TLS
    assert RELAY_PASSWORD not in str(answer)


async def test_invalid_route_test_is_refused(root: GraphQLClient, ada: GraphQLClient) -> None:
    relay_id, transport_id = await create_relay_host(root, 25), await create_transport(root, 25)
    for arguments, expected_error in (
        ({}, ("VALIDATION", ["recipient"], None, "REQUIRED")),
        ({"relayHost": {"id": relay_id}, "transport": {"id": transport_id}},
         ("VALIDATION", ["transport"], None, "EXCLUSIVE")),
        ({"relayHost": {"id": transport_id}}, ("VALIDATION", ["relayHost", "id"], None, "ID")),
        ({"transport": {"destination": "no.example"}},
         ("NOT_FOUND", ["transport"], None, "no.example")),
        ({"recipient": "nobody"}, ("VALIDATION", ["recipient"], None, "ADDRESS")),
        ({"recipient": "a\r\nb@far.example"}, ("VALIDATION", ["recipient"], None, "ADDRESS")),
        ({"recipient": "a@far.example", "sender": "x"},
         ("VALIDATION", ["sender"], None, "ADDRESS")),
    ):  # fmt: skip
        _, errors = await run_mutation(root, TEST, **arguments)
        assert error_summary(errors) == expected_error, arguments
    _, errors = await run_mutation(ada, TEST, relayHost={"id": relay_id})
    assert error_summary(errors)[0] == "FORBIDDEN"
    assert (await (await SAMPLE_CALLS["relayHostDelete"](ada, root))(root))["errors"] == []
    answer, errors = await run_mutation(
        root, TEST, relayHost={"id": relay_id}, options={"validateOnly": True}
    )
    assert (errors, answer["log"]) == ([], [])
    delete_relay = (
        "mutation ($input: RelayHostDeleteInput!) {"
        " relayHostDelete(input: $input) { errors { message } } }"
    )
    await root(delete_relay, input={"relayHosts": [{"id": relay_id}]})
    _, errors = await run_mutation(root, TEST, relayHost={"id": relay_id})
    assert error_summary(errors)[:2] == ("NOT_FOUND", ["relayHost"])


async def test_number_of_concurrent_tests_is_limited(
    root: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(route_tests, "MAX_CONCURRENT_TESTS", 0)
    _, errors = await run_mutation(root, TEST, recipient="carol@far.example")
    assert error_summary(errors)[0] == "RATE_LIMITED"
