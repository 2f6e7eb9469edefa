"""Fixtures of all tests: stores, a manual clock, accounts and a GraphQL client."""

import asyncio
import gc
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from copy import deepcopy
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import httpx
import pytest
from sqlalchemy import event
from sqlalchemy.orm import make_transient_to_detached

from graph.app import create_app
from mail.recipients import address_resolution
from mail.smtp import lmtp
from mail.smtp.lmtp import LmtpListener
from mail.storage import message_insert, message_trace, received_messages
from mail.storage.blobs.object_stores import FolderStore
from models.auth.credentials import ApiKey
from models.runtime.environment import Environment
from models.runtime.options import Options
from models.store.columns import ColumnRow, core_table
from models.store.database import Database
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.auth import authentication
from resolvers.context import Context, Viewer
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from tests.support import item_selection
from tests.support.mail_servers.lmtp_client import Neighbour, connect
from tests.support.stores import counter_check, store_fixtures

if TYPE_CHECKING:
    from tests.support.servers.live_server import House

pytest_plugins = ["tests.support.servers.s3_server"]

CHEAP = Options(
    argon2_memory=8,
    argon2_time=1,
    auto_create_domains=True,
    hostname="mx.example.org",
    mx_private=True,  # the servers of tests are on loopback
    restore_window=timedelta(0),  # garbage collection removes objects at once
    webauthn_id="mail.example.org",
    webauthn_origins=("https://mail.example.org",),
)


# By fixture name: the columns of the user's row, and the secret of the user's API key
PreparedAccounts = dict[str, tuple[dict[str, Any], str]]
PREPARED_ACCOUNTS_KEY = pytest.StashKey[PreparedAccounts]()
StoreLocation = TypeVar("StoreLocation")
PrepareStore = Callable[[tuple[str, ...]], tuple[StoreLocation, PreparedAccounts]]


class Clock:
    """A clock with a fixed time that tests advance."""

    def __init__(self) -> None:
        self.time = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def tick(self, **by: float) -> None:
        self.time += timedelta(**by)


