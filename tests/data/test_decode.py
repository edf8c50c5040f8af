import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from protofast.data import decode_image, load_image, resize_image
from protofast.errors import DataError

RED, WHITE = (200, 30, 40), (255, 255, 255)


def arrow(mode: str = "RGB", size: tuple[int, int] = (16, 8)) -> Image.Image:
    """Red on white, red in the upper left quarter only, so that every turn and flip shows."""
    image = Image.new("RGB", size, WHITE)
    image.paste(RED, (0, 0, size[0] // 2, size[1] // 2))
    return image.convert(mode)


def corner(pixels: torch.Tensor) -> list[int]:
    """Which corner is the darkest, as [row, column] in {0, -1}."""
    height, width = pixels.shape[1] - 1, pixels.shape[2] - 1
    return min(
        ([y, x] for y in (0, height) for x in (0, width)),
        key=lambda at: int(pixels[:, at[0], at[1]].sum()),
    )


def save(image: Image.Image, path: Path, **options: object) -> Path:
    image.save(path, **options)
    return path


@pytest.mark.skipif(sys.platform != "linux", reason="limits the memory as Linux does")
@pytest.mark.parametrize("suffix", [".jpg", ".png"])
def test_an_image_too_large_for_the_memory_is_named(tmp_path: Path, suffix: str) -> None:
    import resource

    file = save(Image.new("RGB", (6000, 6000)), tmp_path / f"large{suffix}")  # 108 MB
    limits = resource.getrlimit(resource.RLIMIT_AS)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + 2**25, limits[1]))
    try:
        with pytest.raises(DataError) as caught:
            decode_image(file)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
    assert str(caught.value).startswith(f"{file}: too little memory to decode it; make it smaller")


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".gif", ".tif", ".webp", ".ppm"])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_format_gives_the_picture(tmp_path: Path, suffix: str, channels: int) -> None:
    options = {".jpg": {"quality": 95, "subsampling": 0}, ".webp": {"lossless": True}}
    file = save(arrow(), tmp_path / f"a{suffix}", **options.get(suffix, {}))
    pixels = decode_image(file, channels)
    assert pixels.dtype == torch.uint8
    assert pixels.shape == (channels, 8, 16)
    expected = torch.from_numpy(np.array(arrow("L" if channels == 1 else "RGB")))
    expected = expected[None] if channels == 1 else expected.permute(2, 0, 1)
    assert (pixels.int() - expected.int()).abs().max() <= (12 if suffix == ".jpg" else 1)


def test_jpeg_is_decoded_as_by_pillow(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8)
    file = save(Image.fromarray(noise), tmp_path / "a.jpg", quality=80)
    ours = decode_image(file).permute(1, 2, 0).numpy()
    assert np.array_equal(ours, np.array(Image.open(file)))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    file = save(arrow(), tmp_path / f"a{suffix}", exif=exif)
    pixels = decode_image(file)
    # Where the upper left corner of the stored image belongs, by the EXIF standard.
    rows, columns = pixels.shape[1] - 1, pixels.shape[2] - 1
    place = {
        1: [0, 0],
        2: [0, columns],
        3: [rows, columns],
        4: [rows, 0],
        5: [0, 0],
        6: [0, columns],
        7: [rows, columns],
        8: [rows, 0],
    }[orientation]
    assert pixels.shape == ((3, 8, 16) if orientation < 5 else (3, 16, 8))
    assert corner(pixels) == place
    pillow = ImageOps.exif_transpose(Image.open(file))
    assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.array(pillow))
    assert decode_image(file, 1).shape[1:] == pixels.shape[1:]


