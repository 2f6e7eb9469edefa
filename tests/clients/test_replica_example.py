"""The replica of examples/, against the real server: whatever ends in between, it is the same."""

import asyncio
from collections.abc import AsyncGenerator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from mail.maintenance import housekeeping
from tests.conftest import raw_message
from tests.support.clients.random_changes import Storm
from tests.support.clients.replica_process import Replica, kept, place, replica, same, stored
from tests.support.clients.tcp_proxy import Proxy
from tests.support.servers.merganser_server import ANSWER, Server

USERS = ("ada", "bob", "cleo", "dora", "eve", "fay", "gil", "hal", "ivy", "joe", "kim")
SOCKETS = 3  # of one user at once
FAR = 500  # events: the least that can be set
READ = ["READ"]
DELETE = "mutation ($id: ID!) { apiKeyDelete(input: {ids: [$id]}) { deletedIds } }"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, typed: str) -> Iterator[Server]:
    """A server with an account for each test."""
    assert typed
    few = {"FOLLOWERS_EACH": str(SOCKETS), "CHANGES_OVERFLOW": str(FAR)}
    server = Server(tmp_path_factory.mktemp("replica"), more=few)
    server.make(*USERS)
    server.start()
    yield server
    server.stop()


@asynccontextmanager
async def following(
    server: Server, name: str, folder: Path, *words: str, through: str | None = None
) -> AsyncGenerator[Replica]:
    endpoint = through or f"{server.url}/graphql"
    async with replica(endpoint, server.secrets[name], folder / "mail.db", *words) as running:
        yield running


async def deliver(server: Server, name: str, *subjects: str) -> None:
    for subject in subjects:
        answer = await server.deliver(raw_message(subject), f"{name}@example.org")
        assert answer.startswith("250 2.0.0 Delivered")


async def test_it_is_the_same_after_a_storm(server: Server, tmp_path: Path) -> None:
    await deliver(server, "ada", *(f"Before {number}" for number in range(30)))
    async with server.client("ada") as ada, following(server, "ada", tmp_path) as running:
        assert (await running.state())[0] == "NEW"
        before = await same(running, ada)
        assert len(before.messages) == 30
        storm = Storm(server, ada, "ada", seed=1)
        await storm.blow(80)
        await same(running, ada)
        assert len(storm.done) == 10
        assert set(running.kinds) >= {
            "MAILBOX_CREATED", "MAILBOX_RENAMED", "MAILBOX_DELETED", "MESSAGE_ADDED",
            "MESSAGE_UPDATED", "MESSAGE_MOVED", "MESSAGE_ARCHIVED", "MESSAGE_DELETED",
            "MESSAGE_RESTORED",
        }  # fmt: skip
        writing = asyncio.ensure_future(
            deliver(server, "ada", *(f"Meanwhile {number}" for number in range(20)))
        )
        await storm.blow(40)
        await writing
        await same(running, ada)
        assert running.kinds.count("STATE") == 1  # all else came as changes
        assert await running.stop() == 0
        assert await running.notes() == ""


async def test_a_server_that_is_killed_is_followed_when_it_is_back(
    server: Server, tmp_path: Path
) -> None:
    async with server.client("bob") as bob, following(server, "bob", tmp_path) as running:
        await running.state()
        storm = Storm(server, bob, "bob", seed=3)
        await storm.blow(25)
        working = asyncio.ensure_future(_work(storm))
        await running.hear()
        server.kill()
        async with asyncio.timeout(ANSWER):
            await working
        await running.note("again in")
        server.start()
        await storm.blow(10)
        await same(running, bob)
        assert running.kinds.count("STATE") == 1


async def _work(storm: Storm) -> None:
    """Go on until the server is gone."""
    try:
        while True:
            await storm.blow(1)
    except (httpx.TransportError, OSError, EOFError):
        pass


async def test_a_replica_that_is_killed_goes_on_from_its_file(
    server: Server, tmp_path: Path
) -> None:
    kinds: list[str] = []
    async with server.client("cleo") as cleo:
        await deliver(server, "cleo", "One", "Two", "Three")
        storm = Storm(server, cleo, "cleo", seed=5)
        for life in range(6):
            async with following(server, "cleo", tmp_path) as running:
                if not life:
                    await running.state()
                blowing = asyncio.ensure_future(storm.blow(12))
                for _ in range(1 + life % 3):
                    await running.hear()
                await running.kill()
                kinds += running.kinds
                await blowing
        async with following(server, "cleo", tmp_path) as running:
            await same(running, cleo)
    assert (kinds + running.kinds).count("STATE") == 1


