"""jumar-infer chat: a conversation on the terminal."""

from __future__ import annotations

import json
import signal
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from io import TextIOWrapper
from pathlib import Path
from typing import TextIO

from jumar.infer.conversation import Message, Template
from jumar.infer.engine import Engine
from jumar.infer.sampling import Sampling
from jumar.infer.tokenizer import check_unicode
from jumar.schema.cli import say_error
from jumar.schema.errors import Exit, ToolError

QUOTES = '"""'

HELP = """\
/system TEXT  another system message, and a new conversation; without TEXT: none
/clear        a new conversation
/retry        the last answer again
/save FILE    the conversation as JSON
/quit         (or Ctrl-D) the end
Ctrl-C        stops an answer
Lines that end with \\ go on; \"\"\" at the beginning of a line begins several, and at the end of one ends them."""


@dataclass
class Chat:
    """A conversation, and what is said in it. Answers go to `out`, all else to `err`.

    stops: Ctrl-C stops an answer, else it ends the conversation: torchrun kills all that has not ended soon after
    code: that of the first fault; OK if there was none
    """

    engine: Engine
    template: Template
    sampling: Sampling
    system: str | None = None
    out: TextIO = field(default_factory=lambda: sys.stdout)
    err: TextIO = field(default_factory=lambda: sys.stderr)
    messages: list[Message] = field(default_factory=list)
    stops: bool = True
    code: Exit = Exit.OK
    saved: set[Path] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Begin again, with the system message alone."""
        self.messages = [] if not self.system else [{"role": "system", "content": self.system}]

    def run(self) -> None:
        """Reads from the terminal until the end."""
        if self.stops:
            signal.signal(signal.SIGINT, signal.default_int_handler)  # each Ctrl-C, not the first alone
        if isinstance(sys.stdin, TextIOWrapper):  # bytes that are no UTF-8 are a fault of one message, not of all
            sys.stdin.reconfigure(errors="surrogateescape")
        while (text := self.read()) is not None:
            try:
                check_unicode(text, "the message")
                if text.startswith("/"):
                    if self.command(text):
                        return
                elif text.strip():
                    self.say(text)
            except ToolError as fault:
                self._fault(fault)

    def _fault(self, fault: ToolError) -> None:
        self.code = self.code or fault.code
        say_error(fault)

    def read(self) -> str | None:
        """One input, of several lines where the person says so; None at the end of input. Ctrl-C forgets what was typed."""
        lines: list[str] = []
        quoted = False
        while True:
            try:
                line = self._line("... " if lines or quoted else "> ")
            except KeyboardInterrupt:
                if not self.stops:
                    raise
                self._tell("\n(/quit or Ctrl-D ends)")
                lines, quoted = [], False
                continue
            except EOFError:
                if quoted:
                    self._fault(ToolError(f"the input ends within {QUOTES}", hint=f"end several lines with {QUOTES}"))
                return "\n".join(lines) if lines and not quoted else None
            begins = not quoted and line.lstrip().startswith(QUOTES)
            if begins:
                quoted, line = True, line.lstrip().removeprefix(QUOTES)
            if quoted and line.rstrip().endswith(QUOTES):
                line = line.rstrip().removesuffix(QUOTES)
                return "\n".join([*lines, line] if line else lines)
            if quoted:
                lines += [line] if line or not begins else []
            elif line.endswith("\\"):
                lines.append(line[:-1])
            else:
                return "\n".join([*lines, line])

    def _line(self, prompt: str) -> str:
        if sys.stdin.isatty() and sys.stdout.isatty():
            with suppress(ImportError):  # not on every system
                import readline  # from here on `input` lets lines be edited

                readline.set_auto_history(True)
            return input(prompt)
        if sys.stdin.isatty():
            print(prompt, end="", file=self.err, flush=True)
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        return line.rstrip("\n")

    def command(self, text: str) -> bool:
        """Carries out what begins with a slash. True: the end."""
        word, _, rest = text.partition(" ")
        rest = rest.strip()
        if word == "/quit":
            return True
        if word == "/clear":
            self.clear()
            self._tell("(a new conversation)")
        elif word == "/system":
            self.system = rest or None
            self.clear()
            self._tell("(a new conversation, " + ("with this system message)" if rest else "without a system message)"))
        elif word == "/retry":
            self._retry()
        elif word == "/save":
            self._save(rest)
        else:
            self._tell(HELP)
        return False

    def _retry(self) -> None:
        if self.messages and self.messages[-1]["role"] == "assistant":
            self.messages.pop()
        if not self.messages or self.messages[-1]["role"] != "user":
            self._tell("(nothing was asked yet)")
            return
        self.say(self.messages.pop()["content"])

    def _save(self, name: str) -> None:
        if not name:
            self._tell("(/save FILE)")
            return
        path = Path(name).absolute()
        try:
            with path.open("w" if path in self.saved else "x", encoding="utf-8") as file:
                file.write(json.dumps(self.messages, ensure_ascii=False, indent=2) + "\n")
        except FileExistsError:
            raise ToolError(f"{name} is there already", hint="give another path: /save FILE") from None
        except OSError as fault:
            raise ToolError(f"{name} cannot be written: {fault.strerror}", hint="give another path: /save FILE") from None
        self.saved.add(path)
        self._tell(f"(saved {name})")

    def say(self, text: str) -> None:
        """Asks, and writes the answer as it comes. Ctrl-C keeps what there is of it. On an error nothing was asked."""
        asked: Message = {"role": "user", "content": text}
        request = self.engine.add(self.template.prompt([*self.messages, asked]), self.sampling)
        self.messages.append(asked)
        stream = self.engine.stream(request)
        try:
            for piece in stream:
                self.out.write(piece)
                self.out.flush()
        except KeyboardInterrupt:
            if not self.stops:
                raise
            self._tell("\n(stopped)")
        finally:
            stream.close()
        self.out.write("\n")
        self.out.flush()
        self.messages.append({"role": "assistant", "content": request.text})

    def _tell(self, text: str) -> None:
        print(text, file=self.err, flush=True)
