"""Archives that strangers made: one message or a reason each, nothing written outside, memory and work bounded."""

import gzip
import io
import struct
import tarfile
import tracemalloc
import zipfile
from collections import Counter

import pytest

from imagepipe.base.errors import IngestError
from imagepipe.ingest import archives, containers
from imagepipe.ingest.archives import list_members
from imagepipe.ingest.parts import read_part


@pytest.fixture
def read(put, tmp_path):
    """The members of an archive, given its bytes; by path, with their bytes or the reason; and what is passed over."""

    def read(name, data):
        passed_over = Counter()
        members = list(list_members(str(put(name, data)), str(tmp_path / "staging"), passed_over))
        return {path: reason or read_part(part) for path, part, reason in members}, passed_over

    return read


def make_tar(*members, **options):
    """A tar of (TarInfo or path, bytes)."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", **options) as archive:
        for member, data in members:
            info = member if isinstance(member, tarfile.TarInfo) else tarfile.TarInfo(member)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return file.getvalue()


def make_zip(*members, compression=zipfile.ZIP_DEFLATED):
    """A ZIP of (ZipInfo or path, bytes)."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for member, data in members:
            archive.writestr(member, data, compress_type=compression)
    return file.getvalue()


PATHS = ["../out.jpg", "a/../../out.jpg", "/etc/out.jpg", "..", "a/b.jpg", "./a//c.jpg", "a\\d.jpg"]


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_a_path_that_leaves_the_archive_is_refused_and_nothing_is_written_there(make, read, tmp_path):
    old = set(tmp_path.parent.rglob("*"))
    members, _ = read(f"set.{make.__name__[5:]}", make(*((path, b"data") for path in PATHS)))
    leaves = "its path leaves the archive"
    expected = dict.fromkeys(PATHS[:4], leaves) | {"a/b.jpg": b"data", "a/c.jpg": b"data"}
    assert members == expected | {"a/d.jpg" if make is make_zip else "a\\d.jpg": b"data"}
    assert {path.name for path in set(tmp_path.parent.rglob("*")) - old} <= {"set.tar", "set.zip"}


@pytest.mark.parametrize("make", [make_tar, make_zip])
def test_a_member_without_a_name_is_refused_alone(make, read):
    data = make(("a.jpg", b"data"), ("b.jpg", b"data"))
    if make is make_zip:  # zipfile writes none: the directory's entry of a.jpg has its name as a comment
        entry = data.index(b"PK\1\2")
        data = data[: entry + 28] + struct.pack("<HHH", 0, 0, 5) + data[entry + 34 :]
    else:
        data = make((tarfile.TarInfo(""), b"data"), ("b.jpg", b"data"))
    members, _ = read(f"set.{make.__name__[5:]}", data)
    assert members == {"": "it has no name", "b.jpg": b"data"}


def test_links_and_devices_are_passed_over_and_counted(read):
    kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE)
    special = []
    for number, kind in enumerate(kinds):
        info = tarfile.TarInfo(f"a/{number}.jpg")
        info.type, info.linkname = kind, "/etc/passwd"
        special.append((info, b""))
    members, passed_over = read("set.tar", make_tar(*special, ("a/x.jpg", b"data")))
    assert members == {"a/x.jpg": b"data"}
    assert passed_over == {"links in archives": 2, "not files (pipes, sockets, devices)": 2}
    link = zipfile.ZipInfo("a/link.jpg")
    link.external_attr = 0o120777 << 16
    members, passed_over = read("set.zip", make_zip((link, b"/etc/passwd"), ("a/x.jpg", b"data")))
    assert members == {"a/x.jpg": b"data"}
    assert passed_over == {"links in archives": 1}


def test_a_bomb_is_refused_before_it_fills_the_disk(put, read, tmp_path, monkeypatch):
    monkeypatch.setattr(archives, "_FREE_BYTES", 2**22)
    zeros = bytes(2**24)
    for name, data in (
        ("bomb.tgz", gzip.compress(make_tar(("a/1.jpg", zeros)))),
        ("bomb.zip", make_zip(("a/1.jpg", zeros))),
    ):
        with pytest.raises(IngestError, match=r"unpacks to more than 200 times its size .* unpack it"):
            read(name, data)
    assert sum(path.stat().st_size for path in (tmp_path / "staging").rglob("*") if path.is_file()) <= 2**22


def edit_directory(data, offset, value):
    """Writes a number of four bytes into each entry of a ZIP's directory."""
    data, at = bytearray(data), 0
    while (at := data.find(b"PK\1\2", at + 1)) > 0:
        data[at + offset : at + offset + 4] = struct.pack("<I", value)
    return bytes(data)


PACKED, UNPACKED, OFFSET = 20, 24, 42  # APPNOTE 4.3.12