async def test_half_a_state_is_none(server: Server, tmp_path: Path) -> None:
    """Killed while it reads the state, it has what it had: nothing at first, the old one later."""
    await deliver(server, "dora", *(f"Letter {number}" for number in range(60)))
    async with server.client("dora") as dora, Proxy(server.http) as proxy:
        proxy.room = 5000
        async with following(server, "dora", tmp_path, through=proxy.url) as running:
            async with asyncio.timeout(ANSWER):
                await proxy.dry.wait()
            await running.kill()
            assert running.heard == []
        assert place(tmp_path / "mail.db") is None
        assert kept(tmp_path / "mail.db").messages == {}
        async with following(server, "dora", tmp_path) as running:
            assert await running.state() == ["NEW", "5 folders", "60 messages"]
            before = await same(running, dora)
            await running.kill()
        await deliver(server, "dora", "Forgotten before it was read", "Kept")
        await forget(server)
        proxy.dry.clear()
        proxy.room = 5000
        async with following(server, "dora", tmp_path, through=proxy.url) as running:
            async with asyncio.timeout(ANSWER):
                await proxy.dry.wait()
            assert kept(tmp_path / "mail.db") == before
            await running.kill()
        async with following(server, "dora", tmp_path) as running:
            assert (await running.state())[0] == "CURSOR_EXPIRED"
            assert len((await same(running, dora)).messages) == 62


async def forget(server: Server) -> None:
    """Keep almost nothing of the journal."""
    async with server.world() as world:
        few = replace(world, options=replace(world.options, journal_events=1))
        assert (await housekeeping.run_round(few)).changes > 0


async def test_who_was_away_too_long_reads_the_state_afresh(server: Server, tmp_path: Path) -> None:
    async with server.client("eve") as eve:
        storm = Storm(server, eve, "eve", seed=6)
        await storm.blow(20)
        async with following(server, "eve", tmp_path) as running:
            await running.state()
            await same(running, eve)
            assert await running.stop() == 0
        await storm.blow(20)
        await forget(server)
        async with following(server, "eve", tmp_path) as running:
            assert (await running.state())[0] == "CURSOR_EXPIRED"
            await same(running, eve)
            await storm.blow(10)  # and goes on from there
            await same(running, eve)
            assert running.kinds.count("STATE") == 1


