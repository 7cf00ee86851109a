"""A small tokenizer of Cedar policy text: splits it into policies and refuses what would kill the real parser.

It knows strings, comments, brackets, `if` and the operators that chain; everything else is left to cedarpy, which
parses the text afterwards (Cedar grammar: docs "Grammar specification for Cedar policies").
"""

import re
from typing import NamedTuple

from sidecar.errors import PolicyError
from sidecar.policy.limits import DEFAULT_LIMITS, PolicyLimits
from sidecar.policy.literals import MARK
from sidecar.policy.shapes import PLAIN, Shape, Shapes


class PolicyText(NamedTuple):
    """One named text that holds policies, such as a file."""

    name: str
    text: str


class Piece(NamedTuple):
    """One policy or template as it stands in a text."""

    whole: str
    """The text that it is from: a slice of its own for each of a million policies would double them."""
    source: str
    line: int
    column: int
    id: str | None
    shape: Shape | None = None
    """What it shares with policies that differ in literals alone."""
    values: tuple[str, ...] = ()
    """Its literals, where the shape has markers."""
    start: int = 0
    end: int | None = None
    """Where it stands in `whole`; None: to the end."""

    @property
    def text(self) -> str:
        return self.whole[self.start : self.end]

    @property
    def where(self) -> str:
        """Where the policy begins, for people: `agents.cedar:12:1`."""
        return f"{self.source}:{self.line}:{self.column}"

    @property
    def title(self) -> str:
        """The policy's name and place, for messages."""
        return f"policy `{self.id}` ({self.where})" if self.id is not None else f"policy at {self.where}"


TOKEN = re.compile(
    r"""(?P<skip>[^\S\n]+|//[^\n\r]*)
      | (?P<newline>\n)
      | (?P<string>"(?:[^"\\]|\\.)*")
      | (?P<word>[A-Za-z_][A-Za-z0-9_]*)
      | (?P<open>[(\[{])
      | (?P<close>[)\]}])
      | (?P<end>;)
      | (?P<chain>&&|\|\||[-+*])
      | (?P<dot>\.)
      | (?P<comma>,)
      | (?P<other>::|.)""",
    re.VERBOSE | re.DOTALL,
)
_CLOSES = {"(": ")", "[": "]", "{": "}"}


class _Level:
    """What one pair of brackets holds so far."""

    __slots__ = ("chain", "close", "ifs", "members")

    def __init__(self, close: str) -> None:
        self.close = close
        self.chain = 0
        self.members = 0
        self.ifs: list[bool] = []  # one entry per open `if`: whether its `else` was seen

    def part(self) -> None:
        """Begin the next element of a list."""
        self.chain = 0
        self.members = 0
        self.ifs.clear()


