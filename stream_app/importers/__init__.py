"""Files that people have -> raw events on a log.

====================== =================================================================================================
module                 what it holds
====================== =================================================================================================
:mod:`.run`            :func:`run_import`: any kind of file to any log; resumes after a kill without loss or duplicates
:mod:`.registry`       the kinds there are; more come in through the entry-point group ``freshet.importers``
:mod:`.source`         what an importer is, and how it speaks of bad rows
:mod:`.rows`           ``rows``: your own log, by a field mapping (:mod:`.mapping`)
:mod:`.globo`          ``globo``: news clicks of Globo.com, candidates drawn or given
:mod:`.trivago`        ``trivago``: hotel search sessions, RecSys Challenge 2019
:mod:`.mind`           ``mind``: news impressions with their clicks, and histories without times
:mod:`.taobao`         ``taobao``: user behaviour of a shop, candidates drawn
:mod:`.movielens`      ``movielens``: ratings, candidates drawn or each rating by itself
:mod:`.recbole`        ``recbole``: atomic files of interactions
:mod:`.drawing`        candidates by recent popularity, for all kinds that know no page
====================== =================================================================================================
"""
