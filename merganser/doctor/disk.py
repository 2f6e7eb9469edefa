"""Check the free space and the free files of the disks with data."""

import os
from pathlib import Path

from merganser.doctor.findings import CheckName, Finding, action_finding, hint_finding, ok_finding
from merganser.server import environment_factory
from merganser.settings.settings import Settings
from models.quantities import format_size

LOW_DISK_SPACE = 1 << 30  # bytes; a hint below
FULL_DISK_SPACE = 200 << 20  # bytes; an action below
LOW_FILE_COUNT = 10_000  # files that can still be created; an action below


async def check_disk_space(settings: Settings) -> list[Finding]:
    """Check the disk of each folder with data."""
    findings: list[Finding] = []
    for folder in _folders_on_different_disks(settings):
        findings += _check_disk_of_folder(folder, settings.disk_reserve)
    return findings


def _check_disk_of_folder(folder: Path, reserve: int) -> list[Finding]:
    disk = os.statvfs(_folder_or_first_existing_parent(folder))
    free_bytes = disk.f_bavail * disk.f_frsize
    free_space = f"{format_size(free_bytes)} free for {folder}"
    if free_bytes < max(FULL_DISK_SPACE, 2 * reserve):
        return action_finding(
            CheckName.DISK, free_space, "free space: mail will soon be rejected with 452"
        )
    if disk.f_files and disk.f_favail < LOW_FILE_COUNT:  # some file systems have no limit: 0
        return action_finding(
            CheckName.DISK,
            f"only {disk.f_favail} more files can be created in {folder}",
            "delete files of other programs, or use a file system with more inodes",
        )
    if free_bytes < max(LOW_DISK_SPACE, 4 * reserve):
        return hint_finding(CheckName.DISK, free_space, "free disk space soon")
    return ok_finding(CheckName.DISK, free_space)


def _folders_on_different_disks(settings: Settings) -> list[Path]:
    url = environment_factory.checked_database_url_without_password(settings)
    folders = [settings.data]
    if url.get_backend_name() == "sqlite" and url.database:
        folders.append(Path(url.database).parent)
    urls = (settings.object_store_url, settings.cold_object_store_url)
    folders += [Path(url) for url in urls if url and "://" not in url]
    devices: dict[int, Path] = {}
    for folder in folders:
        devices.setdefault(_folder_or_first_existing_parent(folder).stat().st_dev, folder)
    return list(devices.values())


def _folder_or_first_existing_parent(folder: Path) -> Path:
    return next(
        folder_path
        for folder_path in (folder.absolute(), *folder.absolute().parents)
        if folder_path.exists()
    )
