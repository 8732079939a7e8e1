"""The tokenizer over HTTP, in the forms of vLLM and llama-server."""

from mycelia.node.serve.api import VocabularyTexts
from tests.node.serve.openai.test_api import served

TEXTS = VocabularyTexts("<s>", "</s>", ord("h"), "{{ messages }}")


async def test_tokens_and_texts_of_both_servers() -> None:
    async with served() as (node, http):
        node.texts = TEXTS

        async def tokens(**body: object) -> list[int]:
            answer = (await http.post("/tokenize", json=body)).json()
            assert answer["count"] == len(answer["tokens"])
            return list(answer["tokens"])

        whole = list(b"hi")
        assert await tokens(prompt="hi") == await tokens(content="hi", add_special=True) == whole
        assert await tokens(prompt="hi", add_special_tokens=False) == await tokens(content="hi") == whole[1:]
        assert await tokens(content="no", model="fake") == list(b"no")
        told = (await http.post("/detokenize", json={"tokens": whole})).json()
        assert told == {"prompt": "hi", "content": "hi"}
        info = (await http.get("/tokenizer_info")).json()
        assert (info["bos_token"], info["eos_token"], info["add_bos_token"]) == ("<s>", "</s>", True)
        missing = await http.post("/tokenize", json={"prompt": "hi", "model": "other"})
        assert missing.status_code == 404 and missing.json()["error"]["code"] == "model_not_found"
        assert (await http.post("/detokenize", json={"tokens": [-1]})).status_code == 400
        unread = await http.post("/tokenize", json={"messages": [{"role": "user", "content": "hi"}]})
        assert unread.status_code == 400 and "/api/tokenize" in unread.json()["error"]["message"]
