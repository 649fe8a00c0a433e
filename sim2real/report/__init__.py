"""The report of a run: what was found, in words and figures, as one HTML file that opens anywhere.

- `findings`: the sentences, from metrics.json (`findings.py`, on the numbers of `summary.py`)
- `write_report`: report.html (`page.py` with template.html and style.css; `figures.py` and `closed_loop.py` draw)
- how numbers and names are written: `notation.py`
"""

from __future__ import annotations

from sim2real.report.findings import findings
from sim2real.report.page import write_report

__all__ = ["findings", "write_report"]
