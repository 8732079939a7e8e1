// What the programs of this folder share: each tries one client against the node at the URL given, and prints one line of
// JSON: what was tried -> "ok" or what went wrong.
import { z } from 'zod'

export const [, , URL, MODEL] = process.argv
export const baseURL = `${URL}/v1`
export const STORY = 'Tell me a very long story of a ship, its crew and the sea.'
export const TOO_LONG = 'word '.repeat(20_000)
const CANCEL_MS = 30_000

const Place = z.object({ city: z.string().max(20), country: z.string().max(20).nullable() })
export const Person = z.object({
  name: z.string().max(20),
  age: z.number().int().min(0).max(120),
  mood: z.enum(['calm', 'angry']),
  home: Place,
  trips: z.array(Place).max(2),
  email: z.email().max(30),
})

export function assert(holds, message = 'not as it should be') {
  if (!holds) throw new Error(message)
}

async function numCancelled() {
  const lines = (await (await fetch(`${URL}/metrics`)).text()).split('\n')
  const line = lines.find((each) => each.startsWith('mycelia_requests_total{outcome="cancelled"'))
  return line ? Number(line.split(' ').at(-1)) : 0
}

// Throws if the node does not report a cancelled request after `ask`, which begins a stream and ends it.
export async function cancels(ask) {
  const before = await numCancelled()
  const end = Date.now() + CANCEL_MS
  await ask()
  while ((await numCancelled()) === before) {
    assert(Date.now() < end, 'the node did not cancel the request')
    await new Promise((resolve) => setTimeout(resolve, 100))
  }
}

export async function report(...trials) {
  const told = {}
  for (const trial of trials) {
    try {
      await trial()
      told[trial.name] = 'ok'
    } catch (error) {
      console.error(error)
      told[trial.name] = `${error}`.slice(0, 600)
    }
  }
  console.log(JSON.stringify(told))
}
