"""From an image file's bytes to its pixels: upright, 8 bits, grey or RGB."""

from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from pretraining.errors import UserError, one_line

# The formats, with their extensions, that Pillow reads without further libraries and knows by the first bytes.
FORMATS = {
    "AVIF": (".avif",),
    "BMP": (".bmp",),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif", ".mpo"),
    "JPEG2000": (".jp2", ".j2k"),
    "PNG": (".png",),
    "PPM": (".pbm", ".pgm", ".pnm", ".ppm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}


class Unreadable(UserError):
    """A file gives no image; the message says why."""


class Coloured(UserError):
    """An image has colours, and one channel is asked for."""


def _bytes(image: Image.Image) -> Image.Image:
    """Grey of 16 bits as grey of 8; Pillow's own conversion clips instead of scaling."""
    values = np.asarray(image)
    if values.min() < 0 or values.max() >= 2**16:
        raise Unreadable(f"its pixels go from {values.min()} to {values.max()}, not from 0 to 255 or 65535")
    return Image.fromarray((values >> 8).astype(np.uint8))


def _channels(image: Image.Image, channels: int) -> np.ndarray:
    if image.mode == "F":
        raise Unreadable("its pixels are floating-point numbers, not of 8 or 16 bits")
    if image.mode.startswith("I"):
        image = _bytes(image)
    if image.has_transparency_data:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA"))
    if channels == 1 and image.mode in ("1", "L"):
        return np.asarray(image.convert("L"))[..., None]
    pixels = np.asarray(image.convert("RGB"))
    if channels == 3:
        return pixels
    if (pixels != pixels[..., :1]).any():
        raise Coloured
    return np.ascontiguousarray(pixels[..., :1])


def decode(data: bytes, channels: int) -> np.ndarray:
    """The pixels of an image file, or of an animation's first image: uint8 (height, width, channels).

    The image is turned as its EXIF orientation says and laid over white where it is transparent; 16 bits become 8.

    Args:
        channels: 3 (RGB) or 1 (grey).

    Raises:
        Unreadable: the file is cut off, broken, unreasonably large, of no known format, or not of 8 or 16 bits.
        Coloured: `channels` is 1 and the pixels, however they are stored, are not all grey.
    """
    try:
        with Image.open(BytesIO(data), formats=list(FORMATS)) as image:
            ImageOps.exif_transpose(image, in_place=True)
            return _channels(image, channels)
    except (Coloured, Unreadable):
        raise
    except UnidentifiedImageError as error:
        raise Unreadable("it is no image of a known format") from error
    except Exception as error:  # each of Pillow's formats raises its own
        raise Unreadable(one_line(error)) from error
