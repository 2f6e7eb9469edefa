"""Changes of credentials and their rights, which database triggers record.

Triggers add a row for every change that can end or restrict a token or a key, or extend its access.
So no code can forget it. A process that caches credentials reads the new rows with one statement
for any number of cached credentials: see `CredentialChangeReader`.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from functools import lru_cache
from typing import Any

from sqlalchemy import ColumnElement, DateTime, bindparam, func, literal, null, select
from sqlmodel import Field, SQLModel, col

from models.events.incarnation import ROW_ID, StoreIncarnation
from models.store.columns import BIG_INTEGER, Int64, UtcDateTime
from models.store.prepared_statements import PreparedStatement

RETENTION = timedelta(hours=1)
MIN_KEPT_ROWS = 1000  # the newest rows are kept at any age
PLATFORM_USER_ID = 0  # stands for credentials without a user


class CredentialChange(SQLModel, table=True):
    """A change of the credentials of a user, or of their rights."""

    __tablename__ = "credential_changes"
    id: int | None = Field(default=None, primary_key=True, sa_type=BIG_INTEGER)
    user_id: Int64  # PLATFORM_USER_ID: keys without a user
    # PostgreSQL: the id of the transaction; SQLite: the last position plus one
    position: int = Field(sa_type=BIG_INTEGER, index=True)
    at: datetime = Field(sa_type=UtcDateTime, index=True)


@dataclass(frozen=True, slots=True)
class WatchedTable:
    """A table with recorded changes: the column of its user, and the columns that matter.

    `expiry_column` is an expiry, which matters if it becomes earlier.
    """

    user_column: str
    columns: tuple[str, ...] = ()
    expiry_column: str | None = None
    on_insert: bool = False
    on_delete: bool = True

    @property
    def update_columns(self) -> tuple[str, ...]:
        """The columns with recorded changes."""
        return (*self.columns, self.expiry_column) if self.expiry_column else self.columns

    def update_condition_sql(self) -> str:
        """Return SQL that is true if an update matters."""
        parts = [f"old.{name} IS DISTINCT FROM new.{name}" for name in self.columns]
        if self.expiry_column:
            parts.append(f"new.{self.expiry_column} < old.{self.expiry_column}")
        return " OR ".join(parts)


WATCHED_TABLES = {
    "users": WatchedTable(
        "id",
        (
            "role", "permissions", "admin_permissions", "domain_id", "auth_version", "active",
            "suspended", "deleted_at", "allow_local",
        ),
    ),
    "access_tokens": WatchedTable(
        "user_id",
        (
            "digest", "user_id", "auth_version", "scope", "scopes", "pending", "temporary",
            "actor_id", "actor_key_id", "oauth_grant_id", "oauth_scopes", "created_at",
        ),
        expiry_column="expires_at",
    ),
    "api_keys": WatchedTable(
        "user_id",
        (
            "digest", "user_id", "role", "scopes", "read_only", "active", "domains", "operations",
            "allowed_ips", "made_by", "made_by_key", "expires_at",
        ),
    ),
    # the end of an administrator ends credentials that it made for others
    "identity_links": WatchedTable("user_id", ("user_id", "access_ended_at")),
    "domain_admins": WatchedTable("user_id", ("user_id", "domain_id"), on_insert=True),
    # a share that ends deletes its row, which is checked at each use
    "mailbox_shares": WatchedTable("user_id", on_insert=True, on_delete=False),
}  # fmt: skip


def _sqlite_triggers(table_name: str, watched: WatchedTable) -> list[str]:
    def insert_sql(row_name: str) -> str:
        return (  # of names in WATCHED alone
            "INSERT INTO credential_changes (user_id, position, at)"  # noqa: S608
            f" VALUES (coalesce({row_name}.{watched.user_column}, {PLATFORM_USER_ID}),"
            " (SELECT coalesce(max(position), 0) + 1 FROM credential_changes),"
            " strftime('%Y-%m-%d %H:%M:%f000', 'now'));"
        )

    name, triggers = f"credential_changes_{table_name}", list[str]()
    if watched.on_insert:
        triggers.append(
            f"CREATE TRIGGER {name}_in AFTER INSERT ON {table_name} BEGIN {insert_sql('new')} END"
        )
    if watched.update_columns:
        triggers.append(
            f"CREATE TRIGGER {name}_up AFTER UPDATE OF {', '.join(watched.update_columns)}"
            f" ON {table_name} WHEN {watched.update_condition_sql()} BEGIN {insert_sql('old')} END"
        )
    if watched.on_delete:
        triggers.append(
            f"CREATE TRIGGER {name}_out AFTER DELETE ON {table_name} BEGIN {insert_sql('old')} END"
        )
    return triggers


_TRIGGER_FUNCTION = """
CREATE FUNCTION note_credential_change() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE changed jsonb;
BEGIN
  IF TG_OP = 'INSERT' THEN changed := to_jsonb(NEW); ELSE changed := to_jsonb(OLD); END IF;
  INSERT INTO credential_changes (user_id, position, at) VALUES
    (coalesce((changed ->> TG_ARGV[0])::bigint, 0), txid_current(), clock_timestamp());
  RETURN NULL;
