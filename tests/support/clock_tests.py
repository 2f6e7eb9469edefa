"""Tests whose result depends on a clock: their marker `clock`, which the source of a file decides.

Such tests read a clock, measure CPU time, or set a limit of a few seconds. On a machine that runs
too many processes at once, they can fail without a fault of the product. `make test` runs them
apart from the others, with fewer processes.
"""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

MARKER = "clock"
CLOCKS = {"monotonic", "monotonic_ns", "perf_counter", "process_time", "thread_time"}
# Modules and functions of tests/support that measure time for their tests. Modules that read a
# clock only to end a test that hangs are not among them.
MEASURING_SUPPORT = {
    "attack_runner",
    "cpu_seconds",
    "growth",
    "loop_step_timer",
    "slow_attacks",
    "target_subscriptions",
}
SMALL_LIMIT_SECONDS = 5.0
LIMIT_ENDINGS = ("timeout", "deadline", "heartbeat")
# Every file that depends on a clock matches. Most others need not be parsed then.
CLOCK_WORDS = re.compile(
    rf"\b(?:{'|'.join(CLOCKS | MEASURING_SUPPORT)})\b"
    r"|(?:\)|\bloop)\s*\.time\("
    rf"|(?:{'|'.join(LIMIT_ENDINGS)})\s*[=(]\s*[.\d]"
)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", f"{MARKER}: the result depends on a clock")


def pytest_itemcollected(item: pytest.Item) -> None:
    if depends_on_clock(item.path):
        item.add_marker(MARKER)


def find_clock_files(folder: Path) -> list[Path]:
    """Return the test files below a folder that depend on a clock, sorted."""
    return sorted(filter(depends_on_clock, folder.rglob("test_*.py")))


@cache
def depends_on_clock(path: Path) -> bool:
    """Return whether the tests of a file read a clock, measure CPU time or set small limits."""
    source = path.read_text(encoding="utf-8")
    if not CLOCK_WORDS.search(source):
        return False
    try:
        nodes = ast.walk(ast.parse(source))
    except SyntaxError:  # pytest reports it
        return False
    return any(_names(node) & (CLOCKS | MEASURING_SUPPORT) or _is_limited(node) for node in nodes)


def _names(node: ast.AST) -> set[str]:
    """The names that a node reads or imports."""
    match node:
        case ast.Name():
            return {node.id}
        case ast.Attribute():
            return {node.attr}
        case ast.Import():
            return {alias.name.rpartition(".")[2] for alias in node.names}
        case ast.ImportFrom():
            return {*(node.module or "").split("."), *(alias.name for alias in node.names)}
    return set()


def _is_limited(node: ast.AST) -> bool:
    """Return whether a node reads the time of the event loop, or is a call with a small limit."""
    match node:
        case ast.Call(func=ast.Attribute(attr="time", value=ast.Call() | ast.Name(id="loop"))):
            return True
        case ast.Call():
            return any(
                isinstance(limit, ast.Constant)
                and isinstance(limit.value, int | float)
                and 0 < limit.value <= SMALL_LIMIT_SECONDS
                for limit in _limits(node)
            )
    return False


def _limits(call: ast.Call) -> Iterator[ast.expr]:
    """Yield the arguments of a call that limit its time."""
    match call.func:
        case ast.Attribute(attr="timeout", value=ast.Name(id="asyncio")):
            yield from call.args
    for keyword in call.keywords:
        if (keyword.arg or "").endswith(LIMIT_ENDINGS):
            yield keyword.value
