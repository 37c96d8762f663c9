"""Promises of the files of a run directory that no loop writes."""

from cpt_dist.run_directory import RunDirectory


def test_the_plan_of_the_order_is_kept_and_a_damaged_file_of_it_is_as_a_missing_one(tmp_path):
    directory = RunDirectory(tmp_path)
    assert directory.read_order() is None
    for identity in ({"seed": 1, "stages": [{"mixture": {"a": (0, 1)}}]}, {"seed": 2, "stages": []}):
        directory.keep_order(identity)
        assert directory.read_order()["seed"] == identity["seed"]
    written = directory.order.stat().st_mtime_ns
    directory.keep_order({"stages": [], "seed": 2})
    assert directory.order.stat().st_mtime_ns == written
    directory.order.write_text("{")
    assert directory.read_order() is None
