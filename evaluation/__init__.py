"""Evaluation: scores of predictions, comparison of competitors, and the report.

From the inside out: :mod:`~satunet.evaluation.marching`, :mod:`~satunet.evaluation.surface` and
:mod:`~satunet.evaluation.lesions` measure masks, :mod:`satunet.evaluation.metrics` scores the classes of two label maps
by :mod:`~satunet.evaluation.rules`, :mod:`~satunet.evaluation.evaluate` a folder of predictions;
:mod:`~satunet.evaluation.benchmark` compares competitors over datasets with :mod:`~satunet.evaluation.resampling`,
:mod:`~satunet.evaluation.report` writes what people read, and :mod:`~satunet.evaluation.run_benchmark` does all of it
from models and datasets on disk, with the competitors of :mod:`~satunet.evaluation.competitors`.
"""
