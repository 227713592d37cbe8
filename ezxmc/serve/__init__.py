"""Tagging over HTTP: a bundle behind a small service (the extra `serve`)."""
