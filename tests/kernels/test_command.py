"""The commands of `python -m cpt_kernels` refuse wrong arguments on one line with exit code 2."""

import pytest
from cpt_kernels.cli import main


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the following arguments are required: command; python -m cpt_kernels --help tells what there is"),
        (["tabel"], "invalid choice: 'tabel' (choose from "),
        (["table", "--fast"], "unrecognized arguments: --fast; "),
        (["check", "--operation", "gelu"], "invalid choice: 'gelu' (choose from "),
        (["check", "--fast", "--large"], "not allowed with argument --fast; python -m cpt_kernels check --help"),
        (["compile", "--target", "sm_10"], "invalid choice: 'sm_10' (choose from "),
    ],
)
def test_a_wrong_argument_is_one_line(arguments, said, capsys):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    assert end.value.code == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    assert said in line
