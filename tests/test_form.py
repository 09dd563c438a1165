from __future__ import annotations

import sysconfig
from pathlib import Path

from llama_gguf.form import COMPILED, PURE, form_of


def test_the_form_of_an_installation_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "memo.py").touch()
    assert form_of(str(tmp_path)) == PURE

    (tmp_path / f"memo{sysconfig.get_config_var('EXT_SUFFIX')}").touch()
    assert form_of(str(tmp_path)) == COMPILED
