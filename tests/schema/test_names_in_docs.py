"""Metrics, log texts and defaults of settings that the docs name are those of the code."""

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
LOG_METHODS = ("debug", "info", "warning", "error", "exception", "critical")
LOG_CALL = re.compile(rf"\.(?:{'|'.join(LOG_METHODS)})\(")
METRIC = re.compile(r"`(merganser_[a-z_]+?)(?:_total|_bucket|_sum|_count)?[`{]")
LOG_TEXT = re.compile(r"\blog (?:lines?|contains|has (?:a|the) line) `([A-Z][^` ]* [^`]+)`")
# A setting with a value, such as "`MERGANSER_UPLOAD_MAX_SIZE` (50 MiB)".
SETTING_WITH_VALUE = re.compile(r"`(MERGANSER_[A-Z_]+)` \((\d[\w,. ]*?)(?: by default)?[:)]")
SETTING_ROW = re.compile(r"^\| `(MERGANSER_[A-Z_]+)` \| [^|]+ \| ([^|]+) \|", re.MULTILINE)


@cache
def default_values() -> dict[str, str]:
    """The defaults of all settings, from the generated page."""
    return dict(SETTING_ROW.findall((ROOT / "docs" / "settings.md").read_text(encoding="utf-8")))


@cache
def logged_texts() -> tuple[str, ...]:
    """The first arguments of the calls of loggers."""
    sources = (
        path.read_text(encoding="utf-8")
        for folder in SOURCE_FOLDERS
        for path in (ROOT / folder).rglob("*.py")
    )
    trees = (ast.parse(source) for source in sources if LOG_CALL.search(source))
    return tuple(
        call.args[0].value
        for tree in trees
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Attribute)
        and call.func.attr in LOG_METHODS
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


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_values_of_settings_in_docs_are_the_defaults(page: Path) -> None:
    text = " ".join(page.read_text(encoding="utf-8").split())
    named = {
        (setting, value.replace(",", "")) for setting, value in SETTING_WITH_VALUE.findall(text)
    }
    assert named <= default_values().items()


def test_names_in_a_text_are_found() -> None:
    text = "`merganser_arc_seals`, `merganser_lost_total{reason=…}`. The log has a line `X y`."
    assert METRIC.findall(text) == ["merganser_arc_seals", "merganser_lost"]
    assert LOG_TEXT.findall(text) == ["X y"]
    assert len(logged_texts()) > 100


def test_values_of_settings_in_a_text_are_found() -> None:
    text = "`MERGANSER_A` (2 s by default), `MERGANSER_B` (1,000), `MERGANSER_C` (0 s: off)"
    values = [("MERGANSER_A", "2 s"), ("MERGANSER_B", "1,000"), ("MERGANSER_C", "0 s")]
    assert SETTING_WITH_VALUE.findall(text) == values
    assert default_values()["MERGANSER_HTTP_HEADER_TIMEOUT"] == "10 s"
