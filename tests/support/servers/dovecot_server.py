"""A Dovecot server on loopback."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.servers import dovecot_server
from bench.servers.dovecot_server import PASSWORD, DovecotAccount
from tests.support.run_scope import CI

__all__ = ["PASSWORD", "DovecotAccount", "require_dovecot", "run_dovecot"]

SERVERS = Path("/usr/lib/dovecot")


def require_dovecot() -> None:
    """Skip the test if Dovecot is not installed, but fail in CI."""
    is_installed = shutil.which("dovecot") and all(
        (SERVERS / name).exists() for name in ("imap", "pop3")
    )
    if not is_installed and not CI:
        pytest.skip("there is no Dovecot here: apt-get install dovecot-imapd dovecot-pop3d")
    assert is_installed, "dovecot-imapd and dovecot-pop3d are to be installed in CI: .ci/run"


@contextmanager
def run_dovecot(folder: Path, **options: Any) -> Iterator[DovecotAccount]:
    """Run Dovecot; `options` are those of `bench.servers.dovecot_server.run_dovecot`."""
    require_dovecot()
    with dovecot_server.run_dovecot(folder, **options) as account:
        yield account
