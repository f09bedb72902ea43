"""Photos of every kind, as people have them: which pixels they become, and why some are refused."""

import hashlib
import io
import os
import resource
import socket
import struct
import subprocess
import sys
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image

from featstore.errors import ImageError, PhotosError, UnavailableError
from featstore.photos.decoding import EncodedPhoto, read_photo
from featstore.photos.files import NO_DIGEST, digest_photos, find_photos, look_through

WHITE, RED = (255, 255, 255), (255, 0, 0)
ORIENTATION = 0x0112


def encode(image: Image.Image, kind: str = "PNG", **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def decode(data: bytes) -> Image.Image:
    return EncodedPhoto(data).decode()


def pixels(data: bytes) -> NDArray[np.uint8]:
    image = decode(data)
    assert image.mode == "RGB"
    return np.asarray(image)


def noise(*shape: int) -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape).astype(np.uint8)


# ---- what becomes which pixels


def test_an_rgb_photo_is_taken_as_it_is() -> None:
    values = noise(12, 16, 3)
    assert np.array_equal(pixels(encode(Image.fromarray(values))), values)


def test_grey_is_repeated_in_all_three_channels() -> None:
    values = noise(12, 16)
    assert np.array_equal(pixels(encode(Image.fromarray(values))), np.dstack([values] * 3))


def test_black_and_white_becomes_0_and_255() -> None:
    found = pixels(encode(Image.fromarray(noise(12, 16) > 127)))
    assert set(np.unique(found)) == {0, 255}


def test_16_bit_grey_is_scaled_by_1_over_257_and_not_clipped() -> None:
    values = np.linspace(0, 65535, 12 * 16).astype(np.uint16).reshape(12, 16)
    found = pixels(encode(Image.fromarray(values)))
    assert np.array_equal(found[..., 0], np.floor(values / 257 + 0.5))
    assert (found[0, 0, 0], found[-1, -1, 0]) == (0, 255)
    assert len(np.unique(found)) > 150  # Pillow's own conversion makes nearly all of it white


def test_16_bit_grey_of_the_other_byte_order_is_the_same_photo() -> None:
    values = np.linspace(0, 65535, 12 * 16).astype(np.uint16).reshape(12, 16)
    big = Image.frombytes("I;16B", (16, 12), values.astype(">u2").tobytes())
    assert np.array_equal(pixels(encode(big, "TIFF")), pixels(encode(Image.fromarray(values), "TIFF")))


def test_a_palette_is_expanded() -> None:
    image = Image.fromarray(np.repeat(np.arange(16, dtype=np.uint8)[None] % 3, 12, axis=0)).convert("P")
    image.putpalette([*RED, 0, 255, 0, 0, 0, 255])
    found = pixels(encode(image))
    assert [tuple(found[5, x]) for x in range(3)] == [RED, (0, 255, 0), (0, 0, 255)]


@pytest.mark.parametrize("transparency", [1, b"\xff\x00\xff"], ids=["one index", "alpha of every index"])
def test_a_transparent_palette_entry_is_white(transparency: int | bytes) -> None:
    image = Image.fromarray(np.repeat(np.arange(16, dtype=np.uint8)[None] % 3, 12, axis=0)).convert("P")
    image.putpalette([*RED, 0, 255, 0, 0, 0, 255])
    found = pixels(encode(image, transparency=transparency))
    assert [tuple(found[5, x]) for x in range(3)] == [RED, WHITE, (0, 0, 255)]


def test_alpha_is_laid_over_white() -> None:
    for mode, clear, half in (("RGBA", (255, 0, 0, 0), (0, 0, 0, 128)), ("LA", (0, 0), (0, 128))):
        image = Image.new(mode, (16, 12), clear)
        image.paste(half, (8, 0, 16, 12))
        found = pixels(encode(image))
        assert tuple(found[0, 0]) == WHITE, mode
        assert np.all(found[0, 8] == 127), mode


def test_a_colour_declared_transparent_is_white_in_rgb_and_grey_too() -> None:
    for image, colour in ((Image.new("RGB", (16, 12), RED), RED), (Image.new("L", (16, 12), 7), 7)):
        assert np.all(pixels(encode(image, transparency=colour)) == 255), image.mode


def test_cmyk_is_converted_without_a_profile() -> None:
    found = pixels(encode(Image.new("CMYK", (16, 12), (0, 255, 255, 0)), "JPEG", quality=95))
    assert np.abs(found.astype(int) - RED).max() <= 3


