"""The MLP whose layers multiply in bfloat16: its values and gradients against the same rounding in torch, and its bits."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from learners import mlp_passes
from learners.checks import CHECKS, SCHEMA, random_block
from learners.checks import Case as Check
from learners.request_mlp import Part, RequestMLP
from tests.learners.test_products16 import needs_instruction
from tests.learners.test_request_mlp import Case, click_gradients, gradients

ROOT = Path(__file__).resolve().parents[2]
SIZES: dict[str, Any] = {"seed": 3, "n_requests": 5, "most": 400, "hidden": (40, 17), "slots": True, "request_dim": 3}


class Rounded(torch.autograd.Function):
    """``x w'`` of numbers rounded to bfloat16, and back, the gradient rounded likewise; sums in float64."""

    @staticmethod
    def forward(ctx: Any, *given: Tensor) -> Tensor:
        x, w = (each.float().bfloat16().double() for each in given)
        ctx.save_for_backward(x, w)
        return x @ w.T

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        grad = grads[0].float().bfloat16().double()
        return grad @ w, grad.T @ x


def expected(case: Case) -> Tensor:
    """Return the logits in float64 with those products rounded that the compiled passes round."""
    mlp, at = case.mlp, 0
    total: Any = mlp.candidate.bias
    for part in case.parts:
        dense = isinstance(part, Part) and part.places is None
        columns = (part.expanded() if isinstance(part, Part) else part.embedding.embed(part.slots)).double()
        w = mlp.candidate.weight[:, at : at + columns.shape[1]]
        total = total + (Rounded.apply(columns, w) if dense else columns @ w.T)
        at += columns.shape[1]
    if mlp.request is not None:
        total = total + mlp.request(case.request).index_select(0, case.request_of)
    *layers, last = mlp.rest
    for layer in layers:
        total = Rounded.apply(total, layer.weight) + layer.bias if isinstance(layer, nn.Linear) else layer(total)
    out: Tensor = last(total)
    return out.squeeze(1)


def off(found: list[Tensor], wanted: list[Tensor]) -> float:
    """Return the largest of the distances, each as a share of what is wanted."""
    assert len(found) == len(wanted) > 0
    return max(
        float(((one.double() - other).norm() / other.norm().clamp(min=1e-3)).detach())
        for one, other in zip(found, wanted, strict=True)
    )


@needs_instruction
@pytest.mark.parametrize("n_threads", [1, 2])
@pytest.mark.parametrize("hidden", [(200, 80), (33,), (40, 17), (21, 48, 9)])
@pytest.mark.parametrize("request_dim", [0, 3])
def test_compiled_equals_the_same_rounding_in_torch(hidden: tuple[int, ...], request_dim: int, n_threads: int) -> None:
    """A number that falls to the other side of the middle between two is off by 2^-8; that few do is what is allowed for."""
    before = torch.get_num_threads()
    torch.set_num_threads(n_threads)
    try:
        case = Case.of(1, 4, 200, hidden, True, request_dim, "bfloat16")
        exact, labels_and_weights = case.exact(), case.click()
        fast, true = case.mlp(*case.given), expected(exact)
        assert off([fast], [true]) < 2e-4
        assert off(gradients(fast, case.inputs), gradients(true, exact.inputs)) < 4e-3
        in_float32 = Case.of(1, 4, 200, hidden, True, request_dim)
        assert off([in_float32.mlp(*in_float32.given)], [true]) > 5e-4  # which is another number
        learned, gradient = case.learned(*labels_and_weights)
        true = expected(exact)
        wanted = click_gradients(true, exact.inputs, *labels_and_weights)
        found = torch.autograd.grad(learned, case.inputs, gradient, allow_unused=True)
        assert off([g for g in found if g is not None], wanted) < 4e-3
    finally:
        torch.set_num_threads(before)


