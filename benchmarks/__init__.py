"""Measurements of pillow_sdz against other codecs; not part of the installed package."""