class _Splitter:
    def __init__(self, source: PolicyText, limits: PolicyLimits, shapes: Shapes) -> None:
        self.source = source.name
        self.shapes = shapes
        self.text = source.text
        self.limits = limits
        self.line = 1
        self.line_start = 0
        self.end = 0
        self.pieces: list[Piece] = []
        self._begin_policy()

    def _begin_policy(self) -> None:
        self.start = -1
        self.levels = [_Level(";")]
        self.ifs = 0
        self.id: str | None = None
        self.before = ("", "")
        self.annotation = ""

    def run(self) -> list[Piece]:
        at = 0
        lifts = MARK not in self.text
        while at < len(self.text):
            at = (lifts and self._plain(at)) or self._one(at)
        return self.pieces

    def _plain(self, at: int) -> int:
        """Take the next policy by its shape alone; returns where it ends, 0 when it must be read token by token."""
        match = PLAIN.match(self.text, at)
        if match is None or match.end() - match.start("head") > self.limits.policy_bytes_max // 4:
            return 0
        start, end = match.start("head"), match.end()
        # The caps hold for a shape as they do for its first policy, which has the same tokens.
        lifted = self.shapes.lift(match["head"], match["tail"], lambda: self._is_one(start, end))
        if lifted is None:
            return 0
        shape, values = lifted
        self._newlines(self.text.rfind("\n", at, start), self.text.count("\n", at, start))
        id_ = values[shape.id_at] if shape.id_at >= 0 else None
        column = start - self.line_start + 1
        piece = Piece(self.text, self.source, self.line, column, id_, shape, values, start, end)
        self.pieces.append(piece)
        self._newlines(self.text.rfind("\n", start, end), self.text.count("\n", start, end))
        return end

    def _is_one(self, start: int, end: int) -> bool:
        """Whether the tokens between are one policy that keeps the caps; what is refused is read again to say why."""
        if _is_small(self.text[start:end], self.limits):
            return True
        alone = _Splitter(PolicyText(self.source, self.text[start:end]), self.limits, self.shapes)
        try:
            return alone._one(0) == end - start and len(alone.pieces) == 1
        except PolicyError:
            return False

    def _one(self, at: int) -> int:
        """Read the next policy token by token; returns where it ends."""
        found = len(self.pieces)
        for match in TOKEN.finditer(self.text, at):
            kind = match.lastgroup or ""
            if kind == "skip":
                continue
            if kind == "newline":
                self._newlines(match.start(), 1)
                continue
            token = match.group()
            if self.start < 0:
                self.start = match.start()
                self.at = (self.line, match.start() - self.line_start + 1)
            self.end = match.end()
            getattr(self, "_" + kind)(token)
            if kind == "string":
                self._newlines(match.start() + token.rfind("\n"), token.count("\n"))
            if len(self.pieces) > found:
                return match.end()
            self.before = (kind, token)
        if self.start >= 0:
            raise self._error("is not complete: it does not end with `;`")
        return len(self.text)

    def _newlines(self, last: int, count: int) -> None:
        if count:
            self.line += count
            self.line_start = last + 1

    def _error(self, cause: str) -> PolicyError:
        piece = Piece("", self.source, *self.at, self.id)
        return PolicyError(f"{piece.title} {cause}")

    def _depth(self) -> None:
        if len(self.levels) - 1 + self.ifs > self.limits.depth_max:
            raise self._error(f"is nested deeper than {self.limits.depth_max} levels (line {self.line})")

    def _string(self, token: str) -> None:
        if self.annotation == "id" and self.id is None:
            self.id = token[1:-1]

    def _word(self, token: str) -> None:
        level = self.levels[-1]
        if self.before == ("other", "@"):
            self.annotation = token
            return
        if self.before[0] == "dot":
            return
        level.members = 0
        if token == "if":
            level.ifs.append(False)
            self.ifs += 1
            self._depth()
        elif token == "else":
            while level.ifs and level.ifs[-1]:
                level.ifs.pop()
                self.ifs -= 1
            if level.ifs:
                level.ifs[-1] = True

    def _open(self, token: str) -> None:
        if token == "[" and self.before[0] in ("word", "close"):
            self._member()
        self.levels.append(_Level(_CLOSES[token]))
        self._depth()

    def _close(self, token: str) -> None:
        level = self.levels[-1]
        if level.close != token:
            raise self._error(f"has `{token}` without its opening bracket (line {self.line})")
        self.ifs -= len(level.ifs)
        self.levels.pop()
        self.annotation = ""

    def _end(self, _token: str) -> None:
        if len(self.levels) > 1:
            raise self._error(f"has `;` where `{self.levels[-1].close}` is expected (line {self.line})")
        text = self.text[self.start : self.end]
        # A character is at most four bytes: most policies need no encoding to be judged.
        if len(text) * 4 > self.limits.policy_bytes_max and len(text.encode()) > self.limits.policy_bytes_max:
            raise self._error(f"is larger than {self.limits.policy_bytes_max} bytes")
        self.pieces.append(Piece(text, self.source, *self.at, self.id))
        self._begin_policy()

    def _chain(self, _token: str) -> None:
        level = self.levels[-1]
        level.chain += 1
        level.members = 0
        if level.chain > self.limits.chain_max:
            raise self._error(f"has more than {self.limits.chain_max} operators in a row (line {self.line})")

    def _dot(self, _token: str) -> None:
        self._member()

    def _member(self) -> None:
        level = self.levels[-1]
        level.members += 1
        if level.members > self.limits.members_max:
            raise self._error(f"has more than {self.limits.members_max} member accesses in a row (line {self.line})")

    def _comma(self, _token: str) -> None:
        level = self.levels[-1]
        self.ifs -= len(level.ifs)
        level.part()

    def _other(self, token: str) -> None:
        if token != "::":
            self.levels[-1].members = 0


def _is_small(text: str, limits: PolicyLimits) -> bool:
    """Whether a text that ends at its only `;` keeps the caps by its length alone: its tokens need not be read."""
    opened = [text.count(bracket) for bracket in "([{"]
    return (
        opened == [text.count(bracket) for bracket in ")]}"]
        and sum(opened) + text.count("if") <= limits.depth_max
        and sum(map(text.count, ("&&", "||", "+", "-", "*"))) <= limits.chain_max
        and text.count(".") + opened[1] <= limits.members_max
    )


def split(source: PolicyText, limits: PolicyLimits = DEFAULT_LIMITS, shapes: Shapes | None = None) -> list[Piece]:
    """The policies of `source`, in order; `shapes` are those of the whole set.

    Raises PolicyError, naming the policy and its line, when a policy is too large, nested too deeply, chained too far,
    or not complete.
    """
    try:
        size = len(source.text.encode())
    except UnicodeEncodeError as error:
        raise PolicyError(f"`{source.name}` is not valid Unicode: {error.reason}") from None
    if size > limits.text_bytes_max:
        raise PolicyError(f"`{source.name}` has {size} bytes; at most {limits.text_bytes_max} are compiled")
    pieces = _Splitter(source, limits, shapes or Shapes()).run()
    if len(pieces) > limits.policies_max:
        raise PolicyError(f"`{source.name}` has {len(pieces)} policies; at most {limits.policies_max} are compiled")
    return pieces
