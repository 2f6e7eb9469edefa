"""Tests that the files of the GraphiQL page were built from the current sources in `webui/`."""

import gzip
import hashlib
import json
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
WEBUI = ROOT / "webui"
STATIC = ROOT / "graph" / "static"
BUILT_FILES = sorted(path.name for path in STATIC.glob("*.gz"))
HOW_TO_BUILD = "graph/static was built from other sources. Run `make webui`."


def sources_digest(folder: Path) -> str:
    """Return the digest of the paths and contents of a folder, as `webui/build.mjs` computes it."""
    digests = {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and "node_modules" not in path.relative_to(folder).parts
    }
    lines = "".join(f"{digests[path]}  {path}\n" for path in sorted(digests))
    return hashlib.sha256(lines.encode()).hexdigest()


def read_built_file(name: str) -> str:
    return gzip.decompress((STATIC / name).read_bytes()).decode()


def comparable_text(text: str) -> str:
    """Return a text, or the literal of it in JavaScript, without whitespace and backslashes."""
    return re.sub(r"\\n|\s|\\", "", text)


def test_built_files_begin_with_digest_of_current_sources() -> None:
    assert {"graphiql.js.gz", "graphiql.css.gz", "graphql.worker.js.gz"} <= set(BUILT_FILES)
    comment = f"/* webui sha256:{sources_digest(WEBUI)} */"
    first_lines = {name: read_built_file(name).partition("\n")[0] for name in BUILT_FILES}
    outdated = [name for name, line in first_lines.items() if line != comment]
    assert outdated == [], HOW_TO_BUILD


def test_page_script_contains_every_example_and_document_of_page() -> None:
    built = json.loads((STATIC / "examples.json").read_text(encoding="utf-8"))
    documents = {example["name"]: example["query"] for example in built["examples"]}
    documents |= built["page"]
    assert len(documents) > 20
    script = comparable_text(read_built_file("graphiql.js.gz"))
    missing = [name for name, text in documents.items() if comparable_text(text) not in script]
    assert missing == [], HOW_TO_BUILD


def test_digest_of_sources_depends_on_paths_and_contents_but_not_on_npm(tmp_path: Path) -> None:
    (tmp_path / "main.jsx").write_text("render();\n")
    (tmp_path / "operations").mkdir()
    document = tmp_path / "operations" / "inbox.graphql"
    document.write_text("query Inbox { viewer { user { username } } }\n")
    original = sources_digest(tmp_path)
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "index.js").write_text("export {};\n")
    assert sources_digest(tmp_path) == original
    document.write_text("query Inbox { viewer { user { displayName } } }\n")
    changed = sources_digest(tmp_path)
    document.rename(tmp_path / "operations" / "names.graphql")
    assert len({original, changed, sources_digest(tmp_path)}) == 3
