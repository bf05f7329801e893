__version__ = "0.1.0"  # pyproject.toml's: where there is a container image there is no package to ask