def test_damaged_exif_is_ignored(tmp_path: Path) -> None:
    plain = io.BytesIO()
    arrow().save(plain, "JPEG")
    data = plain.getvalue()
    for number, junk in enumerate([b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM"]):
        segment = b"\xff\xe1" + (len(junk) + 2).to_bytes(2, "big") + junk
        file = tmp_path / f"{number}.jpg"
        file.write_bytes(data[:2] + segment + data[2:])
        assert corner(decode_image(file)) == [0, 0]


@pytest.mark.parametrize("channels", [1, 3])
def test_cmyk_jpeg(tmp_path: Path, channels: int) -> None:
    file = save(arrow("CMYK"), tmp_path / "a.jpg", quality=95)
    pixels = decode_image(file, channels)
    assert pixels.shape == (channels, 8, 16)
    assert corner(pixels) == [0, 0]
    assert pixels[:, -1, -1].min() > 245


def test_grey_jpeg_as_colour(tmp_path: Path) -> None:
    pixels = decode_image(save(arrow("L"), tmp_path / "a.jpg"), 3)
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0], pixels[2])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
@pytest.mark.parametrize("channels", [1, 3])
def test_sixteen_bits_are_scaled_by_their_range(tmp_path: Path, suffix: str, channels: int) -> None:
    values = np.array([[0, 257, 40_000], [65_535, 128 * 257, 100]], dtype=np.uint16)
    file = save(Image.fromarray(values), tmp_path / f"a{suffix}")
    pixels = decode_image(file, channels)
    expected = torch.tensor([[0, 1, 156], [255, 128, 0]], dtype=torch.uint8)
    assert torch.equal(pixels, expected.expand(channels, 2, 3))


def test_floating_point_between_0_and_1(tmp_path: Path) -> None:
    good = save(Image.fromarray(np.array([[0, 0.5, 1]], dtype=np.float32)), tmp_path / "a.tif")
    assert decode_image(good, 1).tolist() == [[[0, 128, 255]]]
    bad = save(Image.fromarray(np.array([[0, 700.0]], dtype=np.float32)), tmp_path / "b.tif")
    with pytest.raises(DataError, match=r"b\.tif: floating-point values .* between 0 and 1.*700"):
        decode_image(bad)


def test_palette_and_one_bit(tmp_path: Path) -> None:
    palette = decode_image(save(arrow("P"), tmp_path / "a.png"))
    assert corner(palette) == [0, 0]
    assert palette[0, 0, 0] > 150  # still red
    assert palette[1, 0, 0] < 80
    bits = Image.new("1", (4, 4), 1)
    assert decode_image(save(bits, tmp_path / "b.png"), 1).min() == 255


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(tmp_path: Path, mode: str) -> None:
    image = arrow("RGBA")
    image.putalpha(Image.new("L", image.size, 255))
    image.paste((10, 20, 30, 0), (12, 0, 16, 8))  # dark, but fully transparent
    file = tmp_path / "a.png"
    if mode == "P":
        palette = arrow("P")
        palette.info["transparency"] = palette.getpixel((15, 7))
        palette.save(file, transparency=palette.info["transparency"])
    else:
        image.convert(mode).save(file)
    pixels = decode_image(file)
    assert pixels[:, :, 12:].min() == 255
    assert corner(pixels) == [0, 0]


def test_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    file = tmp_path / "a.gif"
    frames[0].save(file, save_all=True, append_images=frames[1:], duration=10)
    assert decode_image(file)[:, 4, 4].tolist() == [255, 0, 0]


@pytest.mark.parametrize(("content", "suffix"), [("JPEG", ".png"), ("PNG", ".jpg")])
def test_the_content_counts_not_the_name(tmp_path: Path, content: str, suffix: str) -> None:
    file = save(arrow(), tmp_path / f"a{suffix}", format=content)
    assert corner(decode_image(file)) == [0, 0]


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".gif", ".webp", ".tif"])
@pytest.mark.parametrize("kept", [0.3, 0.8])
def test_truncated_files_are_named(tmp_path: Path, suffix: str, kept: float) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = save(Image.fromarray(noise), tmp_path / f"whole{suffix}").read_bytes()
    file = tmp_path / f"cut{suffix}"
    file.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(DataError, match=rf"cut{suffix}: .*(again|remove|convert)"):
        decode_image(file)


