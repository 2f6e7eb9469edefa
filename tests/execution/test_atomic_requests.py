"""`@atomic`: all fields of a request are stored, or none."""

import asyncio
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlmodel import col

from graph.types.mutations import MAX_ATOMIC_FIELDS
from models.admin.settings import SettingValue
from models.admin.tasks import Task
from models.auth.credentials import Throttle
from models.events.wakeups import QUEUE
from models.mailboxes.tables import Mailbox
from models.runtime.environment import Environment
from models.runtime.idempotency import IdempotentPayload
from resolvers.admin import tasks
from tests.conftest import GraphQLClient, deliver_to
from tests.support.operations.atomic_operations import (
    FAILING_RENAME,
    PAYLOAD_ERRORS,
    entry_field,
    error_codes_by_field,
    load_key_values,
)
from tests.support.servers.live_server import run_live_server, wait_until
from tests.support.stores.counter_check import assert_store_consistent


async def test_atomic_fields_are_stored_in_document_order(
    ada_by_executor: GraphQLClient,
) -> None:
    payloads = await ada_by_executor(
        f"mutation @atomic {{ {entry_field('a')} {entry_field('b', alias='second')} __typename }}"
    )
    assert payloads.pop("__typename") == "Mutation"
    assert error_codes_by_field(payloads) == {"keyValueSet": [], "second": []}
    assert payloads["second"]["keyValueEntry"] == {"key": "b", "value": "1"}
    assert payloads["keyValueSet"]["journalCursor"] < payloads["second"]["journalCursor"]
    assert await load_key_values(ada_by_executor) == {"a": "1", "b": "1"}


async def test_atomic_field_sees_changes_of_earlier_field(
    ada_by_executor: GraphQLClient,
) -> None:
    payloads = await ada_by_executor(
        'mutation @atomic { a: mailboxCreate(input: {paths: ["New"]}) { mailboxes { path } }'
        ' b: mailboxRename(input: {mailbox: {path: "New"}, newPath: "Old"})'
        " { mailboxes { path user { mailboxes { nodes { path } } } } } }"
    )
    (mailbox,) = payloads["b"]["mailboxes"]
    assert mailbox["path"] == "Old"
    assert "Old" in [user_mailbox["path"] for user_mailbox in mailbox["user"]["mailboxes"]["nodes"]]
    assert (await ada_by_executor.load_mailbox("Old")).path == "Old"


async def test_atomic_field_finds_account_of_the_same_request(admin_client: GraphQLClient) -> None:
    payloads = await admin_client(
        f"""mutation @atomic {{
          domainCreate(input: {{name: "new.example"}}) {{ {PAYLOAD_ERRORS} }}
          userCreate(input: {{username: "new", address: "new@new.example",
            passwordDisabled: true}}) {{ {PAYLOAD_ERRORS} }}
          addressCreate(input: {{user: {{username: "new"}}, address: "second@new.example"}})
            {{ {PAYLOAD_ERRORS} }}
          userUpdate(input: {{users: {{usernames: ["new@new.example"]}}, set: {{name: "New"}}}})
            {{ users {{ name addresses {{ nodes {{ address }} }} }} {PAYLOAD_ERRORS} }}
          autoreplySet(input: {{users: {{usernames: ["new"]}},
            set: {{enabled: true, text: "Away"}}}}) {{ {PAYLOAD_ERRORS} }} }}"""
    )
    assert not any(error_codes_by_field(payloads).values()), payloads
    (user,) = payloads["userUpdate"]["users"]
    assert user["name"] == "New"
    addresses = {node["address"] for node in user["addresses"]["nodes"]}
    assert addresses == {"new@new.example", "second@new.example"}
    query = 'query { user(by: {address: "second@new.example"}) { username } }'
    assert (await admin_client(query))["user"] == {"username": "new"}


