"""What README and docs tell a reader to type, typed.

Launch commands are composed and checked, without what they begin then; those that train for minutes are run by `make
demo`, and their like on a tiny model by tests/e2e. Make targets must exist. Relative links must lead somewhere.
"""

import contextlib
import importlib.util
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from cpt_dist import cli

run = cli.run
ROOT = Path(__file__).resolve().parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def commands(page):
    """The commands of a page's sh blocks, continued lines joined, comments cut."""
    found = []
    for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                found.append(words)
    return found


def of_kind(test):
    return [pytest.param(words, id=shlex.join(words)) for page in PAGES for words in commands(page) if test(words)]


def is_launch(words):
    return any(word.startswith("launch/") for word in words)


COMPOSED = of_kind(lambda words: is_launch(words) and "my_configs" not in shlex.join(words))


def not_begun(config):
    print(OmegaConf.to_yaml(config))


@pytest.mark.parametrize("words", COMPOSED)
def test_a_launch_command_composes(words, monkeypatch, capsys):
    script = next(index for index, word in enumerate(words) if word.startswith("launch/"))
    assert words[0] in ("python", "torchrun", "deepspeed")
    assert (ROOT / words[script]).is_file()
    arguments = words[script + 1 :]
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", [words[script], *arguments])
    monkeypatch.setattr(cli, "run", lambda main, *given, **named: run(not_begun, *given, **named))
    monkeypatch.setattr(cli, "end_process", sys.exit)
    GlobalHydra.instance().clear()
    with contextlib.suppress(SystemExit):
        runpy.run_path(words[script], run_name="__main__")
    output = capsys.readouterr()
    # A page may go on with a run that its reader has by then.
    later = any(word.startswith("run_dir=") for word in arguments) and "no run was started there" in output.err
    assert output.out.startswith("run_dir:") or later, output.err


@pytest.mark.parametrize("words", of_kind(lambda words: words[0] == "make"))
def test_a_make_target_exists(words):
    assert subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, capture_output=True, check=False).returncode == 0


@pytest.mark.parametrize("words", of_kind(lambda words: words[0] == "python" and not is_launch(words)))
def test_a_python_command_names_what_is_there(words):
    if words[1] == "-m":
        assert importlib.util.find_spec(words[2]) is not None
    else:
        assert (ROOT / words[1]).is_file()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_and_named_files_are_there(page):
    text = page.read_text(encoding="utf-8")
    targets = [t for t in re.findall(r"\]\(([^)#]+)", text) if not t.startswith("http")]
    missing = [target for target in targets if not (page.parent / target).exists()]
    named = re.findall(r"`((?:cpt_dist|tests|docs|configs|demo|launch|kernels)/[\w/.-]+\.(?:py|md|yaml))`", text)
    missing += [name for name in named if not (ROOT / name).exists()]
    assert missing == []


def test_the_configuration_page_is_that_of_the_schema():
    spec = importlib.util.spec_from_file_location("make_configuration", ROOT / "docs" / "make_configuration.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8") == module.page(), "run the command in it"
