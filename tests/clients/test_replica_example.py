"""Tests that the replica of examples/ equals the server after any interruption."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from mail.maintenance import housekeeping
from tests.conftest import raw_message
from tests.support.clients.random_changes import RandomChanges
from tests.support.clients.replica_process import (
    ReplicaProcess,
    assert_same_state,
    load_server_state,
    read_cursor,
    read_replica_state,
    run_replica_program,
)
from tests.support.clients.tcp_proxy import TcpProxy
from tests.support.servers.merganser_server import ANSWER_TIMEOUT, MerganserProcess

USERS = ("ada", "bob", "cleo", "dora", "eve", "fay", "gil", "hal", "ivy", "joe", "kim")
SOCKET_LIMIT = 3  # subscriptions per user
JOURNAL_LIMIT = 500  # events: the lowest allowed limit
READ_RIGHTS = ["READ"]
API_KEY_DELETE = (
    "mutation ($id: ID!) { apiKeyDelete(input: {apiKeys: [{id: $id}]}) { deletedIds } }"
)


@pytest.fixture(scope="module")
def server(
    tmp_path_factory: pytest.TempPathFactory, codegen_output: str
) -> Iterator[MerganserProcess]:
    """A server with an account for each test."""
    assert codegen_output
    low_limits = {
        "SUBSCRIPTIONS_PER_USER": str(SOCKET_LIMIT),
        "SUBSCRIPTIONS_MAX_LAG_EVENTS": str(JOURNAL_LIMIT),
    }
    server = MerganserProcess(tmp_path_factory.mktemp("replica"), extra_settings=low_limits)
    server.create_users(*USERS)
    server.start()
    yield server
    server.stop()


@asynccontextmanager
async def run_replica(
    server: MerganserProcess, name: str, folder: Path, *options: str, proxy_url: str | None = None
) -> AsyncGenerator[ReplicaProcess]:
    endpoint = proxy_url or f"{server.url}/graphql"
    async with run_replica_program(
        endpoint, server.secrets[name], folder / "mail.db", *options
    ) as replica_process:
        yield replica_process


async def deliver(server: MerganserProcess, name: str, *subjects: str) -> None:
    for subject in subjects:
        response = await server.deliver_by_lmtp(raw_message(subject), f"{name}@example.org")
        assert response.startswith("250 2.0.0 OK: queued")


async def test_replica_equals_server_after_random_changes(
    server: MerganserProcess, tmp_path: Path
) -> None:
    await deliver(server, "ada", *(f"Before {number}" for number in range(30)))
    async with (
        server.open_client("ada") as ada,
        run_replica(server, "ada", tmp_path) as replica_process,
    ):
        assert (await replica_process.wait_for_state())[0] == "NEW"
        state_before = await assert_same_state(replica_process, ada)
        assert len(state_before.messages) == 30
        storm = RandomChanges(server, ada, "ada", seed=1)
        await storm.make_changes(80)
        await assert_same_state(replica_process, ada)
        assert len(storm.change_counts) == 10
        assert set(replica_process.kinds) >= {
            "MAILBOX_CREATED", "MAILBOX_RENAMED", "MAILBOX_DELETED", "MESSAGE_ADDED",
            "MESSAGE_UPDATED", "MESSAGE_MOVED", "MESSAGE_DELETED", "MESSAGE_PURGED",
            "MESSAGE_RESTORED",
        }  # fmt: skip
        delivery_task = asyncio.ensure_future(
            deliver(server, "ada", *(f"Meanwhile {number}" for number in range(20)))
        )
        await storm.make_changes(40)
        await delivery_task
        await assert_same_state(replica_process, ada)
        assert replica_process.kinds.count("STATE") == 1  # all other changes are received as events
        assert await replica_process.stop() == 0
        assert await replica_process.read_error_output() == ""


async def test_replica_continues_after_server_restart(
    server: MerganserProcess, tmp_path: Path
) -> None:
    async with (
        server.open_client("bob") as bob,
        run_replica(server, "bob", tmp_path) as replica_process,
    ):
        await replica_process.wait_for_state()
        storm = RandomChanges(server, bob, "bob", seed=3)
        await storm.make_changes(25)
        change_task = asyncio.ensure_future(_change_until_disconnected(storm))
        await replica_process.read_line()
        server.kill()
        async with asyncio.timeout(ANSWER_TIMEOUT):
            await change_task
        await replica_process.wait_for_error_line("again in")
        server.start()
        await storm.make_changes(10)
        await assert_same_state(replica_process, bob)
        assert replica_process.kinds.count("STATE") == 1


async def _change_until_disconnected(storm: RandomChanges) -> None:
    """Make random changes until the server is gone."""
    try:
        while True:
            await storm.make_changes(1)
    except (httpx.TransportError, OSError, EOFError):
        pass


async def test_killed_replica_continues_from_its_file(
    server: MerganserProcess, tmp_path: Path
) -> None:
    kinds: list[str] = []
    async with server.open_client("cleo") as cleo:
        await deliver(server, "cleo", "One", "Two", "Three")
        storm = RandomChanges(server, cleo, "cleo", seed=5)
        for run_number in range(6):
            async with run_replica(server, "cleo", tmp_path) as replica_process:
                if not run_number:
                    await replica_process.wait_for_state()
                change_task = asyncio.ensure_future(storm.make_changes(12))
                for _ in range(1 + run_number % 3):
                    await replica_process.read_line()
                await replica_process.kill()
                kinds += replica_process.kinds
                await change_task
        async with run_replica(server, "cleo", tmp_path) as replica_process:
            await assert_same_state(replica_process, cleo)
    assert (kinds + replica_process.kinds).count("STATE") == 1


async def test_partially_read_state_is_not_stored(server: MerganserProcess, tmp_path: Path) -> None:
    """A replica that is killed while it reads the state keeps nothing, or the old state."""
    await deliver(server, "dora", *(f"Letter {number}" for number in range(60)))
    async with server.open_client("dora") as dora, TcpProxy(server.http_port) as proxy:
        proxy.remaining_bytes = 5000
        async with run_replica(server, "dora", tmp_path, proxy_url=proxy.url) as replica_process:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await proxy.is_exhausted.wait()
            await replica_process.kill()
            assert replica_process.lines == []
        assert read_cursor(tmp_path / "mail.db") is None
        assert read_replica_state(tmp_path / "mail.db").messages == {}
        async with run_replica(server, "dora", tmp_path) as replica_process:
            assert await replica_process.wait_for_state() == ["NEW", "5 folders", "60 messages"]
            state_before = await assert_same_state(replica_process, dora)
            await replica_process.kill()
        await deliver(server, "dora", "Forgotten before it was read", "Kept")
        await trim_journal(server)
        proxy.is_exhausted.clear()
        proxy.remaining_bytes = 5000
        async with run_replica(server, "dora", tmp_path, proxy_url=proxy.url) as replica_process:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await proxy.is_exhausted.wait()
            assert read_replica_state(tmp_path / "mail.db") == state_before
            await replica_process.kill()
        async with run_replica(server, "dora", tmp_path) as replica_process:
            assert (await replica_process.wait_for_state())[0] == "CURSOR_EXPIRED"
            assert len((await assert_same_state(replica_process, dora)).messages) == 62


async def trim_journal(server: MerganserProcess) -> None:
    """Delete almost the whole journal."""
    async with server.environment() as environment:
        low_limit_environment = replace(
            environment, options=replace(environment.options, journal_max_events=1)
        )
        assert (await housekeeping.run_housekeeping_round(low_limit_environment)).changes > 0


async def test_replica_reads_new_state_after_expired_cursor(
    server: MerganserProcess, tmp_path: Path
) -> None:
    async with server.open_client("eve") as eve:
        storm = RandomChanges(server, eve, "eve", seed=6)
        await storm.make_changes(20)
        async with run_replica(server, "eve", tmp_path) as replica_process:
            await replica_process.wait_for_state()
            await assert_same_state(replica_process, eve)
            assert await replica_process.stop() == 0
        await storm.make_changes(20)
        await trim_journal(server)
        async with run_replica(server, "eve", tmp_path) as replica_process:
            assert (await replica_process.wait_for_state())[0] == "CURSOR_EXPIRED"
            await assert_same_state(replica_process, eve)
            await storm.make_changes(10)  # and then follows the changes again
            await assert_same_state(replica_process, eve)
            assert replica_process.kinds.count("STATE") == 1


async def test_replica_catches_up_many_changes_without_new_state(
    server: MerganserProcess, tmp_path: Path
) -> None:
    await deliver(server, "fay", *(f"Letter {number}" for number in range(50)))
    async with server.open_client("fay") as fay:
        async with run_replica(server, "fay", tmp_path) as replica_process:
            await replica_process.wait_for_state()
            assert await replica_process.stop() == 0
        inbox = {"mailbox": {"specialUse": "INBOX"}}
        for update_number in range(JOURNAL_LIMIT // 50 * 2 + 1):  # more than one page of changes
            update_input = {"select": inbox, "set": {"flagged": update_number % 2 == 0}}
            await fay.run_mutation("messageUpdate", update_input)
        async with run_replica(server, "fay", tmp_path) as replica_process:
            await assert_same_state(replica_process, fay)
            assert replica_process.kinds == [
                "RESUMED",
                *["MESSAGE_UPDATED"] * (JOURNAL_LIMIT * 2 + 50),
            ]
            await deliver(server, "fay", "Live again")
            await assert_same_state(replica_process, fay)


async def test_replica_reconnects_after_cut_connection(
    server: MerganserProcess, tmp_path: Path
) -> None:
    async with (
        server.open_client("gil") as gil,
        TcpProxy(server.http_port) as proxy,
        run_replica(server, "gil", tmp_path, proxy_url=proxy.url) as replica_process,
    ):
        await replica_process.wait_for_state()
        storm = RandomChanges(server, gil, "gil", seed=7)
        cut_count = 0
        for _ in range(6):
            change_task = asyncio.ensure_future(storm.make_changes(8))
            await replica_process.read_line()
            cut_count += await proxy.drop_connections()
            await change_task
        await assert_same_state(replica_process, gil)
        assert proxy.connection_count > cut_count >= 3
        assert replica_process.kinds.count("STATE") == 1


async def test_replica_reconnects_after_silent_connection(
    server: MerganserProcess, tmp_path: Path
) -> None:
    """The peer does not close the connection. The replica can also stop without its answer."""
    async with (
        server.open_client("gil") as gil,
        TcpProxy(server.http_port) as proxy,
        run_replica(
            server, "gil", tmp_path, "--alive", "500", proxy_url=proxy.url
        ) as replica_process,
    ):
        await replica_process.wait_for_state()
        proxy.stall_connections()
        await RandomChanges(server, gil, "gil", seed=8).make_changes(5)
        await assert_same_state(replica_process, gil)
        await replica_process.wait_for_error_line("4499")
        assert replica_process.kinds.count("STATE") == 1
        proxy.stall_connections()
        assert await replica_process.stop() == 0


async def test_replica_stops_when_its_api_key_is_deleted(
    server: MerganserProcess, tmp_path: Path
) -> None:
    async with server.open_client("hal") as hal:
        created_key = await hal.run_mutation(
            "apiKeyCreate", {"name": "replica"}, "apiKey { id } secret"
        )
        server.secrets["lent"] = created_key["secret"]
        async with run_replica(server, "lent", tmp_path) as replica_process:
            await replica_process.wait_for_state()
            await assert_same_state(replica_process, hal)
            await hal(API_KEY_DELETE, id=created_key["apiKey"]["id"])
            assert await replica_process.wait_for_exit() == 3
            output = await replica_process.read_error_output()
            assert "given up: " in output
            assert created_key["secret"] not in output
        state_before = read_replica_state(tmp_path / "mail.db")
        async with run_replica(server, "lent", tmp_path) as replica_process:
            assert await replica_process.wait_for_exit() == 3
            assert (
                "given up: the credential was refused" in await replica_process.read_error_output()
            )
        assert read_replica_state(tmp_path / "mail.db") == state_before


async def test_replica_stops_with_api_key_without_account(
    server: MerganserProcess, tmp_path: Path
) -> None:
    async with run_replica(server, "root", tmp_path) as replica_process:
        assert await replica_process.wait_for_exit() == 3
        assert (
            await replica_process.read_error_output()
            == "given up: the credential belongs to no account"
        )


async def test_replica_waits_when_subscription_limit_is_reached(
    server: MerganserProcess, tmp_path: Path
) -> None:
    async with AsyncExitStack() as other_sockets, server.open_client("ivy") as ivy:
        for _ in range(SOCKET_LIMIT):
            await other_sockets.enter_async_context(server.open_websocket(server.secrets["ivy"]))
        async with run_replica(server, "ivy", tmp_path) as replica_process:
            await replica_process.wait_for_error_line("1013")
            assert replica_process.lines == []
            await other_sockets.aclose()
            assert (await replica_process.wait_for_state())[0] == "NEW"
            await assert_same_state(replica_process, ivy)


async def test_replica_refuses_file_of_other_account(
    server: MerganserProcess, tmp_path: Path
) -> None:
    await deliver(server, "joe", "For joe alone")
    async with run_replica(server, "joe", tmp_path) as replica_process:
        await replica_process.wait_for_state()
        assert await replica_process.stop() == 0
    state_before = read_replica_state(tmp_path / "mail.db"), read_cursor(tmp_path / "mail.db")
    async with run_replica(server, "kim", tmp_path) as replica_process:
        assert await replica_process.wait_for_exit() == 3
        assert "given up: " in await replica_process.read_error_output()
    assert (
        read_replica_state(tmp_path / "mail.db"),
        read_cursor(tmp_path / "mail.db"),
    ) == state_before


async def test_shared_mailbox_appears_and_disappears_in_replica(
    server: MerganserProcess, tmp_path: Path
) -> None:
    async with server.open_client("joe") as joe, server.open_client("kim") as kim:
        await joe.run_mutation("mailboxCreate", {"paths": ["Team", "Other"]})
        team_mailbox, other_mailbox = {"path": "Team"}, {"path": "Other"}
        for number in range(3):
            import_input = {"mailbox": team_mailbox, "raw": f"Subject: Old {number}\n\nHello.\n"}
            await joe.run_mutation("messageImport", import_input)

        async def share(mailbox: dict[str, str], rights: list[str]) -> None:
            share_input = {"mailbox": mailbox, "user": {"username": "kim"}, "rights": rights}
            await joe.run_mutation("mailboxShareSet", share_input)

        async def wait_for_own_change(path: str) -> None:
            """Create a mailbox of kim and wait for its event, and so for all events before it."""
            await kim.run_mutation("mailboxCreate", {"paths": [path]})
            while replica_process.lines[-1][1:] != ["MAILBOX_CREATED", path]:
                await replica_process.read_line()

        async with run_replica(server, "kim", tmp_path) as replica_process:
            await replica_process.wait_for_state()
            await share(team_mailbox, READ_RIGHTS)
            await wait_for_own_change("One")
            state = read_replica_state(replica_process.file)
            assert state == await load_server_state(kim)
            assert {message[2] for message in state.messages.values()} == {
                "Old 0",
                "Old 1",
                "Old 2",
            }
            await joe.run_mutation(
                "messageMove",
                {"select": {"mailbox": team_mailbox, "uids": "1"}, "to": other_mailbox},
            )
            await share(other_mailbox, ["LOOKUP"])
            await share(team_mailbox, [])
            await wait_for_own_change("Two")
            assert read_replica_state(replica_process.file).messages == {}
            assert "Team" not in {
                folder[1] for folder in read_replica_state(replica_process.file).folders.values()
            }
            await share(other_mailbox, READ_RIGHTS)
            await wait_for_own_change("Three")
            state = read_replica_state(replica_process.file)
            assert state == await load_server_state(kim)
            assert len(state.messages) == 1
