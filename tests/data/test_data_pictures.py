"""One picture file to RGB: every mode converted or named in an error."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, features

from minires.data import pictures
from minires.data.pictures import decode, decode_all, look, resize
from minires.errors import ConfigError, DataError


def encoded(image, kind="PNG", **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def noise(height=6, width=9, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def test_rgb_is_unchanged(tmp_path):
    pixels = noise()
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(pixels)))
    for source in (tmp_path / "a.png", encoded(Image.fromarray(pixels))):
        got = decode(source)
        assert got.dtype == np.uint8 and np.array_equal(got, pixels)


def test_greyscale_and_one_bit_become_three_equal_channels():
    grey = noise()[..., 0]
    assert np.array_equal(decode(encoded(Image.fromarray(grey))), np.repeat(grey[..., None], 3, axis=2))
    bits = Image.fromarray(grey).point(lambda v: 255 * (v > 99), "1")
    assert np.array_equal(decode(encoded(bits))[..., 1], 255 * (grey > 99))


def test_palette_becomes_its_colours():
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 200, 100, 50])
    image.putpixel((1, 0), 1)
    assert decode(encoded(image)).tolist() == [[[10, 20, 30], [200, 100, 50]]]


def test_alpha_is_laid_over_white():
    pixels = np.zeros((1, 3, 4), np.uint8)
    pixels[0, :, 3] = [0, 128, 255]
    assert decode(encoded(Image.fromarray(pixels))).tolist() == [[[255] * 3, [127] * 3, [0] * 3]]
    grey_alpha = Image.fromarray(pixels[..., 2:].copy(), "LA")
    assert decode(encoded(grey_alpha))[0, 0].tolist() == [255] * 3
    palette = Image.new("P", (1, 1))
    palette.putpalette([10, 20, 30])
    assert decode(encoded(palette, transparency=0)).tolist() == [[[255] * 3]]


def test_cmyk_is_converted():
    got = decode(encoded(Image.new("CMYK", (8, 8), (255, 0, 0, 0)), "JPEG", quality=95))
    assert np.allclose(got, [0, 255, 255], atol=12)  # cyan ink alone is no red


def test_16_bit_greyscale_is_scaled_not_cut():
    deep = np.array([[0, 257, 32768, 65535]], np.uint16)
    assert decode(encoded(Image.fromarray(deep)))[0, :, 0].tolist() == [0, 1, 128, 255]
    assert decode(encoded(Image.fromarray(deep), "TIFF"))[0, :, 2].tolist() == [0, 1, 128, 255]


def test_floating_point_and_wide_integers_are_refused():
    with pytest.raises(DataError, match="film.tif: .*floating point"):
        decode(encoded(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"), name="film.tif")
    with pytest.raises(DataError, match="70000 do not fit"):
        decode(encoded(Image.fromarray(np.full((2, 2), 70000, np.int32)), "TIFF"))


@pytest.mark.parametrize("orientation, turn", [(3, 2), (6, -1), (8, 1)])
def test_exif_rotation_is_applied(orientation, turn):
    pixels = noise()
    exif = Image.Exif()
    exif[0x0112] = orientation
    got = decode(encoded(Image.fromarray(pixels), exif=exif))
    assert np.array_equal(got, np.rot90(pixels, turn))


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP"])
def test_truncated_is_named(kind):
    whole = encoded(Image.fromarray(noise(64, 64)), kind)
    with pytest.raises(DataError, match="half.pic: cannot read this picture"):
        decode(whole[: len(whole) // 2], name="half.pic")


def test_what_is_no_picture_is_named(tmp_path):
    with pytest.raises(DataError, match=r"song.jpg: .*not a picture in a known format \(JPEG, PNG"):
        decode(b"not a picture at all", name="song.jpg")
    with pytest.raises(DataError, match="cannot read"):
        decode(b"", name="empty.jpg")
    with pytest.raises(DataError, match="gone.jpg: cannot read this picture: no such file"):
        decode(tmp_path / "gone.jpg")


def test_eps_is_not_opened():  # its reader runs Ghostscript
    with pytest.raises(DataError, match="known format"):
        decode(encoded(Image.new("RGB", (4, 4)), "EPS"), name="a.eps")


def test_a_picture_beyond_the_limit_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(pictures, "MAX_PIXELS", 100)
    with pytest.raises(DataError, match="big.png: 20 x 6 pixels are more than the limit of 100"):
        decode(encoded(Image.new("RGB", (20, 6))), name="big.png")
    bomb = encoded(Image.new("1", (20000, 20000)))  # past Pillow's own limit
    with pytest.raises(DataError, match="bomb.png: .*more than 100 pixels"):
        decode(bomb, name="bomb.png")


def test_size_cuts_the_centred_square():
    pixels = np.zeros((10, 30, 3), np.uint8)
    pixels[:, 10:20] = 200
    assert np.array_equal(decode(encoded(Image.fromarray(pixels)), size=10), pixels[:, 10:20])
    upright = pixels.transpose(1, 0, 2).copy()
    assert decode(encoded(Image.fromarray(upright)), size=5).shape == (5, 5, 3)
    assert decode(encoded(Image.fromarray(upright)), size=5).min() == 200


def test_downscaling_averages_instead_of_skipping():
    board = np.indices((64, 64)).sum(0) % 2 * 255
    got = decode(encoded(Image.fromarray(board.astype(np.uint8))), size=8)
    assert abs(got[2:6, 2:6].astype(int) - 127).max() <= 2


def test_resize_of_a_batch_agrees_with_decode():
    batch = np.stack([noise(12, 20, s) for s in range(3)])
    assert np.array_equal(resize(batch, 7)[1], decode(encoded(Image.fromarray(batch[1])), size=7))
    assert resize(batch, None) is batch
    for bad in (0, -3):
        with pytest.raises(ConfigError, match="at least 1"):
            resize(batch, bad)
        with pytest.raises(ConfigError, match="at least 1"):
            decode(encoded(Image.fromarray(batch[0])), size=bad)


def test_all_broken_pictures_are_listed_up_to_ten():
    good = encoded(Image.fromarray(noise()))
    files = [(f"{i}.png", (lambda i=i: good if i < 3 else good[:20])) for i in range(15)]
    with pytest.raises(DataError) as caught:
        decode_all(files, size=None, where="set")
    text = str(caught.value)
    assert text.startswith("set: 12 unreadable pictures")
    assert text.count(".png: cannot read") == 10 and "... and 2 more" in text
    assert "3.png" in text and "2.png:" not in text.replace("12.png:", "")


def test_pictures_of_two_sizes_need_a_size():
    a, b = (encoded(Image.fromarray(noise(6, w))) for w in (9, 7))
    files = [("a.png", lambda: a), ("b.png", lambda: b)]
    with pytest.raises(DataError, match=r"a.png is 9 x 6, b.png is 7 x 6; give a size"):
        decode_all(files, size=None, where="set")
    assert decode_all(files, size=6, where="set").shape == (2, 6, 6, 3)
    with pytest.raises(DataError, match="set: no picture found"):
        decode_all([], size=None, where="set")


def raw_png(depth, kind, width, rows, transparent, *, packed=b"", height=1, interlaced=0):
    """A PNG of one row, as its bytes are; ``kind`` 0 is grey, 2 colour; ``transparent`` its tRNS chunk.
    With ``packed`` these are all its pixels.
    """

    def chunk(name, content):
        return (
            struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))
        )

    head = struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, interlaced)
    packed = packed or zlib.compress(b"\0" + rows)
    parts = [(b"IHDR", head), (b"IDAT", packed[:30]), (b"IDAT", packed[30:]), (b"IEND", b"")]
    parts[1:1] = [(b"tRNS", transparent)] if transparent else []
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in parts)


@pytest.mark.parametrize(
    "depth, kind, rows, transparent, right",
    [
        (1, 0, b"\x80", b"\0\1", [255, 0]),
        (1, 0, b"\x80", b"\0\0", [255, 255]),
        (2, 0, b"\x10", b"\0\1", [0, 255]),
        (4, 0, b"\x12", b"\0\2", [17, 255]),
        (8, 0, b"\x01\x02", b"\0\2", [1, 255]),
        (16, 0, b"\x01\x01\x80\x00", b"\x80\x00", [1, 255]),
        (16, 0, b"\x01\x01\x80\x00", b"\x80\x01", [1, 128]),
        (8, 2, b"\1\1\1\2\2\2", b"\0\2\0\2\0\2", [1, 255]),
        (16, 2, b"\1\0\1\0\1\0\2\0\2\0\2\0", b"\2\0\2\0\2\0", [1, 255]),
    ],
)
def test_the_transparent_colour_of_a_png_is_white_at_every_depth(depth, kind, rows, transparent, right):
    assert decode(raw_png(depth, kind, 2, rows, transparent))[0].tolist() == [[v] * 3 for v in right]


@pytest.mark.parametrize("interlaced, whole", [(0, 64 * 193), (1, 12408)])
@pytest.mark.parametrize("missing", [0, 1, 193, 5790, 9000])
def test_a_png_whose_rows_end_early_is_refused_and_a_black_one_read(interlaced, whole, missing):
    rows = (b"\0" + bytes(192)) * 64 if interlaced else (b"\0" + b"\7" * 192) * 63 + bytes(193)
    content = rows.ljust(whole, b"\0")[: whole - missing]
    file = raw_png(8, 2, 64, b"", b"", packed=zlib.compress(content), height=64, interlaced=interlaced)
    if not missing:
        assert decode(file).shape == (64, 64, 3)
        return
    for read in (decode, look):
        with pytest.raises(DataError, match=f"its rows end after {whole - missing:,} of|truncated"):
            read(file, name="night.png")


def raw_tiff(order, bits, white, width, pixels):
    """A TIFF of one row of grey; ``white`` is 0 or 1, the PhotometricInterpretation."""
    tags = {256: width, 257: 1, 258: bits, 259: 1, 262: white, 273: 0, 277: 1, 278: 1, 279: len(pixels)}
    tags[273] = 8 + 2 + 12 * len(tags) + 4
    short = "H2x" if order == ">" else "HH"
    entries = b"".join(
        struct.pack(f"{order}HHI{short}", number, 3, 1, *((value,) if order == ">" else (value, 0)))
        for number, value in tags.items()
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(f"{order}IH", 8, len(tags))
    return head + entries + bytes(4) + pixels


@pytest.mark.parametrize(
    "order, bits, white, pixels, right",
    [
        ("<", 12, 1, b"\x00\x0f\xff\x80\x00\x00", [0, 255, 128, 0]),
        ("<", 16, 1, np.array([0, 65535, 257], "<u2").tobytes(), [0, 255, 1]),
        (">", 16, 1, np.array([0, 65535, 257], ">u2").tobytes(), [0, 255, 1]),
        ("<", 16, 0, np.array([0, 65535, 257], "<u2").tobytes(), [255, 0, 254]),
        (">", 16, 0, np.array([0, 65535, 257], ">u2").tobytes(), [255, 0, 254]),
        (">", 8, 0, b"\x00\xff\x01", [255, 0, 254]),
    ],
)
def test_a_grey_tiff_has_its_white_at_every_depth(order, bits, white, pixels, right):
    assert decode(raw_tiff(order, bits, white, len(right), pixels))[0, :, 0].tolist() == right


def test_avif_is_read_where_pillow_has_it():
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    pixels = np.full((20, 30, 3), [200, 100, 50], np.uint8)
    assert np.abs(decode(encoded(Image.fromarray(pixels), "AVIF", quality=95)).astype(int) - pixels).max() < 6


@pytest.mark.parametrize(
    "content, words",
    [
        (b"", "the file is empty"),
        (b"\0" * 99, "only zeros"),
        (b"\n<!DOCTYPE HTML><p>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:1", "Git LFS pointer.*git lfs pull"),
        (b"\0\0\0\x18ftypheic\0\0\0\0", "HEIC picture.*save it as JPEG"),
        (b"\0\0\0\x18ftypisom\0\0\0\0", "a film"),
        (b"<?xml version='1.0'?><svg>", "an SVG drawing"),
        (b"%PDF-1.4", "a PDF"),
    ],
)
def test_what_is_called_a_picture_and_is_none_is_said(content, words):
    with pytest.raises(DataError, match=f"^x.jpg: cannot read this picture: .*{words}"):
        decode(content, name="x.jpg")


@pytest.mark.parametrize("make, words", [(os.mkfifo, "pipe"), (os.mkdir, "folder")])
def test_what_is_no_file_is_not_opened(tmp_path, make, words):
    make(tmp_path / "x.jpg")
    with pytest.raises(DataError, match=f"x.jpg: cannot read this picture: this is a {words}"):
        decode(tmp_path / "x.jpg")
    with pytest.raises(DataError, match="this is a device"):
        decode(Path("/dev/zero"))


def test_a_jpeg_beyond_the_limit_is_read_smaller_where_it_is_resized(monkeypatch):
    rows = np.linspace(0, 255, 400).astype(np.uint8)
    picture = Image.fromarray(np.repeat(np.repeat(rows[:, None, None], 300, 1), 3, 2))
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = decode(encoded(picture, "JPEG", exif=exif), size=16)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 60_000)
    reduced = decode(encoded(picture, "JPEG", exif=exif), size=16)
    assert np.abs(reduced.astype(int) - whole).max() < 4 and whole[0, 0, 0] > whole[0, -1, 0] + 100
    with pytest.raises(DataError, match="300 pixels are more than the limit of 60,000; give a size, or make"):
        decode(encoded(Image.new("RGB", (400, 300)), "JPEG"))
    with pytest.raises(DataError, match="limit of 60,000; make the picture smaller"):
        decode(encoded(picture), size=16)
    assert decode(encoded(picture, "JPEG", progressive=True), size=16).shape == (16, 16, 3)
    monkeypatch.setattr(pictures, "MAX_PIXELS", 40_000)  # beyond twice, but not four times
    assert decode(encoded(picture, "JPEG"), size=16).shape == (16, 16, 3)
    with pytest.raises(DataError, match="more than the limit of 40,000"):
        decode(encoded(picture, "JPEG", progressive=True), size=16)


def test_a_phones_picture_of_108_megapixels_is_read():
    picture = encoded(Image.new("L", (12000, 9000), 77), "JPEG", quality=50)
    assert np.abs(decode(picture, size=8).astype(int) - 77).max() < 3


def test_a_look_at_a_picture_is_bounded_as_well(monkeypatch):
    picture = Image.fromarray(noise(400, 300))
    monkeypatch.setattr(pictures, "MAX_PIXELS", 50_000)
    assert pictures.look(encoded(picture, "JPEG"), name="x")[0] == (400, 300)
    with pytest.raises(DataError, match="x: cannot read this picture: 300 x 400 pixels are more than 50,000"):
        pictures.look(encoded(picture, "JPEG", progressive=True), name="x")


def test_a_jpeg_of_too_many_scans_is_refused():
    with pytest.raises(DataError, match="drawn in 60[0-9] scans"):
        decode(encoded(Image.new("L", (8, 8)), "JPEG") + b"\xff\xda" * 600)


def test_what_takes_too_much_memory_is_refused_before_it_is_read(monkeypatch):
    one = encoded(Image.fromarray(noise(100, 100)))
    read = []
    files = [(f"{i}.png", lambda i=i: read.append(i) or one) for i in range(1000)]
    monkeypatch.setattr(pictures, "memory", lambda: 40_000_000)
    with pytest.raises(
        DataError, match=r"1,000 pictures of 100 x 100 take 29 MB .*limit is 19 MB.*give a size"
    ):
        decode_all(files, size=None, where="set")
    assert read == [0]
    with pytest.raises(DataError, match="of 99 x 99 take 28 MB .*smaller size"):
        decode_all(files, size=99, where="set")
    assert read == [0]
    monkeypatch.setattr(pictures, "MAX_PIXELS_UNSIZED", 9_999)
    with pytest.raises(DataError, match="100 x 100 pixels are more than the limit of 9,999 without a size"):
        decode_all(files[:2], size=None, where="set")
    assert decode_all(files[:2], size=4, where="set").shape == (2, 4, 4, 3)
    assert pictures.memory() > 0
