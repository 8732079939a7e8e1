// OpenAI's SDK: chat completions with its helpers, and responses.
import OpenAI from 'openai'
import { zodFunction, zodResponseFormat, zodTextFormat } from 'openai/helpers/zod'
import { MODEL, Person, STORY, TOO_LONG, assert, baseURL, cancels, report } from './reports.js'

const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 })
const short = { model: MODEL, temperature: 0 }
const hello = [{ role: 'user', content: 'Say hello.' }]
const invent = [{ role: 'user', content: 'Invent a person.' }]

async function chat() {
  const answer = await client.chat.completions.create({ ...short, messages: hello, max_tokens: 8 })
  assert(answer.choices[0].message.content && answer.usage.completion_tokens <= 8)
  const first = await client.responses.create({ ...short, input: 'I am Ada.', max_output_tokens: 16 })
  const then = await client.responses.create({
    ...short, input: 'Hi', previous_response_id: first.id, max_output_tokens: 16,
  })
  assert(first.output_text && then.output_text && (await client.models.list()).data.length)
}

async function stream() {
  const answer = client.chat.completions.stream({ ...short, messages: hello, max_tokens: 8 })
  assert(await answer.finalContent())
  const kinds = []
  const events = await client.responses.create({ ...short, input: 'Hi', max_output_tokens: 16, stream: true })
  for await (const event of events) kinds.push(event.type)
  assert(kinds[0] === 'response.created' && ['response.completed', 'response.incomplete'].includes(kinds.at(-1)), `${kinds}`)
}

async function tools() {
  const save = zodFunction({ name: 'save_person', parameters: Person, function: async () => 'saved' })
  const answer = await client.chat.completions.parse({
    ...short, messages: invent, tools: [save], tool_choice: 'required',
  })
  Person.parse(answer.choices[0].message.tool_calls[0].function.parsed_arguments)
  const named = { type: 'function', function: { name: 'save_person' } } // (which the runner calls once)
  const runner = client.chat.completions.runTools({ ...short, messages: invent, tools: [save], tool_choice: named })
  assert((await runner.finalFunctionToolCallResult()) === 'saved')
}

async function structured() {
  const answer = await client.chat.completions.parse({
    ...short, messages: invent, response_format: zodResponseFormat(Person, 'person'),
  })
  Person.parse(answer.choices[0].message.parsed)
  const made = await client.responses.parse({
    ...short, input: 'Invent a person.', text: { format: zodTextFormat(Person, 'person') },
  })
  Person.parse(made.output_parsed)
}

async function embeddings() {
  const vectors = await client.embeddings.create({ model: MODEL, input: ['a cat', 'a kitten'] })
  assert(vectors.data.length === 2 && vectors.data[0].embedding.length > 0)
}

async function errors() {
  for (const [code, model, text] of [['model_not_found', 'gpt-9', 'Hi'], ['context_length_exceeded', MODEL, TOO_LONG]]) {
    for (const ask of [
      () => client.chat.completions.create({ model, messages: [{ role: 'user', content: text }] }),
      () => client.responses.create({ model, input: text }),
    ]) {
      const error = await ask().then(() => null, (e) => e)
      assert(error instanceof OpenAI.APIError && error.code === code, String(error))
    }
  }
}

async function cancel() {
  const messages = [{ role: 'user', content: STORY }]
  await cancels(async () => {
    for await (const _ of await client.chat.completions.create({ model: MODEL, messages, stream: true })) break
  })
  await cancels(async () => {
    const events = await client.responses.create({ model: MODEL, input: STORY, stream: true })
    for await (const event of events) if (event.type === 'response.output_text.delta') break
  })
}

await report(chat, stream, tools, structured, embeddings, errors, cancel)
