// Vercel's AI SDK with its providers: OpenAI's default (responses) and chat model, Anthropic's, that for compatible servers.
import { createAnthropic } from '@ai-sdk/anthropic'
import { createOpenAI } from '@ai-sdk/openai'
import { createOpenAICompatible } from '@ai-sdk/openai-compatible'
import { APICallError, generateText, Output, stepCountIs, streamText, tool } from 'ai'
import { MODEL, Person, STORY, TOO_LONG, assert, baseURL, cancels, report } from './reports.js'

globalThis.AI_SDK_LOG_WARNINGS = false
const settings = { temperature: 0, maxRetries: 0, maxOutputTokens: 500 }
const openai = createOpenAI({ baseURL, apiKey: 'none' })
const anthropic = createAnthropic({ baseURL, apiKey: 'none' })
const compatible = createOpenAICompatible({ name: 'mycelia', baseURL, supportsStructuredOutputs: true })
const providers = { responses: openai, chat: openai.chat, messages: anthropic, compatible }
const save_person = tool({ description: 'Saves a person.', inputSchema: Person, execute: async () => 'saved' })

async function everywhere(ask) {
  for (const [name, provider] of Object.entries(providers)) {
    await ask(provider(MODEL), provider).catch((error) => { throw new Error(`${name}: ${error}`, { cause: error }) })
  }
}

const chat = () => everywhere(async (model) => {
  assert((await generateText({ ...settings, model, prompt: 'Say hello.', maxOutputTokens: 16 })).text)
})

const stream = () => everywhere(async (model) => {
  let text = ''
  for await (const piece of streamText({ ...settings, model, prompt: 'Say hello.', maxOutputTokens: 16 }).textStream) text += piece
  assert(text)
})

const tools = () => everywhere(async (model) => {
  const ask = { ...settings, model, prompt: 'Invent a person.', tools: { save_person } }
  const { toolCalls } = await generateText({ ...ask, toolChoice: 'required' })
  Person.parse(toolCalls[0].input)
  const parts = []
  for await (const part of streamText({ ...ask, toolChoice: { type: 'tool', toolName: 'save_person' } }).fullStream) parts.push(part)
  Person.parse(parts.find((part) => part.type === 'tool-call')?.input)
  assert((await generateText({ ...ask, toolChoice: 'required', stopWhen: stepCountIs(2) })).steps.length === 2)
})

const structured = () => everywhere(async (model) => {
  Person.parse((await generateText({ ...settings, model, prompt: 'Invent a person.', output: Output.object({ schema: Person }) })).output)
})

const errors = () => everywhere(async (model, provider) => {
  for (const [status, ask] of [[404, { model: provider('gpt-9'), prompt: 'Hi' }], [400, { model, prompt: TOO_LONG }]]) {
    const error = await generateText({ ...settings, ...ask }).then(() => null, (e) => e)
    assert(APICallError.isInstance(error) && error.statusCode === status && error.message.length > 20, String(error))
  }
})

const cancel = () => everywhere((model) => cancels(async () => {
  const abort = new AbortController()
  for await (const _ of streamText({ model, prompt: STORY, maxRetries: 0, abortSignal: abort.signal }).textStream) break
  abort.abort()
}))

await report(chat, stream, tools, structured, errors, cancel)
