"""Pictures from files, as a person sees them."""

from __future__ import annotations

from PIL import Image, ImageOps

UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises


def upright(image: Image.Image, channels: int) -> Image.Image:
    """``image`` as it was held, which phones store beside the pixels, in colour; grey for one channel.

    Example:
        >>> upright(Image.new("L", (4, 3)), 3).mode
        'RGB'
    """
    return ImageOps.exif_transpose(image).convert("L" if channels == 1 else "RGB")
