"""The kind of a file by its first bytes, whatever its name: an image that is read, or words for what else it is.

The signatures are those of each format's specification; for the container of HEIC, AVIF and MP4, ISO/IEC 14496-12
(``ftyp``) and 23008-12 (HEIF).
"""

import codecs

SUFFIXES = ("jpg", "jpeg", "jpe", "jfif", "png", "webp", "avif", "heic", "heif", "gif", "bmp", "tif", "tiff")
"""Ends of the names that images which are read usually have, without the dot: what a file is, its bytes say."""

LOOKED_AT = 1024
"""Bytes at the start of a file that tell its kind."""

_FORMATS = (
    (b"\xff\xd8\xff", "jpeg"),
    (b"\x89PNG\r\n\x1a\n", "png"),
    (b"GIF87a", "gif"),
    (b"GIF89a", "gif"),
    (b"II*\0", "tiff"),
    (b"MM\0*", "tiff"),
    (b"II+\0", "tiff"),
    (b"MM\0+", "tiff"),
    (b"BM", "bmp"),
)
_AVIF = frozenset({b"avif", b"avis"})
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_EITHER = frozenset({b"mif1", b"msf1"})

RAW = "a camera's RAW photo, which is not read: convert it to JPEG"
"""The words for one, also for those that begin as a TIFF does."""

_NO_IMAGE = "not an image, but "
_ARCHIVE = f"{_NO_IMAGE}an archive ("
_LFS = b"version https://git-lfs.github.com/spec/"
_CR2 = b"II*\0\x10\0\0\0CR"  # Canon; begins as a TIFF does

# By the first bytes, at an offset. Images of kinds that are not read come first, then what is none.
_OTHERS: tuple[tuple[int, bytes, str], ...] = (
    (0, _CR2, RAW),
    (0, b"IIRO", RAW),  # Olympus
    (0, b"IIRS", RAW),
    (0, b"MMOR", RAW),
    (0, b"IIU\0", RAW),  # Panasonic
    (0, b"II\x1a\0\0\0HEAPCCDR", RAW),  # Canon
    (0, b"FUJIFILMCCD-RAW", RAW),
    (0, b"FOVb", RAW),  # Sigma
    (0, b"\0MRM", RAW),  # Minolta
    (4, b"ftypcrx ", RAW),  # Canon's CR3
    (0, b"\0\0\0\x0cjP  ", "a JPEG 2000 image, which is not read: convert it"),
    (0, b"\xff\x4f\xff\x51", "a JPEG 2000 image, which is not read: convert it"),
    (0, b"\0\0\0\x0cJXL ", "a JPEG XL image, which is not read: convert it"),
    (0, b"\xff\x0a", "a JPEG XL image, which is not read: convert it"),
    (0, b"8BPS", "a Photoshop document, which is not read: export it"),
    (0, b"%!PS", "PostScript, which is not read: convert it"),
    (0, b"\xc5\xd0\xd3\xc6", "PostScript, which is not read: convert it"),
    (128, b"DICM", "a DICOM file, which is not read: convert it to PNG"),
    (0, b"\0\0\1\0", "an icon, which is not read: convert it"),
    (0, _LFS, f"{_NO_IMAGE}a Git LFS pointer: run git lfs pull"),
    (0, b"/annex/objects/", f"{_NO_IMAGE}a git-annex pointer: run git annex get"),
    (0, b"%PDF-", f"{_NO_IMAGE}a PDF"),
    (4, b"ftypqt", f"{_NO_IMAGE}a video (QuickTime)"),
    (4, b"moov", f"{_NO_IMAGE}a video (QuickTime)"),
    (4, b"ftypM4A", f"{_NO_IMAGE}a sound file"),
    (4, b"ftyp", f"{_NO_IMAGE}a video (MP4)"),
    (0, b"\x1aE\xdf\xa3", f"{_NO_IMAGE}a video (Matroska or WebM)"),
    (0, b"RIFF", f"{_NO_IMAGE}a video (AVI) or a sound file"),
    (0, b"\0\0\1\xba", f"{_NO_IMAGE}a video (MPEG)"),
    (0, b"\0\0\1\xb3", f"{_NO_IMAGE}a video (MPEG)"),
    (0, b"FLV\1", f"{_NO_IMAGE}a video (Flash)"),
    (0, b"ID3", f"{_NO_IMAGE}a sound file"),
    (0, b"OggS", f"{_NO_IMAGE}a sound file"),
    (0, b"PK\3\4", f"{_ARCHIVE}ZIP) or an Office document"),
    (0, b"PK\5\6", f"{_ARCHIVE}ZIP) without members"),
    (257, b"ustar", f"{_ARCHIVE}tar)"),
    (0, b"\x1f\x8b", f"{_ARCHIVE}gzip)"),
    (0, b"BZh", f"{_ARCHIVE}bzip2)"),
    (0, b"\xfd7zXZ\0", f"{_ARCHIVE}xz)"),
    (0, b"\x28\xb5\x2f\xfd", f"{_ARCHIVE}Zstandard)"),
    (0, b"7z\xbc\xaf\x27\x1c", f"{_ARCHIVE}7-Zip)"),
    (0, b"Rar!\x1a\7", f"{_ARCHIVE}RAR)"),
    (0, b"PAR1", f"{_NO_IMAGE}a Parquet file"),
    (0, b"\x93NUMPY", f"{_NO_IMAGE}an array of numpy"),
    (0, b"\x89HDF\r\n\x1a\n", f"{_NO_IMAGE}an HDF5 file"),
)
_MARKUP = (  # within the first bytes, in lower case, of what begins with "<"
    (b"<svg", "an SVG drawing, which is not read: convert it to PNG"),
    (b"<!doctype html", f"{_NO_IMAGE}an HTML page"),
    (b"<html", f"{_NO_IMAGE}an HTML page"),
    (b"<head", f"{_NO_IMAGE}an HTML page"),
    (b"<body", f"{_NO_IMAGE}an HTML page"),
)


