"""PostgreSQL with an asynchronous standby that can lack commits, for the cluster soak."""

import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from tests.support.servers.postgres_cluster import PROGRAM_TIMEOUT, PostgresTestCluster

POLL_SECONDS = 0.05
CONNECTION_LIMIT = "max_connections = 300"  # three servers, each with its pools
SELECT_WAL_SENDERS = "SELECT pid FROM pg_stat_replication WHERE state = 'streaming'"
COUNT_SENDING = (
    "SELECT count(*) FROM queue_entries WHERE lease IS NOT NULL AND final_dot_at IS NOT NULL"
)
COUNT_WAL_RECEIVERS = "SELECT count(*) FROM pg_stat_wal_receiver"
# Of a record that the standby received in part nothing is replayed: then the process that replays
# waits for the rest of it.
IS_REPLAYED = """SELECT pg_last_wal_replay_lsn() >= pg_last_wal_receive_lsn() OR EXISTS (
    SELECT FROM pg_stat_activity WHERE backend_type = 'startup'
    AND wait_event IN ('RecoveryWalStream', 'RecoveryRetrieveRetryInterval'))"""
SELECT_DELIVERIES = "SELECT recipient, state, lease, final_dot_at FROM queue_entries"
OPEN_STATES = ("PENDING", "DEFERRED")


@dataclass(frozen=True, slots=True)
class RecipientState:
    """The state of one recipient in one PostgreSQL server."""

    state: str
    lease_id: str  # empty: not leased
    final_dot_at: str  # empty: the end of the message was not sent

    @property
    def may_have_arrived(self) -> bool:
        """True if the end of the message was about to be sent, or the result is known."""
        return self.state not in OPEN_STATES or bool(self.final_dot_at)


@dataclass
class LostCommits:
    """The commits of the primary that the standby lacks."""

    submissions: set[str] = field(default_factory=set)  # recipients that the standby doesn't know
    results: set[str] = field(default_factory=set)  # sent, and the standby has no result
    dots: set[str] = field(default_factory=set)  # about to be sent, and the standby has no mark
    claims: set[str] = field(default_factory=set)  # taken by a process, and nothing more
    # possible surplus copies, by recipient
    second_copies: Counter[str] = field(default_factory=Counter)

    @classmethod
    def from_states(
        cls, primary: Mapping[str, RecipientState], standby: Mapping[str, RecipientState]
    ) -> "LostCommits":
        """Compare the last state of the primary with that of the standby at its promotion."""
        found = cls()
        for recipient, last in primary.items():
            standby_state = standby.get(recipient)
            if last == standby_state:
                continue
            if standby_state is None:
                found.submissions.add(recipient)
            elif last.state != standby_state.state:
                found.results.add(recipient)
            elif last.final_dot_at != standby_state.final_dot_at:
                found.dots.add(recipient)
            else:
                found.claims.add(recipient)
            if last.may_have_arrived and recipient not in found.claims:
                found.second_copies[recipient] = 1
        return found


@dataclass
class ReplicatedStore:
    """A primary, and a standby that replays it asynchronously."""

    primary: PostgresTestCluster = field(default_factory=PostgresTestCluster)
    standby: PostgresTestCluster = field(default_factory=PostgresTestCluster)
    frozen: list[int] = field(default_factory=list)  # stopped processes that send WAL

    @property
    def url(self) -> str:
        """The URL of both; clients connect to the one that accepts writes."""
        hosts = f"{self.primary.home},{self.standby.home}"
        return f"postgresql://postgres@/postgres?host={hosts}&target_session_attrs=read-write"

    def start_both(self) -> None:
        """Start the primary, and copy it to the standby."""
        self.primary.initialize()
        self.primary.configure(CONNECTION_LIMIT)
        self.primary.start()
        self.primary.copy_to(self.standby, "-R")
        self.standby.start()
        _wait_until(
            lambda: bool(self.primary.run_sql(SELECT_WAL_SENDERS)), "the standby does not follow"
        )

    def stop_replication(self, min_sending: int) -> None:
        """Stop WAL senders, so that the standby lacks every later commit.

        First waits until the standby has this number of recipients that are being sent to.
        """
        _wait_until(
            lambda: int(self.standby.run_sql(COUNT_SENDING)) >= min_sending, "nothing is sent"
        )
        self.frozen = [int(pid) for pid in self.primary.run_sql(SELECT_WAL_SENDERS).split()]
        for pid in self.frozen:
            os.kill(pid, signal.SIGSTOP)

    def fail_over(self) -> LostCommits:
        """Kill the primary, promote the standby, and return what the standby lacks."""
        _kill_cluster(self.primary)
        _wait_until(
            lambda: self.standby.run_sql(COUNT_WAL_RECEIVERS) == "0", "the standby still receives"
        )
        _wait_until(lambda: self.standby.run_sql(IS_REPLAYED) == "t", "the standby still replays")
        standby_deliveries = _parse_deliveries(self.standby.run_sql(SELECT_DELIVERIES))
        self.standby.run_program("pg_ctl", "-w", "-D", self.standby.data, "promote")
        with _run_isolated(self.primary) as folder:
            arguments = ("-AtX", "-h", folder, "-d", "postgres", "-c", SELECT_DELIVERIES)
            last = _parse_deliveries(self.primary.run_program("psql", *arguments))
        return LostCommits.from_states(last, standby_deliveries)

    def remove(self) -> None:
        """Stop both, and remove their files."""
        for pid in self.frozen:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
        for one in (self.primary, self.standby):
            one.remove()


@contextmanager
def _run_isolated(cluster: PostgresTestCluster) -> Generator[Path]:
    """Run a cluster with another socket, and yield the folder of the socket."""
    folder = cluster.home / "apart"
    folder.mkdir()
    folder.chmod(0o777)
    options = f"-c listen_addresses='' -k {folder}"
    arguments = ("-w", "-t", str(int(PROGRAM_TIMEOUT)), "-l", cluster.home / "log", "-o", options)
    cluster.run_program("pg_ctl", *arguments, "-D", cluster.data, "start")
    try:
        yield folder
    finally:
        cluster.stop()


def _kill_cluster(cluster: PostgresTestCluster) -> None:
    """Kill all processes of a cluster at once, as if its machine had vanished."""
    first = int((cluster.data / "postmaster.pid").read_text().split()[0])
    children = Path(f"/proc/{first}/task/{first}/children").read_text().split()
    pids = [first, *map(int, children)]
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _wait_until(lambda: not any(_is_running(pid) for pid in pids), "PostgreSQL does not end")
    # If the dead process is not reaped, PostgreSQL takes it for a running one.
    (cluster.data / "postmaster.pid").unlink()


def _is_running(pid: int) -> bool:
    try:
        status = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return status.rpartition(")")[2].split()[0] != "Z"


def _parse_deliveries(text: str) -> dict[str, RecipientState]:
    rows = (line.split("|") for line in text.split("\n") if line)
    return {recipient: RecipientState(*values) for recipient, *values in rows}


def _wait_until(condition: Callable[[], bool], message: str) -> None:
    """Wait until a condition is true. Raises TimeoutError."""
    until = time.monotonic() + PROGRAM_TIMEOUT
    while not condition():
        if time.monotonic() > until:
            raise TimeoutError(message)
        time.sleep(POLL_SECONDS)
