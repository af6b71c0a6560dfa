"""Every model runs the check-suite, on a schema with everything and on one with items only."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from learners.checks import CHECKS, PLAIN_SCHEMA, SCHEMA, Case
from learners.models import BUILT_IN, ModelContext, ModelError, build, names

CASES = [Case(kind, {}, schema) for kind in BUILT_IN for schema in (SCHEMA, PLAIN_SCHEMA)]
CASES += [Case("egin", {"place_bias": True}, schema) for schema in (SCHEMA, PLAIN_SCHEMA)]


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__.removeprefix("check_"))
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join([case.kind, *case.options, case.schema.generation]))
def test_model(case: Case, check: Callable[[Case], None]) -> None:
    check(case)


def test_names_cover_the_registry() -> None:
    assert set(BUILT_IN) <= set(names())


def test_unknown_model_names_the_near_miss() -> None:
    with pytest.raises(ModelError, match=r"no model 'egni': did you mean 'egin'\?"):
        build("egni", {}, ModelContext(schema=SCHEMA))


def test_unknown_option_names_the_options() -> None:
    with pytest.raises(ModelError, match=r"'dnn'.*unknown field `deep`.*its options are .*hidden"):
        build("dnn", {"deep": 3}, ModelContext(schema=SCHEMA))
