"""Errors that a user can mend: each says what is wrong, where, and what to do. The command line prints them in one line."""


class SettingsError(ValueError):
    """A setting that cannot be used: says key, value and what was expected."""


class BrokerError(RuntimeError):
    """The brokers cannot be reached or refuse: says which, and what to do."""


class StorageError(RuntimeError):
    """A data folder that cannot be used: says which, why and what to do."""


class DamagedError(StorageError):
    """A RocksDB whose files are not what was written to them."""


class InputError(ValueError):
    """A user's file or argument that cannot be used: says where."""
