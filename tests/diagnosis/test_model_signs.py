"""What gives an instruct model away."""

import json

import pytest

from cpt_dist.diagnosis.model_signs import instruct_signs


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "tiny-base"
    path.mkdir()
    (path / "tokenizer_config.json").write_text('{"eos_token": "<|end|>"}')
    (path / "generation_config.json").write_text('{"eos_token_id": 0}')
    (path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Tiny\nA base model; there is a chat version.\n")
    return path


def test_a_base_model_shows_no_sign(folder):
    assert instruct_signs(folder) == ()


SIGNS = {
    "tokenizer_config.json": (json.dumps({"chat_template": "{{ messages }}"}), "its tokenizer has a chat template"),
    "chat_template.jinja": ("{{ messages }}", "its tokenizer has a chat template"),
    "generation_config.json": ('{"eos_token_id": [0, 2]}', "its generation config ends answers at 2 different tokens"),
    "README.md": (
        "---\nbase_model: tiny/tiny\ntags: [chat]\n---\n# Tiny\n",
        "its model card names a base model that it was made from",
    ),
}


@pytest.mark.parametrize("name", SIGNS)
def test_each_sign_is_named(folder, name):
    content, sign = SIGNS[name]
    (folder / name).write_text(content)
    assert sign in instruct_signs(folder)


@pytest.mark.parametrize(("name", "sign"), [("Tiny-1B-Instruct", "Instruct"), ("tiny-it", "it"), ("chat_tiny", "chat")])
def test_the_name_of_the_folder_is_a_sign(folder, name, sign):
    assert instruct_signs(folder.rename(folder.with_name(name))) == (f"its folder's name says '{sign}'",)


def test_damaged_files_are_no_sign(folder):
    (folder / "tokenizer_config.json").write_text("{")
    (folder / "generation_config.json").write_text("[]")
    assert instruct_signs(folder) == ()
