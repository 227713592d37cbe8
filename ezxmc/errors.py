"""Errors a user can act on: what is wrong, where, and the cure."""

from __future__ import annotations


class EzxmcError(Exception):
    """Base of every error ezxmc raises on purpose.

    Args:
        message: What went wrong, naming the file and row where there is one.
        cure: What the user can do about it; printed on its own line.
    """

    def __init__(self, message: str, cure: str = "") -> None:
        self.message = message
        self.cure = cure
        super().__init__(f"{message}\n  cure: {cure}" if cure else message)


class ConfigError(EzxmcError):
    """A configuration file or option that cannot be used."""


class DataError(EzxmcError):
    """An input file that cannot be read, or bad rows under strict mode."""


class ModelError(EzxmcError):
    """Model weights that cannot be fetched, verified, converted or loaded."""


class TeacherError(EzxmcError):
    """The LLM engine cannot be started, died, or cannot answer the prompt."""


class ClusterError(EzxmcError):
    """A Ray cluster that cannot be started or reached, or that lost the job."""


class StoreError(EzxmcError):
    """The feedback store cannot be opened, read or written."""


class TrainingError(EzxmcError):
    """There is nothing to train on, or training diverged."""


class BundleError(EzxmcError):
    """A bundle that is missing, tampered with, truncated or too new."""
