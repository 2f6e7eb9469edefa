"""A small file system that tests can fill."""

import os
import subprocess
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.run_scope import CI

WRITE_SIZE = 1 << 16


@dataclass(frozen=True)
class SmallDisk:
    """A tmpfs that is mounted at a folder."""

    folder: Path

    @property
    def _ballast(self) -> Path:
        return self.folder / "ballast"

    def fill(self, *, spare: int = 0) -> None:
        """Write until the disk is full; leave `spare` bytes."""
        with self._ballast.open("ab", buffering=0) as file:
            for size in (WRITE_SIZE, 1):
                try:
                    while file.write(bytes(size)) == size:
                        pass
                except OSError:
                    continue
            file.truncate(self._ballast.stat().st_size - spare)

    def give_to_owner(self, other_folder: str) -> None:
        """Give the folder to the owner of another folder."""
        owner = Path(other_folder).stat()
        os.chown(self.folder, owner.st_uid, owner.st_gid)

    def remove_ballast(self) -> None:
        """Remove the file that `fill` has written."""
        self._ballast.unlink()

    @contextmanager
    def mounted_read_only(self) -> Generator[None]:
        """Mount the disk read-only, as the kernel does after an error of the device."""
        self._remount("ro")
        try:
            yield
        finally:
            self._remount("rw")

    def _remount(self, option: str) -> None:
        command = ["/usr/bin/mount", "-o", f"remount,{option}", str(self.folder)]
        subprocess.run(command, check=True)


@contextmanager
def mount_small_disk(folder: Path, mebibytes: int) -> Generator[SmallDisk]:
    """Mount a disk of this size. Without root the test is skipped, but in CI it fails."""
    folder.mkdir()
    size = f"size={mebibytes}m,mode=755"
    command = ["/usr/bin/mount", "-t", "tmpfs", "-o", size, "tmpfs", str(folder)]
    mount_result = subprocess.run(command, capture_output=True, text=True, check=False)
    if mount_result.returncode:
        reason = f"a small disk can't be mounted: {mount_result.stderr}"
        if CI or os.geteuid() == 0:
            pytest.fail(reason)
        pytest.skip(reason)
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["/usr/bin/umount", "--lazy", str(folder)], check=True)
