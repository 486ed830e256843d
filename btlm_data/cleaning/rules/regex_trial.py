"""Trying regular expressions of a recipe in a process of its own, because some never end on some texts.

Python's `re` tries every way to match, and a pattern such as (a+)+$ has 2^n of them on a run of n letters:
one such document would hold a worker forever.
"""

from __future__ import annotations

import json
import logging
import signal
import subprocess
import sys
from collections.abc import Mapping

from btlm_data.straining import straining_texts

logger = logging.getLogger(__name__)

_SECONDS = 2  # of CPU, for texts that take milliseconds
_REPEATS = (40,)
_CODE = """
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (int(sys.argv[1]), int(sys.argv[1])))
for name, pattern, flags, texts in json.load(sys.stdin):
    compiled = re.compile(pattern, flags)
    for text in texts:
        print(json.dumps([name, text[0]]), flush=True)
        compiled.search(text)
"""


def endless_pattern(patterns: Mapping[str, str], flags: int) -> str:
    """Which of the patterns, by name, takes too long on a run of some letter; "" if none does.

    Each pattern must compile with `flags`. Where no process can be started, "" as well, with a warning.
    """
    tried = [
        (name, pattern, flags, list(straining_texts([pattern], _REPEATS)))
        for name, pattern in patterns.items()
    ]
    command = [sys.executable, "-I", "-S", "-c", _CODE, str(_SECONDS)]
    try:
        done = subprocess.run(
            command,
            input=json.dumps(tried),
            capture_output=True,
            text=True,
            timeout=20 * _SECONDS,
            check=False,
        )
        ended_by, output = done.returncode, done.stdout
    except subprocess.TimeoutExpired as error:
        ended_by, output = -signal.SIGXCPU, (error.stdout or b"").decode()
    except OSError as error:
        logger.warning("Regular expressions of clean.filters are not tried: no process started (%s).", error)
        return ""
    if ended_by not in (-signal.SIGXCPU, -signal.SIGKILL) or not output:
        return ""
    name, character = json.loads(output.splitlines()[-1])
    run = f"a run of {_REPEATS[0]} {character!r}"
    return f"{name} takes more than {_SECONDS} seconds on {run}, and never ends on longer ones"