async def test_first_error_rolls_back_atomic_request(
    ada_by_executor: GraphQLClient,
) -> None:
    document = f"""mutation All @atomic {{
        one: {entry_field("a")} ...Two {FAILING_RENAME} four: {entry_field("c")} }}
      fragment Two on Mutation {{
        two: {entry_field("b")} ... on Mutation {{ deep: {entry_field("e")} }} }}"""
    payloads = await ada_by_executor(document)
    aborted = {name: ["ABORTED"] for name in ("one", "two", "deep", "four")}
    assert error_codes_by_field(payloads) == {**aborted, "mailboxRename": ["NOT_FOUND"]}
    assert list(payloads) == ["one", "two", "deep", "mailboxRename", "four"]
    assert payloads["one"]["keyValueEntry"] is None
    assert payloads["one"]["journalCursor"] is None
    assert payloads["one"]["errors"][0]["__typename"] == "UnavailableError"
    assert await load_key_values(ada_by_executor) == {}


async def test_skipped_field_is_not_part_of_atomic_request(
    ada_by_executor: GraphQLClient,
) -> None:
    document = f"""mutation ($on: Boolean!) @atomic {{ one: {entry_field("a")}
      mailboxRename(input: {{mailbox: {{path: "No"}}, newPath: "X"}}) @include(if: $on)
      {{ {PAYLOAD_ERRORS} }} }}"""
    assert error_codes_by_field(await ada_by_executor(document, on=False)) == {"one": []}
    assert error_codes_by_field(await ada_by_executor(document, on=True)) == {
        "one": ["ABORTED"], "mailboxRename": ["NOT_FOUND"],
    }  # fmt: skip
    assert await load_key_values(ada_by_executor) == {"a": "1"}


async def test_unresolvable_nested_payload_rolls_back_atomic_request(
    ada_by_executor: GraphQLClient,
) -> None:
    failing_field = """mailboxCreate(input: {paths: ["New"]})
      { mailboxes { path user { messages(first: 999) { nodes { id } } } } errors { code } }"""
    answer = await ada_by_executor.execute(
        f"mutation @atomic {{ {entry_field('a', alias='a')} {failing_field} }}"
    )
    assert error_codes_by_field(answer["data"]) == {"a": ["ABORTED"], "mailboxCreate": ["ABORTED"]}
    (error,) = answer["errors"]
    assert error["extensions"]["code"] == "BAD_PAGINATION"
    assert error["path"][0] == "mailboxCreate"
    assert await load_key_values(ada_by_executor) == {}
    new_mailbox = select(col(Mailbox.id)).where(col(Mailbox.path) == "New")
    assert not await ada_by_executor.environment.database.read(new_mailbox)


async def test_forbidden_field_rolls_back_atomic_request(
    ada_by_executor: GraphQLClient,
) -> None:
    second = f'settingSet(input: {{key: "custom.x", value: 1}}) {{ {PAYLOAD_ERRORS} }}'
    payloads = await ada_by_executor(
        f"mutation @atomic {{ {entry_field('a', alias='a')} {second} }}"
    )
    assert error_codes_by_field(payloads) == {"a": ["ABORTED"], "settingSet": ["FORBIDDEN"]}
    assert await load_key_values(ada_by_executor) == {}


async def test_unresolvable_payload_rolls_back_atomic_request(
    ada_by_executor: GraphQLClient,
) -> None:
    failing_field = """mailboxCreate(input: {paths: ["New"]})
      { mailboxes { path messages(first: 999) { nodes { id } } } errors { code } }"""
    answer = await ada_by_executor.execute(
        f"mutation @atomic {{ {entry_field('a', alias='a')} {failing_field} }}"
    )
    assert error_codes_by_field(answer["data"]) == {"a": ["ABORTED"], "mailboxCreate": ["ABORTED"]}
    assert [error["extensions"]["code"] for error in answer["errors"]] == ["BAD_PAGINATION"]
    assert await load_key_values(ada_by_executor) == {}


