"""One image file to pixels: JPEG, PNG, BMP or TIFF, of any size and mode, to `uint8 [size, size, 3]`.

What happens to an image, in order: EXIF orientation is applied; grey values of more than 8 bits are scaled to 8 (see
`_to_8_bit`), while colours of 16 bits are cut to their upper 8, and refused where these are not used; transparent parts
become black, as a scan's background is; palette, grey and CMYK become RGB; bilinear resize to a square, without keeping
the aspect ratio, as Keras does. Of a file with several frames the first is taken; of a TIFF, whose pages may be the
slices of a volume, `decode_file` tells that there are more.

A file's format is told by its first bytes. A file whose extension says otherwise is refused, even though it could be
read: at a hospital that is a sign of an export gone wrong, and a person should look at it.
"""

from __future__ import annotations

import enum
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    Image,
    ImageFile,
    ImageOps,
    JpegImagePlugin,
    MpoImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
)

Pixels = npt.NDArray[np.uint8]
"""`uint8 [size, size, 3]`, or `[n, size, size, 3]` for several; RGB, 0 to 255 inclusive."""

MAX_PIXELS = 40_000_000
"""Width times height above which a file is not decoded: 6,300 x 6,300, 100 times the largest clinical MRI matrix.
It bounds a decoding thread to some 500 MB, whatever a file of a few kilobytes claims to unfold to."""


class SkipReason(enum.Enum):
    """Why a file is not used. The value is how summaries and messages name it."""

    EMPTY = "empty"
    NOT_AN_IMAGE = "not an image"
    DICOM = "DICOM"
    UNSUPPORTED = "unsupported format"
    MISLABELLED = "mislabelled extension"
    NO_EXTENSION = "no extension"
    CORRUPT = "corrupt"
    TOO_LARGE = "too large"
    UNREADABLE = "unreadable"


class UnusableImage(Exception):
    """A file cannot be used. `detail` is a short phrase for a person, without the file's name."""

    def __init__(self, reason: SkipReason, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason
        self.detail = detail


_EXTENSIONS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png",),
    "BMP": (".bmp", ".dib"),
    "TIFF": (".tif", ".tiff"),
}
# Named so that they are imported: Pillow otherwise loads its decoders on first use, and does so unsafely when threads
# are the first to use them. MPO is a JPEG with more pictures behind the first, as phones write it under `.jpg`.
_DECODERS = (JpegImagePlugin, MpoImagePlugin, PngImagePlugin, BmpImagePlugin, TiffImagePlugin)

_DICOM, _DICOM_EXTENSIONS = "DICOM", (".dcm", ".dicom")  # older files lack the signature
_SIGNATURES = (
    ("JPEG", 0, b"\xff\xd8\xff"),
    ("PNG", 0, b"\x89PNG\r\n\x1a\n"),
    ("BMP", 0, b"BM"),
    ("TIFF", 0, b"II*\0"),
    ("TIFF", 0, b"MM\0*"),
    ("TIFF", 0, b"II+\0"),
    ("TIFF", 0, b"MM\0+"),
    ("GIF", 0, b"GIF8"),
    ("WebP", 8, b"WEBP"),
    (_DICOM, 128, b"DICM"),
    ("gzip", 0, b"\x1f\x8b"),
)
_SIGNATURE_BYTES = 132

_DEEP = re.compile(";16[BLN]")
"""Of raw modes as Pillow calls them: 16 bits a colour have an order of bytes, unlike the 16 bits a pixel of a BMP."""
_SCANNER_BITS = 14
"""As many as scanners give at most, in a file of 16 bits."""


@dataclass(frozen=True, slots=True)
class Decoded:
    """One file: `uint8 [size, size, 3]` of its first page, and whether it is a TIFF with more pages."""

    pixels: Pixels
    has_more_pages: bool


def decode_image(path: Path, size: int) -> Pixels:
    """Pixels of one file, `uint8 [size, size, 3]`.

    Raises:
        UnusableImage: as `decode_file`.
    """
    return decode_file(path, size).pixels


def decode_file(path: Path, size: int) -> Decoded:
    """Pixels of one file, and what else is in it.

    Raises:
        UnusableImage: for every way in which a file can be wrong; nothing else is raised for a file's content.
    """
    try:
        content = _check_format(path)
        with Image.open(path, formats=[content]) as image:
            if image.width * image.height > MAX_PIXELS:
                raise _too_large(f"{image.width} x {image.height} pixels")
            if content == "PNG":
                _check_png(path)
            has_more_pages = content == "TIFF" and bool(getattr(image, "is_animated", False))
            is_deep = _is_of_16_bit_colour(image)  # no longer known once it is loaded
            image.load()
            if is_deep:
                _check_depth(image)
            rgb = _to_rgb(_upright(image))
        return Decoded(np.asarray(rgb.resize((size, size), Image.Resampling.BILINEAR)), has_more_pages)
    except UnusableImage:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        # Its words tell of Pillow's limit, which is another one.
        pixels = re.search(r"\((\d+) pixels\)", str(error))
        raise _too_large(f"{int(pixels[1]):,} pixels" if pixels else "too many pixels") from error
    except (PermissionError, FileNotFoundError) as error:
        raise UnusableImage(SkipReason.UNREADABLE, error.strerror or str(error)) from error
    except Exception as error:
        # Pillow's decoders raise OSError, SyntaxError, ValueError, struct.error, IndexError and more for bad content:
        # no list of them is complete, and one bad file must not end a site's run.
        raise UnusableImage(SkipReason.CORRUPT, str(error) or type(error).__name__) from error


