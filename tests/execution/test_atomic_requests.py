"""`@atomic`: all fields of a request are kept, or none."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from sqlalchemy import select
from sqlmodel import col

from graph.schema import schema
from graph.types.mutations import MAX_ATOMIC_FIELDS
from models.admin.settings import SettingValue
from models.admin.tasks import Task
from models.auth.credentials import Throttle
from models.events.wakeups import QUEUE
from models.mailboxes.tables import Mailbox
from models.runtime.environment import Environment
from models.runtime.idempotency import IdempotentPayload
from resolvers.admin import tasks
from tests.conftest import Client, receive
from tests.support.operations.atomic_operations import (
    FAILING_RENAME,
    PAYLOAD_ERRORS,
    entry_field,
    error_codes_by_field,
    load_key_values,
)
from tests.support.servers.live_server import house, until
from tests.support.stores.counter_check import examine


@pytest.fixture(params=[True, False], ids=["compiled", "plain"])
async def either(request: pytest.FixtureRequest, ada: Client) -> AsyncIterator[Client]:
    """Ada, by each of the executors."""
    schema.choose_executor(is_compiled=request.param)
    yield ada
    schema.choose_executor(is_compiled=True)


async def test_all_fields_are_kept_in_their_order(either: Client) -> None:
    done = await either(
        f"mutation @atomic {{ {entry_field('a')} {entry_field('b', by='second')} __typename }}"
    )
    assert done.pop("__typename") == "Mutation"
    assert error_codes_by_field(done) == {"keyValueSet": [], "second": []}
    assert done["second"]["entry"] == {"key": "b", "value": "1"}
    assert done["keyValueSet"]["journalCursor"] < done["second"]["journalCursor"]
    assert await load_key_values(either) == {"a": "1", "b": "1"}


async def test_one_field_sees_what_another_did(either: Client) -> None:
    done = await either(
        'mutation @atomic { a: mailboxCreate(input: {paths: ["New"]}) { mailboxes { path } }'
        ' b: mailboxRename(input: {mailbox: {path: "New"}, newPath: "Old"})'
        " { mailboxes { path user { mailboxes { path } } } } }"
    )
    (there,) = done["b"]["mailboxes"]
    assert there["path"] == "Old"
    assert "Old" in [one["path"] for one in there["user"]["mailboxes"]]
    assert (await either.box("Old")).path == "Old"


async def test_a_field_finds_an_account_of_the_same_request(over: Client) -> None:
    done = await over(
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
    assert not any(error_codes_by_field(done).values()), done
    (user,) = done["userUpdate"]["users"]
    assert user["name"] == "New"
    found = {one["address"] for one in user["addresses"]["nodes"]}
    assert found == {"new@new.example", "second@new.example"}
    asked = 'query { user(by: {address: "second@new.example"}) { username } }'
    assert (await over(asked))["user"] == {"username": "new"}


async def test_the_first_error_takes_all_back(either: Client) -> None:
    document = f"""mutation All @atomic {{
        one: {entry_field("a")} ...Two {FAILING_RENAME} four: {entry_field("c")} }}
      fragment Two on Mutation {{
        two: {entry_field("b")} ... on Mutation {{ deep: {entry_field("e")} }} }}"""
    done = await either(document)
    aborted = {name: ["ABORTED"] for name in ("one", "two", "deep", "four")}
    assert error_codes_by_field(done) == {**aborted, "mailboxRename": ["NOT_FOUND"]}
    assert list(done) == ["one", "two", "deep", "mailboxRename", "four"]
    assert done["one"]["entry"] is None
    assert done["one"]["journalCursor"] is None
    assert done["one"]["errors"][0]["__typename"] == "UnavailableError"
    assert await load_key_values(either) == {}


async def test_what_is_skipped_is_no_part_of_it(either: Client) -> None:
    document = f"""mutation ($on: Boolean!) @atomic {{ one: {entry_field("a")}
      mailboxRename(input: {{mailbox: {{path: "No"}}, newPath: "X"}}) @include(if: $on)
      {{ {PAYLOAD_ERRORS} }} }}"""
    assert error_codes_by_field(await either(document, on=False)) == {"one": []}
    assert error_codes_by_field(await either(document, on=True)) == {
        "one": ["ABORTED"], "mailboxRename": ["NOT_FOUND"],
    }  # fmt: skip
    assert await load_key_values(either) == {"a": "1"}


async def test_what_cannot_be_told_is_not_done(either: Client) -> None:
    broken = """mailboxCreate(input: {paths: ["New"]})
      { mailboxes { path user { messages(first: 999) { nodes { id } } } } errors { code } }"""
    answer = await either.raw(f"mutation @atomic {{ {entry_field('a', by='a')} {broken} }}")
    assert error_codes_by_field(answer["data"]) == {"a": ["ABORTED"], "mailboxCreate": ["ABORTED"]}
    (error,) = answer["errors"]
    assert error["extensions"]["code"] == "BAD_PAGINATION"
    assert error["path"][0] == "mailboxCreate"
    assert await load_key_values(either) == {}
    made = select(col(Mailbox.id)).where(col(Mailbox.path) == "New")
    assert not await either.world.database.read(made)


async def test_what_lacks_a_right_takes_all_back(either: Client) -> None:
    second = f'settingSet(input: {{key: "custom.x", value: 1}}) {{ {PAYLOAD_ERRORS} }}'
    done = await either(f"mutation @atomic {{ {entry_field('a', by='a')} {second} }}")
    assert error_codes_by_field(done) == {"a": ["ABORTED"], "settingSet": ["FORBIDDEN"]}
    assert await load_key_values(either) == {}


async def test_a_payload_that_cannot_be_told_takes_all_back(either: Client) -> None:
    whole = """mailboxCreate(input: {paths: ["New"]})
      { mailboxes { path messages(first: 999) { nodes { id } } } errors { code } }"""
    answer = await either.raw(f"mutation @atomic {{ {entry_field('a', by='a')} {whole} }}")
    assert error_codes_by_field(answer["data"]) == {"a": ["ABORTED"], "mailboxCreate": ["ABORTED"]}
    assert [error["extensions"]["code"] for error in answer["errors"]] == ["BAD_PAGINATION"]
    assert await load_key_values(either) == {}


async def test_an_input_that_is_none_is_found_before_anything_runs(either: Client) -> None:
    none = "userUpdate(input: {set: {disabled: $nothing}}) { errors { code } }"
    answer = await either.raw(
        f"mutation ($nothing: Boolean) @atomic {{ {entry_field('a', by='a')} {none} }}",
        nothing=None,
    )
    assert answer["data"] is None
    assert [error["extensions"]["code"] for error in answer["errors"]] == ["BAD_USER_INPUT"]
    assert await load_key_values(either) == {}


async def test_without_a_credential_nothing_of_it_is_done(ada: Client) -> None:
    nobody = Client(ada.http, ada.world, ada.user, "")
    ends = "tokenRevoke(input: {all: true}) { revoked }"
    body = {"query": f"mutation @atomic {{ {ends} {entry_field('a', by='a')} }}"}
    answer = (await nobody.http.post("/graphql", json=body)).json()
    assert error_codes_by_field({"a": answer["data"]["a"]}) == {"a": ["ABORTED"]}
    assert answer["data"]["tokenRevoke"] == {"revoked": 0}
    assert answer["errors"][0]["extensions"]["code"] == "UNAUTHENTICATED"


async def test_nobody_elses_things_are_reached_by_it(ada: Client, bob: Client) -> None:
    stored = await receive(ada, "Mine")
    theirs = 'messageDelete(input: {select: {all: true, users: {usernames: ["ada"]}}})'
    answer = await bob.raw(
        f"mutation @atomic {{ {entry_field('a', by='a')} {theirs} {{ {PAYLOAD_ERRORS} }} }}"
    )
    done = error_codes_by_field(answer["data"])
    assert done["a"] == ["ABORTED"]
    assert done["messageDelete"] in (["NOT_FOUND"], ["FORBIDDEN"])
    assert await load_key_values(bob) == {}
    found = await ada("{ viewer { user { messages { nodes { subject } } } } }")
    assert found["viewer"]["user"]["messages"]["nodes"] == [{"subject": "Mine"}]
    assert stored.message_id


async def test_only_mutations_are_atomic(ada: Client) -> None:
    answer = await ada.raw("query @atomic { viewer { role } }")
    assert answer["errors"][0]["extensions"]["code"] == "GRAPHQL_VALIDATION_FAILED"
    answer = await ada.raw(f"mutation @atomic @atomic {{ {entry_field('a')} }}")
    assert answer["errors"][0]["extensions"]["code"] == "GRAPHQL_VALIDATION_FAILED"


async def test_it_has_at_most_so_many_fields(ada: Client) -> None:
    def fields(many: int) -> str:
        return "".join(entry_field(f"k{n}", by=f"f{n}") for n in range(many))

    answer = await ada.raw(f"mutation @atomic {{ {fields(MAX_ATOMIC_FIELDS + 1)} }}")
    assert answer["data"] is None
    (error,) = answer["errors"]
    assert error["extensions"]["code"] == "BAD_USER_INPUT"
    assert str(MAX_ATOMIC_FIELDS) in error["message"]
    assert await load_key_values(ada) == {}
    done = await ada(f"mutation @atomic {{ {fields(MAX_ATOMIC_FIELDS)} }}")
    assert not any(error_codes_by_field(done).values())
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
async def test_what_takes_no_part_is_refused_before_anything_runs(ada: Client, field: str) -> None:
    done = await ada(
        f"mutation @atomic {{ {entry_field('a', by='a')} b: {field} {{ {PAYLOAD_ERRORS} }} }}"
    )
    assert error_codes_by_field(done) == {"a": ["ABORTED"], "b": ["FORBIDDEN_OPERATION"]}
    assert "takes no part in @atomic" in done["b"]["errors"][0]["message"]
    assert await ada.world.database.read(select(col(Throttle.key))) == []
    assert await load_key_values(ada) == {}


# what the options mean inside


async def test_a_trial_of_one_is_a_trial_of_all(either: Client) -> None:
    tried = entry_field("b", by="b", options="validateOnly: true")
    done = await either(f"mutation @atomic {{ {entry_field('a', by='a')} {tried} }}")
    assert error_codes_by_field(done) == {"a": [], "b": []}
    assert [one["entry"]["key"] for one in done.values()] == ["a", "b"]
    assert [one["journalCursor"] for one in done.values()] == [None, None]
    assert await load_key_values(either) == {}
    done = await either(
        f"mutation @atomic {{ {entry_field('a', by='a')} {tried} {FAILING_RENAME} }}"
    )
    assert error_codes_by_field(done) == {
        "a": ["ABORTED"],
        "b": ["ABORTED"],
        "mailboxRename": ["NOT_FOUND"],
    }
    assert await load_key_values(either) == {}


async def test_a_request_that_is_repeated_with_its_keys_has_its_first_answers(
    either: Client,
) -> None:
    one, two = (entry_field(n, by=n, options=f'idempotencyKey: "k-{n}"') for n in "ab")
    failed = await either(f"mutation @atomic {{ {one} {two} {FAILING_RENAME} }}")
    assert error_codes_by_field(failed)["a"] == ["ABORTED"]
    assert await either.world.database.read(select(col(IdempotentPayload.key))) == []
    first = await either(f"mutation @atomic {{ {one} {two} }}")
    assert [done["replayed"] for done in first.values()] == [False, False]
    again = await either(f"mutation @atomic {{ {one} {two} }}")
    assert again == {name: {**done, "replayed": True} for name, done in first.items()}
    other = entry_field("c", by="c", options='idempotencyKey: "k-a"')
    done = await either(f"mutation @atomic {{ {entry_field('d', by='d')} {other} }}")
    assert error_codes_by_field(done) == {"d": ["ABORTED"], "c": ["CONFLICT"]}
    assert set(await load_key_values(either)) == {"a", "b"}


async def test_a_key_twice_in_one_request_has_one_effect(ada: Client) -> None:
    add = 'keyValueIncrement(input: {key: "n", difference: 1, createMissing: true, options: {'
    add += f'idempotencyKey: "once"}}}}) {{ replayed {PAYLOAD_ERRORS} }}'
    done = await ada(f"mutation @atomic {{ a: {add} b: {add} }}")
    assert [one["replayed"] for one in done.values()] == [False, True]
    assert await load_key_values(ada) == {"n": "1"}


async def test_requests_at_once_with_the_same_keys_have_one_effect(ada: Client) -> None:
    add = """keyValueIncrement(input: {key: "%s", difference: 1, createMissing: true,
      options: {idempotencyKey: "once-%s"}}) { entry { value } replayed errors { code } }"""
    document = f"mutation @atomic {{ a: {add % ('a', 'a')} b: {add % ('b', 'b')} }}"
    answers = await asyncio.gather(*(ada(document) for _ in range(5)))
    assert await load_key_values(ada) == {"a": "1", "b": "1"}
    assert sorted(one["a"]["replayed"] for one in answers) == [False, True, True, True, True]
    for answer in answers:
        assert answer["a"]["replayed"] is answer["b"]["replayed"]
        assert [one["entry"]["value"] for one in answer.values()] == ["1", "1"]


# what goes on beside it


async def test_followers_hear_of_it_once_it_is_kept(
    ada: Client, world: Environment, tmp_path: Path
) -> None:
    async with house(world, tmp_path) as there:
        heard = await there.follow(ada, "subscription { changes { events { kind } } }")
        await until(lambda: there.seats == 1)
        await ada(f"mutation @atomic {{ {entry_field('a', by='a')} {FAILING_RENAME} }}")
        await ada(f"mutation @atomic {{ {entry_field('a', by='a')} {entry_field('b', by='b')} }}")
        await until(lambda: heard.events)
        assert [event["kind"] for event in heard.batches[0]["events"]] == ["KEY_VALUE_CHANGED"] * 2
        await heard.leave()


async def test_a_large_change_is_a_task_that_begins_when_it_is_kept(
    ada: Client, world: Environment
) -> None:
    for number in range(3):
        await receive(ada, f"Letter {number}")
    large = """messageUpdate(input: {select: {all: true}, set: {seen: true}, async: true})
      { task { id state total } errors { code } }"""
    done = await ada(f"mutation @atomic {{ a: {large} {FAILING_RENAME} }}")
    assert (error_codes_by_field(done)["a"], done["a"]["task"]) == (["ABORTED"], None)
    assert not await world.database.read(select(col(Task.id)))
    assert not await tasks.run_next_task(world)
    done = await ada(f"mutation @atomic {{ a: {large} {entry_field('b', by='b')} }}")
    assert (done["a"]["task"]["state"], done["a"]["task"]["total"]) == ("QUEUED", 3)
    while await tasks.run_next_task(world):
        pass
    found = await ada(
        "query ($id: ID!) { task(id: $id) { state done } viewer { user { unseenCount } } }".replace(
            " viewer { user { unseenCount } }", ""
        ),
        id=done["a"]["task"]["id"],
    )
    assert found["task"]["state"] == "SUCCEEDED"
    await examine(world)


async def test_the_queue_is_woken_when_it_is_kept(ada: Client, world: Environment) -> None:
    send = """messageSend(input: {to: [{address: "carol@example.com"}], text: "Hi."})
      { submission { state } errors { code } }"""
    with world.wakeups.follow([QUEUE]) as bell:
        done = await ada(f"mutation @atomic {{ a: {send} {FAILING_RENAME} }}")
        assert (error_codes_by_field(done)["a"], bell.is_set()) == (["ABORTED"], False)
        done = await ada(f"mutation @atomic {{ a: {send} {entry_field('b', by='b')} }}")
        assert (done["a"]["submission"]["state"], bell.is_set()) == ("QUEUED", True)


async def test_settings_are_in_force_when_they_are_kept(root: Client, world: Environment) -> None:
    def field(value: int) -> str:
        return f'settingSet(input: {{key: "submission.maxRecipients", value: {value}}})'

    fails = 'b: settingSet(input: {key: "nothing", value: 7}) { errors { code } }'
    before = world.options.max_recipients
    done = await root(f"mutation @atomic {{ a: {field(7)} {{ errors {{ code }} }} {fails} }}")
    assert error_codes_by_field(done)["a"] == ["ABORTED"]
    assert world.options.max_recipients == before
    assert not await world.database.read(select(col(SettingValue.key)))
    await root(f"mutation @atomic {{ a: {field(7)} {{ errors {{ code }} }} }}")
    assert world.options.max_recipients == 7
