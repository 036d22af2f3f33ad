"""Entry point of the command ``cortex``. ``--version`` answers before anything slow is imported."""

from __future__ import annotations

import sys

from cortex import __version__


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 done, 1 failed, 2 usage, 130 interrupted."""
    arguments = sys.argv[1:] if argv is None else argv
    if arguments == ["--version"]:
        try:
            print(f"cortex {__version__}", flush=True)
        except OSError as error:
            from cortex.cli.terminal import unprinted

            return unprinted(error)
        return 0
    try:
        if argv is None and arguments[:1] in (["mapreduce"], ["compute"]):
            from cortex.client.embedded_start import start_early

            start_early(arguments[1:])
        from cortex.cli.app import run

        return run(arguments)
    except KeyboardInterrupt:  # while it still imports; commands answer for themselves
        return 130


def server() -> int:
    """Entry point of the command ``cortex_server``: ``cortex server``."""
    return main(["server", *sys.argv[1:]])


def node() -> int:
    """Entry point of the command ``cortex_node``: ``cortex node``."""
    return main(["node", *sys.argv[1:]])


def compute() -> int:
    """Entry point of the command ``cortex_compute``: ``cortex compute``."""
    sys.argv[1:1] = ["compute"]
    return main()


def status() -> int:
    """Entry point of the command ``cluster_status``: ``cortex status``."""
    return main(["status", *sys.argv[1:]])


def kill_cluster() -> int:
    """Entry point of the command ``kill_cluster``: ``cortex kill-cluster``."""
    return main(["kill-cluster", *sys.argv[1:]])


if __name__ == "__main__":
    sys.exit(main())
