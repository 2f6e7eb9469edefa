"""Tests of the examples that property tests draw in CI."""

import os
import subprocess
import sys
from pathlib import Path

PRINT_EXAMPLES = """
import sys
from hypothesis import given, strategies as st
from tests.support import hypothesis_profile

sys.path.insert(0, sys.argv[1])
for name in sys.argv[2:]:
    __import__(name)

@given(st.lists(st.text() | st.binary() | st.integers(), min_size=20))
def print_example(values):
    print(values)

print_example()
"""


def print_examples(folder: Path, *modules: str) -> str:
    """Draw the examples of a property test in a process that has imported these modules."""
    return subprocess.run(
        [sys.executable, folder / "examples.py", folder, *modules],
        env=os.environ | {"CI": "1", "ALL_TESTS": "", "PYTHONPATH": str(Path.cwd())},
        cwd=Path.cwd(),
        text=True,
        check=True,
        stdout=subprocess.PIPE,
    ).stdout


def test_examples_in_ci_do_not_depend_on_imported_modules(tmp_path: Path) -> None:
    (tmp_path / "examples.py").write_text(PRINT_EXAMPLES)
    (tmp_path / "constants.py").write_text('TEXTS = "<>", "a rare text", b"bytes", 1234567890123')
    examples = print_examples(tmp_path)
    assert examples == print_examples(tmp_path, "constants")
    assert len(examples.splitlines()) == 100
