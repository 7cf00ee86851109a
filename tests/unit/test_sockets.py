"""Unix sockets whose folder names who may enter (UD-04, SY-08)."""

import grp
import os
import pathlib
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator

import grpc
import pytest

from sidecar.errors import ConfigError
from sidecar.services.sockets import BoundSocket


@pytest.fixture
def folder() -> Iterator[pathlib.Path]:
    """A short path: the name of a Unix socket fits 107 bytes."""
    with tempfile.TemporaryDirectory(prefix="ud") as made:
        yield pathlib.Path(made)


def bind(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.bind(path)
    made.listen()
    return made


def test_the_folder_is_0750_and_the_socket_0660(folder: pathlib.Path) -> None:
    """UD-04: who may enter the folder may call; nobody else sees the socket."""
    path = folder / "a" / "sock"
    held: list[socket.socket] = []
    with BoundSocket(str(path)) as bound:
        bound.bind(lambda aside: held.append(bind(aside)))
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o750
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert sorted(p.name for p in path.parent.iterdir()) == ["sock", "sock.lock"]
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert not path.exists()
    held[0].close()


def test_a_grpc_server_answers_at_the_final_path(folder: pathlib.Path) -> None:
    """The temporary name is only for binding; the server goes on under the final one and leaves nothing behind."""
    path = folder / "a" / "sock"
    from concurrent import futures

    server = grpc.server(futures.ThreadPoolExecutor(1))
    with BoundSocket(str(path)) as bound:
        bound.bind(lambda aside: server.add_insecure_port(f"unix:{aside}"))
        server.start()
        with grpc.insecure_channel(f"unix:{path}") as channel, pytest.raises(grpc.RpcError) as caught:
            channel.unary_unary("/none/Such")(b"", timeout=10, wait_for_ready=True)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        server.stop(0).wait()
    assert [p.name for p in path.parent.iterdir()] == ["sock.lock"]


def test_a_stale_socket_is_replaced(folder: pathlib.Path) -> None:
    """What a killed process left does not keep its successor out."""
    path = folder / "a" / "sock"
    path.parent.mkdir(mode=0o750)
    bind(str(path)).close()
    with BoundSocket(str(path)) as bound:
        bound.bind(lambda aside: bind(aside))
        assert path.is_socket()


def test_a_living_owner_keeps_its_socket(folder: pathlib.Path) -> None:
    """SY-08: a second process on the same path is refused with the reason."""
    path = str(folder / "a" / "sock")
    code = f"from sidecar.services.sockets import BoundSocket; BoundSocket({path!r})"
    with BoundSocket(path):
        other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert other.returncode != 0
    assert "another process serves" in other.stderr


def test_a_symbolic_link_is_refused(folder: pathlib.Path) -> None:
    """UD-04: neither the socket nor its folder may be a link."""
    (folder / "a").mkdir(mode=0o750)
    (folder / "a" / "sock").symlink_to(folder / "elsewhere")
    with pytest.raises(ConfigError, match="is a symbolic link; remove it"):
        BoundSocket(str(folder / "a" / "sock"))
    (folder / "link").symlink_to(folder / "a")
    with pytest.raises(ConfigError, match="is a symbolic link"):
        BoundSocket(str(folder / "link" / "sock"))


def test_another_kind_of_file_is_refused(folder: pathlib.Path) -> None:
    """A wrong path in the configuration destroys no file."""
    (folder / "a").mkdir(mode=0o750)
    (folder / "a" / "sock").write_text("data")
    with pytest.raises(ConfigError, match="exists and is not a socket"):
        BoundSocket(str(folder / "a" / "sock"))
    assert (folder / "a" / "sock").read_text() == "data"


@pytest.mark.parametrize("mode", [0o757, 0o1777])
def test_a_folder_that_others_can_write_above_is_refused(folder: pathlib.Path, mode: int) -> None:
    """UD-04: whoever can rename the folder can put another socket there; a sticky folder above, as /tmp, is fine."""
    loose = folder / "loose"
    loose.mkdir()
    loose.chmod(mode)
    if mode & stat.S_ISVTX:
        BoundSocket(str(loose / "a" / "sock")).close()
    else:
        with pytest.raises(ConfigError, match="can be written by others"):
            BoundSocket(str(loose / "a" / "sock"))


@pytest.mark.skipif(os.geteuid() != 0, reason="giving a folder to another user needs root")
def test_a_folder_of_another_user_is_refused(folder: pathlib.Path) -> None:
    """UD-04: its owner could replace the socket."""
    (folder / "a").mkdir(mode=0o750)
    os.chown(folder / "a", 12345, -1)
    with pytest.raises(ConfigError, match="belongs to user 12345"):
        BoundSocket(str(folder / "a" / "sock"))


@pytest.mark.parametrize("path", ["@remit", "\0remit"])
def test_an_abstract_socket_is_refused(path: str) -> None:
    """UD-04: an abstract name has no permissions."""
    with pytest.raises(ConfigError, match="abstract"):
        BoundSocket(path)


def test_an_unknown_group_is_named(folder: pathlib.Path) -> None:
    """The message says which group and what to do."""
    with pytest.raises(ConfigError, match="group `no-such-group` does not exist"):
        BoundSocket(str(folder / "a" / "sock"), "no-such-group")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root, or a member, may give a socket to another group")
def test_the_group_of_the_configuration_may_enter(folder: pathlib.Path) -> None:
    """UD-04: folder and socket belong to the group that is named, and to nobody else beside the owner."""
    group = next(one for one in grp.getgrall() if one.gr_gid not in (0, os.getegid()))
    path = folder / "a" / "sock"
    held: list[socket.socket] = []
    with BoundSocket(str(path), group.gr_name) as bound:
        bound.bind(lambda aside: held.append(bind(aside)))
        for at, mode in ((path.parent, 0o750), (path, 0o660)):
            info = at.stat()
            assert (info.st_gid, info.st_uid, stat.S_IMODE(info.st_mode)) == (group.gr_gid, os.geteuid(), mode)
    held[0].close()


def test_a_link_in_the_place_of_the_temporary_name_is_not_followed(folder: pathlib.Path) -> None:
    """UD-04: what lies where the socket is bound is removed, never written through."""
    path, elsewhere = folder / "a" / "sock", folder / "elsewhere"
    path.parent.mkdir(mode=0o750)
    elsewhere.write_text("data")
    held: list[socket.socket] = []
    with BoundSocket(str(path)) as bound:
        (path.parent / f"sock.{os.getpid()}").symlink_to(elsewhere)
        bound.bind(lambda aside: held.append(bind(aside)))
        assert path.is_socket()
    held[0].close()
    assert elsewhere.read_text() == "data"
