"""One picture file to RGB: every mode converted or named in an error."""

import io

import numpy as np
import pytest
from PIL import Image

from minires.data import pictures
from minires.data.pictures import decode, decode_all, resize
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
