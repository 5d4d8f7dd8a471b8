"""The errors that a caller may want to catch; all else is a built-in exception with a message that says what to do."""


class ScDataLoaderError(Exception):
    """Base of every error below."""


class NotCountsError(ScDataLoaderError, ValueError):
    """A matrix that should hold counts has a negative value, a fraction, or no candidate at all."""


class ForkError(ScDataLoaderError, RuntimeError):
    """A source is read in a process that was forked after it was opened, which the library of its format cannot do."""


class GeneOverlapError(ScDataLoaderError, ValueError):
    """A source shares too few genes with the vocabulary."""


class SourceFormatError(ScDataLoaderError, ValueError):
    """A file or folder is not what its name says, or is damaged."""


class SourceChangedError(ScDataLoaderError, RuntimeError):
    """A file was overwritten, shortened, replaced or removed after it was opened, or the disk failed to read it."""


class SourcesError(ScDataLoaderError, ValueError):
    """Several sources cannot be used; the message has a line for each."""


class StateMismatchError(ScDataLoaderError, ValueError):
    """A saved state belongs to other data, other weights or another way of sampling."""


class StoreFormatError(SourceFormatError):
    """A store is unfinished, damaged, or none."""


class UnsupportedDataError(ScDataLoaderError, ValueError):
    """A store cannot represent a value, a column or a gene list exactly."""


class WriteError(ScDataLoaderError, OSError):
    """An output cannot be written: the disk is full, a quota is used up, or the folder is not writable."""

    def __str__(self) -> str:
        return str(self.strerror)  # without the number before it