def test_members_of_a_zip_may_not_overlap(read):
    data = make_zip(("a/1.jpg", bytes(1000)), ("a/2.jpg", bytes(1000)), compression=zipfile.ZIP_STORED)
    for offset, value in ((OFFSET, 0), (PACKED, 1500), (UNPACKED, 1500)):
        data = edit_directory(data, offset, value)
    with pytest.raises(IngestError, match="its members overlap"):
        read("set.zip", data)


@pytest.mark.parametrize("offset", [1, 2**32 - 2])
def test_a_member_that_is_not_where_the_directory_says_is_broken(offset, read):
    members, _ = read("set.zip", edit_directory(make_zip(("a/1.jpg", b"data")), OFFSET, offset))
    assert members == {"a/1.jpg": "broken in its archive: no header"}


def test_a_member_that_unpacks_to_another_size_is_broken(read, put, tmp_path):
    data = edit_directory(make_zip(("a/1.jpg", bytes(5000))), UNPACKED, 100)
    (member,) = list_members(str(put("set.zip", data)), str(tmp_path), Counter())
    with pytest.raises(ValueError, match="another size than the archive says"):
        read_part(member.part)


@pytest.mark.parametrize(
    ("name", "reason"),
    [("secret.jpg", "encrypted"), ("bzip2.jpg", "a method that is not read"), ("large.jpg", "more than 256 MiB")],
)
def test_a_member_of_a_zip_that_can_not_be_read_has_a_reason(name, reason, read):
    data = bytearray(make_zip((name, b"data"), ("x.jpg", b"data"), compression=zipfile.ZIP_STORED))
    entry = data.index(b"PK\1\2")
    if reason == "encrypted":
        data[entry + 8] |= 1
    elif "method" in reason:
        data[entry + 10] = zipfile.ZIP_BZIP2
    else:
        data[entry + 24 : entry + 28] = struct.pack("<I", 2**28 + 1)
    members, _ = read("set.zip", bytes(data))
    assert reason in members[name]
    assert members["x.jpg"] == b"data"


def make_header(name, size, kind=b"0"):
    """A tar's header with a size in base 256, where GNU's tar writes what octal digits have no room for."""
    info = tarfile.TarInfo(name)
    info.type = kind
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[124:136] = (b"\x80" if size >= 0 else b"\xff") + size.to_bytes(11, "big", signed=True)
    header[148:156] = b" " * 8
    header[148:155] = b"%06o\0" % sum(header)
    return bytes(header)


@pytest.mark.parametrize(
    "header",
    [
        make_header("a/1.jpg", -512),  # CPython's CVE-2025-8194: round and round
        make_header("a/1.jpg", 10**15),
        make_header("a/1.jpg", 2**80),
        make_header("././@PaxHeader", 2**40, tarfile.XHDTYPE),
        make_header("././@LongLink", 2**40, tarfile.GNUTYPE_LONGNAME),
        make_header("././@PaxHeader", 60_000, tarfile.XHDTYPE) + b"1" * 60_416,  # CPython's CVE-2024-6232: 10 s
        make_header("././@PaxHeader", 0, tarfile.XHDTYPE) * 5000,  # headers of headers
        b"x" * 512,
    ],
    ids=["negative", "beyond the end", "beyond numbers", "long header", "long name", "slow header", "nested", "none"],
)
@pytest.mark.parametrize("name", ["set.tar", "set.tgz"])
def test_a_header_that_lies_is_one_message_and_little_memory(header, name, read):
    data = make_tar(("a/0.jpg", b"data"))[:1024] + header + bytes(10240)
    tracemalloc.start()
    try:
        with pytest.raises(IngestError, match=r"is damaged, or no archive \(.+\): nothing was ingested"):
            read(name, gzip.compress(data) if name == "set.tgz" else data)
        assert tracemalloc.get_traced_memory()[1] < 50e6
    finally:
        tracemalloc.stop()


def test_an_archive_cut_anywhere_is_one_message(read):
    files = [(f"a/{number}.jpg", bytes([number]) * 700) for number in range(3)]
    tar, packed = make_tar(*files), make_zip(*files)
    member = 1536  # a header, 700 bytes, and what fills them up
    for at in range(0, 3 * member, 64):
        if at == 0 or at % member:
            check_cut(read, "set.tar", tar[:at])
    for at in range(1, len(packed), 7):
        check_cut(read, "set.zip", packed[:at])
    zipped = gzip.compress(tar)
    for at in range(2, len(zipped), 5):
        check_cut(read, "set.tgz", zipped[:at])


def check_cut(read, name, data):
    with pytest.raises(IngestError, match="is damaged, or no archive"):
        read(name, data)


