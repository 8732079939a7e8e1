"""Hints about a build of llama.cpp that would be faster on this processor."""

from pathlib import Path

import pytest

from mycelia.node.doctor import machine, processor
from mycelia.node.doctor.machine import examine
from mycelia.node.doctor.processor import unused_instructions
from mycelia.node.engine.probe.probe import Library, Question, probe


def pretend(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "cpuinfo")


def test_instructions_that_the_build_does_not_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(tmp_path, monkeypatch, "processor : 0\nflags\t\t: fpu avx avx2 fma avx512f avx512_vnni\n")
    features = ["AVX", "AVX2", "FMA"]
    hint = unused_instructions(features)
    assert "without AVX512, AVX512_VNNI, which" in hint and "make setup CMAKE_ARGS=-DGGML_NATIVE=on" in hint
    assert unused_instructions([*features, "AVX512", "AVX512_VNNI"]) == "" == unused_instructions([])
    pretend(tmp_path, monkeypatch, "Features : fp asimd asimddp\n")
    assert "without NEON, DOTPROD, which" in unused_instructions(features)
    monkeypatch.setattr(processor, "CPUINFO", tmp_path / "none")
    assert unused_instructions(features) == "", "another system"
    library = Library("0.5.0", "0.3.36", ["CPU"], False, [], features=["AVX"])
    monkeypatch.setattr(machine, "probe", lambda question, model: [library])
    pretend(tmp_path, monkeypatch, "flags : avx avx2\n")
    assert any("without AVX2" in hint for hint in examine("fake", tmp_path).hints)


def test_the_library_says_what_it_uses() -> None:
    (library,) = probe(Question(8, 0, None), None)
    assert isinstance(library, Library) and library.features