async def test_who_is_far_behind_catches_up_without_reading_afresh(
    server: Server, tmp_path: Path
) -> None:
    await deliver(server, "fay", *(f"Letter {number}" for number in range(50)))
    async with server.client("fay") as fay:
        async with following(server, "fay", tmp_path) as running:
            await running.state()
            assert await running.stop() == 0
        inbox = {"mailbox": {"specialUse": "INBOX"}}
        for turn in range(FAR // 50 * 2 + 1):  # more than a page
            changed = {"select": inbox, "set": {"flagged": turn % 2 == 0}}
            await fay.do("messageUpdate", changed)
        async with following(server, "fay", tmp_path) as running:
            await same(running, fay)
            assert running.kinds == ["RESUMED", *["MESSAGE_UPDATED"] * (FAR * 2 + 50)]
            await deliver(server, "fay", "Live again")
            await same(running, fay)


async def test_a_line_that_is_cut_is_drawn_anew(server: Server, tmp_path: Path) -> None:
    async with (
        server.client("gil") as gil,
        Proxy(server.http) as proxy,
        following(server, "gil", tmp_path, through=proxy.url) as running,
    ):
        await running.state()
        storm = Storm(server, gil, "gil", seed=7)
        cuts = 0
        for _ in range(6):
            blowing = asyncio.ensure_future(storm.blow(8))
            await running.hear()
            cuts += await proxy.cut()
            await blowing
        await same(running, gil)
        assert proxy.opened > cuts >= 3
        assert running.kinds.count("STATE") == 1


async def test_a_line_that_is_dead_is_drawn_anew(server: Server, tmp_path: Path) -> None:
    """Nobody says that it has ended; who ends by itself does not wait for it either."""
    async with (
        server.client("gil") as gil,
        Proxy(server.http) as proxy,
        following(server, "gil", tmp_path, "--alive", "500", through=proxy.url) as running,
    ):
        await running.state()
        proxy.mute()
        await Storm(server, gil, "gil", seed=8).blow(5)
        await same(running, gil)
        await running.note("4499")
        assert running.kinds.count("STATE") == 1
        proxy.mute()
        assert await running.stop() == 0


async def test_a_key_that_has_ended_ends_it(server: Server, tmp_path: Path) -> None:
    async with server.client("hal") as hal:
        made = await hal.do("apiKeyCreate", {"name": "replica"}, "apiKey { id } secret")
        server.secrets["lent"] = made["secret"]
        async with following(server, "lent", tmp_path) as running:
            await running.state()
            await same(running, hal)
            await hal(DELETE, id=made["apiKey"]["id"])
            assert await running.ended() == 3
            said = await running.notes()
            assert "given up: " in said
            assert made["secret"] not in said
        before = kept(tmp_path / "mail.db")
        async with following(server, "lent", tmp_path) as running:
            assert await running.ended() == 3
            assert "given up: the credential was refused" in await running.notes()
        assert kept(tmp_path / "mail.db") == before


async def test_a_key_without_an_account_ends_it(server: Server, tmp_path: Path) -> None:
    async with following(server, "root", tmp_path) as running:
        assert await running.ended() == 3
        assert await running.notes() == "given up: the credential belongs to no account"


async def test_where_there_are_too_many_it_waits_for_its_turn(
    server: Server, tmp_path: Path
) -> None:
    async with AsyncExitStack() as others, server.client("ivy") as ivy:
        for _ in range(SOCKETS):
            await others.enter_async_context(server.socket(server.secrets["ivy"]))
        async with following(server, "ivy", tmp_path) as running:
            await running.note("1013")
            assert running.heard == []
            await others.aclose()
            assert (await running.state())[0] == "NEW"
            await same(running, ivy)


async def test_the_file_of_another_account_is_left_alone(server: Server, tmp_path: Path) -> None:
    await deliver(server, "joe", "For joe alone")
    async with following(server, "joe", tmp_path) as running:
        await running.state()
        assert await running.stop() == 0
    before = kept(tmp_path / "mail.db"), place(tmp_path / "mail.db")
    async with following(server, "kim", tmp_path) as running:
        assert await running.ended() == 3
        assert "given up: " in await running.notes()
    assert (kept(tmp_path / "mail.db"), place(tmp_path / "mail.db")) == before


async def test_what_others_share_comes_and_goes(server: Server, tmp_path: Path) -> None:
    async with server.client("joe") as joe, server.client("kim") as kim:
        await joe.do("mailboxCreate", {"paths": ["Team", "Other"]})
        team, other = {"path": "Team"}, {"path": "Other"}
        for number in range(3):
            letter = {"mailbox": team, "subject": f"Old {number}", "text": "Hello."}
            await joe.do("messageUpload", letter)

        async def share(box: dict[str, str], rights: list[str]) -> None:
            given = {"mailbox": box, "user": {"username": "kim"}, "rights": rights}
            await joe.do("mailboxShareSet", given)

        async def heard(path: str) -> None:
            """Until kim's own last change is told, and with it all before it."""
            await kim.do("mailboxCreate", {"paths": [path]})
            while running.heard[-1][1:] != ["MAILBOX_CREATED", path]:
                await running.hear()

        async with following(server, "kim", tmp_path) as running:
            await running.state()
            await share(team, READ)
            await heard("One")
            state = kept(running.file)
            assert state == await stored(kim)
            assert {message[2] for message in state.messages.values()} == {
                "Old 0",
                "Old 1",
                "Old 2",
            }
            await joe.do("messageMove", {"select": {"mailbox": team, "uids": "1"}, "to": other})
            await share(other, ["LOOKUP"])
            await share(team, [])
            await heard("Two")
            assert kept(running.file).messages == {}
            assert "Team" not in {folder[1] for folder in kept(running.file).folders.values()}
            await share(other, READ)
            await heard("Three")
            state = kept(running.file)
            assert state == await stored(kim)
            assert len(state.messages) == 1