def test_the_first_frame_of_an_animation_is_taken() -> None:
    frames = [Image.new("RGB", (16, 12), colour) for colour in (RED, (0, 255, 0), (0, 0, 255))]
    for kind in ("GIF", "WEBP", "PNG"):
        options = {"lossless": True} if kind == "WEBP" else {}
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        assert np.all(pixels(data) == RED), kind


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
def test_exif_orientation_is_applied_whatever_it_says(kind: str) -> None:
    upright = np.zeros((16, 24, 3), np.uint8)
    upright[:8, :12] = 255  # a white corner, top left
    as_stored = {  # how the camera lays the upright photo down, by the orientation that it then writes
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.transpose(1, 0, 2),
        6: np.rot90(upright, 1),
        7: upright[::-1, ::-1].transpose(1, 0, 2),
        8: np.rot90(upright, -1),
    }
    for orientation, stored in as_stored.items():
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        found = pixels(encode(Image.fromarray(np.ascontiguousarray(stored)), kind, exif=exif))
        assert found.shape == upright.shape, orientation
        assert np.abs(found.astype(int) - upright).max() < 30, orientation


def test_the_name_says_nothing_about_the_format(tmp_path: Path) -> None:
    values = noise(12, 16, 3)
    (tmp_path / "really a png.jpg").write_bytes(encode(Image.fromarray(values)))
    assert np.array_equal(np.asarray(read_photo(tmp_path / "really a png.jpg")), values)


# ---- what is refused, and why


def test_zero_bytes() -> None:
    with pytest.raises(ImageError, match="zero bytes"):
        decode(b"")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP"])
