"""Consistency check: counters and references of the database are computed again and compared."""

from mail.consistency.all_checks import verify
from mail.consistency.report import Finding, Progress, Report

__all__ = ["Finding", "Progress", "Report", "verify"]
