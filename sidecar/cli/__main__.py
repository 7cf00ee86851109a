"""`python -m sidecar.cli` is `remit`."""

from sidecar.cli import main

if __name__ == "__main__":
    main()
