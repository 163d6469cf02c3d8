"""The program `currents`: the command line, and quiet from its first moment. It imports nothing of the project before it has taken Ctrl-C."""

import signal
import sys


def main() -> None:
    """Run the command line; Ctrl-C while it is imported ends the process as it ends any other, without a traceback."""
    ours = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else ignored, as under nohup
    if ours:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from streams.commands.main import main as run

    if ours:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