@pytest.mark.parametrize("kind", ["plain", "progressive", "optimize", "rotated", "cmyk"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_jpeg_whose_pixels_are_missing_is_refused(
    tmp_path: Path, kind: str, channels: int
) -> None:
    """Cut short, or its tail zeroed as by a copy that stopped, but with an end marker."""
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    image = Image.fromarray(noise).convert("CMYK" if kind == "cmyk" else "RGB")
    options: dict[str, object] = {kind: True} if kind in ("progressive", "optimize") else {}
    if kind == "rotated":
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = 6  # type: ignore[index]
    data = save(image, tmp_path / "whole.jpg", **options).read_bytes()
    decode_image(tmp_path / "whole.jpg", channels)
    for kept in (0.6, 0.9):
        there = data[: int(len(data) * kept)]
        zeros = bytes(len(data) - len(there) - 2)
        for number, bad in enumerate(
            (there + b"\xff\xd9", there + zeros + b"\xff\xd9", there + zeros)
        ):
            file = tmp_path / f"{number}.jpg"
            file.write_bytes(bad)
            with pytest.raises(DataError, match=rf"{number}\.jpg: damaged or truncated .*again"):
                decode_image(file, channels)


def test_zeros_before_the_end_of_a_jpeg_are_padding(tmp_path: Path) -> None:
    data = save(arrow(), tmp_path / "a.jpg", quality=95).read_bytes()
    file = tmp_path / "padded.jpg"
    file.write_bytes(data[:-2] + bytes(500) + data[-2:])
    assert torch.equal(decode_image(file), decode_image(tmp_path / "a.jpg"))


def test_a_jpeg_that_libjpeg_only_warns_about_is_read(tmp_path: Path) -> None:
    data = save(arrow(), tmp_path / "a.jpg", quality=95).read_bytes()
    after_header = 4 + int.from_bytes(data[4:6], "big")
    for number, stray in enumerate((b"", b"\0\0\0")):
        file = tmp_path / f"{number}.jpg"
        file.write_bytes(data[:after_header] + stray + data[after_header:] + b"trailing bytes")
        assert corner(decode_image(file)) == [0, 0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"hello, this is text", "not an image"),
        (b"\xff\xd8\xff\xe0 hardly a JPEG", "not an image|damaged"),
        (b"\x89PNG\r\n\x1a\n", "not an image|damaged"),
        (bytes(1000), "not an image"),
    ],
)
def test_what_is_not_an_image_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    file = tmp_path / "bad.jpg"
    file.write_bytes(content)
    with pytest.raises(DataError, match=message) as caught:
        decode_image(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere\.png: no such image file"):
        decode_image(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match="is a folder; give an image file"):
        decode_image(tmp_path)


def test_resizing_is_pillows_antialiased_filter() -> None:
    pixels = torch.from_numpy(
        np.random.default_rng(0).integers(0, 256, (3, 60, 90), dtype=np.uint8)
    )
    ours = resize_image(pixels, (20, 25))
    pillow = Image.fromarray(pixels.permute(1, 2, 0).numpy()).resize(
        (25, 20), Image.Resampling.BILINEAR
    )
    assert np.array_equal(ours.permute(1, 2, 0).numpy(), np.array(pillow))
    # Torchvision's Resize does the same to tensors, up to rounding.
    torch_way = torch.nn.functional.interpolate(
        pixels[None].float(), (20, 25), mode="bilinear", antialias=True
    )[0]
    assert (torch_way - ours).abs().max() < 1.01


def test_cropping_keeps_the_shape_of_things() -> None:
    pixels = torch.zeros((1, 20, 60), dtype=torch.uint8)
    pixels[:, :, 20:40] = 255
    cropped = resize_image(pixels, (10, 10), resize="crop")
    assert cropped[:, :, 1:-1].min() == 255  # the filter sees a little beyond the rim
    stretched = resize_image(pixels, (10, 10))
    assert stretched[0, 5, 0] == 0
    assert stretched[0, 5, 5] == 255
    with pytest.raises(ValueError, match="resize must be"):
        resize_image(pixels, (5, 5), resize="squash")  # type: ignore[arg-type]


def test_load_image_gives_a_model_its_input(tmp_path: Path) -> None:
    image = load_image(save(arrow(), tmp_path / "a.png"), (12, 20), 1)
    assert image.shape == (1, 12, 20)
    assert image.dtype == torch.float32
    assert 0 <= image.min() < image.max() <= 1
    with pytest.raises(ValueError, match="channels must be 1 or 3"):
        load_image(tmp_path / "a.png", (12, 20), 2)


@pytest.mark.parametrize("missing", ["simplejpeg", "PIL"])
def test_a_missing_library_is_named(missing: str) -> None:
    code = (
        f"import sys; sys.modules[{missing!r}] = None\n"
        "from protofast.errors import InstallError\n"
        "try:\n    import protofast.data\n"
        "except InstallError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True
    )
    assert f"reading images needs {missing}; install it with" in done.stdout
