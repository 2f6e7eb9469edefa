"""Changes of credentials and their rights, which database triggers record.

Triggers add a row for every change that can end or restrict a token or a key, or extend its access.
So no code can forget it. A process that caches credentials reads the new rows with one statement
for any number of cached credentials: see `CredentialChangeReader`.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, DateTime, bindparam, func, literal, null, select
from sqlmodel import Field, SQLModel, col

from models.events.incarnation import ROW, StoreIncarnation
from models.store.columns import Big, Instant, Number
from models.store.prepared_statements import Prepared

KEPT_FOR = timedelta(hours=1)
KEPT = 1000  # the newest rows are kept at any age
PLATFORM = 0  # stands for credentials without a user


class CredentialChange(SQLModel, table=True):
    """A change of the credentials of a user, or of their rights."""

    __tablename__ = "credential_changes"
    id: int | None = Field(default=None, primary_key=True, sa_type=Big)
    user_id: Number  # PLATFORM_USER_ID: keys without a user
    # PostgreSQL: the id of the transaction; SQLite: the last position plus one
    position: int = Field(sa_type=Big, index=True)
    at: datetime = Field(sa_type=Instant, index=True)


@dataclass(frozen=True, slots=True)
class WatchedTable:
    """A table with recorded changes: the column of its user, and the columns that matter.

    `expiry_column` is an expiry, which matters if it becomes earlier.
    """

    owner: str
    columns: tuple[str, ...] = ()
    sooner: str | None = None
    inserted: bool = False
    deleted: bool = True

    @property
    def updated(self) -> tuple[str, ...]:
        """The columns with recorded changes."""
        return (*self.columns, self.sooner) if self.sooner else self.columns

    def condition(self) -> str:
        """Return SQL that is true if an update matters."""
        parts = [f"old.{name} IS DISTINCT FROM new.{name}" for name in self.columns]
        if self.sooner:
            parts.append(f"new.{self.sooner} < old.{self.sooner}")
        return " OR ".join(parts)


WATCHED = {
    "users": WatchedTable(
        "id",
        (
            "role", "permissions", "admin_permissions", "domain_id", "auth_version", "disabled",
            "suspended", "deleted_at",
        ),
    ),
    "access_tokens": WatchedTable(
        "user_id",
        (
            "digest", "user_id", "auth_version", "scope", "pending", "temporary", "actor_id",
            "actor_key_id", "created_at",
        ),
        sooner="expires_at",
    ),
    "api_keys": WatchedTable(
        "user_id",
        (
            "digest", "user_id", "role", "scopes", "read_only", "active", "domains", "operations",
            "allowed_ips", "made_by", "made_by_key", "expires_at",
        ),
    ),
    "domain_admins": WatchedTable("user_id", ("user_id", "domain_id"), inserted=True),
    # a share that ends deletes its row, which is checked at each use
    "mailbox_shares": WatchedTable("user_id", inserted=True, deleted=False),
}  # fmt: skip


def _sqlite(table: str, watched: WatchedTable) -> list[str]:
    def noted(row: str) -> str:
        return (  # of names in WATCHED alone
            "INSERT INTO credential_changes (user_id, position, at)"  # noqa: S608
            f" VALUES (coalesce({row}.{watched.owner}, {PLATFORM}),"
            " (SELECT coalesce(max(position), 0) + 1 FROM credential_changes),"
            " strftime('%Y-%m-%d %H:%M:%f000', 'now'));"
        )

    name, made = f"credential_changes_{table}", list[str]()
    if watched.inserted:
        made.append(f"CREATE TRIGGER {name}_in AFTER INSERT ON {table} BEGIN {noted('new')} END")
    if watched.updated:
        made.append(
            f"CREATE TRIGGER {name}_up AFTER UPDATE OF {', '.join(watched.updated)}"
            f" ON {table} WHEN {watched.condition()} BEGIN {noted('old')} END"
        )
    if watched.deleted:
        made.append(f"CREATE TRIGGER {name}_out AFTER DELETE ON {table} BEGIN {noted('old')} END")
    return made


_NOTE = """
CREATE FUNCTION note_credential_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE changed jsonb;
BEGIN
  IF TG_OP = 'INSERT' THEN changed := to_jsonb(NEW); ELSE changed := to_jsonb(OLD); END IF;
  INSERT INTO credential_changes (user_id, position, at) VALUES
    (coalesce((changed ->> TG_ARGV[0])::bigint, 0), txid_current(), clock_timestamp());
  RETURN NULL;
