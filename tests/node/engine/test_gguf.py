"""Models in several files, and files that are no models to serve."""

import struct
from contextlib import suppress
from pathlib import Path

import pytest
import trio

from mycelia.node.engine.child.llama.models import model_digest
from mycelia.node.engine.gguf import check_file, num_cached_heads
from mycelia.node.engine.models import model_name, resolve_model
from mycelia.node.engine.process import open_engine
from mycelia.node.engine.settings import EngineSettings
from mycelia.proto.wire.errors import LocalError
from mycelia.proto.wire.messages import Sampling
from tests.node.engine.child.tiny_models import write_model
from tests.node.engine.gguf_files import header, quick_model, split, text, text_field
from tests.node.engine.test_sampling import ask, tokens_of

LLAMA = text_field("general.architecture", "llama")
WRONG = {
    "mmproj": ([text_field("general.architecture", "clip"), text_field("general.type", "mmproj")], 1, "sees images"),
    "older mmproj": ([text_field("general.architecture", "clip")], 1, "sees images"),
    "lora": ([LLAMA, text_field("general.type", "adapter")], 1, "LoRA adapter"),
    "vectors": ([text_field("general.architecture", "controlvector")], 1, "control vector"),
    "encoder": ([text_field("general.architecture", "t5encoder")], 1, "reading half of a T5"),
    "diffusion": ([text_field("general.architecture", "llada")], 1, "diffusion model"),
    "imatrix": ([text_field("general.type", "imatrix")], 1, "importance matrix"),
    "vocabulary": ([LLAMA], 0, "vocabulary without a model"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_other_kinds_of_files_get_a_clear_line(kind: str, tmp_path: Path) -> None:
    fields, num_tensors, says = WRONG[kind]
    path = tmp_path / f"{kind}.gguf"
    path.write_bytes(header(num_tensors, fields))
    with pytest.raises(LocalError, match=says) as caught:
        resolve_model(str(path))
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and ": " in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [
        header(1, [LLAMA]),
        header(1, [text("a") + struct.pack("<IIQ", 9, 8, 3) + text("x") * 3, LLAMA]),
        header(1, [text("a") + struct.pack("<IIQ", 9, 8, 2**60), LLAMA]),
        header(1, [text("a") + struct.pack("<I", 99), LLAMA]),
        header(1, [struct.pack("<Q", 2**60)]),
        header(1, [text("a") + struct.pack("<IIQ", 9, 9, 1)]),
        header(1, [LLAMA])[:-3],
        header(1, [text("\udcff".encode("utf-8", "surrogateescape").decode("latin-1"))]),
        b"GGUF",
        b"GGUF" + b"\xff" * 64,
    ],
)
def test_a_header_is_llama_cpps_to_judge_if_it_names_no_other_kind(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "some.gguf"
    path.write_bytes(data)
    check_file(path)
    for place in range(4, len(data)):
        path.write_bytes(data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :])
        with suppress(LocalError):  # (no other error)
            check_file(path)


def test_a_missing_part_is_named(tmp_path: Path) -> None:
    names = [f"big-{number:05}-of-00003.gguf" for number in (1, 2, 3)]
    for name in names[:1] + names[2:]:
        (tmp_path / name).write_bytes(header(1, [LLAMA]))
    for name in names:
        with pytest.raises(LocalError, match=r"big-00002-of-00003\.gguf is missing: the model has 3 parts"):
            resolve_model(str(tmp_path / name))
    (tmp_path / names[1]).write_bytes(b"GGUF")
    assert {resolve_model(str(tmp_path / name)) for name in names} == {tmp_path / names[0]}
    assert model_name(str(tmp_path / names[2])) == "big"
    odd = tmp_path / "odd-00004-of-00003.gguf"
    odd.write_bytes(header(1, [LLAMA]))
    assert resolve_model(str(odd)) == odd


async def test_a_model_in_parts_answers_as_the_whole_and_has_an_identity_of_all(tmp_path: Path) -> None:
    whole = quick_model()
    parts = split(whole, tmp_path, 3)
    chosen: list[list[int]] = []
    for path in (whole, resolve_model(str(parts[2]))):
        with trio.fail_after(120):
            async with open_engine(EngineSettings(path, cells=512)) as engine:
                prompt = await engine.tokenize_text("Once upon a time")
                chosen.append(tokens_of(await ask(engine, prompt, Sampling(max_tokens=8))))
    assert chosen[0] == chosen[1] and len(chosen[0]) == 8
    before = model_digest(parts[0])
    assert before == model_digest(parts[1]) != model_digest(whole)
    with parts[2].open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\x01")
    assert model_digest(parts[0]) != before


@pytest.mark.parametrize(("kind", "heads"), [("granitehybrid", 2), ("lfm2", 2), ("falcon-h1", 8), ("mamba", None)])
def test_the_heads_that_keep_keys_and_values_are_those_of_the_layers_with_attention(
    kind: str, heads: int | None, tmp_path: Path
) -> None:
    assert num_cached_heads(write_model(tmp_path / "tiny.gguf", kind, num_layers=4)) == heads


def test_heads_are_counted_by_what_a_header_says(tmp_path: Path) -> None:
    def number(name: str, value: int) -> bytes:
        return text(name) + struct.pack("<II", 4, value)

    path = tmp_path / "some.gguf"
    fields = [LLAMA, number("llama.block_count", 8), number("llama.attention.head_count_kv", 3)]
    for more, heads in (([], 24), ([number("llama.full_attention_interval", 4)], 6)):
        path.write_bytes(header(1, [*fields, *more]))
        assert num_cached_heads(path) == heads
    odd = text("llama.attention.head_count_kv") + struct.pack("<IIQ", 9, 8, 1) + text("many")
    for data in (header(1, [LLAMA, odd]), header(1, fields[:2]), b"GGUF", b""):
        path.write_bytes(data)
        assert num_cached_heads(path) is None
    assert num_cached_heads(tmp_path / "none.gguf") is None
