"""Data sets: the built-in synthetic specimen, and the six data sets of the paper by name."""

from distill.datasets.loading import DataSet, load
from distill.datasets.records import RECORDS, Record
from distill.datasets.synthetic import Specimen, specimen

__all__ = ["RECORDS", "DataSet", "Record", "Specimen", "load", "specimen"]
