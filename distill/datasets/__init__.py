"""Data sets: a synthetic specimen that is built in, and the six of the paper by name."""

from distill.datasets.loading import DataSet, load
from distill.datasets.records import RECORDS, Record
from distill.datasets.synthetic import Specimen, specimen

__all__ = ["RECORDS", "DataSet", "Record", "Specimen", "load", "specimen"]
