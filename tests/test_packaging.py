"""The mapped folders import under one name from a wheel, from an editable install and from a bare checkout."""

from __future__ import annotations

import ast
import configparser
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAPPED = ("adapters", "calibration", "randomization", "recipes")
HEAVY = ("genesis", "gymnasium", "mujoco", "ray", "torch")
OURS = ("sim2real", *MAPPED, "benchmarks", "examples", "tests")
LITTER = shutil.ignore_patterns(
    ".*_cache",
    ".coverage*",
    ".git",
    ".hypothesis",
    ".lint",
    ".venv",
    "*.egg-info",
    "__pycache__",
    "build",
    "dist",
    "runs",
)

# An editable install of this very checkout may serve the interpreter that runs the tests: take it out.
WITHOUT_EDITABLE = """
import sys
sys.meta_path[:] = [f for f in sys.meta_path if not getattr(f, "__module__", "").startswith("__editable__")]
sys.path[:] = [p for p in sys.path if "__editable__" not in p]
"""
WHERE = """
import sim2real, sim2real.adapters, sim2real.calibration, sim2real.randomization, sim2real.recipes
for module in (sim2real, sim2real.adapters, sim2real.calibration, sim2real.randomization, sim2real.recipes):
    print(module.__file__)
"""


def python(code: str, cwd: Path, *, path: Path | None = None, executable: str | Path = sys.executable) -> list[str]:
    """Run `code` in a fresh interpreter with `path` alone on PYTHONPATH; return the lines it prints."""
    env = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "PYTHONHOME")}
    if path is not None:
        env["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [str(executable), "-c", code], cwd=cwd, env=env, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def run(*command: str | Path, cwd: Path) -> None:
    done = subprocess.run(
        [str(part) for part in command], cwd=cwd, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def config() -> configparser.ConfigParser:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    return parser


def package_dir() -> dict[str, str]:
    lines = config()["options"]["package_dir"].split("\n")
    return {name.strip(): folder.strip() for name, folder in (line.split("=") for line in lines if line.strip())}


def folder_of(package: str) -> Path:
    """Return the folder of a package: that of its nearest mapped ancestor, and the rest of its name below it."""
    mapped = package_dir()
    ancestor, rest = package, list[str]()
    while ancestor not in mapped:
        ancestor, _, last = ancestor.rpartition(".")
        rest.insert(0, last)
    return ROOT.joinpath(mapped[ancestor], *rest)


@pytest.fixture(scope="session")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the working tree, so that no build litters the real one."""
    return shutil.copytree(ROOT, tmp_path_factory.mktemp("checkout") / "tree", ignore=LITTER)


@pytest.fixture(scope="session")
def wheel(checkout: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    tree = shutil.copytree(checkout, folder / "tree", ignore=LITTER)
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, cwd=tree)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture
def site(wheel: Path, tmp_path: Path) -> Path:
    """The wheel, unpacked as an installer would."""
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    return tmp_path / "site"


def test_wheel_imports_from_itself(site: Path, tmp_path: Path) -> None:
    files = python(WITHOUT_EDITABLE + WHERE, tmp_path, path=site)
    assert [Path(file).relative_to(site) for file in files] == [
        Path("sim2real/__init__.py"),
        Path("sim2real/adapters/__init__.py"),
        Path("sim2real/calibration/__init__.py"),
        Path("sim2real/randomization/__init__.py"),
        Path("sim2real/recipes/__init__.py"),
    ]


def test_wheel_finds_its_robots_and_recipes(site: Path, tmp_path: Path) -> None:
    code = """
import sim2real.recipes
from pathlib import Path
from sim2real.randomization import robots
print(*robots.ROBOTS)
print(*sorted(file.stem for file in Path(sim2real.recipes.__file__).parent.glob("*.yaml")))
"""
    shipped, recipes = python(WITHOUT_EDITABLE + code, tmp_path, path=site)
    assert shipped.split() == sorted(file.stem for file in (ROOT / "randomization" / "robots").glob("*.xml"))
    assert "pendulum" in shipped.split()
    assert recipes.split() == sorted(file.stem for file in (ROOT / "recipes").glob("*.yaml"))
    assert "pendulum" in recipes.split()


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert "sim2real/py.typed" in names
    assert {name.split("/")[0] for name in names if ".dist-info/" not in name} == {"sim2real"}
    for package, patterns in config()["options.package_data"].items():
        for pattern in patterns.split():
            for file in folder_of(package).glob(pattern):
                assert f"{package.replace('.', '/')}/{file.name}" in names
    for package in config()["options"]["packages"].split():
        for file in folder_of(package).glob("*.py"):
            assert f"{package.replace('.', '/')}/{file.name}" in names


@pytest.mark.parametrize("inside", [False, True], ids=["on the path", "in the root"])
def test_bare_checkout_imports_from_itself(checkout: Path, tmp_path: Path, inside: bool) -> None:
    if inside:
        files = python(WITHOUT_EDITABLE + WHERE, checkout)
    else:
        files = python(WITHOUT_EDITABLE + WHERE, tmp_path, path=checkout)
    folders = ("sim2real", "adapters", "calibration", "randomization", "recipes")
    assert [Path(file) for file in files] == [checkout / folder / "__init__.py" for folder in folders]


@pytest.mark.slow
def test_editable_install_imports_from_the_checkout(checkout: Path, tmp_path: Path) -> None:
    tree = shutil.copytree(checkout, tmp_path / "tree", ignore=LITTER)
    environment = tmp_path / "venv"
    venv.create(environment, symlinks=True, with_pip=False)
    executable = environment / "bin" / "python"
    (packages,) = environment.glob("lib/python*/site-packages")
    # A path in a .pth file lends the dependencies but not the .pth files beside them, so no other editable install.
    (packages / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n" + sysconfig.get_path("platlib") + "\n")
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", executable, "--disable-pip-version-check"]
    run(
        *pip,
        "install",
        "--no-deps",
        "--no-build-isolation",
        "--ignore-installed",
        "--no-index",
        "-e",
        tree,
        cwd=tmp_path,
    )
    files = python(WHERE, tmp_path, executable=executable)
    folders = ("sim2real", "adapters", "calibration", "randomization", "recipes")
    assert [Path(file) for file in files] == [tree / folder / "__init__.py" for folder in folders]
    assert (environment / "bin" / "sim2real").is_file()


def test_setup_lists_every_package_folder() -> None:
    listed = config()["options"]["packages"].split()
    found = []
    for name, folder in package_dir().items():
        for where in (ROOT / folder, *(ROOT / folder).rglob("*")):
            if where.is_dir() and any(where.glob("*.py")):
                assert (where / "__init__.py").is_file(), f"{where.relative_to(ROOT)} is no package"
                found.append(".".join((name, *where.relative_to(ROOT / folder).parts)))
    assert sorted(listed) == sorted(found)


def bare_imports(source: str) -> Iterator[str]:
    """Yield the mapped folders that `source` imports by their bare names."""
    for node in ast.walk(ast.parse(source)):
        modules: list[str] = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            modules = [node.module or ""]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            modules = [
                arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
            ]
        yield from (module for module in modules if module.split(".")[0] in MAPPED)


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import adapters", ["adapters"]),
        ("def f():\n    from randomization.robots import path", ["randomization.robots"]),
        ("import numpy, calibration.gap as gap", ["calibration.gap"]),
        ("importlib.import_module('recipes')", ["recipes"]),
        ("import sim2real.adapters\nfrom sim2real import calibration\nfrom . import recipes", []),
    ],
)
def test_bare_imports_are_seen(source: str, found: list[str]) -> None:
    assert list(bare_imports(source)) == found


@pytest.mark.parametrize("folder", OURS)
def test_no_module_imports_a_mapped_folder_by_its_bare_name(folder: str) -> None:
    offenders = {
        str(file.relative_to(ROOT)): names
        for file in (ROOT / folder).rglob("*.py")
        if (names := list(bare_imports(file.read_text(encoding="utf-8"))))
    }
    assert not offenders


def test_import_is_quick_and_light(tmp_path: Path) -> None:
    code = f"""
import time
import numpy
start = time.perf_counter()
import sim2real
print(time.perf_counter() - start)
print(*[name for name in {HEAVY!r} if name in sys.modules])
"""
    seconds = []
    for _ in range(3):
        elapsed, heavy = python(WITHOUT_EDITABLE + code, tmp_path, path=ROOT)
        assert heavy == ""
        seconds.append(float(elapsed))
    assert min(seconds) < 0.3


def foreign_adapters(folder: Path) -> None:
    """Lay another project's top-level package `adapters` into `folder`."""
    (folder / "adapters").mkdir()
    (folder / "adapters" / "__init__.py").write_text("OWNER = 'somebody else'\n")
    (folder / "adapters" / "chain.py").write_text("")


def test_foreign_adapters_is_left_alone(site: Path, tmp_path: Path) -> None:
    foreign_adapters(site)
    code = """
import adapters, sim2real, sim2real.adapters
print(adapters.OWNER)
print(sim2real.adapters.__file__)
print(len(sim2real.__path__))
"""
    owner, ours, paths = python(WITHOUT_EDITABLE + code, tmp_path, path=site)
    assert owner == "somebody else"
    assert Path(ours) == site / "sim2real" / "adapters" / "__init__.py"
    assert paths == "1"


def test_foreign_adapters_does_not_stand_in_for_a_missing_one(site: Path, tmp_path: Path) -> None:
    foreign_adapters(site)
    shutil.rmtree(site / "sim2real" / "adapters")
    code = """
try:
    import sim2real.adapters
except ModuleNotFoundError as error:
    print(error.name)
"""
    assert python(WITHOUT_EDITABLE + code, tmp_path, path=site) == ["sim2real.adapters"]
