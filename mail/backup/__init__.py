"""Backups of a running store in a folder or bucket, and their restore.

A target has the objects of all its backups once, and for each backup a copy of the database, a list
of its objects, and a manifest. The order of the steps is explained in `backup_run`.
"""
