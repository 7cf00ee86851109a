"""Builds the native extensions of `fastpath` and the Python messages of `proto/`.

`python setup.py build_ext --inplace` builds what changed. `REMIT_SANITIZE=address,undefined` adds these sanitizers
(`make sanitize` and `make fuzz` do it in folders of their own). `REMIT_PROFILE=count` builds a library that counts
which branches are taken; builds after it follow what was counted (`make setup` does it once, `make profile` again).
"""

import os
import pathlib
import re
import subprocess
import sys
import zlib
from concurrent.futures import ThreadPoolExecutor

from Cython.Build import cythonize
from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.modified import newer_group

HERE = pathlib.Path(__file__).parent

# Libraries per module, by pkg-config name: what fastpath/c declares.
NATIVE = {
    "fastpath.value": ["libxxhash"],
    "fastpath.table": ["libxxhash"],
    "fastpath.json_tree": ["jansson"],
    "fastpath.arguments": ["libcrypto"],
    "fastpath.mcp": ["libcrypto"],
    "fastpath.canonical": ["libutf8proc"],
    "fastpath.verify": ["libcrypto"],
    "fastpath.names": ["libxxhash"],
    "fastpath.admission": ["libxxhash"],
    "fastpath.bells": ["libxxhash"],
    "fastpath.call": ["libcrypto", "libxxhash"],
    "fastpath.causes": ["libxxhash"],
    "fastpath.rowmap": ["libxxhash"],
    "fastpath.approved": ["libcrypto"],
    "fastpath.certificate": ["libcrypto"],
    "fastpath.http2": ["libnghttp2"],
    "fastpath.http2_out": ["libnghttp2"],
    "fastpath.loop": ["libnghttp2", "libcrypto"],
    "fastpath.streams": ["libnghttp2", "libssl", "libcrypto"],
    "fastpath.answers": ["libnghttp2", "libssl", "libcrypto"],
    "fastpath.connection": ["libnghttp2", "libssl", "libcrypto"],
    "fastpath.entrance": ["libnghttp2", "libssl", "libcrypto"],
    "fastpath.clocks": ["libnghttp2", "libssl", "libcrypto"],
    "fastpath.rounds": ["libnghttp2", "libssl", "libcrypto"],
    "fastpath.listener": ["libnghttp2", "libssl", "libcrypto"],
    "fastpath.tls": ["libnghttp2", "libssl", "libcrypto"],
    "bench.load": ["libnghttp2", "libssl", "libcrypto"],
}
# All modules of `fastpath` in one library, from which fastpath/__init__.py imports them.
LIBRARY = "fastpath._native"
OBJECTS = pathlib.Path("build") / f"objects.{sys.implementation.cache_tag}"
SANITIZERS = os.environ.get("REMIT_SANITIZE", "")
COUNTING = os.environ.get("REMIT_PROFILE") == "count"
if COUNTING:
    # Each knows where its counts go: those of a tree that was copied would go to the first one's.
    OBJECTS = OBJECTS.with_name(f"counting.{sys.implementation.cache_tag}.{zlib.crc32(bytes(HERE.resolve())):08x}")
# Where the counting library leaves its counts when a process ends, and gcc looks for them. It knows a function by this
# place too.
COUNTS = OBJECTS.with_name(f"counts.{sys.implementation.cache_tag}")
COUNT_FLAGS = ["-fprofile-generate", "-fprofile-update=prefer-atomic"]
FOLLOW_FLAGS = [
    "-fprofile-use",
    "-fprofile-partial-training",  # what was not called is compiled as ever
    "-fprofile-correction",  # threads count at once
    "-Wno-coverage-mismatch",  # a function was changed since
    "-Wno-missing-profile",  # or is new
    "-Wno-maybe-uninitialized",  # more is inlined, of which it sees half the conditions
]
# What is built in place alone and never installed.
BENCH = ("bench/load.pyx", "bench/constant.pyx")
# The native doors; without their libraries everything else is built, and `listeners.listener: grpcio` serves.
DOORS = (
    "fastpath.http2",
    "fastpath.http2_out",
    "fastpath.tls",
    "fastpath.loop",
    "fastpath.answers",
    "fastpath.streams",
    "fastpath.connection",
    "fastpath.entrance",
    "fastpath.clocks",
    "fastpath.rounds",
    "fastpath.listener",
)
PACKAGES = "libxxhash-dev libjansson-dev libutf8proc-dev libssl-dev libnghttp2-dev"
HINT = f"install the Debian packages first: make setup, or apt-get install {PACKAGES}"


def pkg_config(flag: str, names: list[str]) -> list[str]:
    try:
        done = subprocess.run(["pkg-config", flag, *names], capture_output=True, text=True)
    except FileNotFoundError:
        sys.exit(f"pkg-config is missing; {HINT}")
    if done.returncode:
        sys.exit(f"{done.stderr.strip()}\n{HINT}")
    return done.stdout.split()


def without_doors() -> bool:
    """Whether a library of the native doors is missing; said once, aloud."""
    try:
        command = ["pkg-config", "--print-errors", "--exists", "libnghttp2", "libssl"]
        done = subprocess.run(command, capture_output=True)
    except FileNotFoundError:
        return False  # pkg_config says so
    if done.returncode:
        sys.stderr.write(
            f"{done.stderr.decode().strip()}\nbuilding without the native doors; only `listeners.listener: grpcio` "
            "will serve. To have them: apt-get install libnghttp2-dev libssl-dev, and build again\n"
        )
    return done.returncode != 0


