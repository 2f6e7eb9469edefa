"""`routeTest`: tried against a mail server on loopback, with nothing sent."""

from typing import Any

import pytest

from models.runtime.environment import Environment
from resolvers.routing import route_tests
from tests.conftest import Client
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.operations.domain_operations import ERRORS, done, told
from tests.support.sample_mutations import CALLS, Call
from tests.support.stores.counter_check import rows

TEST = f"""mutation ($input: RouteTestInput!) {{ routeTest(input: $input) {{
  ok log {ERRORS} }} }}"""
SECRET = "not secret at all"  # noqa: S105 - a test's


async def way(root: Client, port: int, **more: Any) -> str:
    """A relay host on loopback."""
    given = {"host": f"127.0.0.1:{port}", "tls": False, **more}
    made = await Call("relayHostCreate", given, "relayHost { id }")(root)
    assert made["errors"] == []
    return str(made["relayHost"]["id"])


async def hop(root: Client, port: int) -> str:
    """A transport there."""
    given = {"destination": ".far.example", "nextHop": f"127.0.0.1:{port}", "active": False}
    made = await Call("transportCreate", given, "transport { id }")(root)
    assert made["errors"] == []
    return str(made["transport"]["id"])


async def test_a_way_is_tried_up_to_the_recipient(root: Client, world: Environment) -> None:
    async with listening(Server(replies={"eve": "550 5.1.1 Nobody"})) as there:
        ways: list[dict[str, Any]] = [
            {"relayHost": await way(root, there.port)},
            {"transport": await hop(root, there.port)},
        ]
        for one in ways:
            for name, ok in (("carol", True), ("eve", False)):
                given = {**one, "sender": "ada@example.org", "recipient": f"{name}@far.example"}
                answer, errors = await done(root, TEST, **given)
                assert errors == []
                assert answer["ok"] is ok, answer["log"]
                assert any(f"RCPT TO:<{name}@far.example>" in line for line in answer["log"])
            answer, errors = await done(root, TEST, **one)
            assert (errors, answer["ok"]) == ([], True)
        assert there.mails == []
    answer, errors = await done(root, TEST, **ways[0])
    assert (errors, answer["ok"]) == ([], False)
    assert await rows(world, "SELECT id FROM submissions") == []


@pytest.mark.usefixtures("ada")
async def test_nothing_of_a_password_is_told(root: Client) -> None:
    async with listening(Server()) as there:
        key = await way(root, there.port, username="us", password=SECRET)
        answer, errors = await done(root, TEST, relayHost=key, recipient="carol@far.example")
    assert (errors, answer["ok"]) == ([], False)  # a password never goes in the clear
    assert SECRET not in str(answer)


async def test_what_cannot_be_tried_is_refused(root: Client, ada: Client) -> None:
    relay, transport = await way(root, 25), await hop(root, 25)
    for given, wanted in (
        ({}, ("VALIDATION", ["recipient"], None, "required")),
        ({"relayHost": relay, "transport": transport},
         ("VALIDATION", ["transport"], None, "exclusive")),
        ({"relayHost": transport}, ("VALIDATION", ["relayHost"], None, "id")),
        ({"recipient": "nobody"}, ("VALIDATION", ["recipient"], None, "address")),
        ({"recipient": "a\r\nb@far.example"}, ("VALIDATION", ["recipient"], None, "address")),
        ({"recipient": "a@far.example", "sender": "x"},
         ("VALIDATION", ["sender"], None, "address")),
    ):  # fmt: skip
        _, errors = await done(root, TEST, **given)
        assert told(errors) == wanted, given
    _, errors = await done(ada, TEST, relayHost=relay)
    assert told(errors)[0] == "FORBIDDEN"
    assert (await (await CALLS["relayHostDelete"](ada, root))(root))["errors"] == []
    answer, errors = await done(root, TEST, relayHost=relay, options={"validateOnly": True})
    assert (errors, answer["log"]) == ([], [])
    gone = "mutation ($input: IdsInput!) { relayHostDelete(input: $input) { errors { message } } }"
    await root(gone, input={"ids": [relay]})
    _, errors = await done(root, TEST, relayHost=relay)
    assert told(errors)[:2] == ("NOT_FOUND", ["relayHost"])


async def test_so_many_are_tried_at_once(root: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(route_tests, "MAX_CONCURRENT_TESTS", 0)
    _, errors = await done(root, TEST, recipient="carol@far.example")
    assert told(errors)[0] == "RATE_LIMITED"
