"""LangChain's ChatOpenAI, with both of OpenAI's APIs, and an agent of LangGraph."""

import openai
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from langgraph.prebuilt import create_react_agent
from reports import MODEL, STORY, TOO_LONG, URL, Person, cancels, report

TO = {"base_url": f"{URL}/v1", "api_key": "none", "max_retries": 0, "temperature": 0}
model = ChatOpenAI(model=MODEL, max_completion_tokens=500, **TO)
responses_model = ChatOpenAI(model=MODEL, use_responses_api=True, max_completion_tokens=500, **TO)
MODELS = (model, responses_model)


def chat():
    for each in MODELS:
        said = each.bind(max_tokens=16).invoke("Say hello.")
        assert said.text and said.usage_metadata["output_tokens"] > 0


def stream():
    for each in MODELS:
        assert "".join(chunk.text for chunk in each.stream("Say hello."))


def save_person(person: Person) -> str:
    """Saves a person."""
    return "saved"


def tools():
    for each in MODELS:
        for choice in ("any", "save_person"):
            (call,) = each.bind_tools([save_person], tool_choice=choice).invoke("Invent a person.").tool_calls
            Person.model_validate(call["args"]["person"])
    turns = create_react_agent(model, [save_person]).invoke({"messages": [("user", "Say hello.")]})["messages"]
    assert turns[-1].text or turns[-1].tool_calls


def structured():
    for each in MODELS:
        for method in ("json_schema", "function_calling"):
            made = each.with_structured_output(Person, method=method).invoke("Invent a person.")
            assert isinstance(made, Person), method


def embeddings():
    client = OpenAIEmbeddings(
        model=MODEL, base_url=f"{URL}/v1", api_key="none", check_embedding_ctx_length=False, max_retries=0
    )
    assert len(client.embed_query("a cat")) == len(client.embed_documents(["a", "b"])[1]) > 0
    foreign = OpenAIEmbeddings(model=MODEL, base_url=f"{URL}/v1", api_key="none", max_retries=0)
    assert foreign.check_embedding_ctx_length


def errors():
    for each in MODELS:
        try:
            each.invoke(TOO_LONG)
        except openai.BadRequestError as error:
            assert type(error).__name__ == "OpenAIContextOverflowError", type(error).__mro__
        else:
            raise AssertionError("no error")
    try:
        ChatOpenAI(model="gpt-9", **TO).invoke("Hi")
    except openai.NotFoundError:
        pass
    else:
        raise AssertionError("no error")


def cancel():
    def ask(each):
        chunks = each.stream(STORY)
        next(chunks)
        chunks.close()

    for each in MODELS:
        cancels(lambda each=each: ask(each))


report(chat, stream, tools, structured, embeddings, errors, cancel)
