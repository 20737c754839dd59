"""Which folders of a model are its versions."""

import pytest

from imagepipe.base.errors import ModelError
from imagepipe.deploy.storage import list_versions
from imagepipe.deploy.versions import (
    check_shadow,
    find_shadow_folder,
    is_same_version,
    is_version,
    list_version_folders,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("0", True),
        ("7", True),
        ("20260101120000", True),
        (str(2**63 - 1), True),
        (str(2**63), False),  # messages of TensorFlow Serving hold 64 bits
        ("9" * 5000, False),  # which int() refuses to read
        ("²", False),  # a digit, and no number
        ("٣", False),  # int() reads it
        ("-1", False),
        ("1.0", False),
        ("shadow", False),
        ("", False),
    ],
)
def test_a_version_is_a_number_that_every_server_can_name(name, expected):
    assert is_version(name) is expected


def test_folders_that_no_server_can_name_are_no_versions(tmp_path):
    for name in ("10", "9", "²", "٣", "99999999999999999999"):
        (tmp_path / name).mkdir()
        (tmp_path / "shadow" / name).mkdir(parents=True)
    assert [folder.name for folder in list_version_folders(tmp_path)] == list_versions(str(tmp_path)) == ["9", "10"]
    assert find_shadow_folder(tmp_path, "newest") is None


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [("7", "007", True), ("007", "007", True), ("7", "8", False), ("-7", "7", False), ("x", "7", False)],
)
def test_versions_are_compared_as_numbers(one, other, expected):
    assert is_same_version(one, other) is expected


def test_a_shadow_with_leading_zeros_is_asked_for_by_its_number(tmp_path):
    for name in ("007", "08"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "saved_model.pb").write_bytes(b"graph")
    assert find_shadow_folder(tmp_path, "7") == find_shadow_folder(tmp_path, "007") == tmp_path / "007"
    check_shadow(tmp_path, "7")
    with pytest.raises(ModelError, match="version 8 is live"):
        check_shadow(tmp_path, "8")
