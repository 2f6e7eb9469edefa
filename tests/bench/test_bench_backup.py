"""`python -m bench.backup` measures all steps on both stores."""

from pathlib import Path

import pytest
from rich.progress import Progress

from bench.backup import measure_store
from bench.servers.compared_servers import DatabaseKind
from tests.support.run_scope import RUNS_ALL_TESTS


@pytest.mark.skipif(not RUNS_ALL_TESTS, reason="starts four commands for each store")
@pytest.mark.parametrize("kind", DatabaseKind)
async def test_each_step_is_measured(kind: DatabaseKind, tmp_path: Path) -> None:
    steps = await measure_store(kind, tmp_path, 30, Progress(disable=True))
    assert [step.name for step in steps] == ["first backup", "second backup", "restore", "check"]
    assert all(step.seconds > 0 for step in steps)