END $$
"""


def _postgresql_triggers(table_name: str, watched: WatchedTable) -> list[str]:
    name, triggers = f"credential_changes_{table_name}", list[str]()
    run = f"FOR EACH ROW {{}}EXECUTE FUNCTION note_credential_change('{watched.user_column}')"
    watched_events = [("INSERT", watched.on_insert), ("DELETE", watched.on_delete)]
    if events := " OR ".join(event for event, is_on in watched_events if is_on):
        triggers.append(f"CREATE TRIGGER {name} AFTER {events} ON {table_name} {run.format('')}")
    if watched.update_columns:
        when = run.format(f"WHEN ({watched.update_condition_sql()}) ")
        columns = ", ".join(watched.update_columns)
        triggers.append(
            f"CREATE TRIGGER {name}_up AFTER UPDATE OF {columns} ON {table_name} {when}"
        )
    return triggers


def create_triggers_sql(
    dialect: str, missing_columns: Mapping[str, Collection[str]] | None = None
) -> list[str]:
    """Return the statements that create all triggers.

    `missing_columns` are watched columns, by table, that the database does not have yet.
    """
    missing = missing_columns or {}
    tables = {
        name: replace(
            watched,
            columns=tuple(
                column for column in watched.columns if column not in missing.get(name, ())
            ),
        )
        for name, watched in WATCHED_TABLES.items()
    }
    create = _sqlite_triggers if dialect == "sqlite" else _postgresql_triggers
    triggers = [sql for name, watched in tables.items() for sql in create(name, watched)]
    return triggers if dialect == "sqlite" else [_TRIGGER_FUNCTION, *triggers]


def recreate_update_trigger_sql(dialect: str, table_name: str) -> list[str]:
    """Return the statements that replace the update trigger of a table with the current one."""
    name = f"credential_changes_{table_name}_up"
    table_clause = f" ON {table_name}" if dialect == "postgresql" else ""
    create = next(sql for sql in create_triggers_sql(dialect) if f" {name} " in sql)
    return [f"DROP TRIGGER {name}{table_clause}", create]


def is_old_change_not_among_newest(now: datetime) -> ColumnElement[bool]:
    """Return SQL that is true for changes that every process has read or does not need.

    The newest are kept at any age: the clocks of the database and of `now` may differ.
    """
    newest = select(func.max(col(CredentialChange.id)) - MIN_KEPT_ROWS).scalar_subquery()
    return (col(CredentialChange.at) <= now - RETENTION) & (col(CredentialChange.id) <= newest)


@lru_cache(maxsize=2)
def _unread_changes_statement(dialect: str) -> PreparedStatement:
    """Return the statement that reads the changes from a position on.

    Positions increase on SQLite, which has one writer. On PostgreSQL the position is the
    transaction: a change that was not visible to a statement belongs to a transaction at or after
    the `xmin` of its snapshot. `started` distinguishes servers.
    """
    one_row = select(literal(1).label("one")).subquery("one")
    newest = select(func.coalesce(func.max(col(CredentialChange.position)), 0) + 1)
    if dialect == "postgresql":
        horizon: Any = func.txid_snapshot_xmin(func.txid_current_snapshot(), type_=BIG_INTEGER)
        started: Any = func.pg_postmaster_start_time(type_=DateTime(timezone=True))
    else:
        horizon, started = newest.scalar_subquery(), null()
    unseen = col(CredentialChange.position) >= bindparam("seen", type_=BIG_INTEGER)
    return PreparedStatement(
        select(
            horizon.label("horizon"),
            started.label("started"),
            col(StoreIncarnation.number).label("number"),
            col(StoreIncarnation.beat).label("beat"),
            col(CredentialChange.id).label("change"),
            col(CredentialChange.user_id).label("user_id"),
        )
        .select_from(one_row)
        .outerjoin(StoreIncarnation, col(StoreIncarnation.id) == ROW_ID)
        .outerjoin(CredentialChange, unseen)
    )


@dataclass
class CredentialChangeReader:
    """The changes that a process has read."""

    _next_position: int = 0
    _read_ids: frozenset[int] = frozenset()  # changes that may be returned again
    # start time of the server, and incarnation
    _database_identity: tuple[Any, ...] | None = field(default=None)
    _beat: int = 0

    def unread_statement_and_values(self, dialect: str) -> tuple[PreparedStatement, dict[str, int]]:
        """Return the statement that reads new changes, and the values of its parameters."""
        return _unread_changes_statement(dialect), {"seen": self._next_position}

    def take_unread_user_ids_unless_other_database(
        self, rows: Sequence[Any]
    ) -> frozenset[int] | None:
        """Return the users of the changes that were not read before.

        None if this is another database than before, such as a restored one or a former standby:
        then all cached credentials are invalid.
        """
        first = rows[0]
        store, beat = (first.started, first.number), first.beat or 0
        is_same = self._database_identity is None or (
            store == self._database_identity
            and beat >= self._beat
            and first.horizon >= self._next_position
        )
        self._database_identity, self._beat, self._next_position = store, beat, first.horizon
        changes = {row.change: row.user_id for row in rows if row.change is not None}
        new = frozenset(changes[change] for change in changes.keys() - self._read_ids)
        self._read_ids = frozenset(changes)
        return new if is_same else None
