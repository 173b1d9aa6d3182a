"""Where a process of the command line begins: `kernelforge` and `python -m kernelforge`."""

import sys


def main() -> int:
    """Runs the command line; returns the exit code.

    Its files are imported here rather than above, so that Ctrl-C ends their import in one line too.
    """
    try:
        from kernelforge.cli.main import main as command_line
    except KeyboardInterrupt:
        sys.stderr.write("kernelforge: interrupted\n")
        return 130
    return command_line()


if __name__ == "__main__":
    sys.exit(main())
