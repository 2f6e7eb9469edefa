"""Tests of components, their states, and the control of server processes."""
