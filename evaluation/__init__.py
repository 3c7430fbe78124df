"""Evaluation in three layers, listed from the lowest; each depends only on those below it.

- :mod:`satunet.evaluation.scoring`: masks against references. :mod:`~satunet.evaluation.scoring.measures` measures two
  masks, :mod:`~satunet.evaluation.scoring.metrics` scores classes by :mod:`~satunet.evaluation.scoring.rules`, and
  :mod:`~satunet.evaluation.scoring.run` scores a folder of predictions.
- :mod:`satunet.evaluation.benchmark`: competitors against each other. :mod:`~satunet.evaluation.benchmark.tasks` says
  what is scored, :mod:`~satunet.evaluation.benchmark.competitors` are the participants,
  :mod:`~satunet.evaluation.benchmark.guards` refuses unfair comparisons, and
  :mod:`~satunet.evaluation.benchmark.conclusions.comparison` draws the conclusions from the scores.
- :mod:`satunet.evaluation.report`: tables, charts and pages for people.

:mod:`satunet.evaluation.run` runs a whole benchmark, from datasets to report.
"""
