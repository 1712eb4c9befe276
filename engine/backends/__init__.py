"""The runtimes that execute the two graphs of a bundle."""
