"""The programs beyond Python and make that the tests of CI need, with their Debian packages.

`python3 tests/support/required_programs.py` prints the packages that are missing, one in a line.
It needs only the standard library, since `.ci/run` calls it before anything is installed.
"""

import importlib.util
import os
import shutil
import sys
from pathlib import Path

# sbin, where Debian installs servers, is not in the PATH of all users
PROGRAM_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])
PACKAGES_BY_PROGRAM = {
    "chromium": ("chromium",),
    "strace": ("strace",),
    "redis-server": ("redis-server",),
    "nats-server": ("nats-server",),
    "sieve-test": ("dovecot-sieve",),
    "/usr/lib/dovecot/imap": ("dovecot-imapd",),
    "/usr/lib/dovecot/pop3": ("dovecot-pop3d",),
    "rspamd": ("rspamd",),
    "clamd": ("clamav-daemon",),
    "postfix": ("postfix",),
    "pebble": ("pebble",),
    "nsd": ("nsd",),
    "faketime": ("faketime",),
    "ip": ("iproute2",),
    "gpg": ("gnupg",),
    "curl": ("curl",),
    "jq": ("jq",),
    "caddy": ("caddy",),
    "haproxy": ("haproxy",),
    "msmtp": ("msmtp",),
    "nginx": ("nginx",),
    "/usr/lib/nginx/modules/ngx_mail_module.so": ("libnginx-mod-mail",),
    "promtool": ("prometheus",),
    "systemd-analyze": ("systemd",),
    "glewlwyd": ("glewlwyd", "dbconfig-no-thanks"),  # alone, it wants a MariaDB client
}
# The messages of the tests of this Python
PYTHON_TESTS_PACKAGE = f"libpython{sys.version_info.major}.{sys.version_info.minor}-testsuite"


def _is_installed(program: str) -> bool:
    if program.startswith("/"):
        return Path(program).exists()
    return shutil.which(program, path=PROGRAM_PATH) is not None


def _has_python_tests() -> bool:
    found = importlib.util.find_spec("test") and importlib.util.find_spec("test.test_email")
    folders = (found and found.submodule_search_locations) or []
    return any(any(Path(folder, "data").glob("msg_*.txt")) for folder in folders)


def missing_packages() -> list[str]:
    """The Debian packages of all programs that are missing on this machine."""
    missing = [
        package
        for program, packages in PACKAGES_BY_PROGRAM.items()
        if not _is_installed(program)
        for package in packages
    ]
    return missing if _has_python_tests() else [*missing, PYTHON_TESTS_PACKAGE]


if __name__ == "__main__":
    print("\n".join(missing_packages()))
