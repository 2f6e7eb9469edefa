"""The files in /etc that the systemd service of Merganser reads."""

import grp
import os
from pathlib import Path

from merganser.errors import CommandError
from merganser.settings.example_files import example_secrets_file, example_settings_file

SYSTEM_FOLDER = Path("/etc/merganser")
SERVICE_GROUP = "merganser"
OWNER_ONLY_MODE, GROUP_READABLE_MODE = 0o600, 0o640
REMAINING_STEPS = """\
What remains to be done:
1. Write the host name and the public URL into {folder}/merganser.toml.
2. Write passwords into {folder}/secrets, if you use PostgreSQL or a bucket.
3. Install the unit merganser.service, and the program merganser-admin.
4. Run: merganser-admin init
5. Run: merganser-admin api-key create --name root --role ROOT
6. Run: merganser-admin doctor
7. Run: systemctl enable --now merganser"""


def service_group_id() -> int:
    """Return the ID of the group of the service. Raises CommandError if it doesn't exist."""
    try:
        return grp.getgrnam(SERVICE_GROUP).gr_gid
    except KeyError as problem:
        raise CommandError(
            f"The group {SERVICE_GROUP} does not exist: run `useradd --system --user-group "
            f"--home-dir /var/lib/merganser --shell /usr/sbin/nologin {SERVICE_GROUP}`."
        ) from problem


def create_missing_system_files(folder: Path, group_id: int) -> list[Path]:
    """Create the settings file and the file of secrets, and return those that were missing.

    The group can read the settings, and only the owner the secrets. Files that exist are kept.
    Raises CommandError if a file can't be created.
    """
    texts_and_modes = {
        folder / "merganser.toml": (example_settings_file(), GROUP_READABLE_MODE),
        folder / "secrets": (example_secrets_file(), OWNER_ONLY_MODE),
    }
    try:
        if not folder.is_dir():
            folder.mkdir(parents=True)
            os.chown(folder, -1, group_id)
            folder.chmod(0o750)
        return [
            path
            for path, (text, mode) in texts_and_modes.items()
            if _create_file_if_missing(path, text, mode, group_id)
        ]
    except OSError as problem:
        raise CommandError(
            f"Cannot create files in {folder}: {problem.strerror}. Run this command as root."
        ) from problem


def _create_file_if_missing(path: Path, text: str, mode: int, group_id: int) -> bool:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, OWNER_ONLY_MODE)
    except FileExistsError:
        return False
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        if mode != OWNER_ONLY_MODE:
            os.fchown(descriptor, -1, group_id)
            os.fchmod(descriptor, mode)
    return True
