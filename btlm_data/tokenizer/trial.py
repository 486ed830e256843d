"""The self-check in a process of its own, which limits its CPU time and memory before it reads anything.

python -P -m btlm_data.tokenizer.trial SECONDS BYTES < tokenizer.json > verdict.json
"""

from __future__ import annotations

import sys

import msgspec

from btlm_data.tokenizer.backends import LibraryPanic
from btlm_data.tokenizer.self_check import Verdict, check


def main() -> None:
    """Check the tokenizer on standard input and write the verdict, within limits of CPU seconds and bytes of
    memory.
    """
    seconds, num_bytes = int(sys.argv[1]), int(sys.argv[2])
    try:
        import resource

        resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
        resource.setrlimit(resource.RLIMIT_AS, (num_bytes, num_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    except (ImportError, ValueError, OSError):
        pass  # a lower limit holds already, or the system has none: the parent's time limit remains
    try:
        verdict = check(msgspec.json.decode(sys.stdin.buffer.read())).verdict
    except LibraryPanic as error:
        verdict = Verdict(None, error.reason)
    except (MemoryError, RecursionError):
        verdict = Verdict(None, "it needs too much memory")
    sys.stdout.buffer.write(msgspec.json.encode(verdict))


if __name__ == "__main__":
    main()
