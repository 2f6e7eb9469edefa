"""All pages of docs/reference, by their path below it."""

from pathlib import Path

from tests.support.reference.areas import AREAS, contents_by_area
from tests.support.reference.command_pages import command_pages, commands_page
from tests.support.reference.error_page import errors_page
from tests.support.reference.event_page import events_page
from tests.support.reference.examples import load_examples
from tests.support.reference.markdown import table
from tests.support.reference.metric_page import metrics_page
from tests.support.reference.root_field_pages import root_field_page
from tests.support.reference.setting_pages import setting_pages, setting_topics
from tests.support.reference.type_locations import type_pages_by_area
from tests.support.reference.type_pages import area_page, types_page
from tests.support.schema.printed_schema import SDL

REFERENCE = Path(__file__).parents[3] / "docs" / "reference"
OTHER_PAGES = {
    "errors.md": ("Errors", "Codes and types of errors."),
    "events.md": ("Events", "Types of events of changes, webhooks, notifications and push."),
    "commands.md": ("Commands", "Commands of the program `merganser` and their options."),
    "metrics.md": ("Metrics", "Metrics of `/metrics` with their type and labels."),
    "../settings.md": ("Settings", "All environment variables on one page."),
}


def reference_pages() -> dict[str, str]:
    """Return the text of each page."""
    examples = load_examples()
    areas = contents_by_area(SDL)
    pages = {
        "README.md": _contents_page(),
        "errors.md": errors_page(SDL),
        "events.md": events_page(SDL),
        "commands.md": commands_page(),
        **command_pages(),
        "metrics.md": metrics_page(),
        **setting_pages(),
    }
    for area, contents in areas.items():
        type_pages = type_pages_by_area()[area]
        pages[f"{area}/README.md"] = area_page(area, contents, type_pages)
        pages |= {f"{area}/{page.name}.md": types_page(page) for page in type_pages}
        for root_field in contents.root_fields:
            name = f"{area}/{root_field.page_name}.md"
            pages[name] = root_field_page(root_field, SDL, examples)
    return pages


def _contents_page() -> str:
    areas = ((f"[{title}]({area}/README.md)", text) for area, (title, text) in AREAS.items())
    others = ((f"[{title}]({path})", text) for path, (title, text) in OTHER_PAGES.items())
    settings = ((f"[{topic}]({path})",) for topic, path in setting_topics())
    lines = [
        "# Reference",
        "",
        "These pages describe every query, mutation, subscription and type of the GraphQL schema,",
        "and the commands of `merganser`. They are generated from the code by `make reference`.",
        "",
        "## GraphQL schema, by area",
        "",
        *table(("Area", "Contents"), areas),
        "## Settings, by topic",
        "",
        *table(("Topic",), settings),
        "## Other",
        "",
        *table(("Page", "Contents"), others),
    ]
    return "\n".join(lines).rstrip() + "\n"
