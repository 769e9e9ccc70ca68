from __future__ import annotations

import io
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from core.data.archive import Limits, open_archive, read_member
from core.errors import DatasetTooLarge, DatasetUnreadable

MIB = 1 << 20


def opened(path: Path, limits: Limits | None = None) -> list[str]:
    with open_archive(path, limits or Limits()) as (_, members):
        return [member.filename for member in members]


def write(path: Path, *members: tuple[zipfile.ZipInfo | str, bytes], method: int = zipfile.ZIP_DEFLATED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for info, data in members:
            archive.writestr(info, data, method)
    return path


def test_members_and_their_bytes(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", ("a/1.png", b"one"), ("a/", b""), ("b/2.png", b"two" * 1000))
    with open_archive(path, Limits()) as (archive, members):
        assert {member.filename: read_member(archive, member) for member in members} == {
            "a/1.png": b"one", "a/": b"", "b/2.png": b"two" * 1000,
        }  # fmt: skip


@pytest.mark.parametrize(
    "name",
    ["../evil.png", "a/../../evil.png", "/etc/passwd", "C:/evil.png", "a\\evil.png", "a//b.png", "./a.png", "~/a.png"],
)
def test_names_that_climb_out_are_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "a.zip", (name, b"x"), ("good/1.png", b"x"))
    with pytest.raises(DatasetUnreadable) as caught:
        opened(path)
    (fault,) = caught.value.faults
    assert fault.message == "not a plain relative name"
    assert fault.pointer == "/file/" + name.replace("~", "~0").replace("/", "~1")


def test_a_name_with_a_nul_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", ("aXb.png", b"x"))
    path.write_bytes(path.read_bytes().replace(b"aXb.png", b"a\0b.png"))
    with pytest.raises(DatasetUnreadable) as caught:
        opened(path)
    assert caught.value.faults[0].message == "control characters in the name"


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR])
def test_links_and_special_files_are_refused(tmp_path: Path, kind: int) -> None:
    info = zipfile.ZipInfo("cat/1.png")
    info.create_system = 3
    info.external_attr = (kind | 0o777) << 16
    with pytest.raises(DatasetUnreadable) as caught:
        opened(write(tmp_path / "a.zip", (info, b"/etc/passwd")))
    assert caught.value.faults[0].message == "a link or a special file"


def test_encrypted_members_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", ("a.png", b"x"))
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 8
    data[at] |= 1
    path.write_bytes(data)
    with pytest.raises(DatasetUnreadable) as caught:
        opened(path)
    assert caught.value.faults[0].message == "encrypted"


def test_other_compression_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetUnreadable) as caught:
        opened(write(tmp_path / "a.zip", ("a.png", b"x" * 100), method=zipfile.ZIP_LZMA))
    assert caught.value.faults[0].expected == "stored or deflated"


def test_a_name_twice_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", ("a.png", b"x"), ("b.png", b"x"))
    path.write_bytes(path.read_bytes().replace(b"b.png", b"a.png"))
    with pytest.raises(DatasetUnreadable) as caught:
        opened(path)
    assert caught.value.faults[0].message == "named twice"