END $$
"""


def _postgresql(table: str, watched: WatchedTable) -> list[str]:
    name, made = f"credential_changes_{table}", list[str]()
    run = f"FOR EACH ROW {{}}EXECUTE FUNCTION note_credential_change('{watched.owner}')"
    watched_events = [("INSERT", watched.inserted), ("DELETE", watched.deleted)]
    if events := " OR ".join(event for event, is_on in watched_events if is_on):
        made.append(f"CREATE TRIGGER {name} AFTER {events} ON {table} {run.format('')}")
    if watched.updated:
        when = run.format(f"WHEN ({watched.condition()}) ")
        columns = ", ".join(watched.updated)
        made.append(f"CREATE TRIGGER {name}_up AFTER UPDATE OF {columns} ON {table} {when}")
    return made


CREATE = {
    "sqlite": [sql for table, watched in WATCHED.items() for sql in _sqlite(table, watched)],
    "postgresql": [
        _NOTE,
        *(sql for table, watched in WATCHED.items() for sql in _postgresql(table, watched)),
    ],
}


def old_changes(now: datetime) -> ColumnElement[bool]:
    """Return SQL that is true for changes that every process has read or does not need.

    The newest are kept at any age: the clocks of the database and of `now` may differ.
    """
    newest = select(func.max(col(CredentialChange.id)) - KEPT).scalar_subquery()
    return (col(CredentialChange.at) <= now - KEPT_FOR) & (col(CredentialChange.id) <= newest)


@lru_cache(maxsize=2)
def _unseen(dialect: str) -> Prepared:
    """Return the statement that reads the changes from a position on.

    Positions increase on SQLite, which has one writer. On PostgreSQL the position is the
    transaction: a change that was not visible to a statement belongs to a transaction at or after
    the `xmin` of its snapshot. `started` distinguishes servers.
    """
    one = select(literal(1).label("one")).subquery("one")
    newest = select(func.coalesce(func.max(col(CredentialChange.position)), 0) + 1)
    if dialect == "postgresql":
        horizon: Any = func.txid_snapshot_xmin(func.txid_current_snapshot(), type_=Big)
        started: Any = func.pg_postmaster_start_time(type_=DateTime(timezone=True))
    else:
        horizon, started = newest.scalar_subquery(), null()
    unseen = col(CredentialChange.position) >= bindparam("seen", type_=Big)
    return Prepared(
        select(
            horizon.label("horizon"),
            started.label("started"),
            col(StoreIncarnation.number).label("number"),
            col(StoreIncarnation.beat).label("beat"),
            col(CredentialChange.id).label("change"),
            col(CredentialChange.user_id).label("user_id"),
        )
        .select_from(one)
        .outerjoin(StoreIncarnation, col(StoreIncarnation.id) == ROW)
        .outerjoin(CredentialChange, unseen)
    )


@dataclass
class ChangeReader:
    """The changes that a process has read."""

    _seen: int = 0
    _known: frozenset[int] = frozenset()  # changes that may be returned again
    # start time of the server, and incarnation
    _store: tuple[Any, ...] | None = field(default=None)
    _beat: int = 0

    def statement(self, dialect: str) -> tuple[Prepared, dict[str, int]]:
        """Return the statement that reads new changes, and the values of its parameters."""
        return _unseen(dialect), {"seen": self._seen}

    def accounts(self, rows: Sequence[Any]) -> frozenset[int] | None:
        """Return the users of the changes that were not read before.

        None if this is another database than before, such as a restored one or a former standby:
        then all cached credentials are invalid.
        """
        first = rows[0]
        store, beat = (first.started, first.number), first.beat or 0
        is_same = self._store is None or (
            store == self._store and beat >= self._beat and first.horizon >= self._seen
        )
        self._store, self._beat, self._seen = store, beat, first.horizon
        changes = {row.change: row.user_id for row in rows if row.change is not None}
        new = frozenset(changes[change] for change in changes.keys() - self._known)
        self._known = frozenset(changes)
        return new if is_same else None
