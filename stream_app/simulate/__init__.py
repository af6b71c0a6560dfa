"""A made-up log whose click probabilities are known: ``freshet simulate``.

=================== ============================================================================================
module              what it holds
=================== ============================================================================================
:mod:`.options`     the knobs
:mod:`.draws`       random numbers by position: the same whatever the chunks
:mod:`.world`       users, queries, items and categories: all that is drawn once
:mod:`.pages`       who looks, when, and at what
:mod:`.clicks`      the probability of a click in closed form, and the clicks
:mod:`.watches`     videos that are begun and left
:mod:`.run`         :func:`run_simulate`: to a log, as an importer does
=================== ============================================================================================
"""
