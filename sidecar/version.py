"""The version of this installation."""

import importlib.metadata

try:
    VERSION = importlib.metadata.version("remit")
except importlib.metadata.PackageNotFoundError:
    VERSION = "0+checkout"  # run from a checkout that is not installed
