"""Measurements of pillow_sdz and other codecs. They are not part of the installed package."""
