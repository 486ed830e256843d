"""Write the pictures of the terminal in docs/figures: real commands on a real (pseudo) terminal, as SVG at 80
and 120 columns.

.venv/bin/python tools/write_figures.py
"""

from __future__ import annotations

import fcntl
import gzip
import itertools
import json
import os
import pty
import re
import struct
import sys
import tempfile
import termios
from pathlib import Path

from rich.console import Console
from rich.text import Text

ROOT = Path(__file__).resolve().parent.parent
FIGURES = ROOT / "docs" / "figures"
WIDTHS = (80, 120)
# figure -> command; in this order, in one folder
COMMANDS = {
    "plan": "prepare --source sample --plan",
    "prepare": "prepare --source sample --seq-len 2048 --out shards/",
    "inspect": "inspect shards/",
    "verify": "verify shards/",
    "rejects": "prepare --source my_corpus/ --out mine/",
}
_SHOWN_FOLDER = "/home/you/corpus"  # in place of the temporary one, and as long
_NOT_HANDED_ON = ("COLUMNS", "LINES", "NO_COLOR")
_SEQUENCE = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])")


class Screen:
    """What stands on a terminal of `width` columns at the end: text with colours (SGR), cursor up, erase line,
    carriage return, line feed; a full line goes on in the next.
    """

    def __init__(self, width: int) -> None:
        self.width = width
        self.lines: list[list[tuple[str, str]]] = [[]]
        self.row = self.column = 0
        self.style = ""

    def feed(self, text: str) -> None:
        """Show output."""
        position = 0
        while position < len(text):
            match = _SEQUENCE.match(text, position)
            if match:
                self._obey(match[1], match[2])
                position = match.end()
                continue
            character = text[position]
            position += 1
            if character == "\n":
                self._next_row()
            elif character == "\r":
                self.column = 0
            elif character >= " ":
                if self.column == self.width:
                    self._next_row()
                    self.column = 0
                line = self.lines[self.row]
                line.extend([(" ", "")] * (self.column - len(line)))
                line[self.column : self.column + 1] = [(character, self.style)]
                self.column += 1

    def _next_row(self) -> None:
        self.row += 1
        if self.row == len(self.lines):
            self.lines.append([])

    def _obey(self, numbers: str, command: str) -> None:
        if command == "m":
            self.style = "" if numbers in ("", "0") else f"{self.style}\x1b[{numbers}m"
        elif command == "A":
            self.row = max(0, self.row - int(numbers or 1))
        elif command == "K":
            self.lines[self.row] = []

    def text(self) -> Text:
        """The screen, without empty lines at its end."""
        rows = [
            "".join(
                f"{style}{''.join(c for c, _ in run)}\x1b[0m"
                for style, run in itertools.groupby(line, key=lambda cell: cell[1])
            )
            for line in self.lines
        ]
        while rows and not rows[-1].strip():
            rows.pop()
        return Text("\n").join(Text.from_ansi(row) for row in rows)


def run(command: str, folder: str, width: int) -> Text:
    """What a terminal of `width` columns shows of a command run in `folder`."""
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(folder)
        environment = {key: value for key, value in os.environ.items() if key not in _NOT_HANDED_ON}
        environment |= {"TERM": "xterm-256color", "PYTHONPATH": str(ROOT)}
        code = "import sys; sys.argv[0] = 'btlm-data'; from btlm_data.cli import main; main()"
        os.execve(sys.executable, [sys.executable, "-c", code, *command.split()], environment)
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", 60, width, 0, 0))
    output = b""
    try:
        while piece := os.read(terminal, 65536):
            output += piece
    except OSError:  # how Linux says that the program has ended
        pass
    os.waitpid(process, 0)
    screen = Screen(width)
    screen.feed(output.decode(errors="replace").replace(folder, _SHOWN_FOLDER))
    return screen.text()


def svg(text: Text, command: str, width: int) -> str:
    """The picture; fonts are those of the reader's machine."""
    console = Console(record=True, width=width, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(Text(f"$ btlm-data {command}", style="bold"))
    console.print(text, soft_wrap=True)
    picture = console.export_svg(title="btlm-data", unique_id=f"figure-{width}")
    picture = re.sub(r"@font-face \{.*?\}\s*", "", picture, flags=re.DOTALL)
    return "\n".join(line.rstrip() for line in picture.splitlines()) + "\n"


def write_corpus(folder: Path) -> None:
    """A corpus whose text is in another field."""
    (folder / "my_corpus").mkdir()
    with gzip.open(folder / "my_corpus/web.jsonl.gz", "wt") as file:
        for i in range(1101):
            file.write(
                json.dumps({"id": i, "body": {"content": f"Text {i} " * 50}, "url": "https://example.org"})
                + "\n"
            )
        for i in range(63):
            file.write(json.dumps({"text": f"Another text, number {i}. " * 20}) + "\n")


def main() -> None:
    """Write all figures."""
    for width in WIDTHS:
        with tempfile.TemporaryDirectory() as folder:
            write_corpus(Path(folder))
            for name, command in COMMANDS.items():
                path = FIGURES / f"{name}-{width}.svg"
                path.write_text(svg(run(command, folder, width), command, width))
                print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()
