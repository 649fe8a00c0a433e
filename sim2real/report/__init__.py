"""The report of a run: what was found, in words and figures, as one HTML file that opens anywhere.

- `findings`: the sentences, from metrics.json (`findings.py`, on the numbers of `summary.py`)
- `write_report`: report.html (`run_page.py` with template.html; `figures.py` and `closed_loop.py` draw)
- `write_identification_report`: identification.html (`identification.py` with identification_template.html;
  `posterior_figures.py` and `replay_figures.py` draw, from the posterior and from what `replay_evidence.py` replayed)
- `write_finetuning_report`: finetuning.html (`finetuning_page.py` with finetuning_template.html)
- `write_rounds_report`: rounds.html of `sim2real dagger` (`rounds_page.py` with rounds_template.html)
- what pages share: `page.py` with base.html, macros.html and style.css
- how numbers and names are written: `notation.py`
"""

from __future__ import annotations

from sim2real.report.findings import findings
from sim2real.report.finetuning_page import write_finetuning_report
from sim2real.report.identification import write_identification_report
from sim2real.report.rounds_page import write_rounds_report
from sim2real.report.run_page import write_report

__all__ = ["findings", "write_finetuning_report", "write_identification_report", "write_report", "write_rounds_report"]
