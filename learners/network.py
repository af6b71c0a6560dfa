"""What every neural model shares: the step, the optimisers, the state.

A model's file defines a :class:`ClickNetwork`: tables, layers, and a ``forward`` from a batch to logits and losses.
:class:`NeuralLearner` turns it into a learner.
"""

from __future__ import annotations

import abc
import contextlib
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from learners.adam import DenseAdam
from learners.batch import Batch
from learners.click_loss import ClickLoss, click_loss, probabilities
from learners.device import compiled
from learners.features import Inputs
from learners.learner import Learner, Scores, State, Stats
from learners.request_mlp import Part, RequestMLP, SlotPart
from learners.samples import SampleBlock
from learners.tables import EmbeddingTable
from learners.tape import Tape
from learners.threads import Task, held
from negative_queues import LossNotFiniteError


class Forward(NamedTuple):
    """What a network says of a batch: logits ``[C]``; when learning, weighted losses beside the click loss, and figures."""

    logits: Tensor
    losses: Mapping[str, Tensor | float] = {}
    """A float is one whose gradient is with the leaves already."""
    stats: Mapping[str, float] = {}
    click: ClickLoss | None = None
    """Of the logits, where the network went back with its gradient already (:meth:`RequestMLP.learn`)."""


class ClickNetwork(nn.Module, abc.ABC):
    """A network over tables. ``tables`` are no parameters of torch: they have their own optimiser and grow."""

    tables: dict[str, EmbeddingTable]
    inputs: Inputs
    on_tape: bool = False
    """Whether on the CPU each of its operations goes back by :mod:`learners.tape`, not by autograd."""
    uses_torch_threads: bool = True
    """Whether torch's own threads gain time in a step (large products, a transformer), rather than cost some: where all that is
    large is cut by :mod:`learners.threads`, torch's operations are too small for them."""

    @abc.abstractmethod
    def forward(self, batch: Batch, learn: bool, step: int) -> Forward:
        """Return logits, and losses when learning. ``step`` keys random draws.

        The logits must be the same whether ``learn`` or not.
        """

    def prepare(self, batch: Batch) -> None:
        """Make what :meth:`forward` and :meth:`after` need of the batch alone; see :meth:`learners.learner.Learner.prepare`."""
        batch.prepare()
        self.inputs.prepare(batch)

    def apply_gradients(self) -> None:
        """Take one step of the optimiser on each table."""
        self.inputs.apply_gradients()
        for name, table in self.tables.items():
            if name not in self.inputs.tables:
                table.apply_gradients()

    def loss_weights(self) -> Mapping[str, float]:
        """Return the weight of each loss beside the click loss (alpha, beta, gamma in EGIN's Eq. 1)."""
        return {}

    def after(self, batch: Batch, step: int) -> None:
        """Take in what only counts from the next batch on: running moments, counts, queues."""
        self.inputs.observe(batch)

    def memory(self) -> State:
        """Return what is neither parameter, buffer nor table: counts, queues."""
        return self.inputs.memory()

    def load_memory(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take :meth:`memory` back."""
        self.inputs.load_memory(state)

    def describe(self) -> dict[str, Any]:
        """Return what a person may want to know beside parameters and tables."""
        return {}


class NeuralLearner(Learner):
    """A network that learns: click loss plus the network's own, Adam for layers, row-wise Adagrad for tables.

    Args:
        network: on the CPU; it is moved to ``device``.
        rate: Adam's learning rate.
        device: ``cpu`` or ``cuda``.
    """

    def __init__(self, network: ClickNetwork, rate: float, device: str = "cpu") -> None:
        self.device = torch.device(device)
        # On the CPU a step comes back to Python after each of its short kernels: two threads that hand the interpreter's lock
        # to and fro lose more than they share (benchmarks/step.py --ahead).
        self.prepares_ahead = not compiled(self.device)
        self.network = network.to(self.device)
        on_cpu = compiled(self.device)
        parameters = list(self.network.parameters())
        self.optimiser = DenseAdam(parameters, rate) if on_cpu else torch.optim.Adam(parameters, lr=rate, fused=True)
        self.step = 0

    def prepare(self, block: SampleBlock) -> None:
        """Make what the network needs of the block alone."""
        self.network.prepare(Batch(block, self.device))

    def predict(self, block: SampleBlock) -> Scores:
        """Return click probabilities, ``[C]``."""
        with torch.no_grad():
            logits = self.network(Batch(block, self.device), learn=False, step=self.step).logits
        return probabilities(logits).cpu().numpy()

    def learn(self, block: SampleBlock) -> Stats:
        """Take one step on the block."""
        return self.predict_learn(block)[1]

    def predict_learn(self, block: SampleBlock) -> tuple[Scores, Stats]:
        """Score and learn with one forward pass.

        Raises:
            LossNotFiniteError: the click loss is NaN or infinite; no layer and no vector has changed then, only what
                looking the block up has admitted and counted.
        """
        with contextlib.nullcontext() if self.network.uses_torch_threads else held():
            return self._step(block)

    def _step(self, block: SampleBlock) -> tuple[Scores, Stats]:
        if self.network.on_tape and isinstance(self.optimiser, DenseAdam):
            return self._step_on_tape(Batch(block, self.device), self.optimiser)
        batch, vectors = Batch(block, self.device), self.network.inputs.vectors
        before = (0, 0) if vectors is None else vectors.look_ups()
        out: Forward = self.network(batch, learn=True, step=self.step)
        click = click_loss(out.logits.detach(), batch.labels, batch.weights) if out.click is None else out.click
        _check_loss(click.loss)
        weights = self.network.loss_weights()
        parts = {name: loss for name, loss in out.losses.items() if isinstance(loss, Tensor) and loss.requires_grad}
        self.optimiser.zero_grad()
        torch.autograd.backward(
            (out.logits, *parts.values()),
            (click.gradient, *(torch.full_like(loss, weights[name]) for name, loss in parts.items())),
        )
        self.optimiser.step()
        self.network.apply_gradients()
        self.network.after(batch, self.step)
        self.step += 1
        losses = {f"loss.{name}": loss.item() if isinstance(loss, Tensor) else loss for name, loss in out.losses.items()}
        missing = {} if vectors is None else {"vectors.missing": vectors.missing_share(before)}
        return click.scores.cpu().numpy(), {"loss.click": click.loss, **losses, **missing, **out.stats}

    def _step_on_tape(self, batch: Batch, optimiser: DenseAdam) -> tuple[Scores, Stats]:
        with Tape() as tape:
            out = self.network.forward(batch, learn=True, step=self.step)
            assert out.click is not None, "on a tape an MLP learns, and says the loss"
            _check_loss(out.click.loss)
            tape.back()  # tables take their step in it
        optimiser.step_with(tape.parameters, tape.flats)
        self.network.after(batch, self.step)
        self.step += 1
        losses = {f"loss.{name}": loss.item() if isinstance(loss, Tensor) else loss for name, loss in out.losses.items()}
        return out.click.scores.numpy(), {"loss.click": out.click.loss, **losses, **out.stats}

    def state(self) -> State:
        """Return layers, optimiser, tables, queues and the step as named arrays."""
        state: State = {"step": np.array(self.step, np.int64)}
        for name, tensor in self.network.state_dict().items():
            state[f"network.{name}"] = tensor.cpu().numpy()
        for name, parameter in self.network.named_parameters():
            for part, tensor in self.optimiser.state.get(parameter, {}).items():
                state[f"adam.{name}.{part}"] = tensor.cpu().numpy()
        for name, table in self.network.tables.items():
            state.update({f"table.{name}.{part}": array for part, array in table.state().items()})
        state.update({f"memory.{name}": array for name, array in self.network.memory().items()})
        return state

    def load_state(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        """Become the learner that returned ``state``."""
        self._check(state)
        weights = _part(state, "network.")
        self.network.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in weights.items()})
        for name, parameter in self.network.named_parameters():
            parts = _part(state, f"adam.{name}.")
            self.optimiser.state.pop(parameter, None)
            if parts:
                on_cpu = {part: torch.from_numpy(np.array(array)) for part, array in parts.items()}
                self.optimiser.state[parameter] = {part: tensor.to(self.device) for part, tensor in on_cpu.items()}
        if isinstance(self.optimiser, DenseAdam):
            self.optimiser.restored()
        for name, table in self.network.tables.items():
            table.load_state(_part(state, f"table.{name}."))
        self.network.load_memory(_part(state, "memory."))
        self.step = int(state["step"])

    def _check(self, state: Mapping[str, npt.NDArray[Any]]) -> None:
        own = self.state()
        fixed = {name for name in (*own, *state) if not name.startswith("adam.")}
        for name in sorted(fixed):
            if name not in own or name not in state:
                where = "the checkpoint" if name not in state else "this model"
                raise ValueError(f"{self.name}: {where} has no {name!r}; resume with the config that the run was started with")
            if name.startswith("network.") and own[name].shape != state[name].shape:
                raise ValueError(
                    f"{self.name}: {name!r} is {state[name].shape} in the checkpoint and {own[name].shape} in this model; "
                    "resume with the config that the run was started with"
                )

    def describe(self) -> dict[str, Any]:
        """Return parameters, tables, and what the network adds."""
        return {
            "step": self.step,
            "parameters": sum(p.numel() for p in self.network.parameters()),
            "tables": {name: table.describe() for name, table in self.network.tables.items()},
            **self.network.describe(),
        }


def clicked(
    mlp: RequestMLP,
    candidate: Sequence[Part | SlotPart],
    request: Tensor,
    batch: Batch,
    learn: bool,
    meanwhile: Task | None = None,
) -> Forward:
    """Return the logits of an MLP as those of the network; when learning, with the click loss.

    Args:
        mlp: nothing may be added to what it returns.
        candidate: as :meth:`learners.request_mlp.RequestMLP.forward`.
        request: likewise.
        batch: what it is about.
        learn: whether this is for a step.
        meanwhile: as :meth:`learners.request_mlp.RequestMLP.learn`.
    """
    if not learn:
        return Forward(mlp(candidate, request, batch.request_of()))
    logits, click = mlp.learn(candidate, request, batch.request_of(), batch.labels, batch.weights, meanwhile)
    return Forward(logits, click=click)


def _check_loss(click: float) -> None:
    """Refuse to learn from a click loss that is no number: it would make one of every weight that it reaches."""
    if not math.isfinite(click):
        raise LossNotFiniteError(f"loss.click is {click}")


def _part(state: Mapping[str, npt.NDArray[Any]], prefix: str) -> State:
    return {name[len(prefix) :]: array for name, array in state.items() if name.startswith(prefix)}
