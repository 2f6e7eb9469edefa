"""Fixtures of all tests: stores, a manual clock, accounts and a GraphQL client."""

import scim2_models  # noqa: F401, I001 - first: it searches all modules imported before it
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
from sqlalchemy.orm import make_transient_to_detached

from graph.app import create_app
from mail.recipients import address_resolution
from mail.smtp import lmtp
from mail.smtp.lmtp import LmtpListener
from mail.storage import message_insert, message_trace, received_messages
from mail.storage.blobs.object_stores import FolderStore
from models.auth.credentials import ApiKey
from models.files.damage_marks import wait_for_damage_marks
from models.runtime.environment import Environment
from models.runtime.options import Options
from models.store.columns import ColumnRow, core_table
from models.store.database import Database
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.auth import authentication
from resolvers.context import Context
from resolvers.health.prober import stop_probing
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.create import NewMailboxes
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.viewer import Viewer
from tests.support import item_selection
from tests.support.mail_servers.lmtp_client import SmtpTestClient, connect_lmtp
from tests.support.reference.errors.documented_errors import assert_errors_are_documented
from tests.support.schema.error_paths import assert_error_paths_exist
from tests.support.stores import counter_check, store_fixtures

if TYPE_CHECKING:
    from tests.support.servers.live_server import LiveServer

pytest_plugins = [
    "tests.support.clock_tests",
    "tests.support.executors",
    "tests.support.hypothesis_profile",
    "tests.support.module_durations",
    "tests.support.process_umask",
    "tests.support.servers.s3_server",
    "tests.support.servers.session_server_fixture",
    "tests.support.stores.outage_isolation",
    "tests.support.stores.recorded_statements",
]

TEST_OPTIONS = Options(
    argon2_memory_cost=8,
    argon2_time_cost=1,
    auto_create_domains=True,
    hostname="mx.example.org",
    log_slow_operation_threshold=timedelta(0),  # any operation is slow on a busy machine
    mx_allow_private_networks=True,  # the servers of tests are on loopback
    backup_restore_window=timedelta(0),  # garbage collection removes objects at once
    webauthn_rp_id="mail.example.org",
    webauthn_origins=("https://mail.example.org",),
)

# By fixture name: the columns of the user's row, and the secret of the user's API key
PreparedAccounts = dict[str, tuple[dict[str, Any], str]]
PREPARED_ACCOUNTS_KEY = pytest.StashKey[PreparedAccounts]()
StoreLocation = TypeVar("StoreLocation")
PrepareStore = Callable[[tuple[str, ...]], tuple[StoreLocation, PreparedAccounts]]


