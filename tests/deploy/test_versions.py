"""Which folders of a model are its versions."""

import pytest

from imagepipe.deploy.storage import list_versions
from imagepipe.deploy.versions import find_shadow_folder, is_version, list_version_folders


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
