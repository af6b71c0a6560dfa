"""Checkpoints: everything that must survive, in one folder that is there whole or not at all."""

from learners.checkpoint.errors import CheckpointError
from learners.checkpoint.layout import checkpoints, latest
from learners.checkpoint.reading import Checkpoint, load
from learners.checkpoint.tensors import digest
from learners.checkpoint.writing import point_to, save

__all__ = ["Checkpoint", "CheckpointError", "checkpoints", "digest", "latest", "load", "point_to", "save"]
