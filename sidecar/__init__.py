"""The control plane: plain Python that may be slow and may fail, and then the last good state stays."""

import os

# gRPC's own lines on standard error carry texts of peers and are no JSON; it reads this when it is loaded.
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
