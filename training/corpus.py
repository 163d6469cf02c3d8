"""Title-like texts for fitting a whitening, composed from WordNet's words: no catalogue of anybody's is needed.

Whitening is fitted on what titles look like (brand, adjectives, thing, size, pack), not on sentences: docs/log.md has the comparison.
WordNet 3.0 (free licence of Princeton University) comes with Debian as `wordnet-base`, in /usr/share/wordnet.
"""

import random
from collections import defaultdict
from pathlib import Path

# Lexicographer files of WordNet (lexnames(5WN)).
ADJECTIVES, ARTIFACT, FOOD, GROUP, PERSON, SUBSTANCE = 0, 6, 13, 15, 18, 27
UNITS = "Ounce Ounces Inch Inches Pound Quart Piece Count Pack Set Liter Cup Watt Gram Fluid Minutes Pages Part".split()
COLOURS = "Black White Red Blue Steel Silver Green Clear Chrome Brown".split()
FILLERS = "with and for of the in by Kitchen Organic Original Professional Collection Series Classic Natural".split()
FILLERS += "Premium Mix Bottle Bag Boxes Box Cans Jar Tin May Vary".split()


def words(wordnet: Path) -> dict[int, list[str]]:
    """Words of WordNet's nouns and adjectives by lexicographer file. Raises FileNotFoundError naming the package."""
    found: dict[int, list[str]] = defaultdict(list)
    for part in ("noun", "adj"):
        path = wordnet / f"data.{part}"
        if not path.exists():
            raise FileNotFoundError(f"{path}: not there; Debian's package wordnet-base has it")
        for line in path.read_text("latin-1").splitlines():
            if line.startswith("  "):  # the licence
                continue
            fields = line.split("|")[0].split()
            count = int(fields[3], 16)
            found[int(fields[1])] += (fields[4 + 2 * i].replace("_", " ").split("(")[0] for i in range(count))
    return found


def titles(wordnet: Path, n: int, seed: int) -> list[str]:
    """n title-like texts."""
    r, by_file = random.Random(seed), words(wordnet)
    adjectives, substances, names = by_file[ADJECTIVES], by_file[SUBSTANCE], by_file[PERSON] + by_file[GROUP]
    things = by_file[ARTIFACT] + by_file[FOOD] * 4

    def title() -> str:
        parts = [r.choice(names).split(" ")[-1]] if r.random() < 0.7 else []
        parts += r.choices(adjectives, k=r.randint(1, 2))
        parts += r.choices(things, k=2 if r.random() < 0.6 else 1)
        parts += [r.choice(FILLERS)] if r.random() < 0.5 else []
        parts += [r.choice(FILLERS), r.choice(substances)] if r.random() < 0.3 else []
        text = " ".join(parts)
        if r.random() < 0.6:
            text += f", {r.randint(1, 47)}{r.choice(('', '-', ' '))}{r.choice(UNITS)}"
        if r.random() < 0.3:
            text += f" ({r.choice(('Pack of', 'Set of', 'Case of'))} {r.randint(2, 23)})"
        return text + (f", {r.choice(COLOURS)}" if r.random() < 0.3 else "")

    return [title() for _ in range(n)]
