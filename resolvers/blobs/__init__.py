"""Blobs: the objects of the object stores, for administrators of the platform."""
