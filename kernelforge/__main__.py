"""Runs the command line as `python -m kernelforge`."""

import sys

from kernelforge.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