def test_plain_is_torch_under_autocast() -> None:
    """As on a GPU: linear layers but the last in bfloat16, normalisation and logits in float32."""
    case = Case.of(**SIZES, products="bfloat16")
    seen: list[tuple[nn.Module, torch.dtype, torch.dtype]] = []
    for layer in [case.mlp.candidate, case.mlp.request, *case.mlp.rest]:
        assert layer is not None
        layer.register_forward_hook(lambda layer, given, out: seen.append((layer, given[0].dtype, out.dtype)))
    plain = case.mlp.plain(*case.given)
    assert plain.dtype == torch.float32
    for layer, given, out in seen:
        half = isinstance(layer, nn.Linear) and layer is not case.mlp.rest[-1]
        assert (given, out) == (torch.float32, torch.bfloat16 if half else torch.float32)
    assert len(seen) == 2 + len(case.mlp.rest)
    of_all = gradients(plain, case.inputs)
    exact = case.exact()
    true = expected(exact)
    assert 1e-3 < off([plain], [true]) < 3e-2
    assert off(of_all, gradients(true, exact.inputs)) < 0.1
    assert all(gradient.dtype == torch.float32 for gradient in of_all)


def test_weights_and_state_are_those_of_float32() -> None:
    made = []
    for products in ("float32", "bfloat16"):
        torch.manual_seed(0)
        made.append(RequestMLP(6, 3, (9, 4), products).state_dict())
    assert list(made[0]) == list(made[1])
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@needs_instruction
def test_bits_are_the_same_for_any_cut_and_whether_it_learns_or_not(threads: Callable[[int], None]) -> None:
    case = Case.of(**SIZES, products="bfloat16")
    assert len(case.request_of) > 5 * mlp_passes.LEAST
    rows = case.inputs[0]
    labels_and_weights = case.click()
    logits: list[Tensor] = []
    of_rows: list[Tensor] = []
    for n in (1, 2, 3, 4):
        threads(n)
        with torch.no_grad():
            logits.append(case.mlp(*case.given))
        learned, gradient = case.learned(*labels_and_weights)
        logits.append(learned.detach())
        of_rows += torch.autograd.grad(learned, [rows], gradient)
    assert all(torch.equal(each, logits[0]) for each in logits)
    assert all(torch.equal(each, of_rows[0]) for each in of_rows)


@needs_instruction
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("kind", ["dnn", "egin"])
def test_model(kind: str, check: Callable[[Check], None]) -> None:
    check(Check(kind, {"products": "bfloat16"}, SCHEMA))


@needs_instruction
@pytest.mark.parametrize("kind", ["dnn", "din", "egin", "bst", "dien", "semi"])
def test_the_option_reaches_the_network(kind: str) -> None:
    """Scores are not those of float32, and near them."""
    scores = []
    for products in ("float32", "bfloat16"):
        learner = Check(kind, {"products": products}, SCHEMA).build()
        for seed in range(3):
            scored = learner.predict_learn(random_block(SCHEMA, seed=seed))[0]
        scores.append(torch.as_tensor(scored))
    assert not torch.equal(*scores)
    torch.testing.assert_close(*scores, atol=0.02, rtol=0)


REFUSED = """
from learners.models import ModelContext, build
from learners.checks import SCHEMA
context = ModelContext(schema=SCHEMA, name="dnn")
build("dnn", {}, context)
try:
    build("dnn", {"products": "bfloat16"}, context)
except ValueError as error:
    print(error)
"""


def test_a_processor_without_the_instruction_is_refused_with_the_way_out() -> None:
    environment = os.environ | {"NUMBA_CPU_NAME": "x86-64-v3", "NUMBA_CPU_FEATURES": "", "NUMBA_DISABLE_JIT": "0"}
    run = subprocess.run([sys.executable, "-c", REFUSED], cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    for said in ('dnn: products = "bfloat16"', "AVX512_BF16", "this processor lacks", 'products = "float32"'):
        assert said in run.stdout


def test_an_unknown_product_is_refused() -> None:
    with pytest.raises(ValueError, match="products"):
        Check("dnn", {"products": "float16"}, SCHEMA).build()


def test_a_network_without_these_layers_does_not_take_the_option() -> None:
    with pytest.raises(ValueError, match="youtube_dnn multiplies in float32"):
        Check("youtube_dnn", {"products": "bfloat16"}, SCHEMA).build()
