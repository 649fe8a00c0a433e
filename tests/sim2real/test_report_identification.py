"""The page of identification: its figures show the posterior's numbers, and the page is safe and whole."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sim2real.adapters import Chain, Latency
from sim2real.calibration import Posterior, diagnose
from sim2real.errors import ModelError
from sim2real.plant import Plant
from sim2real.randomization import ParameterSet, RobotModel
from sim2real.report import findings, page, write_identification_report, write_report
from sim2real.report.identification import verdict
from sim2real.report.notation import resolving
from sim2real.report.parameter_figures import varied
from sim2real.report.parameter_table import known_rows
from sim2real.report.posterior_figures import by_recording, distributions, pairs, two_ticks
from sim2real.report.replay_evidence import ReplayEvidence, band, chosen, replay_evidence
from sim2real.report.replay_figures import recording_errors, replayed, spectra
from sim2real.twin import Twin, excite

HOSTILE = '"><script>alert("x")</script><b>&amp;'
NOISE = 1e-3
UNITS = {
    "dynamics.payload.mass": "kg",
    "dynamics.hinge.damping": "N·m·s/rad",
    "execution.latency.delay": "s",
    "dynamics.hinge.frictionloss": "N·m",
}
PRIORS = {
    "dynamics.payload.mass": "=U(0.2, 2)",
    "dynamics.hinge.damping": "=N(0.1, 0.05)",
    "execution.latency.delay": "=U(0, 0.08)",
    "dynamics.hinge.frictionloss": "=U(0, 0.5)",
}
# Mean and standard deviation of each; the last one does not move at all.
KNOWN = {
    "dynamics.payload.mass": (0.85, 0.01),
    "dynamics.hinge.damping": (0.03, 0.002),
    "execution.latency.delay": (0.03, 0.02),
    "dynamics.hinge.frictionloss": (0.125, 0.0),
}


def posterior(*names: str, **evidence: Any) -> Posterior:
    """A posterior of the named parameters, of all by default; the first two are strongly correlated."""
    chosen_names = names or tuple(PRIORS)
    rng = np.random.default_rng(0)
    z = rng.normal(size=(200, len(chosen_names)))
    if len(chosen_names) > 1:
        z[:, 1] = 0.98 * z[:, 0] + 0.2 * z[:, 1]
    mean, std = np.array([KNOWN[n] for n in chosen_names]).T
    prior = ParameterSet.parse({n: PRIORS[n] for n in chosen_names}, UNITS)
    low, high = prior.bounds
    told = {"recordings": {"swing": 4e-4, "push": 5e-3, "rest": 3e-4}, "window": 0.5, "windows": 42, "settled": True}
    return Posterior(prior, mean, np.clip(mean + std * z, low, high), np.array([NOISE]), told | evidence)


def evidence(name: str = "push") -> dict[str, Any]:
    """Two recordings, a typical and a bad window of each, of which the second has fewer samples."""
    time = np.linspace(0, 0.5, 26)
    offset = np.stack([time, time, time, np.where(time > 0.3, np.nan, time)])
    motion = np.where(np.isfinite(offset), np.sin(7 * time), np.nan)[..., None]
    left = 0.002 * np.cos(40 * time)[:, None] * np.array([1, 3, 1, 3])[:, None, None]
    frequency = np.linspace(2, 25, 12)
    return {
        "recordings": np.array(["swing", name]),
        "seconds": np.array([10.0, 21.0]),
        "channels": np.array(["hinge"]),
        "units": np.array(["rad"]),
        "owner": np.array([1, 1, 0, 0]),
        "typical": np.array([True, False, True, False]),
        "start": np.array([3.0, 4.5, 0.0, 1.0]),
        "error": 0.0014 * np.array([[1.0], [3.0], [1.0], [3.0]]),
        "offset": offset,
        "measured": motion + left,
        "mean": motion,
        "low": motion - 0.003,
        "high": motion + 0.003,
        "spectral": np.array([1, 0]),
        "frequency": np.stack([frequency, np.where(frequency > 20, np.nan, frequency)]),
        "power": 1e-6 / np.stack([frequency, frequency])[..., None],
        "level": np.array([[1e-7], [2e-7]]),
    }


def save(directory: Path, found: Posterior, replay: dict[str, Any] | None = None, name: str = "arm") -> Path:
    found.save(directory / "posterior")
    (directory / "stages").mkdir()
    told = {"seconds": 1.0, "result": {"findings": [f.to_json() for f in diagnose(found)]}}
    (directory / "stages" / "identify.json").write_text(json.dumps(told))
    (directory / "recipe.yaml").write_text(json.dumps({"name": name, "robot": "pendulum"}))
    if replay is not None:
        np.savez_compressed(directory / "posterior" / "replay.npz", **replay)
    return directory


class Page(HTMLParser):
    """What a browser makes of a page: its words, figures and addresses, and what is left open at its end."""

    VOID = ("meta", "br", "rect", "circle", "path", "wbr")

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.ids: list[str] = []
        self.figures: dict[str, dict[str, Any]] = {}
        self.words, self._plot = "", ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        self.addresses += [str(found[k]) for k in ("src", "href") if k in found]
        self.ids += [str(found["id"])] if "id" in found else []
        self._plot = str(found.get("data-plot", ""))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._plot:
            self.figures[self._plot] = json.loads(data)
            self._plot = ""
        elif self.open[-1:] not in (["script"], ["style"]):
            self.words += data.replace("\N{NO-BREAK SPACE}", " ")


def read(directory: Path) -> Page:
    found = Page(write_identification_report(directory).read_text())
    assert found.open == []
    return found


@pytest.fixture(autouse=True)
def light(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave plotly's four megabytes out of pages that are only read."""
    monkeypatch.setattr(page, "get_plotlyjs", lambda: "/* plotly */")


