"""The wheel holds everything: unpacked elsewhere and run from another folder, it does what the checkout does."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the checkout."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(out), str(ROOT)]
    built = subprocess.run(command, capture_output=True, text=True, check=False)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(out.glob("headscope-*.whl"))


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the wheel's packages and nothing of the checkout."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def python(site: Path, *arguments: str, where: Path) -> subprocess.CompletedProcess[str]:
    """Python with ``site`` first on its path and the checkout nowhere on it."""
    code = "import sys; sys.path[:] = [p for p in sys.path if p != {root!r}]; sys.path.insert(0, {site!r}); "
    code = code.format(root=str(ROOT), site=str(site))
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": ""}
    return subprocess.run(
        [sys.executable, "-c", code + arguments[0], *arguments[1:]],
        capture_output=True,
        text=True,
        cwd=where,
        env=environment,
        check=False,
    )


def test_holds_packages_configs_templates_and_weights(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for source in ("interp", "circuits", "probes"):
        for path in (ROOT / source).rglob("*"):
            if path.is_file() and path.suffix != ".pyc":
                assert str(path.relative_to(ROOT)) in names, path
    for path in (ROOT / "configs").glob("*.yaml"):
        assert f"circuits/_configs/{path.name}" in names
    assert not any(name.startswith(("tests/", "benchmarks/")) for name in names)


def test_everything_comes_from_the_wheel_and_lists(unpacked: Path, tmp_path: Path) -> None:
    code = "import interp, circuits, probes; print(interp.__file__, circuits.__file__, probes.__file__)"
    shown = python(unpacked, code, where=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert all(path.startswith(str(unpacked)) for path in shown.stdout.split())
    listed = python(
        unpacked, "from circuits.cli import main; sys.argv = ['circuits', 'list', '--json']; main()", where=tmp_path
    )
    assert listed.returncode == 0, listed.stderr
    assert "induction" in json.dumps(json.loads(listed.stdout))


def test_loads_the_model_in_the_package(unpacked: Path, tmp_path: Path) -> None:
    code = "import interp; m = interp.load('induction'); print(len(m.heads()), m.tokenizer is not None)"
    shown = python(unpacked, code, where=tmp_path)
    assert shown.returncode == 0, shown.stderr
    assert shown.stdout.split() == ["8", "True"]
