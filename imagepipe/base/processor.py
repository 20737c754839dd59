"""The features of this machine's processor."""

import os
import platform
from pathlib import Path

_CPU_INFO = Path("/proc/cpuinfo")
_X86 = ("x86_64", "amd64", "i386", "i686")
_VNNI = {"avx512_vnni", "avx_vnni", "amx_int8"}
_LIMITS_WITHOUT_VNNI = ("sse41", "avx", "avx2", "avx512_core")  # of ONEDNN_MAX_CPU_ISA


def read_cpu_flags() -> set[str]:
    """Returns the processor's features in Linux's names; none where they can't be read."""
    try:
        lines = _CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return set(next((line.partition(":")[2] for line in lines if line.startswith("flags")), "").split())


def has_exact_int8() -> bool:
    """Returns whether products of 8-bit numbers are added up exactly here, by oneDNN, OpenVINO and ONNX Runtime.

    x86 without VNNI adds two of them in 16 bits, and cuts off what is larger. A variable of oneDNN's can have it do so:
    https://uxlfoundation.github.io/oneDNN/dev_guide_cpu_dispatcher_control.html.
    """
    if platform.machine().lower() not in _X86:
        return True
    is_limited = os.environ.get("ONEDNN_MAX_CPU_ISA", "").lower() in _LIMITS_WITHOUT_VNNI
    return not is_limited and not _VNNI.isdisjoint(read_cpu_flags())