def test_the_verdict_counts() -> None:
    known = posterior()
    assert verdict(known, 2, ReplayEvidence(**evidence())) == (
        "4 parameters from 31.0 s of 2 recordings; residual 1.00 mrad; 2 findings."
    )
    one = posterior("dynamics.payload.mass")
    assert verdict(one, 0, None) == (
        "1 parameter from 42 windows of 0.5 s of 3 recordings; residual 0.00100 rad or m; no findings."
    )


def test_the_page_says_all_of_it_offline(tmp_path: Path) -> None:
    known = posterior()
    found = read(save(tmp_path, known, evidence()))
    assert all(a.startswith("#") for a in found.addresses)
    assert len(set(found.ids)) == len(found.ids)
    for said in diagnose(known):
        assert said.code in found.words
        assert said.what in found.words
    assert {"not-informed", "only-together", "unexplained-recording"} <= {f.code for f in diagnose(known)}
    # three parameters with a spread, their pairs, four windows, errors and one spectrum
    assert len(found.figures) == 3 + 1 + 4 + 2
    for figure in found.figures.values():
        for axis in ("xaxis", "yaxis"):
            title = figure["layout"][axis]["title"]["text"]
            assert title in ("", "recording") or title.endswith("]"), title
    assert not list(tmp_path.glob("*.partial"))


def test_a_malicious_recording_is_text(tmp_path: Path) -> None:
    errors = {"swing": 4e-4, "rest": 3e-4, HOSTILE: 5e-3}
    directory = save(tmp_path, posterior(recordings=errors), evidence(HOSTILE), HOSTILE)
    raw = write_identification_report(directory).read_text()
    found = Page(raw)
    assert "<script>alert" not in raw
    assert found.open == []
    assert HOSTILE in found.words
    for figure in found.figures.values():
        text = json.dumps([figure["layout"], [t.get("hovertemplate") for t in figure["data"]]])
        assert "<script" not in text


def test_one_parameter_has_no_pairs(tmp_path: Path) -> None:
    found = read(save(tmp_path, posterior("dynamics.payload.mass"), evidence()))
    assert "fewer than two parameters have a spread" in found.words
    assert "1 parameter from" in found.words


def test_a_parameter_without_a_spread_is_named_and_not_drawn(tmp_path: Path) -> None:
    fixed = "dynamics.hinge.frictionloss"
    found = read(save(tmp_path / "some", posterior(), evidence()))
    assert f"Without a spread: {fixed}" in found.words
    assert "hinge.frictionloss" not in [p.title for p in distributions(posterior())]
    alone = read(save(tmp_path / "alone", posterior(fixed)))
    assert "no parameter has a spread" in alone.words


def test_a_replay_that_is_not_there_is_said(tmp_path: Path) -> None:
    found = read(save(tmp_path, posterior()))
    assert "kept no replay of its recordings (posterior/replay.npz)" in found.words
    assert "there are no spectra" in found.words
    assert len(found.figures) == 3 + 1 + 1


def test_a_damaged_replay_is_one_line(tmp_path: Path) -> None:
    directory = save(tmp_path, posterior())
    (directory / "posterior" / "replay.npz").write_bytes(b"PK\x03\x04 no more")
    with pytest.raises(ModelError, match=r"replay\.npz is damaged") as error:
        write_identification_report(directory)
    assert "\n" not in str(error.value)


