"""Resumable uploads and ZIP downloads."""
