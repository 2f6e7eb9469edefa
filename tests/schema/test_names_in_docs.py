"""Metrics and log texts that the docs name exist in the code."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
METRICS_PAGE = ROOT / "docs" / "reference" / "metrics.md"
PAGES = [
    ROOT / "README.md",
    ROOT / "CHANGELOG.md",
    *(
        page
        for page in sorted((ROOT / "docs").rglob("*.md"))
        if "reference" not in page.relative_to(ROOT).parts
    ),
]
SOURCE_FOLDERS = ("merganser", "graph", "resolvers", "mail", "models")
METRIC = re.compile(r"`(merganser_[a-z_]+?)(?:_total|_bucket|_sum|_count)?[`{]")
LOG_TEXT = re.compile(r"\blog (?:lines?|contains|has (?:a|the) line) `([A-Z][^` ]* [^`]+)`")


@cache
def logged_texts() -> tuple[str, ...]:
    """The first arguments of the calls of loggers."""
    trees = (
        ast.parse(path.read_text(encoding="utf-8"))
        for folder in SOURCE_FOLDERS
        for path in (ROOT / folder).rglob("*.py")
    )
    return tuple(
        call.args[0].value
        for tree in trees
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in {"debug", "info", "warning", "error", "exception", "critical"}
        and call.args
        and isinstance(call.args[0], ast.Constant)
        and isinstance(call.args[0].value, str)
    )


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_metrics_and_log_texts_named_in_docs_exist(page: Path) -> None:
    text = " ".join(page.read_text(encoding="utf-8").split())
    known_metrics = set(re.findall(r"^\| `(\w+)`", METRICS_PAGE.read_text(), re.MULTILINE))
    assert set(METRIC.findall(text)) <= known_metrics
    unknown = [
        named
        for named in LOG_TEXT.findall(text)
        if not any(logged.startswith(named) for logged in logged_texts())
    ]
    assert unknown == []


def test_names_in_a_text_are_found() -> None:
    text = "`merganser_arc_seals`, `merganser_lost_total{reason=…}`. The log has a line `X y`."
    assert METRIC.findall(text) == ["merganser_arc_seals", "merganser_lost"]
    assert LOG_TEXT.findall(text) == ["X y"]
    assert len(logged_texts()) > 100
