"""Recorded logs as episodes: a schema says which column is what, in which unit, and `read_logs` reads the files."""

from sim2real.logs.read import read_logs
from sim2real.logs.schema import Column, LogSchema, Recording
from sim2real.logs.tables import FORMATS
from sim2real.logs.units import UNITS

__all__ = ["FORMATS", "UNITS", "Column", "LogSchema", "Recording", "read_logs"]
