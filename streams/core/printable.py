"""Data as a terminal may show it: what would move its cursor, change its colors or its title is shown escaped."""

import unicodedata

ESCAPED = frozenset(("Cc", "Cf", "Cs", "Zl", "Zp"))
"""Unicode categories: controls, formats such as those that turn the writing direction, lone surrogates, line and paragraph separators."""
JOINERS = "\u200c\u200d"  # in ordinary Persian words and in emoji


def printable(text: object) -> str:
    r"""Text, or bytes as UTF-8, on one line: control characters as `\x1b`, `\n`, `\u202e`; everything else as it is."""
    shown = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else str(text)
    if shown.isprintable():
        return shown
    return "".join(c.encode("unicode_escape").decode() if unicodedata.category(c) in ESCAPED and c not in JOINERS else c for c in shown)
