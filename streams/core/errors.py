"""Errors that a user can fix. Each message says what is wrong, where, and what to do. The command line prints a message as one line."""


class SettingsError(ValueError):
    """A setting is invalid. The message has the key, the value and the expected value."""


class BrokerError(RuntimeError):
    """The brokers cannot be reached, or refuse a request. The message has their addresses and what to do."""


class StorageError(RuntimeError):
    """A data folder cannot be used. The message has the folder, the cause and what to do."""


class DamagedError(StorageError):
    """The files of a RocksDB database are damaged."""


class InputError(ValueError):
    """A user's file or argument is invalid. The message says where."""
