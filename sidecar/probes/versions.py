"""Versions of every library that takes part in a decision, as the loaded library tells them."""

import ctypes
import importlib.metadata
import platform
import ssl
import sys

PACKAGES = (
    *("cedarpy", "click", "cryptography", "grpcio", "lmdb", "msgspec", "prometheus-client", "protobuf"),
    *("pyseccomp", "pyyaml", "spiffe"),
)


class _NgHttp2Info(ctypes.Structure):
    """`nghttp2_info` of nghttp2.h, as far as it never changed."""

    _fields_ = [("age", ctypes.c_int), ("version_num", ctypes.c_int), ("version_str", ctypes.c_char_p)]


def native() -> dict[str, str]:
    """{library: version} of the native ones; "not found" for one that the linker does not find by its name."""
    return {name: _read(*how) for name, how in _NATIVE.items()}


def packages() -> dict[str, str]:
    """{package: version} of the Python ones, and of Python itself."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def kernel() -> str:
    return f"{platform.system()} {platform.release()} {platform.machine()}"


def python_ssl() -> str:
    """The OpenSSL of Python's own ssl module, which need not be the one that the doors use."""
    return f"{ssl.OPENSSL_VERSION} of {sys.executable}"


def _read(file: str, function: str, kind: str) -> str:
    try:
        library = ctypes.CDLL(file)
        call = getattr(library, function)
    except (OSError, AttributeError):
        return "not found"
    if kind == "struct":
        call.restype = ctypes.POINTER(_NgHttp2Info)
        return str(call(0).contents.version_str.decode())
    if kind == "packed":
        number = int(call())
        return f"{number // 10000}.{number // 100 % 100}.{number % 100}"
    if kind == "parts":
        call.restype = ctypes.POINTER(ctypes.c_uint * 3)  # struct scmp_version: major, minor, micro
        return ".".join(str(part) for part in call().contents)
    call.restype = ctypes.c_char_p
    return str(call(0).decode())


_NATIVE = {
    "nghttp2": ("libnghttp2.so.14", "nghttp2_version", "struct"),
    "openssl": ("libcrypto.so.3", "OpenSSL_version", "text"),
    "jansson": ("libjansson.so.4", "jansson_version_str", "text"),
    "utf8proc": ("libutf8proc.so.2", "utf8proc_version", "text"),
    "xxhash": ("libxxhash.so.0", "XXH_versionNumber", "packed"),
    "libseccomp": ("libseccomp.so.2", "seccomp_version", "parts"),
}
