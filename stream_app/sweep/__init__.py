"""Variants of a run over the same samples: ``freshet sweep SPEC.toml``.

==================== ===================================================================================================
module               what it holds
==================== ===================================================================================================
:mod:`.spec`         the file that names the variants, and the plan: one run per variant and seed
:mod:`.joins`        samples for variants that join otherwise, once per distinct ``[join]``
:mod:`.running`      runs as processes side by side: resumable, and a failing one stops no other
:mod:`.results`      means, spreads over seeds and paired intervals
==================== ===================================================================================================

::

    OUT/configs/VARIANT.SEED.toml    what a run is told
    OUT/runs/VARIANT/SEED/           its folder, as of freshet replay
    OUT/logs/VARIANT.SEED.txt        what it printed
    OUT/joins/GENERATION/            samples of another [join]
    OUT/results.json, index.html     the end
"""
