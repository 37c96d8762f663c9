import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cpt_dist.cluster.request import override, parse_request, task_folder
from cpt_dist.errors import UserError

SPECIAL = st.text(st.sampled_from("ab\"'\\ ${}()\n\t,=;:[]#%~/é"), min_size=1, max_size=12)


@settings(max_examples=150, deadline=None)
@given(SPECIAL)
def test_hydra_reads_back_any_value(value):
    read = OverridesParser.create().parse_override(override("run_dir", value)).value()
    assert OmegaConf.create({"run_dir": read}).run_dir == value


def test_a_plain_path_stays_readable():
    assert override("run_dir", "/data/runs/law-7") == "run_dir=/data/runs/law-7"


def test_sweeps_give_every_combination_and_the_rest_goes_to_the_job_as_typed():
    words = ["experiment=law", "sweep.seed=1,2", "data.shards='a, b'", "sweep.schedule=wsd,cosine", "--dry-run"]
    request = parse_request(words, {"nodes": "cluster.nodes"})
    assert request.words == ["experiment=law", "data.shards='a, b'"]
    assert request.sweep == [
        ["seed=1", "schedule=wsd"],
        ["seed=1", "schedule=cosine"],
        ["seed=2", "schedule=wsd"],
        ["seed=2", "schedule=cosine"],
    ]
    assert request.dry_run


def test_commas_inside_quotes_are_no_choices_and_ranges_are():
    assert parse_request(["sweep.run_dir='x,y',z"]).sweep == [["run_dir='x,y'"], ["run_dir=z"]]
    assert parse_request(["sweep.seed=range(1,4)"]).sweep == [["seed=1"], ["seed=2"], ["seed=3"]]


def test_flags_go_before_the_overrides_so_that_a_sweep_can_follow():
    words = parse_request(["experiment=law", "--config-dir=x=y", "~data.text", "--cfg", "job", "seed=1"]).words
    assert words == ["--config-dir=x=y", "--cfg", "job", "experiment=law", "~data.text", "seed=1"]


def test_short_names_become_keys():
    assert parse_request(["nodes=4"], {"nodes": "cluster.nodes"}).words == ["cluster.nodes=4"]


def test_a_sweep_that_hydra_cannot_read_is_a_mistake():
    with pytest.raises(UserError, match="write it like"):
        parse_request(["sweep.seed=(1"])


def test_the_folder_of_a_task_says_what_is_special_about_it_in_plain_characters():
    assert task_folder(3, ["seed=1", "data.shards='/a b/$(x)'"]) == "task-003-seed-1-data.shards-a-b-x"
