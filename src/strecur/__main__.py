"""The command line: ``python -m strecur``."""

from __future__ import annotations

from strecur.cli import main

if __name__ == "__main__":
    main()
