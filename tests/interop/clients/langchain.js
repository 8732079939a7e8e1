// LangChain.js's ChatOpenAI over both of OpenAI's APIs. Prints one line of JSON: what was tried -> "ok" or what went wrong.
import { ChatOpenAI, OpenAIEmbeddings } from '@langchain/openai'
import { tool } from '@langchain/core/tools'
import { MODEL, Person, STORY, TOO_LONG, assert, baseURL, cancels, report } from './reports.js'

const settings = { model: MODEL, apiKey: 'none', temperature: 0, maxTokens: 500, maxRetries: 0, configuration: { baseURL } }
const models = [new ChatOpenAI(settings), new ChatOpenAI({ ...settings, useResponsesApi: true })]
const save = tool(async () => 'saved', { name: 'save_person', description: 'Saves a person.', schema: Person })

async function chat() {
  for (const model of models) {
    const said = await model.invoke('Say hello.')
    assert(said.text && said.usage_metadata.output_tokens > 0)
  }
}

async function stream() {
  for (const model of models) {
    let text = ''
    for await (const piece of await model.stream('Say hello.')) text += piece.text
    assert(text)
  }
}

async function tools() {
  for (const model of models) {
    // (over responses it leaves "any" and "required" out, to any server)
    for (const tool_choice of model === models[0] ? ['any', 'save_person'] : ['save_person']) {
      const { tool_calls } = await model.bindTools([save], { tool_choice }).invoke('Invent a person.')
      Person.parse(tool_calls[0].args)
    }
  }
}

async function structured() {
  for (const model of models) {
    for (const method of ['jsonSchema', 'functionCalling']) {
      Person.parse(await model.withStructuredOutput(Person, { method, name: 'person' }).invoke('Invent a person.'))
    }
  }
}

async function embeddings() {
  const vectors = new OpenAIEmbeddings({ model: MODEL, apiKey: 'none', maxRetries: 0, configuration: { baseURL } })
  const [first, second] = await vectors.embedDocuments(['a cat', 'a kitten'])
  assert(first.length > 0 && first.length === second.length)
}

async function errors() {
  for (const model of models) {
    const error = await model.invoke(TOO_LONG).then(() => null, (e) => e)
    assert(error?.name === 'ContextOverflowError', `${error?.name}: ${error?.message}`)
  }
  const error = await new ChatOpenAI({ ...settings, model: 'gpt-9' }).invoke('Hi').then(() => null, (e) => e)
  assert(error?.lc_error_code === 'MODEL_NOT_FOUND', String(error))
}

async function cancel() {
  for (const model of models) {
    await cancels(async () => {
      const abort = new AbortController()
      for await (const _ of await model.stream(STORY, { signal: abort.signal })) break
      abort.abort()
    })
  }
}

await report(chat, stream, tools, structured, embeddings, errors, cancel)
