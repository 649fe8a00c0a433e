"""What a camera sees of eight robots with lights, colours, lengths and cameras of their own.

python examples/observe_pixels.py [--picture FILE]
"""

import argparse
from pathlib import Path

import numpy as np

from sim2real import make_vec
from sim2real.errors import RenderError

LOOKS = {
    "perception.*.diffuse": "*U(0.3, 1)",
    "perception.*.rgba[0], perception.*.rgba[1], perception.*.rgba[2]": "=U(0.1, 1) each",
    "perception.track.position[1]": "*U(0.8, 1.2)",
    "dynamics.*.scale": "*U(0.75, 1.3)",
}


def main(picture: Path | None = None) -> None:
    """Run the example."""
    try:
        envs = make_vec("HalfCheetah-v5", 8, parameters=LOOKS, pixels={"camera": "track", "height": 160, "width": 160})
    except RenderError as error:
        print(error)
        return
    envs.reset(seed=1)
    for k in range(12):
        seen = envs.step(np.tile(np.sin(0.6 * k + np.arange(6)), (8, 1)))[0]
    print(f"observed {seen.shape} of {seen.dtype}")
    for i, view in enumerate(seen):
        print(f"environment {i}: mean brightness {view.mean():.0f} of 255")
    if picture is not None:
        from imageio.v3 import imwrite

        rows = [np.concatenate(list(half), 1) for half in (seen[:4], seen[4:])]
        imwrite(picture, np.concatenate(rows, 0))
    envs.close()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--picture", type=Path, help="draw what is seen into this file")
    main(parser.parse_args().picture)
