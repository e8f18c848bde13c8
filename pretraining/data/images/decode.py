"""From an image file's bytes to its pixels: upright, 8 bits, grey or RGB, as transformers' pipelines see them."""

import warnings
from io import BytesIO

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from pretraining.errors import UserError, one_line

warnings.filterwarnings("ignore", "Palette images with Transparency")  # `look` finds them, and they are told once
# Pillow takes a PNG with a long comment, or many, for an attack. The files are the user's own.
PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY = 2**30

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


def _rgb(image: Image.Image) -> Image.Image:
    """RGB as transformers' `load_image` and the saved processor make it: training sees what `pipeline()` will see.

    So alpha is dropped, what lies under it shows, and white replaces the one transparent colour of a palette. Of more
    than 8 bits `load_image` makes white: such an image is refused.
    """
    if image.mode == "F":
        raise Unreadable("its pixels are floating-point numbers, not of 8 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image)
        if values.min() < 0 or values.max() > 255:
            raise Unreadable(
                f"its pixels go from {values.min()} to {values.max()}, and `pipeline()` of transformers takes all "
                "above 255 for white: convert it to 8 bits"
            )
        return Image.fromarray(values.astype(np.uint8)).convert("RGB")
    image = image.convert("RGB")
    if "transparency" in image.info:
        white = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(white, image.convert("RGBA")).convert("RGB")
    return image


def _has_alpha(image: Image.Image) -> bool:
    """Whether `load_image` drops some transparency of an image."""
    of_palette = isinstance(image.info.get("transparency"), bytes)
    if not of_palette and "A" not in image.getbands():
        return False
    return bool(np.asarray(image.convert("RGBA").getchannel("A")).min() < 255)


def look(data: bytes, channels: int) -> tuple[np.ndarray, bool]:
    """The pixels of an image file, or of an animation's first image, and whether transparency was dropped.

    The pixels are uint8 (height, width, channels), turned as the EXIF orientation says.

    Args:
        channels: 3 (RGB) or 1 (grey).

    Raises:
        Unreadable: the file is cut off, broken, unreasonably large, of no known format, or of more than 8 bits.
        Coloured: `channels` is 1 and the pixels, however they are stored, are not all grey.
    """
    try:
        with Image.open(BytesIO(data), formats=list(FORMATS)) as image:
            ImageOps.exif_transpose(image, in_place=True)
            has_alpha = _has_alpha(image)
            if channels == 1 and image.mode in ("1", "L") and "transparency" not in image.info:
                return np.asarray(image.convert("L"))[..., None], has_alpha
            pixels = np.asarray(_rgb(image))
    except Unreadable:
        raise
    except UnidentifiedImageError as error:
        raise Unreadable("it is no image of a known format") from error
    except Exception as error:  # each of Pillow's formats raises its own
        raise Unreadable(one_line(error)) from error
    if channels == 3:
        return pixels, has_alpha
    if (pixels != pixels[..., :1]).any():
        raise Coloured
    return np.ascontiguousarray(pixels[..., :1]), has_alpha


def decode(data: bytes, channels: int) -> np.ndarray:
    """The pixels that `look` finds."""
    return look(data, channels)[0]
