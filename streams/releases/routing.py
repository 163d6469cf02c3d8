"""Which encoder makes whose profile: the serving one, a candidate for a share of the users, and earlier ones whose profiles are still about."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import xxhash

from encoder.base import Encoder

WHOLE = 2.0**64


@dataclass(frozen=True)
class Lineup:
    """Replaced as a whole, on the encoding thread and thus between two batches: whoever reads it once sees encoders that belong together."""

    serving: Encoder
    candidate: Encoder | None = None
    share: float = 0.0
    """Of the users whose profiles the candidate makes; 0 in shadow."""
    older: tuple[Encoder, ...] = ()
    """Newest first: their item vectors stand beside the serving one's until no profile here is of their space."""

    def of_user(self, user: bytes) -> Encoder:
        """Who makes a user's profile."""
        tried = self.candidate
        return tried if tried is not None and self.share and in_canary(user, tried.version, self.share) else self.serving

    def makes(self, user: bytes, made: tuple[str, str]) -> bool:
        """Whether a profile of this version and space is of who makes the user's."""
        encoder = self.of_user(user)
        return made == (encoder.version, encoder.space_id)

    def of_space(self, space_id: str) -> Encoder | None:
        """Who projects items for profiles of a space; None if nobody here does."""
        return next((e for e in self.everybody() if e.space_id == space_id), None)

    def of_version(self, version: str, space_id: str) -> Encoder | None:
        """Who made a vector; None if it is not here."""
        return next((e for e in self.everybody() if (e.version, e.space_id) == (version, space_id)), None)

    def everybody(self) -> tuple[Encoder, ...]:
        """All that are in memory."""
        return (self.serving, *(() if self.candidate is None else (self.candidate,)), *self.older)

    def split(self, users: Sequence[bytes]) -> list[tuple[Encoder, np.ndarray]]:
        """Encoders, each with the positions (n,) of its users."""
        chosen = [self.of_user(u) for u in users] if self.candidate is not None and self.share else []
        if not chosen:
            return [(self.serving, np.arange(len(users)))]
        mine = np.array([c is self.serving for c in chosen])
        return [(e, at) for e, at in ((self.serving, np.flatnonzero(mine)), (chosen[int(mine.argmin())], np.flatnonzero(~mine))) if len(at)]

    def serve(self, encoder: Encoder) -> "Lineup":
        """Another one serves; the one before stays for its space. A candidate goes with that: it was on trial against the one before."""
        before = [e for e in self.everybody() if e.space_id != encoder.space_id]
        spaces = {e.space_id: e for e in reversed(before)}  # one of each space, the first
        kept = tuple(e for e in before if spaces[e.space_id] is e)
        return Lineup(encoder, older=kept[:2])

    def try_out(self, candidate: Encoder | None, share: float) -> "Lineup":
        """A candidate begins, or ends with None; its profiles are still about then."""
        gone = self.candidate
        stays = gone is not None and gone is not candidate and gone.space_id != self.serving.space_id
        older = ((gone, *self.older) if stays and gone is not None else self.older)[:2]
        return Lineup(self.serving, candidate, share if candidate is not None else 0.0, tuple(e for e in older if e is not candidate))

    def health(self) -> dict[str, object]:
        """For /healthz."""
        return {"serving": self.serving.version, "candidate": self.candidate.version if self.candidate else None, "share": self.share}

    def settled(self) -> "Lineup":
        """No profile here is of an earlier encoder any more."""
        return replace(self, older=())


def in_canary(user: bytes, version: str, share: float) -> bool:
    """Whether a user is of the share that a candidate encodes; others for another candidate, and the same on every worker."""
    return xxhash.xxh3_64_intdigest(version.encode() + b"\0" + user) < share * WHOLE


Current = Callable[[], Lineup]
