"""A Dovecot of the tests' own on loopback."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.servers import dovecot_server
from bench.servers.dovecot_server import PASSWORD, DovecotAccount
from tests.support.run_scope import CI

__all__ = ["PASSWORD", "DovecotAccount", "dovecot", "needed"]

SERVERS = Path("/usr/lib/dovecot")


def needed() -> None:
    """Skip the test where the servers are not installed; but fail it in CI."""
    there = shutil.which("dovecot") and all((SERVERS / name).exists() for name in ("imap", "pop3"))
    if not there and not CI:
        pytest.skip("there is no Dovecot here: apt-get install dovecot-imapd dovecot-pop3d")
    assert there, "dovecot-imapd and dovecot-pop3d are to be installed in CI: .ci/run"


@contextmanager
def dovecot(folder: Path, **more: Any) -> Iterator[DovecotAccount]:
    """Run it where it is installed; `more` is as `bench.dovecot` has it."""
    needed()
    with dovecot_server.run_dovecot(folder, **more) as made:
        yield made
