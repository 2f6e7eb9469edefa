"""Tables of the processes that use the database, and of the clocks of their servers."""

from sqlmodel import Field, SQLModel

from models.store.columns import Int64, RowWithId, Timestamp, json_column


class ServerProcess(RowWithId, table=True):
    """A process that uses the database. Its leases end when its row is deleted.

    The process increases `heartbeat_count` every few seconds. Another process deletes the row
    when the counter stops: see models/runtime/leases.py.
    """

    __tablename__ = "server_processes"

    server: str = Field(index=True)  # identity of the server; a restart does not change it
    name: str  # of the process within its server, or of the command
    exclusive: str | None = None  # the work for which a command needs the database for itself
    host: str
    ip_addresses: list[str] = json_column(list)  # of the machine: they are never banned
    pid: Int64
    version: str
    answers_requests: bool = False  # False: a command, which requests to all processes omit
    boot: str  # identity of the machine's boot
    heartbeat_count: Int64 = 0
    heartbeat_at: Int64  # of the last heartbeat: milliseconds of CLOCK_BOOTTIME on that machine
    secret_box_keys: list[str] = json_column(list)  # names of the keys of its secret box
    started_at: Timestamp
    seen_at: Timestamp  # time of day of the last heartbeat; for people only


class ServerClock(SQLModel, table=True):
    """The clock of a server at its last heartbeat. It shows after a restart if it was set back."""

    __tablename__ = "server_clocks"

    server: str = Field(primary_key=True)  # see `ServerProcess`
    boot: str
    ahead: Int64  # milliseconds: its time of day less CLOCK_BOOTTIME
    seen_at: Timestamp