def test_what_comes_after_the_end_of_a_tar_is_not_lost_silently(read):
    first, second = make_tar(("a/1.jpg", b"1")), make_tar(("b/2.jpg", b"2"))
    with pytest.raises(IngestError, match="no header of a member"):
        read("set.tar", first + second)
    damaged = bytearray(make_tar(("a/1.jpg", b"1"), ("a/2.jpg", b"2"), ("a/3.jpg", b"3")))
    damaged[1024 + 10] ^= 1  # in the second member's header
    with pytest.raises(IngestError, match="no header of a member at byte 1,024"):
        read("set.tar", bytes(damaged))


def test_the_content_and_not_the_name_says_what_an_archive_is(read):
    assert read("set.zip", make_tar(("a/1.jpg", b"1")))[0] == {"a/1.jpg": b"1"}
    assert read("set.tar", make_zip(("a/1.jpg", b"1")))[0] == {"a/1.jpg": b"1"}
    assert read("set.tar", gzip.compress(make_tar(("a/1.jpg", b"1"))))[0] == {"a/1.jpg": b"1"}
    with pytest.raises(IngestError, match="no archive"):
        read("set.tar", b"<html>404</html>")
    with pytest.raises(IngestError, match="no archive"):
        read("set.tar", b"")


def test_long_names_and_names_that_are_not_utf_8(read):
    name = "a/" + "x" * 300 + ".jpg"
    assert read("set.tar", make_tar((name, b"1")))[0] == {name: b"1"}
    ((path, reason),) = read("set.tar", make_tar(("a/caf\udce9.jpg", b"1")))[0].items()
    assert path == "a/caf\udce9.jpg"
    assert "not UTF-8" in reason


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_a_tar_of_every_format_is_read_as_tarfile_reads_it(kind, read):
    old = tarfile.TarInfo("old/7.jpg")
    old.type = tarfile.AREGTYPE
    timed = tarfile.TarInfo("a/1.jpg")
    timed.mtime = 1.5 if kind == tarfile.PAX_FORMAT else 1
    folder = tarfile.TarInfo("a")
    folder.type = tarfile.DIRTYPE
    names = ("café/é.jpg", "b" * 60 + "/" + "c" * 90 + ".jpg", "a/0123456.jpg")
    data = make_tar((folder, b""), (timed, b"1"), (old, b"77"), *((x, x.encode()) for x in names), format=kind)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = {info.name: archive.extractfile(info).read() for info in archive if info.isreg()}
    assert len(expected) == 5
    assert read("set.tar", data)[0] == expected


def test_a_header_whose_checksum_is_wrong_is_no_member(read):
    data = bytearray(make_tar(("a/1.jpg", b"1"), ("a/2.jpg", b"2"), format=tarfile.USTAR_FORMAT))
    data[1024] ^= 1
    with pytest.raises(IngestError, match="no header of a member at byte 1,024"):
        read("set.tar", bytes(data))


def test_a_member_without_its_holes_is_refused(read):
    members, _ = read("set.tar", make_header("a/1.jpg", 512, tarfile.GNUTYPE_SPARSE) + b"x" * 512 + bytes(1024))
    assert "sparse" in members["a/1.jpg"]


def test_an_archive_of_folders_without_end_is_refused(put, tmp_path, monkeypatch):
    monkeypatch.setattr(containers, "_MAX_NAMES", 5000)
    path = str(put("set.tar", make_tar(*((f"{number}/1.jpg", b"1") for number in range(60)))))
    with pytest.raises(IngestError, match="has 50 folders, or more: unpack it"):
        containers.read_containers(
            path, [path], containers.Reading("classification", None, Counter(), str(tmp_path), None)
        )


def test_names_in_a_zip_of_a_mac_are_utf_8_though_it_does_not_say_so(read):
    data = bytearray(make_zip(("caf\u00e9/1.png", b"data")))
    for start, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = data.index(start) + flags + 1
        data[at] &= ~8
    members, _ = read("mac.zip", bytes(data))
    assert members == {"caf\u00e9/1.png": b"data"}


def test_names_of_unknown_letters_are_named_with_the_remedy_and_utf8_ones_are_not(read, capfd):
    for letters, is_named in (("cp932", True), ("utf-8", False), ("ascii", False)):
        name = ("cat" if letters == "ascii" else "\u732b").encode(letters)
        placeholder = b"_" * len(name)
        packed = make_zip((f"{placeholder.decode()}/1.jpg", b"data")).replace(placeholder, name)
        members, _ = read(f"{letters}.zip", packed)
        assert list(members.values()) == [b"data"]
        note = " ".join(capfd.readouterr().err.split())
        assert ("python -m zipfile --metadata-encoding cp932" in note) == is_named
        assert is_named or list(members) == [f"{name.decode()}/1.jpg"]
