"""Tests of the objects of the object stores, as administrators see them."""
