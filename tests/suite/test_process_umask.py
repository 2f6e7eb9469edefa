"""The umask that one test sets doesn't reach the next test of the process."""

import os


def test_umask_can_be_changed() -> None:
    os.umask(0o077)
    assert os.umask(0o077) == 0o077


def test_umask_of_earlier_test_is_gone() -> None:
    assert os.umask(0o022) == 0o022
