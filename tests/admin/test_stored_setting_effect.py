"""Settings that are stored: when and where they are in force."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from mail.smtp.lmtp import LmtpListener
from models.admin.settings import SettingValue
from models.events.bus.local_bus import LocalBus
from models.events.wakeups import BusWakeups
from models.runtime.environment import CommittedOptions, Environment
from models.store.database import Database
from resolvers.admin import settings as admin_settings
from tests.conftest import CHEAP, Client, Clock
from tests.support.operations.setting_operations import MOST, SET, UNSET, operator, put, stored
from tests.support.servers.live_server import until

# in force
SEND = """mutation ($to: [NamedAddressInput!]!) { messageSend(input: {to: $to, text: "x"}) {
  errors { __typename code } } }"""


async def send(client: Client, many: int) -> list[Any]:
    to = [{"address": f"c{n}@example.com"} for n in range(many)]
    return list((await client(SEND, to=to))["messageSend"]["errors"])


async def test_a_lower_limit_holds_with_the_next_message(root: Client, ada: Client) -> None:
    assert await send(ada, 3) == []
    await put(root, MOST, 2)
    assert len(await send(ada, 3)) == 1
    assert await send(ada, 2) == []
    await root(UNSET, keys=[MOST])
    assert await send(ada, 3) == []


async def test_new_tokens_end_as_the_setting_says(root: Client, clock: Clock) -> None:
    made = """mutation { userCreate(input: {address: "eve@example.org", password: "correct horse"})
      { errors { message } } }"""
    assert (await root(made))["userCreate"]["errors"] == []
    enter = """mutation { authenticate(input: {username: "eve@example.org",
      password: "correct horse", token: true}) { expiresAt errors { message } } }"""
    for value, life in (("PT1H", timedelta(hours=1)), ("P2D", timedelta(days=2))):
        await put(root, "auth.tokenTtl", value)
        done = (await root(enter))["authenticate"]
        assert done["expiresAt"] == (clock() + life).isoformat().replace("+00:00", "Z")


async def test_a_trial_and_a_unit_that_is_rolled_back_are_not_in_force(root: Client) -> None:
    await put(root, MOST, 50)
    done = await root(SET, key=MOST, value=7, options={"validateOnly": True})
    assert done["settingSet"]["errors"] == []
    assert root.world.options.max_recipients == 50
    both = """mutation @atomic { a: settingSet(input: {key: "submission.maxRecipients", value: 7})
      { errors { code } } b: settingSet(input: {key: "nothing", value: 7}) { errors { code } } }"""
    await root.raw(both)
    assert root.world.options.max_recipients == 50
    assert await stored(root.world) == {MOST: 50}
    ctx = operator(root.world)
    async with ctx.write_session():
        with contextlib.suppress(ZeroDivisionError):
            async with ctx.write_session():
                await admin_settings.set_setting(ctx, MOST, 9)
                raise ZeroDivisionError
    assert root.world.options.max_recipients == 50
    async with ctx.write_session():
        await admin_settings.set_setting(ctx, MOST, 11)
        assert root.world.options.max_recipients == 50  # not before it is durable
    assert root.world.options.max_recipients == 11


async def test_the_newest_options_stay_in_force_whoever_comes_last(world: Environment) -> None:
    await admin_settings.set_setting(operator(world), MOST, 50)
    newest = world.options
    world.apply_options(CommittedOptions(CHEAP, world.options_position - 1))
    assert world.options is newest
    assert world.initial_options is CHEAP


async def test_two_changes_at_once_are_both_in_force(world: Environment) -> None:
    given = {MOST: 50, "mailboxes.max": 60, "bulk.max": 70, "custom.a": "x"}
    await asyncio.gather(
        *(admin_settings.set_setting(operator(world), *each) for each in given.items())
    )
    options = world.options
    assert (options.max_recipients, options.max_mailboxes, options.bulk) == (50, 60, 70)
    assert await stored(world) == given


async def test_the_largest_message_holds_for_sessions_that_begin_later(
    world: Environment, tmp_path: Path
) -> None:
    lmtp = LmtpListener(world, tmp_path)
    assert lmtp.limits.max_message_size == 64 << 20
    await admin_settings.set_setting(operator(world), "message.max", "1 MiB")
    assert lmtp.limits.max_message_size == 1 << 20


# other processes


@pytest.fixture
async def neighbour(world: Environment, clock: Clock) -> AsyncIterator[Environment]:
    """The world of another process on the same store, which hears no bells of ours."""
    database = Database(world.database.url)
    yield Environment(
        database, world.object_store, signing_secret=b"s" * 32, options=CHEAP, now=clock
    )
    await database.close()


@contextlib.asynccontextmanager
async def following(world: Environment) -> AsyncIterator[None]:
    task = asyncio.create_task(admin_settings.follow_stored_settings(world))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_another_process_goes_by_it_within_seconds(
    world: Environment, neighbour: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    await admin_settings.set_setting(operator(world), MOST, 50)
    monkeypatch.setattr(admin_settings, "POLL_SECONDS", 0.05)
    async with following(neighbour):
        await until(lambda: neighbour.options.max_recipients == 50)
        await admin_settings.set_setting(operator(world), MOST, 60)
        await until(lambda: neighbour.options.max_recipients == 60)
        await admin_settings.reset_settings(operator(world), [MOST])
        await until(lambda: neighbour.options.max_recipients == 400)


async def test_a_bell_makes_it_quicker(world: Environment, clock: Clock, tmp_path: Path) -> None:
    ours, theirs = BusWakeups(LocalBus(tmp_path)), BusWakeups(LocalBus(tmp_path))
    joined = asyncio.Event()
    hearing = asyncio.create_task(theirs.receive(joined.set))
    await joined.wait()
    made = [
        Environment(
            world.database,
            world.object_store,
            signing_secret=b"s" * 32,
            options=CHEAP,
            now=clock,
            wakeups=bell,
        )
        for bell in (ours, theirs)
    ]
    async with following(made[1]):
        await asyncio.sleep(0.1)
        await admin_settings.set_setting(operator(made[0]), MOST, 50)
        await until(lambda: made[1].options.max_recipients == 50, 0.5)  # LOOK is longer
    hearing.cancel()
    for bells in (ours, theirs):
        await bells.close()


async def test_following_costs_one_small_read_a_look(
    world: Environment, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await admin_settings.set_setting(operator(world), MOST, 50)
    monkeypatch.setattr(admin_settings, "POLL_SECONDS", 0.05)
    async with following(world):
        await asyncio.sleep(0.1)
        del statements[:]
        await asyncio.sleep(0.3)
    assert statements
    assert not [sent for sent in statements if "FROM settings" in sent]


async def test_what_a_version_does_not_know_is_left_alone(
    world: Environment, neighbour: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    now = world.now()
    odd = {"of.another.version": 1, "mailboxes.max": "many", "auth.tokenTtl": "PT1S", MOST: 50}
    async with world.database.engine.begin() as connection:
        rows = [
            {"key": key, "value": {"value": value}, "updated_at": now} for key, value in odd.items()
        ]
        await connection.execute(insert(SettingValue), rows)
    useless = await admin_settings.apply_stored_settings(neighbour)
    admin_settings.log_unusable_settings(useless)
    assert sorted(useless) == ["auth.tokenTtl", "mailboxes.max", "of.another.version"]
    assert len(caplog.records) == 3
    assert neighbour.options.max_recipients == 50
    assert neighbour.options.max_mailboxes == CHEAP.max_mailboxes
    found = await admin_settings.find_setting(operator(neighbour), "mailboxes.max")
    assert found is not None
    assert (found.value, found.is_set) == (CHEAP.max_mailboxes, False)
    assert await admin_settings.find_setting(operator(neighbour), "of.another.version") is None
    made = await admin_settings.set_setting(operator(neighbour), "mailboxes.max", 70)
    assert (made.value, neighbour.options.max_mailboxes) == (70, 70)