async def test_invalid_null_variable_is_refused_before_any_field_runs(
    ada_by_executor: GraphQLClient,
) -> None:
    invalid_field = "userUpdate(input: {set: {active: $nothing}}) { errors { code } }"
    answer = await ada_by_executor.execute(
        f"mutation ($nothing: Boolean) @atomic {{ {entry_field('a', alias='a')} {invalid_field} }}",
        nothing=None,
    )
    assert answer["data"] is None
    assert [error["extensions"]["code"] for error in answer["errors"]] == ["BAD_USER_INPUT"]
    assert await load_key_values(ada_by_executor) == {}


async def test_anonymous_atomic_request_stores_nothing(ada: GraphQLClient) -> None:
    anonymous = GraphQLClient(ada.http, ada.environment, ada.user, "")
    revoke_tokens = "accessTokenRevoke(input: {all: true}) { revokedCount }"
    body = {"query": f"mutation @atomic {{ {revoke_tokens} {entry_field('a', alias='a')} }}"}
    answer = (await anonymous.http.post("/graphql", json=body)).json()
    assert error_codes_by_field({"a": answer["data"]["a"]}) == {"a": ["ABORTED"]}
    assert answer["data"]["accessTokenRevoke"] == {"revokedCount": 0}
    assert answer["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"


async def test_atomic_request_cannot_change_data_of_another_user(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    stored = await deliver_to(ada, "Mine")
    delete_of_ada = 'messageDelete(input: {select: {all: true, users: {usernames: ["ada"]}}})'
    answer = await bob.execute(
        f"mutation @atomic {{ {entry_field('a', alias='a')} "
        f"{delete_of_ada} {{ {PAYLOAD_ERRORS} }} }}"
    )
    codes = error_codes_by_field(answer["data"])
    assert codes["a"] == ["ABORTED"]
    assert codes["messageDelete"] in (["NOT_FOUND"], ["FORBIDDEN"])
    assert await load_key_values(bob) == {}
    result = await ada("{ viewer { user { messages { nodes { subject } } } } }")
    assert result["viewer"]["user"]["messages"]["nodes"] == [{"subject": "Mine"}]
    assert stored.message_id


async def test_atomic_directive_is_refused_on_query_or_when_repeated(ada: GraphQLClient) -> None:
    answer = await ada.execute("query @atomic { viewer { role } }")
    assert answer["errors"][0]["extensions"]["code"] == "GRAPHQL_VALIDATION_FAILED"
    answer = await ada.execute(f"mutation @atomic @atomic {{ {entry_field('a')} }}")
    assert answer["errors"][0]["extensions"]["code"] == "GRAPHQL_VALIDATION_FAILED"


async def test_atomic_request_has_maximum_number_of_fields(ada: GraphQLClient) -> None:
    def fields(count: int) -> str:
        return "".join(entry_field(f"k{n}", alias=f"f{n}") for n in range(count))

    answer = await ada.execute(f"mutation @atomic {{ {fields(MAX_ATOMIC_FIELDS + 1)} }}")
    assert answer["data"] is None
    (error,) = answer["errors"]
    assert error["extensions"]["code"] == "BAD_USER_INPUT"
    assert str(MAX_ATOMIC_FIELDS) in error["message"]
    assert await load_key_values(ada) == {}
    payloads = await ada(f"mutation @atomic {{ {fields(MAX_ATOMIC_FIELDS)} }}")
    assert not any(error_codes_by_field(payloads).values())
    assert len(await load_key_values(ada)) == MAX_ATOMIC_FIELDS


@pytest.mark.parametrize(
    "field",
    [
        'authenticate(input: {username: "ada", password: "wrong"})',
        'userUpdate(input: {existingPassword: "wrong", set: {name: "x"}})',
        'userUpdate(input: {set: {allowUnsafe: false, password: "correct horse"}})',
        'totpDisable(input: {proof: {totp: "123456"}})',
    ],
)
async def test_field_not_allowed_in_atomic_is_refused_before_any_runs(
    ada: GraphQLClient, field: str
) -> None:
    payloads = await ada(
        f"mutation @atomic {{ {entry_field('a', alias='a')} b: {field} {{ {PAYLOAD_ERRORS} }} }}"
    )
    assert error_codes_by_field(payloads) == {"a": ["ABORTED"], "b": ["FORBIDDEN_OPERATION"]}
    assert "can't be part of an @atomic request" in payloads["b"]["errors"][0]["message"]
    assert await ada.environment.database.read(select(col(Throttle.key))) == []
    assert await load_key_values(ada) == {}


async def test_validate_only_of_one_field_applies_to_the_whole_request(
    ada_by_executor: GraphQLClient,
) -> None:
    dry_run_field = entry_field("b", alias="b", options="validateOnly: true")
    payloads = await ada_by_executor(
        f"mutation @atomic {{ {entry_field('a', alias='a')} {dry_run_field} }}"
    )
    assert error_codes_by_field(payloads) == {"a": [], "b": []}
    assert [payload["keyValueEntry"]["key"] for payload in payloads.values()] == ["a", "b"]
    assert [payload["journalCursor"] for payload in payloads.values()] == [None, None]
    assert await load_key_values(ada_by_executor) == {}
    payloads = await ada_by_executor(
        f"mutation @atomic {{ {entry_field('a', alias='a')} {dry_run_field} {FAILING_RENAME} }}"
    )
    assert error_codes_by_field(payloads) == {
        "a": ["ABORTED"],
        "b": ["ABORTED"],
        "mailboxRename": ["NOT_FOUND"],
    }
    assert await load_key_values(ada_by_executor) == {}


async def test_repeated_idempotency_keys_return_the_first_payloads(
    ada_by_executor: GraphQLClient,
) -> None:
    first_field, second_field = (
        entry_field(n, alias=n, options=f'idempotencyKey: "k-{n}"') for n in "ab"
    )
    failed = await ada_by_executor(
        f"mutation @atomic {{ {first_field} {second_field} {FAILING_RENAME} }}"
    )
    assert error_codes_by_field(failed)["a"] == ["ABORTED"]
    assert await ada_by_executor.environment.database.read(select(col(IdempotentPayload.key))) == []
    first = await ada_by_executor(f"mutation @atomic {{ {first_field} {second_field} }}")
    assert [result["replayed"] for result in first.values()] == [False, False]
    repeated = await ada_by_executor(f"mutation @atomic {{ {first_field} {second_field} }}")
    assert repeated == {name: {**result, "replayed": True} for name, result in first.items()}
    conflicting_field = entry_field("c", alias="c", options='idempotencyKey: "k-a"')
    result = await ada_by_executor(
        f"mutation @atomic {{ {entry_field('d', alias='d')} {conflicting_field} }}"
    )
    assert error_codes_by_field(result) == {"d": ["ABORTED"], "c": ["CONFLICT"]}
    assert set(await load_key_values(ada_by_executor)) == {"a", "b"}


async def test_idempotency_key_used_twice_in_one_request_has_one_effect(ada: GraphQLClient) -> None:
    increment = 'keyValueIncrement(input: {key: "n", delta: 1, createMissing: true, options: {'
    increment += f'idempotencyKey: "once"}}}}) {{ replayed {PAYLOAD_ERRORS} }}'
    payloads = await ada(f"mutation @atomic {{ a: {increment} b: {increment} }}")
    assert [payload["replayed"] for payload in payloads.values()] == [False, True]
    assert await load_key_values(ada) == {"n": "1"}


async def test_concurrent_requests_with_same_keys_have_one_effect(ada: GraphQLClient) -> None:
    increment = """keyValueIncrement(input: {key: "%s", delta: 1, createMissing: true,
      options: {idempotencyKey: "once-%s"}}) { keyValueEntry { value } replayed errors { code } }"""
    document = f"mutation @atomic {{ a: {increment % ('a', 'a')} b: {increment % ('b', 'b')} }}"
    answers = await asyncio.gather(*(ada(document) for _ in range(5)))
    assert await load_key_values(ada) == {"a": "1", "b": "1"}
    assert sorted(result["a"]["replayed"] for result in answers) == [False, True, True, True, True]
    for answer in answers:
        assert answer["a"]["replayed"] is answer["b"]["replayed"]
        assert [result["keyValueEntry"]["value"] for result in answer.values()] == ["1", "1"]


async def test_subscribers_get_events_after_the_atomic_commit(
    ada: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    async with run_live_server(environment, tmp_path) as server:
        subscription = await server.follow(ada, "subscription { changes { events { type } } }")
        await wait_until(lambda: server.subscriber_count == 1)
        await ada(f"mutation @atomic {{ {entry_field('a', alias='a')} {FAILING_RENAME} }}")
        await ada(
            f"mutation @atomic {{ {entry_field('a', alias='a')} {entry_field('b', alias='b')} }}"
        )
        await wait_until(lambda: subscription.events)
        assert [event["type"] for event in subscription.batches[0]["events"]] == [
            "KEY_VALUE_CREATED"
        ] * 2
        await subscription.unsubscribe()


async def test_asynchronous_task_starts_after_the_atomic_commit(
    ada: GraphQLClient, environment: Environment
) -> None:
    for number in range(3):
        await deliver_to(ada, f"Letter {number}")
    async_update = """messageUpdate(input: {select: {all: true}, set: {seen: true}, async: true})
      { task { id state totalCount } errors { code } }"""
    payloads = await ada(f"mutation @atomic {{ a: {async_update} {FAILING_RENAME} }}")
    assert (error_codes_by_field(payloads)["a"], payloads["a"]["task"]) == (["ABORTED"], None)
    assert not await environment.database.read(select(col(Task.id)))
    assert not await tasks.run_next_task(environment)
    payloads = await ada(f"mutation @atomic {{ a: {async_update} {entry_field('b', alias='b')} }}")
    assert (payloads["a"]["task"]["state"], payloads["a"]["task"]["totalCount"]) == ("QUEUED", 3)
    while await tasks.run_next_task(environment):
        pass
    result = await ada(
        "query ($id: ID!) { task(by: {id: $id}) { state doneCount } }",
        id=payloads["a"]["task"]["id"],
    )
    assert result["task"]["state"] == "SUCCEEDED"
    await assert_store_consistent(environment)


async def test_queue_worker_is_woken_after_the_atomic_commit(
    ada: GraphQLClient, environment: Environment
) -> None:
    send = """messageSend(input: {to: [{address: "carol@example.com"}], text: "Hi."})
      { submissions { state } errors { code } }"""
    with environment.wakeups.follow([QUEUE]) as wakeup:
        payloads = await ada(f"mutation @atomic {{ a: {send} {FAILING_RENAME} }}")
        assert (error_codes_by_field(payloads)["a"], wakeup.is_set()) == (["ABORTED"], False)
        payloads = await ada(f"mutation @atomic {{ a: {send} {entry_field('b', alias='b')} }}")
        assert (payloads["a"]["submissions"][0]["state"], wakeup.is_set()) == ("QUEUED", True)


async def test_settings_take_effect_after_the_atomic_commit(
    root: GraphQLClient, environment: Environment
) -> None:
    def field(value: int) -> str:
        return f'settingSet(input: {{key: "submission.maxRecipients", value: {value}}})'

    failing_field = 'b: settingSet(input: {key: "nothing", value: 7}) { errors { code } }'
    max_recipients_before = environment.options.submission_max_recipients
    payloads = await root(
        f"mutation @atomic {{ a: {field(7)} {{ errors {{ code }} }} {failing_field} }}"
    )
    assert error_codes_by_field(payloads)["a"] == ["ABORTED"]
    assert environment.options.submission_max_recipients == max_recipients_before
    assert not await environment.database.read(select(col(SettingValue.key)))
    await root(f"mutation @atomic {{ a: {field(7)} {{ errors {{ code }} }} }}")
    assert environment.options.submission_max_recipients == 7
