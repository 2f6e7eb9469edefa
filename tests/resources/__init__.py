"""Tests of resources and their bookings."""
