"""lm-evaluation-harness: answers over both of OpenAI's APIs, and the logprobs of continuations. ``../test_lm_eval.py``
compares its scores."""

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalChatCompletion, LocalCompletionsAPI
from reports import MODEL, URL, report

UNTIL = {"until": ["\n\n"], "max_gen_toks": 16, "do_sample": False}


def asked(kind, *arguments):
    return [Instance(kind, {}, arguments, number) for number in range(2)]


def generate_until():
    model = LocalCompletionsAPI(model=MODEL, base_url=f"{URL}/v1/completions", tokenizer_backend="auto")
    assert all(model.generate_until(asked("generate_until", "Once upon a time", UNTIL)))


def chat_generate_until():
    model = LocalChatCompletion(model=MODEL, base_url=f"{URL}/v1/chat/completions", num_concurrent=2)
    turns = model.apply_chat_template([{"role": "user", "content": "Say hello."}])
    assert all(model.generate_until(asked("generate_until", turns, UNTIL)))


def loglikelihood():
    model = LocalCompletionsAPI(model=MODEL, base_url=f"{URL}/v1/completions", tokenizer_backend="auto")
    for value, _ in model.loglikelihood(asked("loglikelihood", "The capital of France is", " Paris")):
        assert -20 < value < 0, value


report(generate_until, chat_generate_until, loglikelihood)
