"""Build the image of deploy/Containerfile and check it: `make image`."""
