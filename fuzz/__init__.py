"""Fuzzing: whatever the bytes, a picture or one of a few exceptions; see docs/security.md."""
