"""The event archive as a source of logs: the same records as the topic's."""

from schemas.archive import ABOUT, Archive, ArchiveError, newest
from schemas.events import Event
from schemas.items import ItemVector
from training.splits import DataError


def archived(data: str) -> bool:
    """Whether a folder or fsspec URL holds an archive. Raises DataError for one that cannot be opened."""
    try:
        archive = Archive(data)
        return bool(archive.fs.exists(archive.path(ABOUT)))
    except (ArchiveError, OSError) as error:
        raise DataError(str(error)) from None


def archive_rows(data: str) -> tuple[list[Event], list[ItemVector]]:
    """All events, and the newest vector of every item that is still there, in the order of partitions and offsets. Raises DataError."""
    try:
        archive = Archive(data)
        archive.about()
        return list(archive.events()), newest(archive.items())
    except ArchiveError as error:
        raise DataError(str(error)) from None