def extensions() -> list[Extension]:
    sanitize = []
    if SANITIZERS:
        # Undefined behaviour ends the run as a bad access does; nobody reads warnings of a run that went on.
        sanitize = [f"-fsanitize={SANITIZERS}", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer"]
    left_out = {*DOORS, "bench.load"} if without_doors() else set()
    made = []
    bench = [path for name in BENCH if (path := HERE / name).exists()] if "--inplace" in sys.argv else []
    for path in [*sorted((HERE / "fastpath").glob("*.pyx")), *bench]:
        name = f"{path.parent.name}.{path.stem}"
        if name in left_out:
            continue
        libraries = NATIVE.get(name, [])
        made.append(
            Extension(
                name,
                [str(path.relative_to(HERE))],
                extra_compile_args=[
                    "-O2",
                    "-fno-plt",
                    "-g1",
                    "-std=gnu11",
                    "-fvisibility=hidden",
                    "-Wall",
                    "-Wno-unused-function",
                    *sanitize,
                    *(pkg_config("--cflags", libraries) if libraries else []),
                ],
                extra_link_args=[*sanitize, *(pkg_config("--libs", libraries) if libraries else [])],
                define_macros=[("CYTHON_USE_TYPE_SPECS", "0")],
            )
        )
    return made


def protos() -> None:
    """Generate sidecar/_proto from proto/ when a contract is newer than its messages."""
    sources = sorted((HERE / "proto").rglob("*.proto"))
    target = HERE / "sidecar" / "_proto"
    stamp = target / ".stamp"
    if stamp.exists() and all(source.stat().st_mtime <= stamp.stat().st_mtime for source in sources):
        return
    target.mkdir(exist_ok=True)
    import grpc_tools

    include = pathlib.Path(grpc_tools.__file__).parent / "_proto"
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"-I{HERE / 'proto'}",
            f"-I{include}",
            f"--python_out={target}",
            f"--pyi_out={target}",
            f"--grpc_python_out={target}",
            *map(str, sources),
        ],
        check=True,
    )
    # protoc writes absolute imports from proto/; here the same tree stands below sidecar._proto.
    for folder in [target, *(f for f in target.rglob("*") if f.is_dir() and f.name != "__pycache__")]:
        (folder / "__init__.py").touch()
    for module in [*target.rglob("*_pb2*.py"), *target.rglob("*_pb2*.pyi")]:
        text = module.read_text()
        module.write_text(re.sub(r"^from remit\.", "from sidecar._proto.remit.", text, flags=re.M))
    stamp.touch()


class Library(Extension):
    """Many modules in one shared library."""

    def __init__(self, name: str, parts: list[Extension]) -> None:
        flags = dict.fromkeys(flag for part in parts for flag in part.extra_link_args)
        super().__init__(name, [], extra_link_args=[*flags, *(COUNT_FLAGS if COUNTING else [])])
        self.parts = parts


def joined(modules: list[Extension]) -> list[Extension]:
    """The modules of `fastpath` as one library, and the others."""
    parts = [module for module in modules if module.name.startswith("fastpath.")]
    return [Library(LIBRARY, parts), *(module for module in modules if module not in parts)]


class Build(build_ext):
    def finalize_options(self) -> None:
        super().finalize_options()
        self.parallel = self.parallel or os.cpu_count()

    def run(self) -> None:
        protos()
        super().run()

    def build_extension(self, ext: Extension) -> None:
        if isinstance(ext, Library):
            with ThreadPoolExecutor(self.parallel) as pool:
                ext.extra_objects = list(pool.map(self._object_of, ext.parts))
            ext.depends = [*ext.extra_objects, self._list_of(ext.extra_objects)]
            # Else the linker is only asked when one of the objects is new, not when they are others.
            self.compiler.force = newer_group(ext.depends, self.get_ext_fullpath(ext.name), "newer")
        super().build_extension(ext)

    def _list_of(self, objects: list[str]) -> str:
        """A file that is newer than the library when other objects are to be in it than are, so none is left over."""
        listed, text = OBJECTS.with_name("linked"), "\n".join(objects)
        if not listed.exists() or listed.read_text() != text:
            listed.write_text(text)
        return str(listed)

    def _object_of(self, part: Extension) -> str:
        """The object file of a module, compiled where that is due."""
        (made,) = self.compiler.object_filenames(part.sources, output_dir=str(OBJECTS))
        counts = COUNTS / pathlib.Path(made).with_suffix(".gcda").name
        follows = counts.exists() and not COUNTING and not SANITIZERS
        due = [*part.sources, *part.depends, *([str(counts)] if follows else [])]
        if self.force or newer_group(due, made, "newer"):
            flags = COUNT_FLAGS if COUNTING else FOLLOW_FLAGS if follows else []
            self.compiler.compile(
                part.sources,
                output_dir=str(OBJECTS),
                macros=part.define_macros,
                include_dirs=part.include_dirs,
                extra_postargs=[*part.extra_compile_args, *flags, *(["-dumpdir", f"{COUNTS}/"] if flags else [])],
            )
        return str(made)


setup(
    ext_modules=joined(
        cythonize(
            extensions(),
            nthreads=os.cpu_count() or 1,
            language_level=3,
            compiler_directives={
                "boundscheck": False,
                "wraparound": False,
                "initializedcheck": False,
                "cdivision": True,
                "binding": False,
                "embedsignature": True,
                "legacy_implicit_noexcept": False,
                "freethreading_compatible": False,
            },
            show_all_warnings=False,
        )
    ),
    cmdclass={"build_ext": Build},
)