def _too_large(found: str) -> UnusableImage:
    return UnusableImage(SkipReason.TOO_LARGE, f"{found}; the limit is {MAX_PIXELS:,} pixels")


def _check_format(path: Path) -> str:
    """The file's format; refuses what is empty, no image, of a format that is not read, or named as another one."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        # Opening a FIFO would wait for ever.
        raise UnusableImage(SkipReason.NOT_AN_IMAGE, "not a regular file")
    if status.st_size == 0:
        raise UnusableImage(SkipReason.EMPTY, "0 bytes")
    with path.open("rb") as file:
        content = _sniff(file.read(_SIGNATURE_BYTES))
    suffix = path.suffix.lower()
    if content == _DICOM or (content is None and suffix in _DICOM_EXTENSIONS):
        raise UnusableImage(SkipReason.DICOM, "export it to PNG first")
    if content is None:
        raise UnusableImage(SkipReason.NOT_AN_IMAGE, "its first bytes are of no image format")
    if content in _EXTENSIONS and suffix in _EXTENSIONS[content]:
        return content
    if content in _EXTENSIONS and not suffix:
        raise UnusableImage(SkipReason.NO_EXTENSION, f"its content is {content}; call it {_EXTENSIONS[content][0]}")
    named = next((name for name, suffixes in _EXTENSIONS.items() if suffix in suffixes), None)
    if content in _EXTENSIONS or named is not None:
        raise UnusableImage(SkipReason.MISLABELLED, f"its content is {content}")
    raise UnusableImage(SkipReason.UNSUPPORTED, f"{content}; JPEG, PNG, BMP and TIFF are read")


def _sniff(head: bytes) -> str | None:
    return next((name for name, at, magic in _SIGNATURES if head[at : at + len(magic)] == magic), None)


def _check_png(path: Path) -> None:
    """Compare the checksums of all chunks, which decoding alone does not; the other formats have none."""
    with Image.open(path, formats=["PNG"]) as image:
        image.verify()


def _is_of_16_bit_colour(image: ImageFile.ImageFile) -> bool:
    raw_modes = [tile.args if isinstance(tile.args, str) else tile.args[0] for tile in image.tile if tile.args]
    return image.mode.startswith("RGB") and any(_DEEP.search(str(raw_mode)) for raw_mode in raw_modes)


def _check_depth(image: Image.Image) -> None:
    """Refuse colours, or grey with transparency, of 16 bits of which the upper ones are not used.

    Pillow gives the upper 8 of them, unlike with plain grey: of a scanner's 12 bits there is next to nothing left.
    """
    largest = max(int(high) for _, high in cast(Sequence[tuple[float, float]], image.getextrema())[:3])
    used = 8 + largest.bit_length()
    if used <= _SCANNER_BITS:
        told = f"of its 16 bits per colour only {used} are used, which would come out black"
        detail = f"{told}; save it as plain grey, or with 8 bits"
        raise UnusableImage(SkipReason.UNSUPPORTED, detail)


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001  # as above; broken EXIF beside good pixels is common: take the picture as it lies
        return image


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_to_8_bit(np.asarray(image))).convert("RGB")
    if not image.has_transparency_data:
        return image.convert("RGB")
    seen = image.convert("RGBA")
    black = Image.new("RGB", image.size)
    black.paste(seen, mask=seen.getchannel("A"))
    return black


def _to_8_bit(grey: np.ndarray) -> Pixels:
    """Scale grey values `[h, w]` of more than 8 bits to 0..255.

    Integers are divided by the full scale of the smallest bit depth (at least 8) that holds the image's largest value,
    since scanners put 10, 12 or 14 bits into 16, which would come out nearly black at a fixed scale. A 16-bit copy of
    an 8-bit picture comes out as that picture. Floating values have no full scale: they are stretched from the
    smallest to the largest. Negative values are shifted up to 0.
    """
    integer = np.issubdtype(grey.dtype, np.integer)
    values = np.nan_to_num(grey.astype(np.float32), nan=0.0, posinf=0.0, neginf=0.0)
    lowest = float(values.min())
    values -= min(lowest, 0.0) if integer else lowest
    largest = float(values.max())
    full_scale = float(2 ** max(int(largest).bit_length(), 8) - 1) if integer else largest
    if full_scale > 0.0:
        values *= 255.0 / full_scale
    return cast(Pixels, np.rint(values).astype(np.uint8))
