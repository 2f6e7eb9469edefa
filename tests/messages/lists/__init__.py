"""Tests of lists of messages: orders, filters, pages and their cost."""
