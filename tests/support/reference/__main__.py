"""Write docs/reference, or with `--check` report the pages that differ from the code."""

import sys

from tests.support.reference.pages import REFERENCE, reference_pages


def main() -> None:
    """Write or compare all pages. Exits with status 1 if a compared page differs."""
    pages = reference_pages()
    existing = {
        str(path.relative_to(REFERENCE)): path.read_text(encoding="utf-8")
        for path in REFERENCE.rglob("*.md")
    }
    if "--check" in sys.argv:
        stale = sorted(
            name for name in pages.keys() | existing.keys() if pages.get(name) != existing.get(name)
        )
        if stale:
            sys.exit(f"These pages differ from the code, run `make reference`: {', '.join(stale)}")
        return
    for name in existing.keys() - pages.keys():
        (REFERENCE / name).unlink()
    for name, text in pages.items():
        path = REFERENCE / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
