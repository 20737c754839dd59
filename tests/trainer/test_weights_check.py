"""Weight files that hang or crash HDF5's library are refused: another process reads them first."""

import io
import shutil
import sys

import h5py
import numpy as np
import pytest

from imagepipe.base.errors import WeightsError
from trainer.weights.check import check_readable


def make_weights() -> bytes:
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        file.attrs["layer_names"] = [b"conv"]
        group = file.create_group("conv")
        group.attrs["weight_names"] = [b"conv/kernel:0"]
        group.create_dataset("conv/kernel:0", data=np.ones((3, 3, 3, 2), np.float32))
    return buffer.getvalue()


def shorten_heap(data: bytes) -> bytes:
    """Takes 152 bytes from the free space that a heap of texts ends with: the library walks over the rest for ever.

    A heap is "GCOL" and 12 bytes, then objects: number (0 for the free space), 6 bytes, size, content in units of 8.
    """
    at = data.index(b"GCOL") + 16
    while data[at : at + 2] != b"\0\0":
        at += 16 + -(-int.from_bytes(data[at + 8 : at + 16], "little") // 8) * 8
    size = int.from_bytes(data[at + 8 : at + 16], "little")
    return data[: at + 8] + (size - 152).to_bytes(8, "little") + data[at + 16 :]


def test_a_file_that_hangs_the_library_is_refused(tmp_path):
    file = tmp_path / "weights.h5"
    data = make_weights()
    file.write_bytes(data)
    check_readable(str(file))
    file.write_bytes(shorten_heap(data))
    with pytest.raises(WeightsError, match=r"weights\.h5 is damaged.* did not finish reading it in 5 s"):
        check_readable(str(file), seconds=5)


def test_a_file_that_crashes_the_library_is_refused(tmp_path, monkeypatch):
    file = tmp_path / "weights.h5"
    file.write_bytes(make_weights())
    crashing = tmp_path / "python"
    crashing.write_text("#!/bin/sh\nkill -SEGV $$\n")
    crashing.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(crashing))
    with pytest.raises(WeightsError, match="ended HDF5's library by signal 11"):
        check_readable(str(file))


def test_the_variables_of_a_saved_model_have_a_time_limit_too(tmp_path, monkeypatch):
    (tmp_path / "variables").mkdir()
    (tmp_path / "variables" / "variables.index").write_bytes(b"of something")
    check_readable(str(tmp_path))
    slow = tmp_path / "python"
    slow.write_text("#!/bin/sh\nexec sleep 60\n")
    slow.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(slow))
    with pytest.raises(WeightsError, match=r"is damaged.* the reader of variables did not finish reading it in 1 s"):
        check_readable(str(tmp_path), seconds=1)


def test_modules_beside_the_file_are_not_imported(tmp_path, monkeypatch):
    (tmp_path / "weights.h5").write_bytes(make_weights())
    (tmp_path / "h5py.py").write_text("import pathlib; pathlib.Path('imported').touch()")
    monkeypatch.chdir(tmp_path)
    check_readable("weights.h5")
    assert not (tmp_path / "imported").exists()


def test_a_check_that_could_not_be_made_is_no_pass(tmp_path, monkeypatch):
    file = tmp_path / "weights.h5"
    file.write_bytes(make_weights())
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(WeightsError, match="can't be checked"):
        check_readable(str(file))
