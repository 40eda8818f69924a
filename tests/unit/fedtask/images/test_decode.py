"""fedtask.images.decode: every kind of file a site may have. Takes about 2 seconds, most of it the bombs."""

from __future__ import annotations

import os
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from fedtask.images.decode import MAX_PIXELS, SkipReason, UnusableImage, decode_image

GRADIENT = np.add.outer(np.arange(16) * 8, np.arange(16) * 8).astype(np.uint8)  # 0 to 240


def reason_of(path: Path) -> SkipReason:
    with pytest.raises(UnusableImage) as caught:
        decode_image(path, 16)
    return caught.value.reason


def png(side: int, bits: int, colour_type: int, rows: bytes) -> bytes:
    """A square picture as a file, also of kinds that Pillow does not write."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, bits, colour_type, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def deep_png(values: np.ndarray, colour_type: int) -> bytes:
    """Of grey values `[side, side]`, with 16 bits a channel: 2 is colour, 4 grey and 6 colour with an opaque alpha."""
    channels = {2: 3, 4: 1, 6: 3}[colour_type]
    alpha = [np.full_like(values, 65535)] if colour_type > 2 else []
    pixels = np.stack([values] * channels + alpha, axis=2).astype(">u2")
    return png(len(values), 16, colour_type, b"".join(b"\0" + row.tobytes() for row in pixels))


def as_rgb(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[:, :, None], 3, axis=2)


@pytest.mark.parametrize("name", ["a.png", "a.PNG", "a.bmp", "a.BMP", "a.tif", "a.TIFF"])
def test_decode_lossless_grey_gives_the_same_values_in_three_channels(tmp_path: Path, name: str) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / name)
    np.testing.assert_array_equal(decode_image(tmp_path / name, 16), as_rgb(GRADIENT))


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "a.jfif", "a.jpe"])
@pytest.mark.parametrize("mode", ["L", "RGB", "CMYK"])
def test_decode_jpeg_of_any_mode_is_near_the_original(tmp_path: Path, name: str, mode: str) -> None:
    Image.fromarray(GRADIENT).convert("RGB").convert(mode).save(tmp_path / name, "JPEG", quality=98)
    assert np.abs(decode_image(tmp_path / name, 16).astype(int) - as_rgb(GRADIENT)).max() <= 6


def test_decode_colour_png_keeps_the_order_of_channels(tmp_path: Path) -> None:
    colours = np.random.default_rng(0).integers(0, 256, (16, 16, 3), dtype=np.uint8)
    Image.fromarray(colours).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", 16), colours)


def test_decode_palette_gives_the_colours_of_the_palette(tmp_path: Path) -> None:
    indexed = Image.fromarray(GRADIENT).convert("P")
    indexed.save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", 16), np.asarray(indexed.convert("RGB")))


def test_decode_one_bit_gives_black_and_white(tmp_path: Path) -> None:
    Image.fromarray(GRADIENT > 100).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(decode_image(tmp_path / "a.tif", 16), as_rgb((GRADIENT > 100) * np.uint8(255)))


@pytest.mark.parametrize("mode", ["LA", "RGBA"])
def test_decode_transparent_part_is_black_whatever_lies_under_it(tmp_path: Path, mode: str) -> None:
    opaque = np.zeros((16, 16), np.uint8)
    opaque[:, 8:] = 255
    image = Image.fromarray(GRADIENT).convert(mode)
    image.putalpha(Image.fromarray(opaque))
    image.save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", 16), as_rgb(np.where(opaque, GRADIENT, 0)))


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        pytest.param(GRADIENT.astype(np.uint16) * 257, GRADIENT, id="8 bits in 16"),
        pytest.param(np.array([[0, 4095]] * 2, np.uint16), np.array([[0, 255]] * 2), id="12 bits in 16"),
        pytest.param(np.array([[0, 2048]] * 2, np.uint16), np.array([[0, 128]] * 2), id="half of 12 bits"),
        pytest.param(np.array([[0, 90]] * 2, np.uint16), np.array([[0, 90]] * 2), id="dark stays dark"),
        pytest.param(np.array([[70, 200]] * 2, np.uint16), np.array([[70, 200]] * 2), id="no black stays without"),
        pytest.param(np.zeros((2, 2), np.uint16), np.zeros((2, 2)), id="all black"),
    ],
)
@pytest.mark.parametrize("name", ["a.png", "a.tiff"])
def test_decode_16_bit_grey_is_scaled_by_its_bit_depth(
    tmp_path: Path, values: np.ndarray, expected: np.ndarray, name: str
) -> None:
    Image.fromarray(values).save(tmp_path / name)
    np.testing.assert_array_equal(decode_image(tmp_path / name, len(values)), as_rgb(expected))


@pytest.mark.parametrize("colour_type", [2, 4, 6])
@pytest.mark.parametrize("used", [8, 12, 14])
def test_decode_16_bit_colour_of_a_scanner_is_refused_and_not_taken_for_black(
    tmp_path: Path, colour_type: int, used: int
) -> None:
    values = GRADIENT.astype(int) * (2**used - 1) // 255
    (tmp_path / "a.png").write_bytes(deep_png(values, colour_type))
    with pytest.raises(UnusableImage, match=rf"only {used} are used, .*; save it as plain grey") as caught:
        decode_image(tmp_path / "a.png", 16)
    assert caught.value.reason is SkipReason.UNSUPPORTED


@pytest.mark.parametrize("colour_type", [2, 4, 6])
def test_decode_16_bit_colour_that_uses_all_bits_is_cut_to_8(tmp_path: Path, colour_type: int) -> None:
    (tmp_path / "a.png").write_bytes(deep_png(GRADIENT.astype(int) * 257, colour_type))
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", 16), as_rgb(GRADIENT))


def test_decode_dark_bmp_of_16_bits_a_pixel_is_as_dark_as_it_is(tmp_path: Path) -> None:
    grey = np.array([[8, 0], [0, 32]], np.uint16)  # of 5, 6 and 5 bits a colour, of which the lower are not used
    pixels = (grey >> 3 << 11 | grey >> 2 << 5 | grey >> 3).astype("<u2").tobytes()
    header = struct.pack("<IiiHHIIiiII", 40, 2, -2, 1, 16, 3, len(pixels), 0, 0, 0, 0)  # its rows from top to bottom
    header += struct.pack("<III", 0xF800, 0x07E0, 0x001F)
    file = struct.pack("<2sIII", b"BM", 14 + len(header) + len(pixels), 0, 14 + len(header)) + header + pixels
    (tmp_path / "a.bmp").write_bytes(file)
    np.testing.assert_allclose(decode_image(tmp_path / "a.bmp", 2), as_rgb(grey), atol=1)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[-1.0, 0.0], [np.nan, 1.0]], np.float32), [[0, 128], [128, 255]]),
        (np.array([[5.0, 6.0], [6.0, 7.0]], np.float32), [[0, 128], [128, 255]]),
        (np.array([[-100, 0], [0, 155]], np.int32), [[0, 100], [100, 255]]),
    ],
    ids=["float with no number in it", "float above 0", "integers below 0"],
)
def test_decode_tiff_without_a_full_scale_is_stretched_or_shifted_to_begin_at_black(
    tmp_path: Path, values: np.ndarray, expected: list[list[int]]
) -> None:
    Image.fromarray(values).save(tmp_path / "a.tif")
    np.testing.assert_array_equal(decode_image(tmp_path / "a.tif", 2), as_rgb(np.array(expected)))


@pytest.mark.parametrize(("width", "height"), [(1, 1), (7, 300), (640, 480)])
def test_decode_any_size_gives_the_square_asked_for(tmp_path: Path, width: int, height: int) -> None:
    Image.new("L", (width, height), 77).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", 24), np.full((24, 24, 3), 77))


def test_decode_resizes_bilinearly(tmp_path: Path) -> None:
    Image.fromarray(np.array([[0, 200]], np.uint8)).save(tmp_path / "a.png")
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", 4)[0, :, 0], [0, 50, 150, 200])


def test_decode_exif_orientation_turns_the_picture_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: show the picture turned 90 degrees clockwise
    Image.fromarray(GRADIENT[:, ::-1]).save(tmp_path / "a.png", exif=exif)
    expected = as_rgb(np.rot90(GRADIENT[:, ::-1], -1))
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", 16), expected)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize(
    "exif", [b"MM\0*\xff\xff\xff\xff garbage", b"garbage", b"MM"], ids=["broken", "none", "cut short"]
)
def test_decode_broken_exif_takes_the_picture_as_it_lies(tmp_path: Path, exif: bytes) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / "a.png", exif=b"Exif\0\0" + exif)
    np.testing.assert_array_equal(decode_image(tmp_path / "a.png", 16), as_rgb(GRADIENT))


def test_decode_several_frames_takes_the_first(tmp_path: Path) -> None:
    first, second = Image.fromarray(GRADIENT), Image.new("L", (16, 16), 9)
    first.save(tmp_path / "a.tif", save_all=True, append_images=[second])
    np.testing.assert_array_equal(decode_image(tmp_path / "a.tif", 16), as_rgb(GRADIENT))


def test_decode_phone_picture_with_a_preview_behind_it_is_read_as_jpeg(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (16, 16), (50, 50, 50)), Image.new("RGB", (16, 16))
    first.save(tmp_path / "a.jpg", format="MPO", save_all=True, append_images=[second])
    np.testing.assert_array_equal(decode_image(tmp_path / "a.jpg", 16), np.full((16, 16, 3), 50))


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "BMP", "TIFF"])
@pytest.mark.parametrize("kept", [0.3, 0.6, 0.9])
def test_decode_truncated_file_is_corrupt(tmp_path: Path, image_format: str, kept: float) -> None:
    path = tmp_path / f"a.{image_format.lower()}"
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, image_format)
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * kept)])
    assert reason_of(path) is SkipReason.CORRUPT


@pytest.mark.filterwarnings("ignore:Corrupt EXIF data:UserWarning")
@pytest.mark.parametrize("head", [b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"II*\0", b"MM\0*"])
def test_decode_garbage_behind_a_good_signature_is_corrupt(tmp_path: Path, head: bytes) -> None:
    names = {b"\xff": "a.jpg", b"\x89": "a.png", b"B": "a.bmp", b"I": "a.tif", b"M": "a.tif"}
    path = tmp_path / names[head[:1]]
    path.write_bytes(head + np.random.default_rng(0).bytes(4000))
    assert reason_of(path) is SkipReason.CORRUPT


def test_decode_flipped_byte_in_png_is_corrupt(tmp_path: Path) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / "a.png")
    content = bytearray((tmp_path / "a.png").read_bytes())
    content[60] ^= 0xFF
    (tmp_path / "a.png").write_bytes(content)
    assert reason_of(tmp_path / "a.png") is SkipReason.CORRUPT


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.jpg", b"", SkipReason.EMPTY),
        ("notes.txt", b"patient was moving", SkipReason.NOT_AN_IMAGE),
        ("a.jpg", b"<html>404 not found</html>", SkipReason.NOT_AN_IMAGE),
        ("a.png", b"\0" * 500, SkipReason.NOT_AN_IMAGE),
        ("a.gif", b"GIF89a" + b"\0" * 100, SkipReason.UNSUPPORTED),
        ("a.dcm", b"\0" * 128 + b"DICM", SkipReason.DICOM),
        ("IM0001", b"\0" * 128 + b"DICM", SkipReason.DICOM),
        ("a.jpg", b"\0" * 128 + b"DICM", SkipReason.DICOM),
        ("without_signature.DCM", b"\x08\0\x05\0CS", SkipReason.DICOM),
        ("a.png", b"RIFF\0\0\0\0WEBPVP8 ", SkipReason.MISLABELLED),
    ],
)
def test_decode_what_is_no_readable_image_gives_its_reason(
    tmp_path: Path, name: str, content: bytes, reason: SkipReason
) -> None:
    (tmp_path / name).write_bytes(content)
    assert reason_of(tmp_path / name) is reason


@pytest.mark.parametrize("name", ["a.jpg", "a.bmp", "a.tif", "a.txt"])
def test_decode_png_under_another_extension_is_mislabelled_and_says_what_it_is(tmp_path: Path, name: str) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / name, "PNG")
    with pytest.raises(UnusableImage, match=r"^mislabelled extension: its content is PNG$"):
        decode_image(tmp_path / name, 16)


def test_decode_png_without_an_extension_says_so_and_which_it_should_have(tmp_path: Path) -> None:
    Image.fromarray(GRADIENT).save(tmp_path / "slice1", "PNG")
    with pytest.raises(UnusableImage, match=r"^no extension: its content is PNG; call it \.png$"):
        decode_image(tmp_path / "slice1", 16)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [6_400, 10_000, 14_000], ids=["over our limit", "Pillow warns", "Pillow refuses"])
def test_decode_bomb_is_refused_before_it_is_unfolded(tmp_path: Path, side: int) -> None:
    assert side * side > MAX_PIXELS
    (tmp_path / "a.png").write_bytes(png(side, 8, 2, b"\0" * 1000))
    with pytest.raises(UnusableImage) as caught:
        decode_image(tmp_path / "a.png", 16)
    assert caught.value.reason is SkipReason.TOO_LARGE
    assert re.fullmatch(r"[0-9x, ]+ pixels; the limit is 40,000,000 pixels", caught.value.detail)


def test_decode_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")
    assert reason_of(tmp_path / "a.png") is SkipReason.NOT_AN_IMAGE


def test_decode_dangling_link_is_unreadable(tmp_path: Path) -> None:
    (tmp_path / "a.png").symlink_to(tmp_path / "gone.png")
    assert reason_of(tmp_path / "a.png") is SkipReason.UNREADABLE
