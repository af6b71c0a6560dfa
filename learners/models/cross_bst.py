"""Cross-BST: BST over the histories of all domains as one sequence (the cross-domain baseline of SEMI, Lei et al. 2021, A.2).

"The difference of Cross-BST compared to BST is the cross-domain inputs": here one transformer sees the entries of every item
sequence, where ``bst`` has one transformer per sequence; for the BST of that paper's Table 1, which knows a single domain, give
``bst`` the one sequence. Over samples with one sequence both are the same model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

from learners.learner import Learner
from learners.models import ModelContext, bst
from learners.network import NeuralLearner


class Config(bst.Config, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options of ``cross_bst``."""


class CrossBST(bst.BST):
    """One transformer over all item sequences, and an MLP."""

    def groups(self) -> Mapping[str, Sequence[str]]:
        """Return which item sequences share a transformer: all."""
        return {"all": self.inputs.sequences} if self.inputs.sequences else {}


def build(config: Config, context: ModelContext) -> Learner:
    """Build the learner."""
    torch.manual_seed(context.seed)
    return NeuralLearner(CrossBST(config, context), config.rate, context.device)
