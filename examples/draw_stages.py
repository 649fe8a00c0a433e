"""Draw what every stage does to a signal: `python examples/draw_stages.py [FOLDER]` writes three pictures."""

import sys
from pathlib import Path

import matplotlib
import numpy as np

from sim2real.adapters import STAGES, Chain, PlantView

matplotlib.use("agg")
from matplotlib import pyplot as plt

DT = 0.001
TIME = DT * np.arange(500)
STEP = np.where(TIME > 0.1, 1.0, 0.0) - np.where(TIME > 0.3, 1.5, 0.0)
SINE, RAMP, REST = np.sin(2 * np.pi * 4 * TIME), 2 * TIME / TIME[-1], np.zeros_like(TIME)
# kind, arguments, input; stages that feed back see a joint that swings at the speed drawn
SIGNALS = [
    ("latency", {"delay": 0.04}, STEP),
    ("packets", {"delay": 0.01, "jitter": 0.03, "loss": 0.2, "period": 0.02}, SINE),
    ("hold", {"period": 0.03}, SINE),
    ("stuck", {"probability": 0.01, "duration": 0.04}, SINE),
    ("resolution", {"step": 0.25}, SINE),
    ("noise", {"additive": 0.05, "multiplicative": 0.1}, STEP),
    ("gain", {"gain": 0.7, "offset": 0.1}, STEP),
    ("saturation", {"low": -0.8, "high": 0.5}, SINE),
    ("dead_zone", {"width": 0.4, "asymmetry": 0.3}, SINE),
    ("backlash", {"play": 0.6}, SINE),
    ("rate_limit", {"rate": 15.0, "acceleration": 400.0}, STEP),
    ("lag", {"time_constant": 0.03}, STEP),
]
ACTUATORS = [
    ("second_order_lag", {"frequency": 8.0, "damping_ratio": 0.4}, STEP),
    ("torque_limit", {"limit": 0.7}, SINE),
    ("torque_speed", {"stall_torque": 1.2, "no_load_speed": 10.0}, 2 * np.sign(SINE)),
    ("dc_motor", {"resistance": 1.0, "torque_constant": 0.1, "supply_voltage": 12.0, "gear": 1.0}, 12 * np.sign(SINE)),
    ("voltage_sag", {"supply_voltage": 12.0, "internal_resistance": 0.4, "back_emf": 0.1}, 15 * np.sign(SINE)),
    ("drive", {"kp": 2.0, "kd": 0.02, "limit": 1.5, "period": 0.02}, STEP),
    ("thermal_derating", {"heating": 70.0, "time_constant": 0.1, "start": 30.0, "stop": 60.0}, np.abs(STEP)),
    ("friction", {"coulomb": 0.3, "viscous": 0.05}, REST),
    ("servo_friction", {"coulomb": 0.3, "stribeck": 0.4, "stribeck_velocity": 1.0}, REST),
]
SENSORS = [
    ("encoder", {"step": 0.3}, RAMP),
    ("bias", {"offset": 0.2}, SINE),
    ("drift", {"random_walk": 0.5, "instability": 0.1, "correlation_time": 0.1}, REST),
    ("velocity_filter", {"time_constant": 0.03}, SINE / 25),
]


def draw(stages: list, file: Path) -> None:
    """Draw a picture of some stages."""
    columns = 4 if len(stages) % 3 else 3
    rows = -(-len(stages) // columns)
    figure, axes = plt.subplots(rows, columns, figsize=(3.6 * columns, 2.5 * rows), squeeze=False, layout="constrained")
    for axis, (kind, arguments, signal) in zip(axes.flat, stages, strict=False):
        line = Chain.from_config([{"stage": kind, **arguments}]).bind(1, 1, DT, seed=3)
        speed = 8 * np.cos(2 * np.pi * 4 * TIME)
        out = []
        for k in range(len(TIME)):
            view = PlantView(*(np.full((1, 1), x) for x in (0.0, speed[k], 0.05, 0.0)))
            out.append(line.apply(signal[None, k : k + 1, None], view)[0, 0, -1])
        if line.chain.feedback and kind != "drive":
            axis.plot(TIME, speed * 0.1, color="#bbbbbb", lw=1, label="speed / 10")
        axis.plot(TIME, signal, color="#888888", lw=1, ls="--", label="in")
        axis.plot(TIME, out, color="#c2410c", lw=1.6, label="out")
        units = line.units()
        words = [
            f"{n.rsplit('.', 1)[1]} {v:g} {units[n]}".removesuffix(" 1")
            for n, v in line.nominal().items()
            if n.rsplit(".", 1)[1] in arguments
        ]
        axis.set_title(
            f"{kind}\n" + ", ".join(words[:2]) + (",\n" + ", ".join(words[2:4]) if words[2:] else ""), fontsize=8
        )
        axis.tick_params(labelsize=7)
        axis.set_xlabel("time [s]", fontsize=7)
        axis.legend(fontsize=6, loc="best", framealpha=0.6, edgecolor="none")
    figure.savefig(file, dpi=90)
    plt.close(figure)


def main() -> None:
    """Draw all stages."""
    drawn = {kind for stages in (SIGNALS, ACTUATORS, SENSORS) for kind, _, _ in stages}
    assert drawn == set(STAGES), f"not drawn: {set(STAGES) - drawn}"
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else ".")
    for name, stages in (("signals", SIGNALS), ("actuators", ACTUATORS), ("sensors", SENSORS)):
        draw(stages, folder / f"stages_{name}.png")
        print(f"{folder / f'stages_{name}.png'}: {', '.join(kind for kind, _, _ in stages)}")


if __name__ == "__main__":
    main()
