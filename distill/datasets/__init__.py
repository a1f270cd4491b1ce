"""Data sets: the built-in synthetic specimen, and the six data sets of the paper by name."""

from distill.datasets.loading import DataSet, load
from distill.datasets.records import RECORDS, Record
from distill.datasets.synthetic import Specimen, specimen
from distill.datasets.volume import specimen_volume

__all__ = ["RECORDS", "DataSet", "Record", "Specimen", "load", "specimen", "specimen_volume"]
