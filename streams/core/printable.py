"""Escapes data for a terminal, so that the data cannot move the cursor or change colors or the title."""

import unicodedata

ESCAPED = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
"""Unicode categories: control characters, format characters such as direction overrides, lone surrogates, line and paragraph separators."""
JOINERS = "\u200c\u200d"  # not escaped: ordinary Persian words and emoji have them


def printable(text: object) -> str:
    r"""Return text, or bytes decoded as UTF-8, as one line. Characters of the categories ESCAPED become `\x1b`, `\n`, `\u202e`; others stay."""
    shown = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else str(text)
    if shown.isprintable():
        return shown
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in ESCAPED and c not in JOINERS else c for c in shown)
