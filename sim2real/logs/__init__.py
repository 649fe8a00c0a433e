"""Recorded logs as episodes: a schema says which column is what, in which unit, and `read_logs` reads the files."""

from sim2real.logs.find import Skipped
from sim2real.logs.lerobot import write_lerobot
from sim2real.logs.raw import RawChannel, RawRecording
from sim2real.logs.read import Logs, read_logs
from sim2real.logs.schema import Clock, Column, LogSchema, Recording
from sim2real.logs.sources import FORMATS
from sim2real.logs.write import read_episode, write_parquet

__all__ = [
    "FORMATS",
    "Clock",
    "Column",
    "LogSchema",
    "Logs",
    "RawChannel",
    "RawRecording",
    "Recording",
    "Skipped",
    "read_episode",
    "read_logs",
    "write_lerobot",
    "write_parquet",
]
