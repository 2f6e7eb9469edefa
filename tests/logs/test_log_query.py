"""Query.logs: filters, pages, roles, and bad input."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from models.logs.entries import LogComponent, LogLevel, NewLogEntry, text_words
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, ManualClock, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.case_loop import each_case
from tests.support.stores.log_stores import (
    LIST_LOGS,
    list_logs,
    load_log_page,
    log_messages,
    new_entry,
)

JSON_TYPE = "application/json"
WORDS = ["queued", "Größe", "host-7.example.com", "delivered", "rare"]
COMPONENTS = [LogComponent.MTA, LogComponent.SPAM, LogComponent.AUTH]


def record_random_entries(
    environment: Environment, clock: ManualClock, user_id: int, count: int
) -> list[NewLogEntry]:
    randomness, entries = random.Random(7), []  # noqa: S311 - reproducible
    for number in range(count):
        clock.tick(seconds=randomness.choice((0, 1, 3)))
        entry = new_entry(
            environment,
            f"entry {number} {' '.join(randomness.sample(WORDS, 2))}",
            component=randomness.choice(COMPONENTS),
            level=randomness.choice(list(LogLevel)),
            user_id=randomness.choice((None, user_id)),
            queue_id=randomness.choice((None, "Q1", "Q2")),
            message_id=randomness.choice((None, "<a@b>")),
            correlation_id=randomness.choice((None, "r-1")),
            fields={"detail": randomness.choice(("once", "twice"))},
        )
        entries.append(entry)
        if environment.logs.is_recorded(entry.component, entry.level):
            environment.logs.enqueue_or_drop_entry(entry)
    return entries


def is_match(entry: NewLogEntry, conditions: dict[str, Any], user_id: int) -> bool:
    words = text_words(f"{entry.message} {entry.fields['detail']} {entry.program}")
    checks: dict[str, Callable[[Any], bool]] = {
        "components": lambda names: entry.component in names,
        "minLevel": lambda level: entry.level.rank >= LogLevel(level).rank,
        "since": lambda moment: entry.at.isoformat() >= moment,
        "before": lambda moment: entry.at.isoformat() < moment,
        "query": lambda text: set(text_words(text)) <= set(words),
        "user": lambda _ref: entry.user_id == user_id,
        "queueId": lambda text: (entry.queue_id or "").lower() == text.lower(),
        "messageIdHeader": lambda text: entry.message_id == f"<{text.strip('<>')}>",
        "correlationId": lambda text: entry.correlation_id == text,
    }
    return entry.level is not LogLevel.DEBUG and all(
        checks[name](value) for name, value in conditions.items()
    )


async def test_filters_combine_freely(
    log_environment: Environment,
    clock: ManualClock,
    ada: GraphQLClient,
    admin_client: GraphQLClient,
) -> None:
    entries = record_random_entries(log_environment, clock, ada.user.id, 240)
    randomness = random.Random(11)  # noqa: S311 - reproducible
    choices: dict[str, list[Any]] = {
        "components": [["MTA"], ["SPAM", "AUTH"], []],
        "minLevel": list(LogLevel),
        "since": [entries[n].at.isoformat() for n in (0, 60, 120)],
        "before": [entries[n].at.isoformat() for n in (90, 200)],
        "query": ["QUEUED", "grosse", "host-7.example.com", "rare twice", "mail tests", "none"],
        "user": [{"username": "ada"}],
        "queueId": ["Q1", "q2"],
        "messageIdHeader": ["a@b", "<a@b>"],
        "correlationId": ["r-1"],
    }
    singles = [{name: value} for name, values in choices.items() for value in values]
    combined = [
        {name: randomness.choice(choices[name]) for name in randomness.sample(list(choices), k)}
        for k in (2, 3, 4, 5)
        for _ in range(10)
    ]
    for conditions in [*singles, *combined]:
        expected = [e.message for e in entries if is_match(e, conditions, ada.user.id)]
        messages = await log_messages(admin_client, **conditions)
        # entries of the queries themselves have the component API
        assert [m for m in messages if m.startswith("entry")] == expected, conditions


async def test_pages_in_both_orders_and_directions(
    log_environment: Environment, clock: ManualClock, root: GraphQLClient
) -> None:
    for number in range(7):
        log_environment.logs.enqueue_or_drop_entry(new_entry(log_environment, f"page {number}"))
        clock.tick(seconds=number % 2)
    only = {"filter": {"query": "page"}}
    first = await load_log_page(root, **only, first=3)
    assert [node["message"] for node in first["nodes"]] == ["page 6", "page 5", "page 4"]
    assert first["totalCount"] == 7
    assert first["pageInfo"]["hasNextPage"]
    rest = await load_log_page(root, **only, first=9, after=first["pageInfo"]["endCursor"])
    assert [node["message"] for node in rest["nodes"]] == [f"page {n}" for n in (3, 2, 1, 0)]
    assert not rest["pageInfo"]["hasNextPage"]
    last = await load_log_page(root, **only, last=2)
    assert [node["message"] for node in last["nodes"]] == ["page 1", "page 0"]
    previous = await load_log_page(root, **only, last=2, before=last["pageInfo"]["startCursor"])
    assert [node["message"] for node in previous["nodes"]] == ["page 3", "page 2"]
    ascending = await list_logs(root, **only, orderBy="AT_ASC", first=2)
    assert [node["message"] for node in ascending] == ["page 0", "page 1"]
    wrong = await root.execute(
        LIST_LOGS, filter={"query": "other"}, after=first["pageInfo"]["endCursor"]
    )
    assert wrong["errors"][0]["path"] == ["logs"]


async def test_domain_admin_sees_only_entries_of_own_domains(
    log_environment: Environment,
    http: httpx.AsyncClient,
    ada: GraphQLClient,
    root: GraphQLClient,
    admin_client: GraphQLClient,
) -> None:
    create = """mutation { domainCreate(input: {name: "other.example"}) {
      domain { id } errors { message } } }"""
    assert (await root(create))["domainCreate"]["errors"] == []
    domain_admin = await make_domain_admin(log_environment, http, "dora")
    other_admin = await make_domain_admin(log_environment, http, "otto", domains=["other.example"])
    logs, domain_id = log_environment.logs, ada.user.domain_id
    for values in (
        {"message": "visible by domain", "domain_id": domain_id},
        {"message": "visible by user", "user_id": ada.user.id},
        {"message": "secret of administrator", "user_id": admin_client.user.id},
        {"message": "secret of platform"},
        {"message": f"secret with a forged mark \ue000d{domain_id}", "domain_id": 1},
        {"message": "secret in fields", "fields": {"x": f"\ue000d{domain_id}"}},
        {"message": "secret id", "queue_id": f"\ue000d{domain_id}"},
    ):
        logs.enqueue_or_drop_entry(new_entry(log_environment, **values))
    visible = ["visible by domain", "visible by user"]
    assert await log_messages(domain_admin, components=["MTA"]) == visible
    page = await load_log_page(domain_admin, filter={"query": "secret"})
    assert (page["totalCount"], page["nodes"]) == (0, [])
    for conditions in ({"query": "forged mark"}, {"user": {"username": "over"}}):
        assert await log_messages(domain_admin, **conditions, components=["MTA"]) == []
    assert await log_messages(other_admin, components=["MTA"]) == []
    assert len(await log_messages(admin_client, components=["MTA"])) == 7
    response = await ada.execute("{ logs { nodes { message } } }")
    assert response["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    assert response["data"] == {"logs": None}


async def test_entries_older_than_the_retention_are_not_shown(
    log_environment: Environment, clock: ManualClock, root: GraphQLClient
) -> None:
    log_environment.logs.enqueue_or_drop_entry(new_entry(log_environment, "expired"))
    clock.tick(days=13)
    log_environment.logs.enqueue_or_drop_entry(new_entry(log_environment, "kept"))
    clock.tick(days=2)
    assert await log_messages(root, components=["MTA"]) == ["kept"]


@pytest.mark.usefixtures("log_environment")
async def test_bad_filter_gets_a_typed_error(root: GraphQLClient) -> None:
    cases: list[tuple[dict[str, Any], str, str]] = [
        ({"query": "x" * 501}, "BAD_USER_INPUT", "At most 500 characters are allowed."),
        ({"query": ".*[^]"}, "BAD_USER_INPUT", "Must have at least one word."),
        ({"query": " ".join(f"w{n}" for n in range(21))}, "BAD_USER_INPUT", "At most 20 words"),
        ({"query": ""}, "BAD_USER_INPUT", "Must have at least 1 character."),
        ({"queueId": "q" * 501}, "BAD_USER_INPUT", "At most 500 characters are allowed."),
        ({"messageIdHeader": "m" * 501}, "BAD_USER_INPUT", "At most 500 characters are allowed."),
        ({"correlationId": "c" * 501}, "BAD_USER_INPUT", "At most 500 characters are allowed."),
        ({}, "BAD_USER_INPUT", "At least one condition is required."),
        ({"user": {"id": "usr_x"}}, "BAD_ID", ""),
        ({"components": ["NONE"]}, "BAD_USER_INPUT", ""),
    ]
    for case in each_case(cases):
        with case as (conditions, code, message):
            response = await root.execute(LIST_LOGS, filter=conditions)
            (error,) = response["errors"]
            assert error["extensions"]["code"] == code
            assert error["message"].startswith(message)


@pytest.mark.usefixtures("log_environment")
async def test_filter_with_half_a_surrogate_pair_finds_nothing(root: GraphQLClient) -> None:
    body = {"query": LIST_LOGS, "variables": {"filter": {"query": "a \ud800", "queueId": "\ud800"}}}
    response = await root.http.post(
        "/graphql", content=json.dumps(body), headers={**root.headers, "content-type": JSON_TYPE}
    )
    for error in response.json().get("errors", ()):
        assert error["extensions"]["code"] != "INTERNAL_SERVER_ERROR", error


@pytest.mark.usefixtures("log_environment")
async def test_filter_text_of_a_megabyte_is_refused(root: GraphQLClient) -> None:
    response = await root.execute(LIST_LOGS, filter={"query": "word " * 200_000})
    assert response["errors"]
    assert response["errors"][0]["extensions"]["code"] != "INTERNAL_SERVER_ERROR"


async def test_query_text_is_never_syntax(
    log_environment: Environment, root: GraphQLClient
) -> None:
    log_environment.logs.enqueue_or_drop_entry(new_entry(log_environment, "harmless"))
    await log_environment.logs.flush_within_timeout()
    cases = [
        '"', "'; DROP TABLE segments; --", "a* OR b", "NEAR(a b)", "tokens:a", "^a", "😀 a", "a\0b",
        "(a", "\\", "ﬁ",
    ]  # fmt: skip
    for case in each_case(cases):
        with case as text:
            response = await root.execute(LIST_LOGS, filter={"query": text, "components": ["MTA"]})
            for error in response.get("errors", ()):
                assert error["extensions"]["code"] != "INTERNAL_SERVER_ERROR"
            assert await log_messages(root, query="harmless") == ["harmless"]


async def test_list_needs_a_constant_number_of_statements(
    log_environment: Environment,
    http: httpx.AsyncClient,
    root: GraphQLClient,
    statements: list[str],
) -> None:
    counts = []
    for count in (1, 20):
        for number in range(count):
            client = await make_client(log_environment, http, f"user{count}-{number}")
            entry = new_entry(log_environment, f"count{count}", user_id=client.user.id)
            log_environment.logs.enqueue_or_drop_entry(entry)
        await log_environment.logs.flush_within_timeout()
        await list_logs(root)  # later requests know the credential
        del statements[:]
        nodes = await list_logs(root, filter={"query": f"count{count}"})
        assert len({node["user"]["username"] for node in nodes}) == count
        counts.append(len(statements))
    assert counts[0] == counts[1]


async def test_unreadable_store_is_a_temporary_error(
    log_environment: Environment, root: GraphQLClient, tmp_path: Path
) -> None:
    if log_environment.database.dialect != "sqlite":
        pytest.skip("the log store is a file only with SQLite")
    (tmp_path / "logs.sqlite3").write_bytes(b"no database" * 1000)
    response = await root.execute(LIST_LOGS)
    assert response["errors"][0]["extensions"]["code"] == "UNAVAILABLE", response
