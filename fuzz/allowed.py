"""The exceptions that reading a file may raise, for any bytes. Any other exception is a bug."""

from __future__ import annotations

from PIL import Image

# OSError comes from this package and from Pillow (UnidentifiedImageError is one). Pillow raises the
# other if there are more pixels than twice Image.MAX_IMAGE_PIXELS. It is not an OSError.
ALLOWED = (OSError, Image.DecompressionBombError)
