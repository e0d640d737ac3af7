"""How Pillow recognises the format: its name, and the first bytes of every file."""

FORMAT = "SDZ"
SIGNATURE = b"\x8bSDZ\r\n\x1a\n"
