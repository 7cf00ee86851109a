"""Where the Workload API listens, and whether that place can be trusted (SPIFFE Workload Endpoint section 4)."""

import ipaddress
import os
import stat
from collections.abc import Collection
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from sidecar.errors import ConfigError, IdentityError

ENDPOINT_VARIABLE = "SPIFFE_ENDPOINT_SOCKET"
ROOT_UID = 0


def parse_endpoint(text: str) -> str:
    """The gRPC target of an endpoint; empty text means the environment variable SPIFFE_ENDPOINT_SOCKET.

    `unix:` needs an absolute path and no authority, `tcp:` an IP address with port and no path; a bare absolute path
    is a Unix socket. ConfigError otherwise.
    """
    given = text or os.environ.get(ENDPOINT_VARIABLE, "")
    if not given:
        raise ConfigError(
            f"no Workload API endpoint: set `identity.workload_api` or the environment variable {ENDPOINT_VARIABLE}"
        )
    if given.startswith("/"):
        return f"unix:{given}"
    try:
        parts = urlsplit(given)
    except ValueError as error:
        raise ConfigError(f"the Workload API endpoint `{given}` is no URL: {str(error).lower()}; correct it") from None
    if parts.scheme == "unix" and parts.path.startswith("/") and not (parts.netloc or parts.query or parts.fragment):
        return f"unix:{parts.path}"
    if parts.scheme == "tcp" and not (parts.path or parts.query or parts.fragment):
        return _tcp_target(given, parts.netloc)
    raise ConfigError(f"the Workload API endpoint `{given}` is neither unix:///path nor tcp://ip:port; correct it")


def _tcp_target(given: str, netloc: str) -> str:
    host, _, port = netloc.rpartition(":")
    try:
        address = ipaddress.ip_address(host.strip("[]"))
        number = int(port)
    except ValueError:
        raise ConfigError(f"the Workload API endpoint `{given}` needs an IP address and a port") from None
    return f"ipv4:{address}:{number}" if address.version == 4 else f"ipv6:[{address}]:{number}"


def check_socket(target: str, allowed_owners: Collection[int]) -> None:
    """IdentityError unless the Unix socket is one that only `allowed_owners` (uids) or root could have put there.

    An attacker who can replace the socket chooses our identity, so a folder above it that others may write to refuses
    it; a sticky one (such as /tmp) does not, since there the owner's name on the socket is proof. No check for TCP.
    """
    if not target.startswith("unix:"):
        return
    path = PurePosixPath(target.removeprefix("unix:"))
    try:
        found = os.lstat(path)
    except OSError as error:
        raise IdentityError(
            f"the Workload API socket `{path}` cannot be reached: {error.strerror}; start the agent"
        ) from error
    if not stat.S_ISSOCK(found.st_mode):
        raise IdentityError(f"`{path}` is not a socket; point `identity.workload_api` at the agent's")
    owners = {ROOT_UID, *allowed_owners}
    if found.st_uid not in owners:
        raise IdentityError(
            f"the Workload API socket `{path}` belongs to uid {found.st_uid}; expected one of {sorted(owners)}"
        )
    for folder in path.parents:
        _check_folder(folder, owners)


def _check_folder(folder: PurePosixPath, owners: Collection[int]) -> None:
    found = os.stat(folder)
    if found.st_mode & stat.S_IWOTH and not found.st_mode & stat.S_ISVTX:
        raise IdentityError(f"everybody may write to `{folder}` above the Workload API socket; take that right away")
    if found.st_uid not in owners:
        raise IdentityError(f"`{folder}` above the Workload API socket belongs to uid {found.st_uid}; give it to root")
