"""Fuzzing: any bytes give a picture or one of a few exceptions. See docs/security.md."""
