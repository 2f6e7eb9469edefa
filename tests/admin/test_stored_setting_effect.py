"""Stored settings: when they take effect, in this and in other processes."""

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
from resolvers.cluster import platform_follower
from resolvers.cluster.platform_follower import follow_platform_forever
from tests.conftest import TEST_OPTIONS, GraphQLClient, ManualClock
from tests.support.clients.change_followers import wait_for_followers
from tests.support.operations.platform.setting_operations import (
    MAX_RECIPIENTS_KEY,
    SETTING_DELETE,
    SETTING_SET,
    load_stored_settings,
    make_root_context,
    set_setting,
    setting_refs,
)
from tests.support.servers.live_server import wait_until

SEND = """mutation ($to: [MailAddressInput!]!) { messageSend(input: {to: $to, text: "x"}) {
  errors { __typename code } } }"""


async def send_message(client: GraphQLClient, recipient_count: int) -> list[Any]:
    recipients = [{"address": f"c{n}@example.com"} for n in range(recipient_count)]
    return list((await client(SEND, to=recipients))["messageSend"]["errors"])


async def test_lower_limit_applies_to_the_next_message(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    assert await send_message(ada, 3) == []
    await set_setting(root, MAX_RECIPIENTS_KEY, 2)
    assert len(await send_message(ada, 3)) == 1
    assert await send_message(ada, 2) == []
    await root(SETTING_DELETE, settings=setting_refs(MAX_RECIPIENTS_KEY))
    assert await send_message(ada, 3) == []


async def test_new_tokens_use_the_stored_lifetime(root: GraphQLClient, clock: ManualClock) -> None:
    setup = """mutation { userCreate(input: {address: "eve@example.org", password: "correct horse"})
      { errors { message } } }"""
    assert (await root(setup))["userCreate"]["errors"] == []
    sign_in = """mutation { authenticate(input: {username: "eve@example.org",
      password: "correct horse"}) { expiresAt errors { message } } }"""
    for value, lifetime in (("PT1H", timedelta(hours=1)), ("P2D", timedelta(days=2))):
        await set_setting(root, "tokens.idleTimeout", value)
        payload = (await root(sign_in))["authenticate"]
        assert payload["expiresAt"] == (clock() + lifetime).isoformat().replace("+00:00", "Z")


async def test_validate_only_and_rolled_back_settings_have_no_effect(root: GraphQLClient) -> None:
    await set_setting(root, MAX_RECIPIENTS_KEY, 50)
    payload = await root(
        SETTING_SET, key=MAX_RECIPIENTS_KEY, value=7, options={"validateOnly": True}
    )
    assert payload["settingSet"]["errors"] == []
    assert root.environment.options.submission_max_recipients == 50
    atomic = """mutation @atomic { a: settingSet(input: {key: "submission.maxRecipients", value: 7})
      { errors { code } } b: settingSet(input: {key: "nothing", value: 7}) { errors { code } } }"""
    await root.execute(atomic)
    assert root.environment.options.submission_max_recipients == 50
    assert await load_stored_settings(root.environment) == {MAX_RECIPIENTS_KEY: 50}
    ctx = make_root_context(root.environment)
    async with ctx.write_session():
        with contextlib.suppress(ZeroDivisionError):
            async with ctx.write_session():
                await admin_settings.store_setting_value(ctx, MAX_RECIPIENTS_KEY, 9)
                raise ZeroDivisionError
    assert root.environment.options.submission_max_recipients == 50
    async with ctx.write_session():
        await admin_settings.store_setting_value(ctx, MAX_RECIPIENTS_KEY, 11)
        assert root.environment.options.submission_max_recipients == 50  # not before the commit
    assert root.environment.options.submission_max_recipients == 11


async def test_newest_options_stay_in_effect(environment: Environment) -> None:
    await admin_settings.store_setting_value(make_root_context(environment), MAX_RECIPIENTS_KEY, 50)
    newest = environment.options
    environment.use_options_unless_outdated(
        CommittedOptions(TEST_OPTIONS, environment.options_position - 1)
    )
    assert environment.options is newest
    assert environment.initial_options is TEST_OPTIONS


async def test_concurrent_changes_all_take_effect(environment: Environment) -> None:
    settings = {
        MAX_RECIPIENTS_KEY: 50,
        "mailboxes.maxPerUser": 60,
        "bulk.maxItems": 70,
        "custom.a": "x",
    }
    await asyncio.gather(
        *(
            admin_settings.store_setting_value(make_root_context(environment), *setting)
            for setting in settings.items()
        )
    )
    options = environment.options
    assert (
        options.submission_max_recipients,
        options.mailboxes_max_per_user,
        options.bulk_max_items,
    ) == (50, 60, 70)
    assert await load_stored_settings(environment) == settings


async def test_message_size_applies_to_later_sessions(
    environment: Environment, tmp_path: Path
) -> None:
    lmtp = LmtpListener(environment, tmp_path)
    assert lmtp.limits.max_message_size == 64 << 20
    await admin_settings.store_setting_value(
        make_root_context(environment), "message.maxSize", "1 MiB"
    )
    assert lmtp.limits.max_message_size == 1 << 20


@pytest.fixture
async def other_process_environment(
    environment: Environment, clock: ManualClock
) -> AsyncIterator[Environment]:
    """Yield the environment of another process on the same database, without wake-ups."""
    database = Database(environment.database.url)
    yield Environment(
        database,
        environment.object_store,
        signing_secret=b"s" * 32,
        options=TEST_OPTIONS,
        now=clock,
    )
    await database.close()


def poll_often(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("POLL_SECONDS", "MIN_POLL_SECONDS"):
        monkeypatch.setattr(platform_follower, name, 0.05)


@contextlib.asynccontextmanager
async def follow_settings(environment: Environment) -> AsyncIterator[None]:
    task = asyncio.create_task(follow_platform_forever(environment))
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])


