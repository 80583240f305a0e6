"""Date, camera, place and resolution of every format into every format, read back by Pillow and tifffile."""

import io
import struct

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, TiffImagePlugin

from ifcsr_lib.files import exif
from ifcsr_lib.files.images import read_image, write_image

PIXELS = np.add.outer(np.arange(20), np.arange(24)).astype(np.uint8)[..., None].repeat(3, 2) * np.uint8(4)
ARTIST = "M\u00fcller".encode()
CAMERA = {271: "Maker", 272: "Model X", 306: "2024:05:06 07:08:09"}
SHOT = {36867: "2024:05:06 07:08:09", 33434: TiffImagePlugin.IFDRational(1, 250), 42036: "50 mm"}
PLACE = {1: "N", 2: (48.0, 8.0, 15.0), 3: "E", 4: (11.0, 34.0, 30.0)}
FORMATS = ("jpg", "png", "webp", "tif", "png 16", "tif 16")


def pillows(order=b"II", orientation=1) -> Image.Exif:
    made = Image.Exif()
    made.endian = "<" if order == b"II" else ">"
    made.update(CAMERA | {274: orientation, 315: ARTIST, 282: 300.0, 283: 240.0, 296: 2})
    made[0x8769] = SHOT | {40962: 24, 40963: 20, 37500: b"maker's own " * 9}
    made[0x8825] = PLACE
    return made


def made(folder, kind, orientation=1, order=b"II"):
    """A photograph of 24x20 pixels and 300 x 240 dpi with all of it, by Pillow, or by tifffile and hand."""
    suffix = kind.partition(" ")[0]
    path, source = folder / f"source.{suffix}", pillows(order, orientation)
    Image.fromarray(PIXELS).save(path, exif=source.tobytes(), dpi=(300, 240))
    if kind == "png 16":  # the chunks of the 8-bit file around the pixels of a 16-bit one
        chunks = path.read_bytes()[33:].split(b"IDAT")[0][:-4]
        from ifcsr_lib.files import pixels

        data = pixels._png16(PIXELS.astype(np.uint16) * 257, None)
        path.write_bytes(data[:33] + chunks + data[33:])
    if suffix == "tif":  # Pillow would write the artist in ASCII
        tifffile.imwrite(
            path,
            PIXELS.astype(np.uint16) * 257 if "16" in kind else PIXELS,
            photometric="rgb",
            byteorder={b"II": "<", b"MM": ">"}[order],
            resolution=(300, 240),
            resolutionunit=2,
            extratags=[(271, "s", 0, "Maker", True), (274, "H", 1, orientation, True)],
        )
        block = exif.read(source.tobytes())
        path.write_bytes(exif.into_tiff(path.read_bytes(), block))
    return path


def told(path) -> tuple[dict, dict, dict]:
    """The three directories of a file, by Pillow."""
    with Image.open(path) as image:
        image.load() if path.suffix == ".png" else None
        found = image.getexif()
        return dict(found), found.get_ifd(0x8769), found.get_ifd(0x8825)


@pytest.mark.parametrize("source", FORMATS)
@pytest.mark.parametrize("target", FORMATS)
def test_date_camera_and_resolution_are_kept_and_the_place_when_asked_for(tmp_path, source, target):
    photo = read_image(made(tmp_path, source))
    suffix, _, wide = target.partition(" ")
    for gps in (False, True):
        big = torch.rand(1, 3, 80, 96)
        photo = type(photo)(big, None, 16 if wide else 8, exif=photo.exif, dpi=photo.dpi)
        path = write_image(photo, tmp_path / f"out.{suffix}", gps=gps)
        first, shot, place = told(path)
        assert {k: first.get(k) for k in CAMERA} == CAMERA and 274 not in first
        assert ARTIST in path.read_bytes(), "not in Latin letters only, byte for byte"
        assert {k: shot.get(k) for k in SHOT} == SHOT and 37500 not in shot
        assert (shot[40962], shot[40963]) == (96, 80), "the size of the larger picture"
        assert place == (PLACE if gps else {})
        again = read_image(path)
        assert again.exif is not None and np.allclose(again.dpi, (300, 240), atol=0.02)
        assert (again.rgb - big).abs().max() <= (0.6 if suffix == "jpg" else 0.51 / 255)
        if suffix == "tif":
            with tifffile.TiffFile(path) as file:
                assert len(file.pages) == 1 and file.pages[0].tags["Make"].value == "Maker"
                assert file.pages[0].asarray().shape == (80, 96, 3)
        else:
            with Image.open(path) as image:
                assert suffix == "webp" or np.allclose(image.info["dpi"], (300, 240), atol=0.02)