def test_the_table_says_what_the_posterior_says() -> None:
    known = posterior()
    rows = {r.name: r for r in known_rows(known)}
    mass = rows["dynamics.payload.mass"]
    assert (mass.value, mass.unit, mass.notation) == (0.85, "kg", "U(0.2, 2)")
    assert mass.interval == known.interval("dynamics.payload.mass")
    assert mass.shrinkage == pytest.approx(known.samples[:, 0].std(ddof=1) / (1.8 / np.sqrt(12)))
    # a normal prior has no ends: its bar is the central 99 %
    damping = rows["dynamics.hinge.damping"]
    assert damping.ends == pytest.approx((0.1 - 2.5758 * 0.05, 0.1 + 2.5758 * 0.05), abs=1e-4)
    assert rows["dynamics.hinge.frictionloss"].shrinkage == 0.0


@pytest.mark.parametrize("name", list(KNOWN)[:3])
def test_distributions_hold_the_samples(name: str) -> None:
    known = posterior()
    (panel,) = [p for p in distributions(known) if name.endswith(p.title)]
    samples = known.samples[:, known.names.index(name)]
    bars, prior, *rest = panel.figure.data
    assert np.sum(bars.y) == pytest.approx(100)
    assert np.sum(bars.x * bars.y) / 100 == pytest.approx(samples.mean(), abs=bars.width / 2)
    assert [line.x[0] for line in rest[:2]] == list(known.interval(name))
    # in the units of the bars, the prior's height is its density times a bar's width
    middle = len(prior.x) // 2
    density = np.exp(known.prior[name].distribution.log_prob(prior.x[middle]))
    assert prior.y[middle] == pytest.approx(100 * bars.width * density)
    # a narrow posterior is enlarged, with a strip over the whole prior
    narrow = name != "execution.latency.delay"
    assert ("xaxis2" in panel.figure.layout) == narrow
    shown = panel.figure.layout.xaxis.range
    assert shown[0] <= samples.min() < samples.max() <= shown[1]
    if narrow:
        low, high = rest[2].x
        assert low < shown[0] < shown[1] < high


def test_equal_samples_have_no_spread_whatever_rounding_makes_of_them() -> None:
    prior = ParameterSet.parse({"dynamics.hinge.frictionloss": "=U(0, 0.5)"}, UNITS)
    for value in (0.1, 0.3 * (1 + 1e-15 * np.arange(200))):
        samples = value * np.ones((200, 1)) if isinstance(value, float) else value[:, None]
        assert not len(varied(Posterior(prior, samples[0], samples, np.array([NOISE]))))


def test_samples_that_are_mostly_at_a_bound_are_drawn() -> None:
    known = posterior("dynamics.payload.mass", "execution.latency.delay")
    known.samples[:, 1] = np.where(np.arange(200) < 190, 0.0, 1e-32)
    assert len(distributions(known)) == 2
    assert pairs(known) is not None


def test_pairs_show_samples_and_correlations() -> None:
    known = posterior()
    panel = pairs(known)
    assert panel is not None
    cloud = panel.figure.data[0]
    assert np.array_equal(cloud.x, known.samples[: len(cloud.x), 0])
    assert np.array_equal(cloud.y, known.samples[: len(cloud.x), 1])
    r = np.corrcoef(known.samples[:, 0], known.samples[:, 1])[0, 1]
    assert f"{r:.2f}" in [a.text for a in panel.figure.layout.annotations]


def test_an_interval_is_written_with_the_digits_that_it_takes() -> None:
    assert [resolving(*x) for x in ((0.0, 1.0), (1.045, 1.054), (99.998, 100.0), (2.0, 2.0))] == [3, 4, 6, 3]


def test_two_ticks_are_round_and_apart() -> None:
    assert two_ticks(0.0, 1.0) == ([0.2, 0.8], ["0.2", "0.8"])
    assert two_ticks(0.0331, 0.0349)[1] == ["0.0335", "0.0345"]
    assert two_ticks(120.0, 980.0)[1] == ["290", "810"]


def test_a_parameter_that_recordings_have_of_their_own_is_drawn(tmp_path: Path) -> None:
    own = {
        HOSTILE: {"mean": 0.8, "interval90": [0.79, 0.82]},
        "push": {"mean": 1.1, "interval90": [1.0, 1.2]},
    }
    known = posterior(of_recordings={"dynamics.payload.mass": own})
    (panel,) = by_recording(known)
    dots = panel.figure.data[0]
    assert dots.x.tolist() == [1.1, 0.8]
    assert dots.error_x.array == pytest.approx([0.1, 0.02])
    assert dots.error_x.arrayminus == pytest.approx([0.1, 0.01])
    assert "every recording has its own" in read(save(tmp_path, known)).words.lower()


