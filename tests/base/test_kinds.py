"""Files are named for what they are, by their first bytes."""

import io
import tarfile
import zipfile

import pytest

from imagepipe.base.kinds import describe_other, find_format
from tests.photos import HEIC, encode, photos  # noqa: F401 (fixtures)


def make_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.txt", "a")
    return file.getvalue()


def make_tar() -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a.txt"))
    return file.getvalue()


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 1234\n"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"<!DOCTYPE html><html><body>404 Not Found</body></html>", "not an image, but an HTML page"),
        (b"\xef\xbb\xbf\r\n  <HTML>", "not an image, but an HTML page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "not an image, but XML"),
        (b"<?xml version='1.0'?>\n<svg xmlns='x'>", "an SVG drawing, which is not read: convert it to PNG"),
        (LFS, "not an image, but a Git LFS pointer: run git lfs pull"),
        (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "not an image, but a PDF"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", "not an image, but a video (MP4)"),
        (b"\0\0\0\x14ftypqt  \0\0\0\0qt  ", "not an image, but a video (QuickTime)"),
        (b"\x1aE\xdf\xa3\x93B\x82\x88matroska", "not an image, but a video (Matroska or WebM)"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "a camera's RAW photo, which is not read: convert it to JPEG"),
        (b"II*\0\x10\0\0\0CR\2\0", "a camera's RAW photo, which is not read: convert it to JPEG"),
        (make_zip(), "not an image, but an archive (ZIP) or an Office document"),
        (make_tar(), "not an image, but an archive (tar)"),
        (b"Dear reader", "not an image, but text"),
        ("\ufeffélan".encode("utf-16-le"), "not an image, but text"),
        ("é".encode() * 600, "not an image, but text"),  # one of them is cut where the look ends
        (bytes(5000), "not an image, but nothing but zeros, as of a copy that was cut short"),
        (b"\x9c\x01\xff\x00\x80", "not an image (of JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, HEIC)"),
    ],
)
def test_a_file_that_is_no_image_is_named_for_what_it_is(data, words):
    assert find_format(data) is None
    assert describe_other(data) == words


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (HEIC, "heif"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "heif"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1avif", "avif"),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1miaf", "avif"),
        (b"\0\0\0\x1cftypheic\0\0\0\0mif1avif", "heif"),
        (b"\xff\xff\xff\xffftypmif1", "heif"),  # a box of 4 GB, it says
    ],
)
def test_heic_and_avif_are_told_apart_by_their_brands(start, name):
    assert find_format(start) == name


def test_every_format_that_is_read_is_told_by_its_first_bytes(photos, encode):  # noqa: F811
    for name in ("JPEG", "PNG", "GIF", "TIFF", "BMP", "WEBP", "AVIF"):
        assert find_format(encode(photos[0].crop((0, 0, 20, 20)), name)) == name.lower()
    assert find_format(encode(photos[0].crop((0, 0, 20, 20)), "MPO")) == "jpeg"