def test_half_a_file_is_damaged(kind: str) -> None:
    data = encode(Image.fromarray(noise(60, 60, 3)), kind)
    with pytest.raises(ImageError, match="damaged or truncated"):
        decode(data[: len(data) // 2])


def test_text_named_jpg_is_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("these are not the photos you are looking for\n")
    with pytest.raises(ImageError, match="not an image"):
        read_photo(tmp_path / "notes.jpg")


def test_postscript_never_reaches_the_program_that_pillow_would_start_for_it() -> None:
    with pytest.raises(ImageError, match="not an image; photos are JPEG, PNG"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\nshowpage\n")


def test_a_tracking_dot_is_too_small() -> None:
    with pytest.raises(ImageError, match="1x1 pixels is too small"):
        decode(encode(Image.new("RGB", (1, 1))))


def test_pixels_without_an_agreed_range_are_refused_rather_than_clipped() -> None:
    with pytest.raises(ImageError, match="floating-point"):
        decode(encode(Image.fromarray(np.random.default_rng(0).random((12, 16)).astype(np.float32)), "TIFF"))
    with pytest.raises(ImageError, match="32-bit"):
        decode(encode(Image.fromarray(np.full((12, 16), 70000, np.int32)), "TIFF"))


def test_a_small_file_with_900_million_pixels_is_refused_at_once() -> None:
    side = 30_000
    rows = zlib.compressobj()
    packed = b"".join(rows.compress(bytes(1 + side // 8)) for _ in range(side)) + rows.flush()
    data = png(side, side, packed)
    assert len(data) < 500_000
    before_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ImageError, match=r"900 megapixels \(30000x30000\).* 3.6 GB .*limit is 500 .*--max-megapixels"):
        decode(data)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 50_000


def test_a_photo_of_a_100_megapixel_camera_is_decoded_without_a_warning() -> None:
    script = """
import io
from PIL import Image
from featstore.photos.decoding import EncodedPhoto
Image.MAX_IMAGE_PIXELS = 1000  # instead of 89 million; a warning from here on, an error from twice that
file = io.BytesIO()
Image.new("RGB", (40, 40)).save(file, "PNG")
print(EncodedPhoto(file.getvalue()).decode().size)
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", script], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("(40, 40)", "")


def png(width: int, height: int, packed: bytes) -> bytes:
    """A 1-bit PNG of these compressed rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", packed) + chunk(b"IEND", b"")


SAMPLES = {
    kind: encode(Image.fromarray(noise(16, 20, 3)), kind) for kind in ("JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP")
}


@pytest.mark.filterwarnings("ignore")  # what Pillow thinks of such files
@given(
    kind=st.sampled_from(sorted(SAMPLES)),
    flips=st.lists(st.tuples(st.integers(0, 2**16), st.integers(0, 255)), max_size=8),
    cut=st.none() | st.integers(0, 2**16),
    tail=st.binary(max_size=16),
)
def test_damage_of_any_kind_gives_rgb_or_an_image_error(
    kind: str, flips: list[tuple[int, int]], cut: int | None, tail: bytes
) -> None:
    data = bytearray(SAMPLES[kind])
    for place, value in flips:
        data[place % min(len(data), 200)] = value  # headers are where it hurts
    rgb_or_image_error(bytes(data)[: None if cut is None else cut % len(data)] + tail)


@pytest.mark.filterwarnings("ignore")
@given(magic=st.sampled_from([b"", *(data[:12] for data in SAMPLES.values())]), rest=st.binary(max_size=200))
def test_random_bytes_give_rgb_or_an_image_error(magic: bytes, rest: bytes) -> None:
    rgb_or_image_error(magic + rest)


def rgb_or_image_error(data: bytes) -> None:
    with suppress(ImageError):
        assert decode(data).mode == "RGB"


# ---- finding, digesting, reading


def test_photos_are_found_in_subfolders_in_the_order_of_their_paths(tmp_path: Path) -> None:
    names = ["b.JPG", "a/z.png", "a/été 1.webp", "a b.tiff", "line\nbreak.gif", "c.jpeg"]
    for name in [*names, ".hidden.jpg", ".thumbs/x.jpg", "notes.txt", "a/no suffix"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    found = find_photos(tmp_path)
    assert [photo.path for photo in found] == sorted(names)
    assert found[0].n_bytes == len(found[0].path)
    assert found[0].modified_ns == (tmp_path / found[0].path).stat().st_mtime_ns


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: None, "does not exist"),
        (lambda path: path.mkdir(), "holds no photos"),
        (lambda path: path.write_text("x"), "is not a folder"),
    ],
    ids=["missing", "empty", "a file"],
)
def test_a_folder_without_photos_is_an_error_that_says_why(tmp_path: Path, make: object, says: str) -> None:
    make(tmp_path / "photos")  # type: ignore[operator]
    with pytest.raises(PhotosError, match=says):
        find_photos(tmp_path / "photos")


def test_a_dangling_link_is_found_and_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "lost.jpg").symlink_to(tmp_path / "gone" / "lost.jpg")
    assert [photo.path for photo in find_photos(tmp_path)] == ["lost.jpg"]
    assert digest_photos(tmp_path, ["lost.jpg"]) == [NO_DIGEST]
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        read_photo(tmp_path / "lost.jpg", digest=NO_DIGEST)


@pytest.mark.parametrize("name", [b"caf\xe9.jpg", b"caf\xe9/a.jpg"], ids=["file", "folder"])
def test_a_name_that_is_no_text_is_named(tmp_path: Path, name: bytes) -> None:
    file = os.fsencode(tmp_path) + b"/" + name
    os.makedirs(os.path.dirname(file), exist_ok=True)  # noqa: PTH103, PTH120
    with open(file, "wb"):  # noqa: PTH123
        pass
    with pytest.raises(PhotosError, match="not valid UTF-8; rename the file"):
        find_photos(tmp_path)


@pytest.mark.skipif(os.geteuid() != 0, reason="takes root to become somebody who may not look")
def test_a_folder_that_cannot_be_listed_is_an_error_and_not_a_silent_gap(tmp_path: Path) -> None:
    (tmp_path / "private").mkdir(mode=0o700)
    (tmp_path / "private" / "a.jpg").write_bytes(b"a")
    (tmp_path / "b.jpg").write_bytes(b"b")
    tmp_path.chmod(0o755)
    script = """
import os
from pathlib import Path
from featstore.errors import PhotosError
from featstore.photos.files import find_photos
os.seteuid(65534)
try:
    print(find_photos(Path()))
except PhotosError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"cannot list the folder .{os.sep}private: Permission denied"


def test_digests_are_sha256_in_the_order_asked_for(tmp_path: Path) -> None:
    contents = {f"{i}.jpg": noise(i * 1000).tobytes() for i in range(5)}
    for name, data in contents.items():
        (tmp_path / name).write_bytes(data)
    seen: list[tuple[str, int, int]] = []
    names = list(reversed(contents))
    digests = digest_photos(tmp_path, names, on_progress=lambda *told: seen.append(told))
    assert digests == [hashlib.sha256(contents[name]).digest() for name in names]
    assert seen == [("list", done, 5) for done in range(1, 6)]


def test_reading_insists_on_the_bytes_that_were_digested(tmp_path: Path) -> None:
    file = tmp_path / "photo.png"
    file.write_bytes(encode(Image.new("RGB", (16, 12), RED)))
    (digest,) = digest_photos(tmp_path, ["photo.png"])
    assert read_photo(file, digest=digest).size == (16, 12)
    file.write_bytes(encode(Image.new("RGB", (16, 12), WHITE)))
    with pytest.raises(ImageError, match="changed while the run was going on"):
        read_photo(file, digest=digest)
    with pytest.raises(ImageError, match="cannot be read: No such file"):
        read_photo(tmp_path / "other.png")


@pytest.mark.parametrize("suffix", [".jfif", ".jpe", ".jif", ".heic", ".HEIF", ".avif", ".jxl", ".jp2", ".hif", ".ppm"])
def test_every_name_of_a_photo_is_found(tmp_path: Path, suffix: str) -> None:
    (tmp_path / f"a{suffix}").write_bytes(b"a")
    assert [photo.path for photo in find_photos(tmp_path)] == [f"a{suffix}"]


def test_files_that_are_no_photos_are_counted_and_what_is_ours_is_not(tmp_path: Path) -> None:
    names = [
        "a.jpg",
        "b.mov",
        "c/d.txt",
        "c/e.txt",
        "no suffix",
        ".hidden",
        "Thumbs.db",
        "desktop.ini",
        "featstore.toml",
    ]
    names += [
        "s.zarr/zarr.json",
        "s.zarr/a.png",
        "store/zarr.json",
        "store/t/c/0",
        "s.zarr.lock",
        "labels.csv",
        "w/a.pth",
    ]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).write_bytes(b"x")
    folder = look_through(tmp_path, ours=[tmp_path / "labels.csv", tmp_path / "w"])
    assert [photo.path for photo in folder.photos] == ["a.jpg"]
    assert folder.others == ["b.mov", "c/d.txt", "c/e.txt", "no suffix"]
    assert folder.notes() == ["4 files are no photos: .txt, .mov, without a suffix"]


def test_linked_folders_are_entered_once_and_loops_are_not(tmp_path: Path) -> None:
    root = tmp_path / "photos"
    for folder in (root / "z", tmp_path / "elsewhere" / "deep", tmp_path / "other"):
        folder.mkdir(parents=True)
        (folder / "x.jpg").write_bytes(b"x")
    (root / "a link").symlink_to(root / "z")  # before z by its name, and still z/x.jpg is the photo's path
    (root / "b").symlink_to(tmp_path / "elsewhere")
    (root / "c").symlink_to(tmp_path / "elsewhere" / "deep")
    (root / "d").symlink_to(tmp_path / "other")
    (root / "e").symlink_to(tmp_path / "other")
    (root / "self").symlink_to(root)
    (root / "z" / "up").symlink_to(tmp_path)  # holds the folder itself
    (tmp_path / "elsewhere" / "back").symlink_to(root)
    (root / "lost").symlink_to(tmp_path / "gone")
    (root / "round").symlink_to(root / "round")
    folder = look_through(root)
    assert [photo.path for photo in folder.photos] == ["b/deep/x.jpg", "d/x.jpg", "z/x.jpg"]
    assert set(folder.again) == {"a link", "c", "e", "self", "z/up", "b/back"}
    assert folder.again["e"] == str(tmp_path / "other")
    assert folder.notes()[-1].startswith(
        "6 linked folders were not entered, for the photos there are found without it: "
    )
    assert folder.others == ["lost", "round"]


def test_the_photo_folder_may_itself_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "x.jpg").write_bytes(b"x")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert [photo.path for photo in find_photos(tmp_path / "link")] == ["x.jpg"]


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    (tmp_path / "zero.jpg").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "socket.jpg"))
        names = [photo.path for photo in find_photos(tmp_path)]
        assert names == ["pipe.jpg", "socket.jpg", "zero.jpg"]
        assert digest_photos(tmp_path, names) == [NO_DIGEST] * 3
        for name, kind in zip(names, ["a named pipe", "a socket", "a device"], strict=True):
            with pytest.raises(UnavailableError, match=f"cannot be read: it is {kind}, not a file"):
                read_photo(tmp_path / name)
