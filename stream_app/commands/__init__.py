"""The verbs, one per file: frozen dataclasses whose fields are the flags, with a ``run`` that returns the exit code.

What a verb needs is imported inside ``run``, so that ``freshet VERB --help`` answers at once.
"""
