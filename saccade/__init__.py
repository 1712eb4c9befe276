"""The contract shared by training, export and engine: bundles, vocabulary, preprocessing, search, errors."""

__version__ = "0.1.0"