@dataclass
class Client:
    """A GraphQL client that signs in with the API key of one user or of the platform."""

    http: httpx.AsyncClient
    world: Environment
    user: User
    secret: str

    @property
    def address(self) -> str:
        return f"{self.user.username}@example.org"

    @property
    def headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.secret}"}

    async def __call__(self, document: str, **variables: Any) -> Any:
        """Execute `document` and return its data. Any GraphQL error fails the test."""
        response = await self.raw(document, **variables)
        assert "errors" not in response, response["errors"]
        return response["data"]

    async def raw(self, document: str, **variables: Any) -> Any:
        """Execute `document` and return the response with `data`, `errors` and `extensions`."""
        response = await self.http.post(
            "/graphql",
            json={"query": document, "variables": variables},
            headers=self.headers,
        )
        return response.json()

    async def box(self, path: str = "INBOX") -> ColumnRow:
        """Load the row of a mailbox of this user."""
        return await mailbox_loaders.require_own_or_shared_mailbox(
            context(self), mailbox_loaders.MailboxSelector(path=path)
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that run only in CI or `make test-all`, and run the longest files first."""
    deselected = item_selection.deselected_items(items)
    if deselected:
        config.hook.pytest_deselected(items=list(deselected))
        items[:] = [item for item in items if item not in deselected]
    items.sort(key=item_selection.run_order)
    gc.collect()
    gc.freeze()  # a scan of the modules and tests takes a tenth of the whole run time
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_fixtures.sqlite_template(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="session")
def prepare_sqlite_store(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> PrepareStore[Path]:
    """Return a function that makes a SQLite store with these accounts, to copy for each test."""

    @cache
    def prepare(names: tuple[str, ...]) -> tuple[Path, PreparedAccounts]:
        folder = tmp_path_factory.mktemp("prepared")
        accounts = store_fixtures.run(
            create_accounts(store_fixtures.copied(sqlite_template, folder), names, folder)
        )
        return folder / "mail.db", accounts

    return prepare


@pytest.fixture(scope="session")
def prepare_postgres_schema(
    postgres: str, tmp_path_factory: pytest.TempPathFactory
) -> PrepareStore[str]:
    """Return a function that stores the rows of these accounts in a PostgreSQL schema."""

    async def make(names: tuple[str, ...]) -> PreparedAccounts:
        database = Database(postgres)
        await store_fixtures.emptied(database)
        await database.close()
        accounts = await create_accounts(postgres, names, tmp_path_factory.mktemp("prepared"))
        await store_fixtures.keep_rows(postgres, "_".join(names))
        return accounts

    @cache
    def prepare(names: tuple[str, ...]) -> tuple[str, PreparedAccounts]:
        return "_".join(names), store_fixtures.run(make(names))

    return prepare


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of the migrated database of this pytest-xdist worker."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    server = store_fixtures.postgres_server()
    url = store_fixtures.run(
        store_fixtures.new_database(server.get_uri(), f"merganser_{worker or 'alone'}")
    )
    store_fixtures.run(store_fixtures.migrated(url))
    store_fixtures.run(store_fixtures.can_be_emptied(url))
    yield url
    server.cleanup()


@pytest.fixture(params=store_fixtures.STORES)
async def database(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Database]:
    """A store that contains only the accounts of the test's fixtures."""
    names = _prepared_fixture_names(request)
    if request.param == "sqlite":
        template: Path = request.getfixturevalue("sqlite_template")
        if names:
            template, request.node.stash[PREPARED_ACCOUNTS_KEY] = request.getfixturevalue(
                "prepare_sqlite_store"
            )(names)
        database = store_fixtures.warmed(Database(store_fixtures.copied(template, tmp_path)))
    else:
        database, schema = store_fixtures.warmed(Database(request.getfixturevalue("postgres"))), ""
        if names:
            schema, request.node.stash[PREPARED_ACCOUNTS_KEY] = request.getfixturevalue(
                "prepare_postgres_schema"
            )(names)
        await store_fixtures.emptied(database, schema)
    yield database
    await database.close()
    await asyncio.sleep(0)  # cancelled tasks end in the next iteration of the event loop


def _prepared_fixture_names(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The account fixtures of this file that the test uses, in a fixed order."""
    fixture_defs = request.node._fixtureinfo.name2fixturedefs  # noqa: SLF001
    if any(len(fixture_defs.get(name, ())) != 1 for name in ("clock", "world")):
        return ()  # no accounts, or the test overrides the clock or the environment
    base_id = fixture_defs["clock"][0].baseid
    return tuple(
        name
        for name in PREPARED_ROLES
        if name in fixture_defs and fixture_defs[name][-1].baseid == base_id
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def world(database: Database, clock: Clock, tmp_path: Path) -> AsyncIterator[Environment]:
    blobs = FolderStore(tmp_path / "blobs")
    test_environment = Environment(
        database, blobs, signing_secret=b"s" * 32, options=CHEAP, now=clock
    )
    yield test_environment
    # the last use of a credential is stored after the response
    await authentication.wait_for_background_tasks(test_environment)
    await message_trace.flush(test_environment)
    await blobs.close()


@pytest.fixture
async def counted(world: Environment) -> AsyncIterator[None]:
    """Check all stored counters after the test."""
    yield
    await counter_check.recount(world)


@pytest.fixture
async def examined(world: Environment) -> AsyncIterator[None]:
    """Check all counters after the test, and require that the consistency checks find nothing."""
    yield
    await counter_check.examine(world)


@pytest.fixture
async def http(world: Environment, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(world, spool_folder=tmp_path)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    await app.end_subscriptions()


async def make_key(world: Environment, name: str, **columns: Any) -> str:
    """Add an API key and return its secret."""
    secret = f"mgk_{name}".ljust(47, "k")
    key = ApiKey(
        id=world.new_id(),
        name=name,
        digest=hashlib.sha256(secret.encode()).hexdigest(),
        created_at=world.now(),
        **columns,
    )
    async with world.write_session() as session:
        session.add(key)
    return secret


async def make_user(world: Environment, name: str, **values: Any) -> User:
    """Create a user of example.org with mailboxes and the address name@example.org."""
    admin = Context(world, Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER})))
    values = {"password_disabled": "password" not in values} | values
    new = NewUser(username=name, address=f"{name}@example.org", **values)
    return await creation_create.create_user(admin, new)


async def make_client(
    world: Environment, http: httpx.AsyncClient, name: str, **values: Any
) -> Client:
    """Create a user with an API key of all scopes, and return a client with that key."""
    user = await make_user(world, name, **values)
    scopes = [Scope.MASTER]
    secret = await make_key(world, name, user_id=user.id, role=user.role, scopes=scopes)
    return Client(http, world, user, secret)


# The account fixtures that are created once in each worker and copied with the store
PREPARED_ROLES: dict[str, Role] = {
    "ada": Role.USER, "bob": Role.USER, "root": Role.ROOT, "over": Role.ADMIN,
}  # fmt: skip
USERNAMES = {"admin_client": "over"}  # by fixture name, if the username differs


async def create_accounts(url: str, names: Iterable[str], folder: Path) -> PreparedAccounts:
    """Create these accounts of `PREPARED_ROLES` in an empty store."""
    database, blobs = Database(url), FolderStore(folder / "blobs")
    world = Environment(database, blobs, signing_secret=b"s" * 32, options=CHEAP, now=Clock())
    accounts = {name: await _create_account(world, None, name) for name in names}
    await database.close()
    await blobs.close()
    return {
        name: (
            {column.name: getattr(client.user, column.name) for column in core_table(User).columns},
            client.secret,
        )
        for name, client in accounts.items()
    }


async def _create_account(world: Environment, http: Any, name: str) -> Client:
    if name != "root":
        username = USERNAMES.get(name, name)
        return await make_client(world, http, username, role=PREPARED_ROLES[name])
    secret = await make_key(world, "root", role=Role.ROOT, scopes=[Scope.MASTER])
    no_user = User(
        id=0,
        username="",
        username_key="",
        tenant_id=0,
        created_at=world.now(),
        updated_at=world.now(),
    )
    return Client(http, world, no_user, secret)


async def _load_account(
    request: pytest.FixtureRequest, world: Environment, http: httpx.AsyncClient
) -> Client:
    """The account with the name of the requested fixture: from the prepared store, or new."""
    name = request.fixturename or ""
    if prepared := request.node.stash.get(PREPARED_ACCOUNTS_KEY, {}).get(name):
        columns, secret = prepared
        user = User(**deepcopy(columns))
        if user.id:
            make_transient_to_detached(user)
        return Client(http, world, user, secret)
    return await _create_account(world, http, name)


@pytest.fixture
async def ada(
    request: pytest.FixtureRequest, world: Environment, http: httpx.AsyncClient
) -> Client:
    return await _load_account(request, world, http)


@pytest.fixture
async def bob(
    request: pytest.FixtureRequest, world: Environment, http: httpx.AsyncClient
) -> Client:
    return await _load_account(request, world, http)


@pytest.fixture
async def root(
    request: pytest.FixtureRequest, world: Environment, http: httpx.AsyncClient
) -> Client:
    """A client with an API key of the platform, which belongs to no user."""
    return await _load_account(request, world, http)


@pytest.fixture
async def over(
    request: pytest.FixtureRequest, world: Environment, http: httpx.AsyncClient
) -> Client:
    """A client of an administrator, the user "over"."""
    return await _load_account(request, world, http)


@pytest.fixture
async def live(world: Environment, tmp_path: Path) -> AsyncIterator["House"]:
    """A server that listens on a port, for clients that subscribe."""
    from tests.support.servers.live_server import house  # live_server imports this module

    async with house(world, tmp_path) as server:
        yield server


def context(client: Client, *scopes: Scope) -> Context:
    """The context of a request by this client."""
    viewer = Viewer(client.user.id, client.user.role, frozenset(scopes or {Scope.MASTER}))
    return Context(client.world, viewer)


def raw_message(subject: str = "Hello", *, body: str = "Hi there.", **headers: str) -> bytes:
    """A small message with a Message-ID computed from the subject and body."""
    lines = {
        "From": "Carol <carol@example.com>",
        "To": "ada@example.org",
        "Subject": subject,
        "Date": "Tue, 01 Jan 2030 10:00:00 +0000",
        "Message-ID": f"<{hashlib.sha256((subject + body).encode()).hexdigest()[:16]}@example.com>",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items() if value)
    return f"{head}\r\n{body}\r\n".encode()


async def receive(
    client: Client, raw: bytes | str = "Hello", sender: str = "carol@example.com"
) -> message_insert.InsertedMessage:
    """Store a message as LMTP delivery does. If `raw` is a string, it is the subject."""
    message = raw_message(raw) if isinstance(raw, str) else raw
    parsed = await received_messages.parse_storable_message(message)
    recipient = await address_resolution.load_recipient_below_limits(client.world, client.address)
    return await received_messages.store_once_for_recipient(client.world, parsed, recipient, sender)


@pytest.fixture
async def post(ada: Client, clock: Clock) -> Client:
    """ada with three messages, a to c, in INBOX, and two mailboxes: Keep, and Brief (retention)."""
    for subject in "abc":
        await receive(ada, subject)
        clock.tick(seconds=1)
    for new_mailboxes in (
        NewMailboxes(["Keep"]),
        NewMailboxes(["Brief"], retention=timedelta(days=1)),
    ):
        await mailbox_loaders.create_mailboxes(context(ada), new_mailboxes)
    return ada


def few_of(client: Client, spool: Path) -> Client:
    """A client of the same user, on a server with a bulk limit of two messages."""
    small_environment = replace(client.world, options=replace(client.world.options, bulk=2))
    transport = httpx.ASGITransport(app=create_app(small_environment, spool_folder=spool))
    return replace(client, http=httpx.AsyncClient(transport=transport, base_url="http://few"))


@pytest.fixture
async def few(post: Client, tmp_path: Path) -> Client:
    return few_of(post, tmp_path)


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exports write 3 messages at a time, and imports 4."""
    monkeypatch.setattr("resolvers.transfer.export_writer.MAX_CHUNK_MESSAGES", 3)
    monkeypatch.setattr("resolvers.transfer.import_writer.MAX_BATCH_MESSAGES", 4)


@pytest.fixture
async def listener(world: Environment, tmp_path: Path) -> AsyncIterator[LmtpListener]:
    """An LMTP listener."""
    listener = await lmtp.start_lmtp_listener(
        world, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    yield listener
    await listener.close(1)


@pytest.fixture
async def neighbour(listener: LmtpListener) -> AsyncIterator[Neighbour]:
    """An LMTP client that is connected to the listener."""
    neighbour = await connect(listener.port)
    yield neighbour
    await neighbour.close()


TRANSACTION_STATEMENTS = ("BEGIN", "PRAGMA", "SAVEPOINT", "RELEASE")


def heard(database: Database, *excluded: str) -> list[str]:
    """Record SQL statements from now on, in order, except those that contain an excluded part."""
    statements: list[str] = []

    def record_statement(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if not statement.startswith(TRANSACTION_STATEMENTS) and not any(
            part in statement for part in excluded
        ):
            statements.append(statement)

    for engine in database.engines:
        event.listen(engine, "before_cursor_execute", record_statement)
    return statements


@pytest.fixture
def statements(database: Database) -> Any:
    """The SQL statements that are sent, in order. `del statements[:]` forgets the previous ones.

    The list excludes the statements of two background loops: the writer of delivery trace steps
    and the poll for changed credentials.
    """
    return heard(database, "INSERT INTO message_steps", "credential_changes")