@pytest.mark.parametrize("suffix", ["jpg", "png", "webp", "tif"])
@pytest.mark.parametrize("wide", [8, 16])
def test_both_byte_orders(tmp_path, suffix, wide):
    path = tmp_path / f"big.{suffix}"
    block = exif.read(pillows(b"MM").tobytes())
    assert block[:2] == b"MM"
    photo = read_image(made(tmp_path, "jpg"))
    photo = type(photo)(torch.rand(1, 3, 16, 16), None, wide, exif=block, dpi=(72, 72))
    first, shot, place = told(write_image(photo, path, gps=True))
    assert {k: first.get(k) for k in CAMERA} == CAMERA and place == PLACE and shot[40962] == 16
    assert read_image(path).rgb.shape == (1, 3, 16, 16)


@pytest.mark.parametrize("kind", FORMATS)
def test_a_turned_photo_is_written_upright(tmp_path, kind):
    """The pixels are turned, so that no tag may turn them again."""
    photo = read_image(made(tmp_path, kind, orientation=6))
    assert photo.rgb.shape == (1, 3, 24, 20)
    for suffix in ("jpg", "png", "webp", "tif"):
        path = write_image(photo, tmp_path / f"out.{suffix}")
        assert told(path)[0].get(274, 1) == 1 and read_image(path).rgb.shape == (1, 3, 24, 20)


@pytest.mark.parametrize("suffix", ["jpg", "png", "bmp", "tif", "webp"])
def test_resolution_alone(tmp_path, suffix):
    """Without any EXIF, and grey, with alpha or of 16 bit."""
    source = tmp_path / "a.png"
    Image.fromarray(PIXELS[..., 0]).save(source, dpi=(300, 240))
    photo = read_image(source)
    for bits in (8, 16):
        photo = type(photo)(photo.rgb, photo.alpha, bits, grey=True, dpi=photo.dpi)
        path = write_image(photo, tmp_path / f"out.{suffix}")
        assert np.allclose(read_image(path).dpi, (300, 240), atol=0.02), (suffix, bits)
    bare = type(photo)(photo.rgb)
    assert read_image(write_image(bare, tmp_path / f"bare.{suffix}")).exif is None


def test_exif_as_older_pngs_have_it(tmp_path):
    from PIL.PngImagePlugin import PngInfo

    info, block = PngInfo(), pillows().tobytes()
    info.add_text("Raw profile type exif", f"\nexif\n{len(block):8d}\n{block.hex()}\n", zip=True)
    Image.fromarray(PIXELS).save(tmp_path / "a.png", pnginfo=info)
    path = write_image(read_image(tmp_path / "a.png"), tmp_path / "b.png")
    assert told(path)[1][36867] == SHOT[36867]


def test_damage_costs_tags_and_no_photograph(tmp_path):
    """Every byte of a block set to 255, one at a time: Pillow can read what is kept."""
    whole = pillows().tobytes()[6:]
    for at in range(len(whole)):
        bad = whole[:at] + b"\xff" + whole[at + 1 :]
        kept = exif.read(bad)
        if kept is not None:
            final = exif.block(kept, (10, 10), (72, 72), True)
            loaded = Image.Exif()
            loaded.load(b"Exif\0\0" + final)
            assert loaded[296] == 2
        exif.dpi(bad)
    long = struct.pack("<HHHII", 1, 271, 2, 99, 26) + bytes(4) + b"a maker longer than the file"
    for bad in (
        b"II*\0\x08\0\0\0" + long,
        b"",
        b"II",
        b"II*\0",
        b"Exif\0\0MM\0*\0\0\0\x08",
        b"II*\0\xff\xff\xff\xff",
        b"garbage" * 9,
    ):
        assert exif.read(bad) is None and exif.dpi(bad) is None
    out = io.BytesIO()
    Image.fromarray(PIXELS).save(out, "JPEG", exif=b"Exif\0\0" + b"garbage" * 9)
    (tmp_path / "a.jpg").write_bytes(out.getvalue())
    assert read_image(tmp_path / "a.jpg").rgb.shape == (1, 3, 20, 24)


def test_descriptions_of_programs_are_left_out(tmp_path):
    """tifffile would take the shape that it once noted for that of the larger picture."""
    tifffile.imwrite(tmp_path / "a.tif", PIXELS, photometric="rgb")
    photo = read_image(tmp_path / "a.tif")
    photo = type(photo)(torch.rand(1, 3, 80, 96), exif=photo.exif)
    assert tifffile.imread(write_image(photo, tmp_path / "b.tif")).shape == (80, 96, 3)
    tag = struct.pack("<HHHII", 1, 270, 2, 12, 26) + bytes(4) + b'{"shape": 0}'
    assert exif.read(b"II*\0\x08\0\0\0" + tag) is None
