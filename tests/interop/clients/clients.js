// Vercel's AI SDK with its default providers, and OpenAI's SDK, against the node at the URL given. Prints one line of
// JSON: the client's name -> what it got.
import { createAnthropic } from '@ai-sdk/anthropic'
import { createOpenAI } from '@ai-sdk/openai'
import { generateText, Output, streamText, tool } from 'ai'
import OpenAI from 'openai'
import { z } from 'zod'

const url = process.argv[2]
const baseURL = `${url}/v1`
const settings = { temperature: 0, maxRetries: 0 }

async function vercel(model) {
  const prompt = 'Say hello.'
  const whole = await generateText({ ...settings, model, prompt, maxOutputTokens: 12 })
  const streamed = streamText({ ...settings, model, prompt, maxOutputTokens: 12 })
  let text = ''
  for await (const piece of streamed.textStream) text += piece
  const weather = tool({
    description: 'Tells the weather of a place.',
    inputSchema: z.object({ place: z.string().max(20) }),
    execute: async () => 'rain',
  })
  const called = await generateText({
    ...settings, model, prompt: 'Weather in Paris?', tools: { weather }, toolChoice: 'required', maxOutputTokens: 60,
  })
  const schema = z.object({ name: z.string().max(20), home: z.object({ city: z.string().max(20) }) })
  const made = await generateText({
    ...settings, model, prompt: 'Invent a person.', output: Output.object({ schema }), maxOutputTokens: 100,
  })
  return { whole: whole.text, text, calls: called.toolCalls.map((call) => [call.toolName, call.input]), object: made.output }
}

async function openai() {
  const client = new OpenAI({ baseURL, apiKey: 'none', maxRetries: 0 })
  const request = { model: 'smollm2', max_output_tokens: 12, temperature: 0 }
  const first = await client.responses.create({ ...request, input: 'I am Ada.' })
  const stream = await client.responses.create({ ...request, input: 'Hi', previous_response_id: first.id, stream: true })
  const kinds = []
  for await (const event of stream) kinds.push(event.type)
  let error = ''
  await client.responses.create({ ...request, model: 'gpt-9', input: 'x' }).catch((e) => { error = `${e.status} ${e.code}` })
  return { text: first.output_text, kinds, error }
}

const results = {
  responses: await vercel(createOpenAI({ baseURL, apiKey: 'none' })('smollm2')),
  messages: await vercel(createAnthropic({ baseURL, apiKey: 'none' })('smollm2')),
  openai: await openai(),
}
console.log(JSON.stringify(results))
