"""What reading a file may raise, whatever its bytes; anything else is a bug."""

from __future__ import annotations

from PIL import Image

# OSError of this package and of Pillow (UnidentifiedImageError is one); the other is what Pillow
# raises for more pixels than twice Image.MAX_IMAGE_PIXELS, and it is no OSError.
ALLOWED = (OSError, Image.DecompressionBombError)
