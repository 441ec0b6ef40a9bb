"""A reader under atheris: `python -m stress.fuzz_target NAME -max_total_time=10`; libFuzzer's own options
follow the name."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["cache_core"]):
    from .hostile import DOCUMENTS, _load, reads

_folder = tempfile.TemporaryDirectory()


def one_text(reader):
    return lambda data: reads(reader, atheris.FuzzedDataProvider(data).ConsumeUnicode(20_000))


def one_file(data: bytes) -> None:
    reads(lambda content: _load(Path(_folder.name), content), data)


if __name__ == "__main__":
    target = sys.argv.pop(1)
    atheris.Setup(sys.argv, one_file if target == "profiles" else one_text(DOCUMENTS[target][0]))
    atheris.Fuzz()