def test_all_faults_are_told_at_once_and_the_rest_counted(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", *((f"../{number}.png", b"x") for number in range(25)))
    with pytest.raises(DatasetUnreadable) as caught:
        opened(path)
    assert len(caught.value.faults) == 21
    assert caught.value.faults[-1].message == "5 more of the same kinds"


def test_an_over_large_member_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", ("a.png", bytes(2 * MIB)), ("b.png", b"x"))
    with pytest.raises(DatasetTooLarge) as caught:
        opened(path, Limits(member_bytes=MIB))
    (fault,) = caught.value.faults
    assert fault.pointer == "/file/a.png"
    assert fault.message == "2097152 bytes unpacked"


def test_too_much_in_all_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", *((f"{number}.png", bytes(1000)) for number in range(5)))
    with pytest.raises(DatasetTooLarge, match="unpacks to too much"):
        opened(path, Limits(total_bytes=4999))
    assert len(opened(path, Limits(total_bytes=5000))) == 5


def test_too_many_members_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", *((f"{number}.png", b"") for number in range(5)))
    with pytest.raises(DatasetTooLarge, match="too many members") as caught:
        opened(path, Limits(members=4))
    assert caught.value.faults[0].expected == "at most 4 members"


def test_a_bomb_is_refused_by_its_ratio(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", ("a.bmp", bytes(20 * MIB)))
    with pytest.raises(DatasetTooLarge) as caught:
        opened(path)
    assert "200 times" in (caught.value.faults[0].expected or "")


def test_overlapping_members_are_refused_by_the_ratio_of_the_whole(tmp_path: Path) -> None:
    """Many directory entries that share the packed bytes of one: each is within the ratio, the archive is not."""
    inner = bytes(range(256)) * 16
    path = write(tmp_path / "a.zip", ("0000.png", inner))
    data = path.read_bytes()
    start, end = data.index(b"PK\x01\x02"), data.index(b"PK\x05\x06")
    record = data[start:end]
    directory = b"".join(record.replace(b"0000.png", b"%04d.png" % number) for number in range(2000))
    tail = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2000, 2000, len(directory), start, 0)
    path.write_bytes(data[:start] + directory + tail)
    limits = Limits(ratio=20, ratio_floor_bytes=MIB)
    with pytest.raises(DatasetTooLarge) as caught:
        opened(path, limits)
    assert caught.value.faults[-1].pointer == "/file"


def test_a_directory_that_is_larger_than_its_cap_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 3, 3, 0xFFFFFFF0, 0, 0))
    with pytest.raises(DatasetTooLarge, match="too many members"):
        opened(path, Limits(members=10))


def test_a_zip64_directory_is_counted_too(tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    record = struct.pack("<4sQ2H2L4Q", b"PK\x06\x06", 44, 45, 45, 0, 0, 10**9, 10**9, 10**9 * 46, 0)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(record + locator + end)
    with pytest.raises(DatasetTooLarge) as caught:
        opened(path)
    assert caught.value.faults[0].message.startswith("1000000000 members")


@pytest.mark.parametrize("keep", [0.0, 0.3, 0.9])
def test_a_truncated_archive_is_refused(tmp_path: Path, keep: float) -> None:
    path = write(tmp_path / "a.zip", *((f"{number}.png", bytes(range(256))) for number in range(20)))
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data))])
    with pytest.raises(DatasetUnreadable) as caught:
        opened(path)
    assert caught.value.faults[0].pointer == "/file"


@pytest.mark.parametrize("data", [b"", b"\x80\x04N.", b"PK", io.BytesIO(b"PK\x05\x06").read()])
def test_what_is_no_zip_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(data)
    with pytest.raises(DatasetUnreadable, match="not a readable zip"):
        opened(path)


def test_a_damaged_member_names_itself(tmp_path: Path) -> None:
    path = write(tmp_path / "a.zip", ("a.png", bytes(range(256))), method=zipfile.ZIP_STORED)
    path.write_bytes(path.read_bytes().replace(b"\x10\x11\x12", b"\x10\x11\x13"))
    with open_archive(path, Limits()) as (archive, members), pytest.raises(DatasetUnreadable) as caught:
        read_member(archive, members[0])
    assert caught.value.faults[0].pointer == "/file/a.png"


def test_a_member_that_lies_about_its_size_is_refused(tmp_path: Path) -> None:
    """The directory declares 10 bytes, the stream unpacks to 4096: no more than declared is read, and it is refused."""
    path = write(tmp_path / "a.zip", ("a.png", bytes(4096)))
    data = path.read_bytes()
    path.write_bytes(data.replace(struct.pack("<L", 4096), struct.pack("<L", 10)))
    with open_archive(path, Limits()) as (archive, members):
        assert members[0].file_size == 10
        with pytest.raises(DatasetUnreadable):
            read_member(archive, members[0])