def test_errors_are_those_of_the_posterior() -> None:
    errors = posterior().evidence["recordings"]
    panel = recording_errors(errors, "rad", {"push"})
    bars = panel.figure.data[0]
    assert sorted(bars.x) == pytest.approx(sorted(1e3 * e for e in errors.values()))
    assert len(set(bars.marker.color)) == 2
    assert panel.figure.layout.xaxis.title.text == "error [mrad]"


def test_windows_and_spectra_show_what_was_replayed() -> None:
    found = ReplayEvidence(**evidence())
    push, swing = replayed(found, np.array([NOISE]))
    assert (push.name, push.seconds, len(push.panels)) == ("push", 21.0, 2)
    assert [p.title for p in swing.panels] == ["Typical", "Worst"]
    last = swing.panels[1].figure
    residual = last.data[-1]
    assert len(residual.x) == np.isfinite(found.offset[3]).sum()
    assert residual.y == pytest.approx(1e3 * (found.measured[3] - found.mean[3])[: len(residual.x), 0])
    assert "error 4.20 mrad" in swing.panels[1].caption
    (panel,) = spectra(found)
    line, level = panel.figure.data[:2]
    assert line.y == pytest.approx(1e6 * found.power[0, :, 0])
    assert set(level.y) == {1e6 * 1e-7}


def test_chosen_windows_are_typical_and_worst() -> None:
    rows, typical = chosen(np.array([5.0, 1.0, 9.0, 3.0, 2.0, 4.0, 8.0]))
    assert rows.tolist() == [3, 5, 2, 6]
    assert typical.tolist() == [True, True, False, False]
    assert chosen(np.array([1.0]))[0].tolist() == [0]
    assert chosen(np.array([2.0, 1.0, 3.0]))[1].tolist() == [True, True, False]


def test_the_band_holds_noise_and_spread() -> None:
    rng = np.random.default_rng(0)
    mean, low, high = band(rng.normal(0, 0.003, (4000, 2, 1)), np.array([0.004]))
    # two independent normals: 3, 4, 5
    assert high - mean == pytest.approx(np.full((2, 1), 1.645 * 0.005), rel=0.06)
    assert mean - low == pytest.approx(np.full((2, 1), 1.645 * 0.005), rel=0.06)


@pytest.fixture(scope="module")
def replay() -> dict[str, Any]:
    """The replay of a twin's recording, with the truth and with white noise on the readings."""
    plant = Plant(RobotModel("pendulum"), Chain([Latency(delay=0.03)]), timestep=0.002, threads=1)
    twin = Twin(plant, {"dynamics.payload.mass": 0.83})
    rng = np.random.default_rng(0)
    log = twin.record("log", excite(rng, 5, 0.02, np.array([3.0]), (0.4, 1.2)), hold=0.02)
    log.observations[:, log.channels.column("position")] += NOISE * rng.normal(size=len(log.observed_at))
    prior = ParameterSet.parse({"dynamics.payload.mass": "=U(0.2, 2)"}, plant.units())
    samples = 0.83 + 0.005 * rng.normal(size=(100, 1))
    known = Posterior(prior, np.array([0.83]), samples, np.array([NOISE]))
    return replay_evidence(plant, [log], known, ["position"], 0.5, 20, rng)


def test_a_true_model_leaves_white_noise(replay: dict[str, Any], tmp_path: Path) -> None:
    assert (replay["recordings"].tolist(), replay["units"].tolist()) == (["log"], ["rad"])
    assert replay["seconds"].sum() == pytest.approx(5.0)
    assert len(replay["owner"]) == 4
    # two numbers a window are fitted
    assert np.sqrt((replay["error"] ** 2).mean()) == pytest.approx(NOISE, rel=0.25)
    inside = (replay["measured"] >= replay["low"]) & (replay["measured"] <= replay["high"])
    assert inside.mean() > 0.8
    ratio = np.log(replay["power"][0, :, 0] / replay["level"][0, 0])
    assert np.abs(ratio).mean() < 1.0
    path = tmp_path / "replay.npz"
    np.savez_compressed(path, **replay)
    assert path.stat().st_size < 100_000
    assert np.array_equal(ReplayEvidence.load(path).measured, replay["measured"])


def test_the_run_report_links_to_it_and_tells_its_findings(tmp_path: Path) -> None:
    said = [f.to_json() for f in diagnose(posterior())]
    metrics = {"name": "arm", "scores": {}, "parameters": {}, "identification": {"findings": said}}
    told = [line for line in findings(metrics) if said[0]["what"] in line]
    assert told == [f"{said[0]['what']}; {said[0]['remedy']}."]
    save(tmp_path, posterior(), evidence())
    (tmp_path / "metrics.json").write_text(json.dumps(metrics))
    found = Page(write_report(tmp_path).read_text())
    assert "identification.html" in found.addresses
    assert (tmp_path / "identification.html").is_file()
    assert "Identification" in found.words
