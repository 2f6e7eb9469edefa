"""Consistency check: counters and references of the database are computed again and compared."""

from mail.consistency.all_checks import check_consistency
from mail.consistency.report import ConsistencyReport, Finding, ReportProgress

__all__ = ["ConsistencyReport", "Finding", "ReportProgress", "check_consistency"]
