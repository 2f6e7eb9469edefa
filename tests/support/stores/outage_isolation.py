"""A plugin of pytest that keeps the outages of one test away from the next ones."""

from collections.abc import Iterator

import pytest

from models.store.outage_log import OUTAGES


@pytest.fixture(autouse=True)
def forget_outages() -> Iterator[None]:
    """Forget the outages of this process: the next test has another database."""
    yield
    OUTAGES._open.clear()  # noqa: SLF001 - the log has no other use for it
