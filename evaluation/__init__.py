"""Evaluation: scores of predictions, comparison of competitors, and the report.

From the inside out: :mod:`~satunet.evaluation.scoring.surfaces.marching`, :mod:`~satunet.evaluation.scoring.surfaces.surface` and
:mod:`~satunet.evaluation.scoring.lesions` measure masks, :mod:`satunet.evaluation.scoring.metrics` scores the classes of two label maps
by :mod:`~satunet.evaluation.scoring.rules`, :mod:`~satunet.evaluation.scoring.run` a folder of predictions;
:mod:`~satunet.evaluation.benchmark.statistics` compares competitors over datasets with :mod:`~satunet.evaluation.benchmark.bootstrap`,
:mod:`~satunet.evaluation.report.page` writes what people read, and :mod:`~satunet.evaluation.benchmark.run` does all of it
from models and datasets on disk, with the competitors of :mod:`~satunet.evaluation.benchmark.competitors`.
"""
