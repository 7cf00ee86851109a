"""The allocator of nghttp2 and of streams: whatever size is asked for, a block has it, or there is none."""

import ctypes
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fastpath import reserve

WORD = ctypes.c_size_t
POINTER = ctypes.c_void_p
LARGEST = 2**64 - 1


class Mem(ctypes.Structure):
    """nghttp2_mem (nghttp2.h)."""

    _fields_ = [
        ("user", POINTER),
        ("malloc", ctypes.CFUNCTYPE(POINTER, WORD, POINTER)),
        ("free", ctypes.CFUNCTYPE(None, POINTER, POINTER)),
        ("calloc", ctypes.CFUNCTYPE(POINTER, WORD, WORD, POINTER)),
        ("realloc", ctypes.CFUNCTYPE(POINTER, POINTER, WORD, POINTER)),
    ]


def native(name: str, kind: Callable[[int], Any]) -> Callable[..., Any]:
    """A function that the module gives to other modules."""
    capsule = reserve.__pyx_capi__[name]
    of = ctypes.pythonapi
    of.PyCapsule_GetName.restype, of.PyCapsule_GetName.argtypes = ctypes.c_char_p, [ctypes.py_object]
    of.PyCapsule_GetPointer.restype, of.PyCapsule_GetPointer.argtypes = POINTER, [ctypes.py_object, ctypes.c_char_p]
    return kind(of.PyCapsule_GetPointer(capsule, of.PyCapsule_GetName(capsule)))


@pytest.fixture
def mem() -> Iterator[Mem]:
    """The allocator of a reserve that nobody else uses."""
    room = ctypes.create_string_buffer(4096)  # a struct Reserve, all zero, is smaller
    at = ctypes.addressof(room)
    assert native("reserve_open", ctypes.CFUNCTYPE(ctypes.c_int, POINTER))(at) == 0
    yield native("reserve_mem", ctypes.CFUNCTYPE(Mem, POINTER))(at)
    native("reserve_close", ctypes.CFUNCTYPE(None, POINTER))(at)


@pytest.mark.parametrize(
    "size", [LARGEST, LARGEST - 7, LARGEST - 15, LARGEST - 16, LARGEST - 47, LARGEST - 48, 1 << 63]
)
def test_a_size_that_no_memory_has_gets_no_block(mem: Mem, size: int) -> None:
    """With what stands before a block it would be a small one; neither the heap nor the reserve may give that."""
    assert mem.malloc(size, mem.user) is None
    assert mem.calloc(size, 1, mem.user) is None
    kept = mem.malloc(100, mem.user)
    ctypes.memset(kept, 7, 100)
    assert mem.realloc(kept, size, mem.user) is None
    assert ctypes.string_at(kept, 100) == b"\7" * 100
    mem.free(kept, mem.user)


def test_a_product_that_overflows_gets_no_block(mem: Mem) -> None:
    for count, size in ((1 << 33, 1 << 33), (3, LARGEST // 2), (LARGEST, 2), (LARGEST, LARGEST)):
        assert mem.calloc(count, size, mem.user) is None


def test_a_block_has_its_size_and_keeps_what_is_in_it(mem: Mem) -> None:
    """Sizes around every class, given back and taken again, and grown."""
    for size in (1, 63, 64, 65, 2047, 2048, 2049, 100_000):
        first = mem.malloc(size, mem.user)
        ctypes.memset(first, 1, size)
        mem.free(first, mem.user)
        again = mem.calloc(1, size, mem.user)
        assert ctypes.string_at(again, size) == bytes(size)
        ctypes.memset(again, 2, size)
        grown = mem.realloc(again, 3 * size, mem.user)
        assert ctypes.string_at(grown, size) == b"\2" * size
        mem.free(grown, mem.user)
