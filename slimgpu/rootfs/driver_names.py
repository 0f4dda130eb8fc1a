"""Which files belong to a GPU driver, by what a container may want of it.

Source: https://github.com/NVIDIA/libnvidia-container/blob/v1.17.8/src/nvc_info.c, and for ``libnvidia-nvvm70`` and
``libnvidia-sandboxutils``, which came later, https://github.com/NVIDIA/nvidia-container-toolkit/tree/v1.17.8/pkg/nvcdi
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

CAPABILITIES: Final = ("compute", "utility", "video", "graphics", "display", "ngx", "compat32")
"""What NVIDIA_DRIVER_CAPABILITIES may name beside ``all``; display and 32-bit libraries bring nothing here."""
DEFAULT_CAPABILITIES: Final = "compute,utility"

LIBRARIES: Final = MappingProxyType(
    {
        "utility": ("libnvidia-ml", "libnvidia-cfg", "libnvidia-nscq", "libnvidia-sandboxutils"),
        "compute": (
            *("libcuda", "libcudadebugger", "libnvidia-opencl", "libnvidia-gpucomp", "libnvidia-ptxjitcompiler"),
            *("libnvidia-fatbinaryloader", "libnvidia-allocator", "libnvidia-compiler", "libnvidia-pkcs11"),
            *("libnvidia-pkcs11-openssl3", "libnvidia-nvvm", "libnvidia-nvvm70", "libnvidia-tileiras"),
        ),
        "video": ("libvdpau_nvidia", "libnvidia-encode", "libnvidia-opticalflow", "libnvcuvid"),
        "graphics": (
            *("libnvidia-eglcore", "libnvidia-glcore", "libnvidia-tls", "libnvidia-glsi", "libnvidia-fbc"),
            *("libnvidia-ifr", "libnvidia-rtcore", "libnvoptix", "libGLX_nvidia", "libEGL_nvidia"),
            *("libGLESv2_nvidia", "libGLESv1_CM_nvidia", "libnvidia-glvkspirv", "libnvidia-cbl"),
        ),
        "ngx": ("libnvidia-ngx",),
    }
)
PROGRAMS: Final = MappingProxyType(
    {
        "utility": ("nvidia-smi", "nvidia-debugdump", "nvidia-persistenced", "nv-fabricmanager"),
        "compute": ("nvidia-cuda-mps-control", "nvidia-cuda-mps-server"),
    }
)
CONTROL_DEVICES: Final = ("nvidiactl", "nvidia-uvm", "nvidia-uvm-tools", "nvidia-modeset")
NEEDED_DEVICES: Final = ("nvidiactl", "nvidia-uvm")
SOCKETS: Final = ("run/nvidia-persistenced/socket", "run/nvidia-fabricmanager/socket")