class ManualClock:
    """A clock with a fixed time that tests advance."""

    def __init__(self) -> None:
        self.time = datetime(2030, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def tick(self, **by: float) -> None:
        self.time += timedelta(**by)


@dataclass
class GraphQLClient:
    """A GraphQL client that signs in with the API key of one user or of the platform."""

    http: httpx.AsyncClient
    environment: Environment
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
        response = await self.execute(document, **variables)
        assert "errors" not in response, response["errors"]
        return response["data"]

    async def execute(self, document: str, **variables: Any) -> Any:
        """Execute `document` and return the response with `data`, `errors` and `extensions`."""
        response = await self.http.post(
            "/graphql",
            json={"query": document, "variables": variables},
            headers=self.headers,
        )
        checked_response = assert_error_paths_exist(document, response.json())
        return assert_errors_are_documented(document, checked_response)

    async def load_mailbox(self, path: str = "INBOX") -> ColumnRow:
        """Load the row of a mailbox of this user."""
        return await mailbox_loaders.require_own_or_shared_mailbox(
            client_context(self), mailbox_loaders.MailboxSelector(path=path)
        )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselect tests that run only in CI or `make test-all`, and run the longest files first."""
    deselected = item_selection.deselected_items(items)
    if deselected:
        config.hook.pytest_deselected(items=list(deselected))
        items[:] = [item for item in items if item not in deselected]
    items.sort(key=item_selection.run_order)
    gc.freeze()  # a scan of the modules and tests takes a tenth of the whole run time
    gc.set_threshold(20_000, 20, 50)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return store_fixtures.make_sqlite_template(tmp_path_factory.mktemp("template"))


@pytest.fixture(scope="session")
def prepare_sqlite_store(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> PrepareStore[Path]:
    """Return a function that makes a SQLite store with these accounts, to copy for each test."""

    @cache
    def prepare(names: tuple[str, ...]) -> tuple[Path, PreparedAccounts]:
        folder = tmp_path_factory.mktemp("prepared")
        accounts = store_fixtures.run_in_new_loop(
            create_accounts(
                store_fixtures.copy_sqlite_template(sqlite_template, folder), names, folder
            )
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
        await store_fixtures.empty_database(database)
        await database.close()
        accounts = await create_accounts(postgres, names, tmp_path_factory.mktemp("prepared"))
        await store_fixtures.copy_rows_to_schema(postgres, "_".join(names))
        return accounts

    @cache
    def prepare(names: tuple[str, ...]) -> tuple[str, PreparedAccounts]:
        return "_".join(names), store_fixtures.run_in_new_loop(make(names))

    return prepare


@pytest.fixture(scope="session")
def postgres() -> Iterator[str]:
    """The URL of the migrated database of this pytest-xdist worker."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "")
    server = store_fixtures.start_postgres_server()
    yield store_fixtures.run_in_new_loop(
        store_fixtures.create_worker_database(server.get_uri(), f"merganser_{worker or 'alone'}")
    )
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
        database = store_fixtures.share_compiled_statements(
            Database(store_fixtures.copy_sqlite_template(template, tmp_path))
        )
    else:
        url = store_fixtures.add_long_connect_timeout(request.getfixturevalue("postgres"))
        database, schema = store_fixtures.share_compiled_statements(Database(url)), ""
        if names:
            schema, request.node.stash[PREPARED_ACCOUNTS_KEY] = request.getfixturevalue(
                "prepare_postgres_schema"
            )(names)
        await store_fixtures.empty_database(database, schema)
    yield database
    await database.close()
    await asyncio.sleep(0)  # cancelled tasks end in the next iteration of the event loop


def _prepared_fixture_names(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The account fixtures of this file that the test uses, in a fixed order."""
    fixture_defs = request.node._fixtureinfo.name2fixturedefs  # noqa: SLF001
    if any(len(fixture_defs.get(name, ())) != 1 for name in ("clock", "environment")):
        return ()  # no accounts, or the test overrides the clock or the environment
    base_id = fixture_defs["clock"][0].baseid
    return tuple(
        name
        for name in PREPARED_ROLES
        if name in fixture_defs and fixture_defs[name][-1].baseid == base_id
    )


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
async def environment(
    database: Database, clock: ManualClock, tmp_path: Path
) -> AsyncIterator[Environment]:
    blobs = FolderStore(tmp_path / "blobs")
    test_environment = Environment(
        database, blobs, signing_secret=b"s" * 32, options=TEST_OPTIONS, now=clock
    )
    yield test_environment
    await stop_probing(test_environment)
    # the last use of a credential is stored after the response
    await authentication.wait_for_background_tasks(test_environment)
    await message_trace.write_pending_trace_steps(test_environment)
    await wait_for_damage_marks(blobs)
    await blobs.close()


@pytest.fixture
async def verify_counters(environment: Environment) -> AsyncIterator[None]:
    """Check all stored counters after the test."""
    yield
    await counter_check.assert_counters_match(environment)


@pytest.fixture
async def verify_consistency(environment: Environment) -> AsyncIterator[None]:
    """Check all counters after the test, and require that the consistency checks find nothing."""
    yield
    await counter_check.assert_store_consistent(environment)


@pytest.fixture
async def http(environment: Environment, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = create_app(environment, spool_folder=tmp_path)
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        yield client
    await app.end_subscriptions()


async def make_api_key(environment: Environment, name: str, **columns: Any) -> str:
    """Add an API key and return its secret."""
    secret = f"mgk_{name}".ljust(47, "k")
    key = ApiKey(
        id=environment.new_id(),
        name=name,
        digest=hashlib.sha256(secret.encode()).hexdigest(),
        created_at=environment.now(),
        **columns,
    )
    async with environment.write_session() as session:
        session.add(key)
    return secret


async def make_user(environment: Environment, name: str, **values: Any) -> User:
    """Create a user of example.org with mailboxes and the address name@example.org."""
    admin = Context(environment, Viewer(role=Role.ROOT, scopes=frozenset({Scope.FULL})))
    values = {"password_disabled": "password" not in values} | values
    new = NewUser(username=name, address=f"{name}@example.org", **values)
    return await creation_create.create_user(admin, new)


async def make_client(
    environment: Environment, http: httpx.AsyncClient, name: str, **values: Any
) -> GraphQLClient:
    """Create a user with an API key of all scopes, and return a client with that key."""
    user = await make_user(environment, name, **values)
    scopes = [Scope.FULL]
    secret = await make_api_key(environment, name, user_id=user.id, role=user.role, scopes=scopes)
    return GraphQLClient(http, environment, user, secret)


# The account fixtures that are created once in each worker and copied with the store
PREPARED_ROLES: dict[str, Role] = {
    "ada": Role.USER, "bob": Role.USER, "root": Role.ROOT, "admin_client": Role.ADMIN,
}  # fmt: skip
USERNAMES = {"admin_client": "over"}  # by fixture name, if the username differs


async def create_accounts(url: str, names: Iterable[str], folder: Path) -> PreparedAccounts:
    """Create these accounts of `PREPARED_ROLES` in an empty store."""
    database, blobs = Database(url), FolderStore(folder / "blobs")
    environment = Environment(
        database, blobs, signing_secret=b"s" * 32, options=TEST_OPTIONS, now=ManualClock()
    )
    accounts = {name: await _create_account(environment, None, name) for name in names}
    await database.close()
    await blobs.close()
    return {
        name: (
            {column.name: getattr(client.user, column.name) for column in core_table(User).columns},
            client.secret,
        )
        for name, client in accounts.items()
    }


async def _create_account(environment: Environment, http: Any, name: str) -> GraphQLClient:
    if name != "root":
        username = USERNAMES.get(name, name)
        return await make_client(environment, http, username, role=PREPARED_ROLES[name])
    secret = await make_api_key(environment, "root", role=Role.ROOT, scopes=[Scope.FULL])
    no_user = User(
        id=0,
        username="",
        username_key="",
        tenant_id=0,
        created_at=environment.now(),
        updated_at=environment.now(),
    )
    return GraphQLClient(http, environment, no_user, secret)


async def _load_account(
    request: pytest.FixtureRequest, environment: Environment, http: httpx.AsyncClient
) -> GraphQLClient:
    """The account with the name of the requested fixture: from the prepared store, or new."""
    name = request.fixturename or ""
    if prepared := request.node.stash.get(PREPARED_ACCOUNTS_KEY, {}).get(name):
        columns, secret = prepared
        user = User(**deepcopy(columns))
        if user.id:
            make_transient_to_detached(user)
        return GraphQLClient(http, environment, user, secret)
    return await _create_account(environment, http, name)


@pytest.fixture
async def ada(
    request: pytest.FixtureRequest, environment: Environment, http: httpx.AsyncClient
) -> GraphQLClient:
    return await _load_account(request, environment, http)


@pytest.fixture
async def bob(
    request: pytest.FixtureRequest, environment: Environment, http: httpx.AsyncClient
) -> GraphQLClient:
    return await _load_account(request, environment, http)


@pytest.fixture
async def root(
    request: pytest.FixtureRequest, environment: Environment, http: httpx.AsyncClient
) -> GraphQLClient:
    """A client with an API key of the platform, which belongs to no user."""
    return await _load_account(request, environment, http)


@pytest.fixture
async def admin_client(
    request: pytest.FixtureRequest, environment: Environment, http: httpx.AsyncClient
) -> GraphQLClient:
    """A client of an administrator, the user "over"."""
    return await _load_account(request, environment, http)


@pytest.fixture
async def live_server(environment: Environment, tmp_path: Path) -> AsyncIterator["LiveServer"]:
    """A server that listens on a port, for clients that subscribe."""
    from tests.support.servers.live_server import run_live_server  # live_server imports this module

    async with run_live_server(environment, tmp_path) as server:
        yield server


def client_context(client: GraphQLClient, *scopes: Scope) -> Context:
    """The context of a request by this client."""
    viewer = Viewer(client.user.id, client.user.role, frozenset(scopes or {Scope.FULL}))
    return Context(client.environment, viewer)


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


async def deliver_to(
    client: GraphQLClient, raw: bytes | str = "Hello", sender: str = "carol@example.com"
) -> message_insert.InsertedMessage:
    """Store a message as LMTP delivery does. If `raw` is a string, it is the subject."""
    message = raw_message(raw) if isinstance(raw, str) else raw
    parsed = await received_messages.parse_storable_message(message)
    recipient = await address_resolution.load_recipient_below_limits(
        client.environment, client.address
    )
    return await received_messages.store_once_for_recipient(
        client.environment, parsed, recipient, sender
    )


@pytest.fixture
async def ada_with_mail(ada: GraphQLClient, clock: ManualClock) -> GraphQLClient:
    """ada with three messages, a to c, in INBOX, and two mailboxes: Keep, and Brief (retention)."""
    for subject in "abc":
        await deliver_to(ada, subject)
        clock.tick(seconds=1)
    for new_mailboxes in (
        NewMailboxes(["Keep"]),
        NewMailboxes(["Brief"], retention=timedelta(days=1)),
    ):
        await mailbox_create.create_mailboxes(client_context(ada), new_mailboxes)
    return ada


def client_with_small_bulk_limit(client: GraphQLClient, spool: Path) -> GraphQLClient:
    """A client of the same user, on a server with a bulk limit of two messages."""
    options = replace(client.environment.options, bulk_max_items=2)
    app = create_app(replace(client.environment, options=options), spool_folder=spool)
    http = httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://few")
    return replace(client, http=http)


@pytest.fixture
async def small_bulk_client(ada_with_mail: GraphQLClient, tmp_path: Path) -> GraphQLClient:
    return client_with_small_bulk_limit(ada_with_mail, tmp_path)


@pytest.fixture
def small_transfer_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let exports write 3 messages at a time, and imports 4."""
    monkeypatch.setattr("resolvers.transfer.export_writer.MAX_CHUNK_MESSAGES", 3)
    monkeypatch.setattr("resolvers.transfer.import_writer.MAX_BATCH_MESSAGES", 4)


@pytest.fixture
async def lmtp_listener(environment: Environment, tmp_path: Path) -> AsyncIterator[LmtpListener]:
    """An LMTP listener."""
    lmtp_listener = await lmtp.start_lmtp_listener(
        environment, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    yield lmtp_listener
    await lmtp_listener.close(1)


@pytest.fixture
async def lmtp_client(lmtp_listener: LmtpListener) -> AsyncIterator[SmtpTestClient]:
    """An LMTP client that is connected to the listener."""
    lmtp_client = await connect_lmtp(lmtp_listener.port)
    yield lmtp_client
    await lmtp_client.close()
