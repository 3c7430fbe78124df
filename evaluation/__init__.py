"""Evaluation: scores of predictions, comparison of competitors, and the report.

:mod:`satunet.evaluation.metrics` scores two label maps, :mod:`~satunet.evaluation.evaluate` a folder of predictions,
:mod:`~satunet.evaluation.benchmark` compares competitors over datasets, :mod:`~satunet.evaluation.report` writes what
people read, and :mod:`~satunet.evaluation.run_benchmark` does all of it from models and datasets on disk.
"""
