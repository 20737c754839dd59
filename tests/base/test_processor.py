"""The processor's features: whether it adds up products in int8 exactly."""

import pytest

from imagepipe.base import processor
from imagepipe.base.processor import has_exact_int8


@pytest.mark.parametrize(
    ("machine", "flags", "limit", "expected"),
    [
        ("x86_64", "fpu avx512f avx512_vnni", None, True),
        ("x86_64", "fpu avx2 avx_vnni", None, True),
        ("AMD64", "fpu amx_tile amx_int8", None, True),
        ("x86_64", "fpu avx2 avx512f", None, False),
        ("x86_64", None, None, False),
        ("x86_64", "fpu avx512f avx512_vnni", "AVX512_CORE", False),
        ("x86_64", "fpu avx512f avx512_vnni", "avx2", False),
        ("x86_64", "fpu avx512f avx512_vnni", "AVX512_CORE_VNNI", True),
        ("aarch64", None, "AVX2", True),
    ],
)
def test_x86_without_vnni_cuts_sums_off_and_others_do_not(tmp_path, monkeypatch, machine, flags, limit, expected):
    if flags:
        (tmp_path / "cpuinfo").write_text(f"processor : 0\nflags\t\t: {flags}\n\nprocessor : 1\nflags\t\t: {flags}\n")
    monkeypatch.setattr(processor, "_CPU_INFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(processor.platform, "machine", lambda: machine)
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    if limit:
        monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert has_exact_int8() is expected
