"""The errors on the pages of docs/reference, which the errors of all tests are compared with."""

import re
from collections.abc import Collection
from functools import cache
from pathlib import Path
from typing import Any

from tests.support.schema.error_paths import mutations_by_response_key

REFERENCE = Path(__file__).parents[4] / "docs" / "reference"
COMMON_HEADING = "## Errors of every mutation"
ERROR_ROW = re.compile(r"^\| \[`([A-Z_]+)`\]\([^)]*\) \| (?:`([A-Z_0-9]+)`)? \|", re.MULTILINE)


@cache
def documented_errors(mutation: str) -> frozenset[tuple[str, str]]:
    """Return code and rule of the errors on the page of a mutation, and of the common ones."""
    (page,) = REFERENCE.glob(f"*/{mutation}.md")
    text = (REFERENCE / "errors.md").read_text(encoding="utf-8")
    common = text.partition(f"\n{COMMON_HEADING}\n")[2].partition("\n## ")[0]
    return frozenset(ERROR_ROW.findall(page.read_text(encoding="utf-8") + common))


def assert_errors_are_documented(document: str, response: Any) -> Any:
    """Return the response. Fails if a page doesn't list an error of its mutation."""
    data = response.get("data") if isinstance(response, dict) else None
    if data and "mutation" in document:
        for key, mutation in mutations_by_response_key(document).items():
            for error in (data.get(key) or {}).get("errors") or ():
                text = f"{mutation} has an error that its page doesn't list: {error}"
                documented = documented_errors(mutation)
                assert _is_documented(documented, error), f"{text}; run `make reference`"
    return response


def _is_documented(documented: Collection[tuple[str, str]], error: dict[str, Any]) -> bool:
    """True if the page lists the code and, if the test selects it, the rule of the error."""
    if constraint := error.get("constraint"):
        return ("VALIDATION", constraint) in documented
    return "code" not in error or error["code"] in {code for code, _ in documented}