async def test_other_process_polls_changed_settings(
    environment: Environment,
    other_process_environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await admin_settings.store_setting_value(make_root_context(environment), MAX_RECIPIENTS_KEY, 50)
    poll_often(monkeypatch)
    async with follow_settings(other_process_environment):
        await wait_until(lambda: other_process_environment.options.submission_max_recipients == 50)
        await admin_settings.store_setting_value(
            make_root_context(environment), MAX_RECIPIENTS_KEY, 60
        )
        await wait_until(lambda: other_process_environment.options.submission_max_recipients == 60)
        await admin_settings.reset_settings(make_root_context(environment), [MAX_RECIPIENTS_KEY])
        await wait_until(lambda: other_process_environment.options.submission_max_recipients == 400)


async def test_wakeup_applies_settings_at_once(
    environment: Environment, clock: ManualClock, tmp_path: Path
) -> None:
    own_wakeups, other_wakeups = BusWakeups(LocalBus(tmp_path)), BusWakeups(LocalBus(tmp_path))
    joined = asyncio.Event()
    receive_task = asyncio.create_task(other_wakeups.receive_forever(joined.set))
    await joined.wait()
    environments = [
        Environment(
            environment.database,
            environment.object_store,
            signing_secret=b"s" * 32,
            options=TEST_OPTIONS,
            now=clock,
            wakeups=wakeups,
        )
        for wakeups in (own_wakeups, other_wakeups)
    ]
    async with follow_settings(environments[1]):
        await wait_for_followers(environments[1])
        await admin_settings.store_setting_value(
            make_root_context(environments[0]), MAX_RECIPIENTS_KEY, 50
        )
        await wait_until(lambda: environments[1].options.submission_max_recipients == 50)
    receive_task.cancel()
    for wakeups in (own_wakeups, other_wakeups):
        await wakeups.close()


async def test_polling_does_not_read_unchanged_settings(
    environment: Environment, statements: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    await admin_settings.store_setting_value(make_root_context(environment), MAX_RECIPIENTS_KEY, 50)
    poll_often(monkeypatch)

    def poll_count() -> int:
        return sum("ban_change" in statement for statement in statements)

    async with follow_settings(environment):
        await wait_until(lambda: poll_count() > 1)  # the first poll reads the settings
        del statements[:]
        await wait_until(lambda: poll_count() > 2)
    assert not [statement for statement in statements if "FROM setting_values" in statement]


async def test_unknown_and_invalid_stored_settings_are_ignored(
    environment: Environment,
    other_process_environment: Environment,
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = environment.now()
    stored_values = {
        "of.another.version": 1,
        "mailboxes.maxPerUser": "many",
        "tokens.idleTimeout": "PT1S",
        MAX_RECIPIENTS_KEY: 50,
    }
    async with environment.database.engine.begin() as connection:
        rows = [
            {"key": key, "value": {"value": value}, "updated_at": now}
            for key, value in stored_values.items()
        ]
        await connection.execute(insert(SettingValue), rows)
    invalid_keys = await admin_settings.apply_stored_settings_and_list_invalid(
        other_process_environment
    )
    admin_settings.log_unusable_settings(invalid_keys)
    assert sorted(invalid_keys) == [
        "mailboxes.maxPerUser",
        "of.another.version",
        "tokens.idleTimeout",
    ]
    assert len(caplog.records) == 3
    assert other_process_environment.options.submission_max_recipients == 50
    assert (
        other_process_environment.options.mailboxes_max_per_user
        == TEST_OPTIONS.mailboxes_max_per_user
    )
    setting = await admin_settings.find_setting(
        make_root_context(other_process_environment), "mailboxes.maxPerUser"
    )
    assert setting is not None
    assert (setting.value, setting.is_set) == (TEST_OPTIONS.mailboxes_max_per_user, False)
    assert (
        await admin_settings.find_setting(
            make_root_context(other_process_environment), "of.another.version"
        )
        is None
    )
    changed = await admin_settings.store_setting_value(
        make_root_context(other_process_environment), "mailboxes.maxPerUser", 70
    )
    assert (changed.value, other_process_environment.options.mailboxes_max_per_user) == (70, 70)
