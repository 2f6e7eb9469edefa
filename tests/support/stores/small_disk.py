"""A real file system that is small, and can be filled."""

import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.run_scope import CI

STEP = 1 << 16


@dataclass(frozen=True)
class SmallDisk:
    """A tmpfs of its own, mounted at a folder."""

    folder: Path

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"

    def fill(self, *, spare: int = 0) -> None:
        """Write until the disk is full; leave so many bytes."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (STEP, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue
            file.truncate(self._ballast.stat().st_size - spare)

    def give_to_owner(self, of: str) -> None:
        """Let the owner of another folder write here."""
        owner = Path(of).stat()
        os.chown(self.folder, owner.st_uid, owner.st_gid)

    def empty(self) -> None:
        """Remove what `fill` has written."""
        self._ballast.unlink()


@contextmanager
def small_disk(folder: Path, mebibytes: int) -> Generator[SmallDisk]:
    """Mount a disk of this size there. It needs root: others skip the test, but not in CI."""
    folder.mkdir()
    size = f"size={mebibytes}m,mode=755"
    command = ["/usr/bin/mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    mounted = subprocess.run(command, capture_output=True, text=True, check=False)
    if mounted.returncode:
        words = f"a small disk can't be mounted: {mounted.stderr}"
        if CI or os.geteuid() == 0:
            pytest.fail(words)
        pytest.skip(words)
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["/usr/bin/umount", "--lazy", str(folder)], check=True)
