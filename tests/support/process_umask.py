"""Start each test with the same umask. Commands that run in the test process change it."""

import os

UMASK = 0o022


def pytest_runtest_setup() -> None:
    """Set the umask of the test process."""
    os.umask(UMASK)
