"""The installed command, and `python -m btlm_data`: Ctrl-C ends it quietly from the first import on."""

from __future__ import annotations

import os
import signal


def main() -> None:
    """Import the command line and run it."""
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # as under nohup
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    from btlm_data import process

    process.set_defaults()
    process.keep_freed_memory()
    from btlm_data.cli import main as run

    process.with_room_for_frames(run)


if __name__ == "__main__":
    main()
