"""The ``circuits`` command: what it prints, where, and with which exit code."""

from __future__ import annotations

import importlib
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from circuits.catalogue import KINDS
from circuits.cli import app
from circuits.config import config_files
from interp.scores import SCORES
from interp.scores.labels import HEAD_TYPES
from interp.zoo import path

ROOT = Path(__file__).parent.parent.parent
SMALL = ("n_prompts=4", "segment=8", "draws=2", "top_k=1", "shown=1", "emergence=false", "texts=[]", "batch_size=4")


def call(*words: str) -> tuple[int, str, str]:
    """Exit code, standard output and error stream of the command, in this process."""
    result = CliRunner().invoke(app, list(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def modules_after(*words: str, first: str = "") -> set[str]:
    """torch and transformers, as far as ``circuits WORDS`` imports them in a fresh process."""
    code = (
        f"import sys\n{first}\nsys.argv = ['circuits', *{list(words)!r}]\nfrom circuits.cli import main\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert not end.code, end.code\n"
        "print('\\n', *({'torch', 'transformers', 'pandas', 'plotly'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize(
    "words",
    [
        ["list"],
        ["list", "--json"],
        ["list", "scores"],
        ["show", "induction"],
        ["show", "copying"],
        ["schema", "induction"],
        ["--help"],
        ["run", "--help"],
    ],
)
def test_what_only_reads_imports_no_torch(words: list[str]) -> None:
    assert modules_after(*words) == set()


def test_the_check_above_can_fail() -> None:
    assert "torch" in modules_after("list", first="import interp; interp.Site")


@pytest.mark.slow
def test_what_only_reads_takes_less_than_a_second() -> None:
    for words in (["list"], ["show", "induction"], ["--help"]):
        times = []
        for _ in range(5):
            began = time.perf_counter()
            subprocess.run([sys.executable, "-m", "circuits", *words], cwd=ROOT, capture_output=True, check=True)
            times.append(time.perf_counter() - began)
        assert sorted(times)[2] < 1.0, (words, times)


def test_list_has_one_line_for_every_name() -> None:
    code, out, _ = call("list")
    lines = out.splitlines()
    assert code == 0
    for kind, entries in KINDS.items():
        assert f"{kind.upper()}S" in lines
        for name, line in entries().items():
            assert sum(1 for shown in lines if shown.split()[:1] == [name] and line in shown) >= 1, (kind, name)
            assert "\n" not in line and line.strip() == line and line


def test_list_as_json_says_the_same() -> None:
    rows = json.loads(call("list", "--json")[1])
    assert {(row["kind"], row["name"]) for row in rows} == {
        (kind, name) for kind, entries in KINDS.items() for name in entries()
    }


def test_list_of_one_kind_takes_singular_and_plural() -> None:
    assert call("list", "scores")[1] == call("list", "score")[1] != call("list", "edit")[1]
    code, out, error = call("list", "scroes")
    assert (code, out) == (2, "") and "Did you mean 'score'" in error


def test_list_of_scores_says_range_direction_needs_cost_and_source() -> None:
    out = call("list", "scores")[1]
    rows = {row["name"]: row for row in json.loads(call("list", "scores", "--json")[1])}
    assert rows.keys() == SCORES.keys()
    for name, entry in SCORES.items():
        block = re.search(rf"^  {name} .*\n((?:   .*\n)+)", out + "\n", re.MULTILINE)
        assert block, name
        words = " ".join(block.group(1).split())
        for fact in ("range", "direction", "needs", "cost", "source"):
            assert f"{fact}: {' '.join(rows[name][fact].split())}" in words, (name, fact)
        assert (rows[name]["direction"], rows[name]["needs"]) == (entry.direction, entry.needs)
    assert rows["copying"]["range"] == "-1 to 1" and rows["negative_attention"]["range"] == "-infinity to infinity"


def test_list_of_labels_says_stage_test_and_source() -> None:
    rows = {row["name"]: row for row in json.loads(call("list", "labels", "--json")[1])}
    assert rows.keys() == HEAD_TYPES.keys()
    assert "beyond" in rows["induction"]["test"] and rows["truthfulness"]["test"].startswith("no test here")
    assert "stage: latent reasoning" in call("list", "labels")[1]


@pytest.mark.parametrize("name", sorted(SCORES))
def test_show_prints_the_whole_card_of_a_score(name: str) -> None:
    entry = SCORES[name]
    about = json.loads(call("show", name, "--kind", "score", "--json")[1])
    out = " ".join(call("show", name, "--kind", "score")[1].split())
    module, function = entry.function.split(":")
    docstring = inspect.getdoc(getattr(importlib.import_module(module), function))
    assert docstring and about["definition"] == docstring and " ".join(docstring.split()) in out
    for words in (entry.summary, entry.direction, entry.source, entry.counts, *entry.options, *entry.options.values()):
        assert " ".join(words.split()) in out, words


def test_show_names_what_has_the_same_name_and_takes_a_kind() -> None:
    assert "Also a score: circuits show induction --kind score" in call("show", "induction")[1]
    assert call("show", "induction", "--kind", "score")[1].startswith("induction (score): ")
    assert call("show", "induction", "--kind", "label")[1].startswith("induction (label): ")
    assert call("show", "induction", "--kind", "experiment")[1].startswith("induction: ")
    assert call("show", "retrieval", "--kind", "label")[1].startswith("retrieval (label): ")
    code, out, error = call("show", "inductoin", "--kind", "score")
    assert (code, out) == (2, "") and "Did you mean 'induction'" in error
    code, out, error = call("show", "induction", "--kind", "scor")
    assert (code, out) == (2, "") and "Did you mean 'score'" in error


@pytest.mark.parametrize("name", sorted(config_files()))
def test_show_tells_the_settings_and_what_a_run_needs_and_writes(name: str) -> None:
    code, out, _ = call("show", name)
    about = json.loads(call("show", name, "--json")[1])
    assert code == 0 and {"measures", "needs", "writes", "command", "config"} <= about.keys()
    for word in ("measures:", "needs:", "writes:", about["command"], *(f"{key} = " for key in about["config"])):
        assert word in out


def test_show_knows_the_other_names_too() -> None:
    assert call("show", "freeze_pattern")[1].startswith("freeze_pattern (edit): ")
    code, out, error = call("show", "freeze_patern")
    assert (code, out) == (2, "") and "Unknown experiment" in error


def test_schema_is_a_json_schema_of_the_settings() -> None:
    schema = json.loads(call("schema", "induction")[1])
    assert schema["additionalProperties"] is False and schema["properties"]["n_prompts"]["minimum"] == 4
    assert call("schema", "induction-natural")[1] == call("schema", "induction")[1]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["inducton"], "Did you mean 'induction'"),
        (["induction", "n_promts=3"], "Did you mean 'n_prompts'"),
        (["induction", "n_prompts=many"], "expected a whole number"),
        (["induction", "model=inducton"], "Unknown model 'inducton'"),
        (["induction", "scores=[copyng]"], "Did you mean 'copying'"),
        (["nowhere.yaml"], "There is no file"),
        (["induction", "segment=90"], "At most segment=63 works"),
        (["induction", "device=nosuchdevice"], "device=nosuchdevice: torch cannot use it here"),
        (["induction", "model=damaged"], "could not be read"),
    ],
)
def test_bad_input_is_a_sentence_and_two(
    words: list[str], says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    damaged = Path(shutil.copytree(path("induction"), "damaged", ignore=shutil.ignore_patterns("checkpoints")))
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    code, out, error = call("run", *words, "--out", "run")
    assert (code, out) == (2, "") and says in error and "Traceback" not in error
    assert [left.name for left in tmp_path.iterdir()] == ["damaged"], "something was left of a refused run"


@pytest.mark.parametrize("words", [["run"], ["list", "a", "b"], ["nothing"], ["run", "induction", "--no-such-option"]])
def test_wrong_usage_is_two(words: list[str]) -> None:
    assert call(*words)[0] == 2


def test_an_output_folder_that_cannot_be_written_is_refused_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import interp

    def never(*_: object, **__: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(interp, "load", never)
    (tmp_path / "file").write_text("not a folder")
    code, out, error = call("run", "induction", "--out", str(tmp_path / "file" / "run"))
    assert (code, out) == (2, "") and "cannot be written" in error and "--out" in error
    if os.geteuid():  # root may write anywhere
        closed = tmp_path / "closed"
        closed.mkdir(mode=0o555)
        assert call("run", "induction", "--out", str(closed / "run"))[0] == 2


def test_run_as_json_prints_json_and_nothing_else(tmp_path: Path) -> None:
    code, out, _ = call("run", "induction", *SMALL, "--out", str(tmp_path / "run"), "--json")
    found = json.loads(out)
    assert code == 0 and not found["reused"]
    assert Path(found["report"]).is_file() and found["answer"] and found["top"]
    assert {"config.yaml", "manifest.json", "summary.json", "report.html", "heads.parquet", "units", "figures"} == {
        path.name for path in (tmp_path / "run").iterdir()
    }


def test_run_prints_the_top_the_answer_and_the_report_and_progress_only_beside(tmp_path: Path) -> None:
    where = str(tmp_path / "run")
    code, out, error = call("run", "induction", *SMALL, "--out", where)
    assert code == 0 and re.search(r"^L\d\.H\d ", out, re.MULTILINE) and out.rstrip().endswith(f"{where}/report.html")
    assert "Without each head" in error and "Without each head" not in out
    code, again, error = call("run", "induction", *SMALL, "--out", where, "--quiet")
    assert code == 0 and "finished before" in again and error == ""
    assert again.replace("This run was finished before; nothing was computed again (--force does).\n\n", "") == out


@pytest.mark.parametrize("stale", [True, False])
def test_the_command_refuses_to_start_under_the_other_distribution(tmp_path: Path, stale: bool) -> None:
    """The PyPI distribution called circuits, installed into the same folder: over our files, or beside them."""
    shutil.copytree(ROOT / "circuits", tmp_path / "circuits", ignore=shutil.ignore_patterns("__pycache__"))
    if stale:
        (tmp_path / "circuits" / "__init__.py").write_text("__version__ = '3.2.3'\n")
    (tmp_path / "circuits" / "core").mkdir()
    (tmp_path / "circuits" / "core" / "manager.py").write_text("")
    done = subprocess.run(
        [sys.executable, "-c", "import circuits.cli"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode and last.startswith("ImportError") and "headscope" in last and "'circuits'" in last
