"""Components, storage, and the control of server processes."""