def find_format(data: bytes) -> str | None:
    """Returns the format of an image that is read: jpeg, png, gif, tiff, bmp, webp, avif or heif; None for all else."""
    for start, name in _FORMATS:
        if data.startswith(start):
            return None if data.startswith(_CR2) else name
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "webp"
    return _find_heif(data) if data[4:8] == b"ftyp" else None


def describe_other(data: bytes) -> str:
    """Returns what a file is that ``find_format`` has no format for, and where there is one the remedy."""
    start = data[:LOOKED_AT]
    for offset, signature, words in _OTHERS:
        if start.startswith(signature, offset):
            return words
    if not start.strip(b"\0"):
        return f"{_NO_IMAGE}nothing but zeros, as of a copy that was cut short"
    text = _decode(start)
    if text is None:
        return "not an image (of JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, HEIC)"
    if text.lstrip().startswith("<"):
        lower = start.lower()
        return next((words for tag, words in _MARKUP if tag in lower), f"{_NO_IMAGE}XML")
    return f"{_NO_IMAGE}text"


def describe_content(data: bytes) -> str:
    """Returns what a file is that is no image, such as "an HTML page", with the remedy if any; '' for all else."""
    words = describe_other(data)
    return words.removeprefix(_NO_IMAGE) if words.startswith(_NO_IMAGE) else ""


def find_packing(data: bytes) -> str | None:
    """Returns what packed a file, such as gzip; None if nothing has."""
    words = describe_other(data)
    return words.removeprefix(_ARCHIVE).partition(")")[0] if words.startswith(_ARCHIVE) else None


def _find_heif(data: bytes) -> str | None:
    """Returns avif or heif: the first brand that a file goes by, its major one or one after it, that says which."""
    box = data[: min(LOOKED_AT, int.from_bytes(data[:4]))]
    brands = [data[8:12], *(box[at : at + 4] for at in range(16, len(box), 4))]
    if brands[0] not in _AVIF | _HEIC | _EITHER:
        return None
    first = next((brand for brand in brands if brand in _AVIF | _HEIC), None)
    return "avif" if first in _AVIF else "heif"


def _decode(start: bytes) -> str | None:
    """Returns the start of a file as text, if it is text."""
    encoding = "utf-16" if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
    try:
        text = codecs.getincrementaldecoder(encoding)().decode(start)  # a character may be cut at the end
    except UnicodeDecodeError:
        return None
    return text if all(c.isprintable() or c.isspace() for c in text) else None
