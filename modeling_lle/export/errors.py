"""The error of everything that cannot be exported."""


class ExportError(ValueError):
    """A model, an option or a graph that cannot be exported; the message says why and what to do instead."""
