"""Every error a user can meet, in one tree.

    SaccadeError
    ├── BundleError          the bundle is damaged, incomplete or of another format
    ├── VocabularyError      the word list is inconsistent
    ├── ImageError           one image cannot be read; recorded, never fatal to a run
    ├── ConfigError          options or a configuration file do not fit together
    ├── DataError            a data set is missing, empty or inconsistent
    ├── CheckpointError      a checkpoint is damaged or does not fit the model
    ├── BackendError         a runtime is missing or does not run what was asked
    ├── DivergenceError      training no longer converges: the loss is not a number
    ├── AttentionError       the attention of a trained captioner does not move
    ├── ExportError          an exported graph does not compute what the model computes
    └── OutputError          a results folder is damaged or belongs to another run

Each message says what was found, what was expected and what to do next. The command line prints it on one line and
exits with 1; anything that is not a SaccadeError is a bug and keeps its traceback.
"""


class SaccadeError(Exception):
    """Root of the tree."""


class BundleError(SaccadeError):
    """A bundle is damaged, incomplete or of a format this version does not read."""


class VocabularyError(SaccadeError):
    """A vocabulary is inconsistent: duplicate words, missing special tokens, ids out of range."""


class ImageError(SaccadeError):
    """One image cannot be turned into pixels. `kind` is a stable, machine-readable reason."""

    def __init__(self, message: str, *, kind: str) -> None:
        super().__init__(message)
        self.kind = kind


class ConfigError(SaccadeError):
    """Options or a configuration file are invalid; the message lists every problem found."""


class DataError(SaccadeError):
    """A data set is missing, empty or inconsistent."""


class CheckpointError(SaccadeError):
    """A checkpoint is damaged, of another format or does not fit the model it is loaded into."""


class BackendError(SaccadeError):
    """A runtime is not installed, or does not truly run where it was asked to."""


class DivergenceError(SaccadeError):
    """The loss of a training is no longer a number."""


class AttentionError(SaccadeError):
    """The attention of a trained captioner stays where it is, whatever word is written."""


class ExportError(SaccadeError):
    """A graph could not be exported, or its outputs differ from the model's by more than the tolerance."""


class OutputError(SaccadeError):
    """A results folder cannot be used: it belongs to another run, is incomplete or damaged."""
