"""Fixtures of the log store."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from models.runtime.environment import Environment
from tests.support.stores.log_stores import run_log_store


@pytest.fixture
async def log_environment(
    request: pytest.FixtureRequest, environment: Environment, tmp_path: Path
) -> AsyncIterator[Environment]:
    """The environment, which records its logs in an empty log store."""
    is_postgres = environment.database.dialect == "postgresql"
    url = request.getfixturevalue("postgres") if is_postgres else ""
    async with run_log_store(environment, url, tmp_path):
        yield environment
