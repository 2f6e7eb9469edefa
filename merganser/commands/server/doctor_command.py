"""Implementation of `merganser doctor`."""

from dataclasses import asdict

import typer
import uvloop
from rich.text import Text

from merganser.commands.terminal_output import print_json, print_table
from merganser.doctor.checks import run_checks
from merganser.doctor.findings import Finding, Verdict
from merganser.settings.settings import read_settings

COLOURS = {"ok": "green", "hint": "yellow", "action": "bold red"}


def run_doctor(as_json: bool) -> None:
    """Print the findings. The exit code is 1 if one requires an action."""
    findings = uvloop.run(run_checks(read_settings()))
    if as_json:
        print_json([_finding_as_json(finding) for finding in findings])
    else:
        _print_findings(findings)
    if any(finding.verdict is Verdict.ACTION for finding in findings):
        raise typer.Exit(1)


def _finding_as_json(finding: Finding) -> dict[str, str]:
    return {name: str(value) for name, value in asdict(finding).items()}


def _print_findings(findings: list[Finding]) -> None:
    rows = [
        (
            Text(finding.verdict, COLOURS[finding.verdict]),
            finding.subject,
            finding.found,
            finding.remedy,
        )
        for finding in findings
    ]
    print_table(("", "what", "found", "action"), rows)
