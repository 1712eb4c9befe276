"""`python -m training` is `saccade train`, for launchers that start modules: `torchrun ... -m training CONFIG`."""

from __future__ import annotations

import sys

from saccade.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
